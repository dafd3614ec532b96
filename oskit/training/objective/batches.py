"""Which examples make a batch, and what the loss gets: columns of texts, identities, teachers' scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sparse_encoder.data_collator import SparseEncoderDataCollator
from torch import Tensor

from oskit.data.duplicates import digest_of
from oskit.training.data.arrow import column_of
from oskit.training.data.normalising import normalise

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

QUERY, POSITIVE, NEGATIVE = "query", "positive", "negative"

ScoreMatrix = Callable[[Sequence[str], Sequence[str]], "NDArray[np.float32]"]
"""Teachers' labels of queries and texts, ``[queries, texts]``."""

_ODD = -0x61C8864680B583EB
"""2^64 divided by the golden ratio, as a signed number: spreads the bits of a product."""


def query_id(query: str) -> int:
    """64 bits that are the same for queries that ask the same."""
    return int.from_bytes(digest_of(normalise(query))[:8], "little", signed=True)


def document_id(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(digest_of(text)[:8], "little", signed=True)


class KnownPairs:
    """Which documents are positives of which queries: 8 bytes a pair, however long the texts are.

    Args:
        examples: ``query`` and ``positive``.
    """

    def __init__(self, examples: Dataset) -> None:
        columns = column_of(examples, "query"), column_of(examples, "positive")
        ids = np.array(
            [(query_id(query), document_id(text)) for query, text in zip(*columns, strict=True)],
            dtype=np.int64,
        ).reshape(-1, 2)
        pairs = torch.from_numpy(ids)
        self._keys: Tensor = torch.unique(_pair_keys(pairs[:, 0], pairs[:, 1]))  # sorted

    def contains(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Whether each document answers each query, by their ids; the two are broadcast together."""
        keys = _pair_keys(queries, documents)
        if self._keys.device != keys.device:
            self._keys = self._keys.to(keys.device)
        places = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        return self._keys[places] == keys


def _pair_keys(queries: Tensor, documents: Tensor) -> Tensor:
    # Not symmetric in the two, and products wrap around.
    return (queries * _ODD) ^ (documents + (queries >> 7))


@dataclass
class ExampleCollator(SparseEncoderDataCollator):
    """Rows ``query``, ``positive``, ``negatives`` and perhaps ``label`` to a batch.

    Attributes:
        negatives: How many of a row's negatives are used; every row has as many.
        score_matrix: Labels every document of the batch for every query; None where rows have their labels.
    """

    negatives: int = 0
    score_matrix: ScoreMatrix | None = None

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The tokenized columns, ``query_ids``, ``document_ids`` and the ``label``."""
        rows = [self._columns(row) for row in features]
        batch: dict[str, Any] = super().__call__(rows)
        documents = [list(row.values())[1:] for row in rows]
        batch["query_ids"] = torch.tensor([query_id(row[QUERY]) for row in rows])
        batch["document_ids"] = torch.tensor([[document_id(text) for text in row] for row in documents])
        if self.score_matrix is not None:
            column_major = [text for column in zip(*documents, strict=True) for text in column]
            labels = self.score_matrix([row[QUERY] for row in rows], column_major)
            batch["label"] = torch.from_numpy(labels)
        elif "label" in features[0]:
            batch["label"] = torch.tensor([row["label"][: 1 + self.negatives] for row in features])
        return batch

    def _columns(self, row: dict[str, Any]) -> dict[str, str]:
        negatives = row["negatives"][: self.negatives] if self.negatives else []
        numbered = {f"{NEGATIVE}_{number}": text for number, text in enumerate(negatives, start=1)}
        return {QUERY: row["query"], POSITIVE: row["positive"], **numbered}


GROUPED_BATCHES = 16
"""Batches whose rows are sorted by length together: enough to spare most of the padding, and few enough that
a row still meets others than those of its own length."""


class LengthBatchSampler(DefaultBatchSampler):
    """Random batches of documents of similar length, another order in each epoch.

    The order follows from the seed and the epoch alone, so training that is resumed in any epoch goes on with
    the batches that it would have had. (``DefaultBatchSampler`` draws from one generator over all epochs.)

    Args:
        dataset: ``positive`` and ``negatives``.
        batch_size: Rows of a batch.
        drop_last: Leave out a last batch that is smaller.
        kwargs: Of ``DefaultBatchSampler``.
    """

    def __init__(self, dataset: Dataset, batch_size: int, drop_last: bool, **kwargs: Any) -> None:
        super().__init__(dataset, batch_size=batch_size, drop_last=drop_last, **kwargs)
        columns = column_of(dataset, "positive"), column_of(dataset, "negatives")
        longest = (max(map(len, (text, *others))) for text, others in zip(*columns, strict=True))
        self._lengths = np.fromiter(longest, dtype=np.int64, count=len(dataset))

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self._lengths))
        size = self.batch_size
        whole = len(order) // size
        rest = order[whole * size :]
        batches: list[NDArray[np.int64]] = []
        for start in range(0, whole * size, GROUPED_BATCHES * size):
            rows = order[start : min(start + GROUPED_BATCHES * size, whole * size)]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches.extend(rows.reshape(-1, size))
        for number in rng.permutation(whole):
            yield batches[number].tolist()
        if len(rest) and not self.drop_last:
            yield rest.tolist()

    def __len__(self) -> int:
        whole, rest = divmod(len(self._lengths), self.batch_size)
        return whole + bool(rest and not self.drop_last)


def routes(negatives: int) -> dict[str, str]:
    """Which side of an inference-free encoder each column goes through."""
    numbered = {f"{NEGATIVE}_{number}": "document" for number in range(1, negatives + 1)}
    return {QUERY: "query", POSITIVE: "document", **numbered}
