"""Which documents make a batch, drawn afresh in each epoch, and what the loss gets of them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from oskit.training.data.arrow import LABELS, candidate_rows, column_of, numbers_of, positives_of
from oskit.training.data.normalising import keys_of, same_key
from oskit.training.internals import SparseEncoderDataCollator

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from oskit.training.teachers.batch import BatchTeachers

QUERY, DOCUMENT = "query", "document"

ROUTES = {QUERY: "query", DOCUMENT: "document"}
"""Which side of an inference-free encoder each column goes through."""

_ODD = -0x61C8864680B583EB
"""2^64 divided by the golden ratio, as a signed number: spreads the bits of a product."""


def text_keys(texts: Iterable[str]) -> NDArray[np.int64]:
    """64 bits of each, the same for near-identical texts, such as queries that ask the same."""
    return keys_of(map(same_key, texts)).view(np.int64).copy()


class KnownPairs:
    """Which documents are positives of which queries: 8 bytes a pair and a document, however long texts are.
    What is near-identical to a positive is one.

    Args:
        examples: ``query``, ``candidates`` and ``positives``.
        corpus: Where the candidates are.
    """

    def __init__(self, examples: Dataset, corpus: Dataset) -> None:
        queries = text_keys(column_of(examples, "query"))
        rows = candidate_rows(examples, corpus)
        said = np.zeros(len(corpus), dtype=np.int64)
        said[rows] = text_keys(column_of(corpus, "text", rows))
        self._said = torch.from_numpy(said)
        owners, documents = positives_of(examples)
        keys = _pair_keys(torch.from_numpy(queries[owners]), self._said[torch.from_numpy(documents)])
        self._keys: Tensor = torch.unique(keys)  # sorted

    def contains(self, queries: Tensor, documents: Tensor) -> Tensor:
        """Whether each document answers each query, by the queries' ids and the rows of candidates in the
        corpus; the two are broadcast together."""
        if self._keys.device != queries.device:
            self._keys, self._said = self._keys.to(queries.device), self._said.to(queries.device)
        keys = _pair_keys(queries, self._said[documents])
        if not len(self._keys):
            return torch.zeros_like(keys, dtype=torch.bool)
        places = torch.searchsorted(self._keys, keys).clamp(max=len(self._keys) - 1)
        return self._keys[places] == keys


def _pair_keys(queries: Tensor, documents: Tensor) -> Tensor:
    # Not symmetric in the two, and products wrap around.
    return (queries * _ODD) ^ (documents * 0x9E3779B1 + (queries >> 7))


class Draw(NamedTuple):
    """What is read of an example this time."""

    example: int  # its row
    # rows of the corpus: a known positive if there is one, else the best scored candidate; then the others,
    # int32 `[1 + negatives]`
    documents: NDArray[np.int32]
    positives: NDArray[np.bool_]  # which are known positives, `[1 + negatives]`
    # what the teachers say of them, NaN where nothing, float32 `[1 + negatives]`; None where the examples are
    # not labelled
    labels: NDArray[np.float32] | None


class DrawnExamples:
    """Examples of which each epoch reads other documents.

    An epoch visits every known positive once, and an example without any once. Beside the positive stand
    ``negatives`` other candidates: the ``top`` best scored of them (by the labels, else by the scores of the
    data, else in the order of the data), and any of the others. A known positive is never among these. Where
    there are too few, candidates of other examples fill up; they have no label. Without a known positive the
    best scored candidate comes first.

    What is drawn follows from the seed, the epoch and the visit alone.

    Memory: 8 bytes an example, 8 a text; the tables are memory-mapped.

    Args:
        examples: As :data:`oskit.training.data.arrow.EXAMPLES` says, perhaps with labels.
        corpus: ``text``.
        negatives: How many documents are read beside the first one.
        top: How many of these are the best scored.
        seed: Of what is drawn.
    """

    def __init__(
        self, examples: Dataset, corpus: Dataset, *, negatives: int, top: int, seed: int = 0
    ) -> None:
        self._examples, self._corpus = examples, corpus
        self._negatives, self._top, self._seed = negatives, top, seed
        self.column_names = [QUERY, DOCUMENT]
        visits = np.maximum(numbers_of(examples, "positives"), 1)
        self._first = np.concatenate([[0], np.cumsum(visits, dtype=np.int64)])
        self._all = candidate_rows(examples, corpus).astype(np.int32)
        self._lengths = np.fromiter(map(len, column_of(corpus, "text")), dtype=np.int32, count=len(corpus))

    def __len__(self) -> int:
        """The visits of an epoch."""
        return int(self._first[-1])

    def draw(self, visits: NDArray[np.int64], epoch: int) -> list[Draw]:
        """What these visits read in this epoch."""
        examples = np.searchsorted(self._first, visits, side="right") - 1
        turns = (visits - self._first[examples]).tolist()
        rows = self._examples[examples.tolist()]
        scores = rows.get(LABELS) or rows["scores"]
        draws = []
        columns = zip(rows["candidates"], rows["positives"], scores, rows["itself"], strict=True)
        for number, (candidates, positives, own, itself) in enumerate(columns):
            # Not for secrets; numpy's generators take longer to make than all that is drawn of one.
            rng = random.Random(f"{self._seed} {epoch} {visits[number]}")  # noqa: S311
            chosen = self._choose(len(candidates), positives, own, turns[number], rng)
            documents = [candidates[place] for place in chosen]
            missing = 1 + self._negatives - len(chosen)
            if missing > 0:
                documents += self._fill({itself, *candidates}, documents[0], missing, rng)
            labels = None
            if LABELS in rows:
                labels = np.array([own[place] for place in chosen] + [math.nan] * missing, dtype=np.float32)
            is_positive = np.array([place < positives for place in chosen] + [False] * missing)
            draws.append(
                Draw(int(examples[number]), np.array(documents, dtype=np.int32), is_positive, labels)
            )
        return draws

    def longest(self, draws: Sequence[Draw]) -> NDArray[np.int32]:
        """The longest text of each, in characters."""
        lengths: NDArray[np.int32] = self._lengths[np.stack([draw.documents for draw in draws])].max(axis=1)
        return lengths

    def __getitems__(self, draws: list[Draw]) -> list[tuple[Draw, str, list[str]]]:
        """Each draw with the query's text and the documents' texts: what the loader asks for."""
        queries = self._examples[[draw.example for draw in draws]][QUERY]
        texts = iter(self._corpus[np.concatenate([draw.documents for draw in draws]).tolist()]["text"])
        return [
            (draw, query, [next(texts) for _ in draw.documents])
            for draw, query in zip(draws, queries, strict=True)
        ]

    def _choose(
        self, count: int, positives: int, scores: list[float], turn: int, rng: random.Random
    ) -> list[int]:
        """Which of an example's candidates, the first one first."""
        others: Sequence[int] = range(positives, count)
        if scores:
            # NaN is sorted to the end; equal scores keep their order.
            own = np.asarray(scores, dtype=np.float32)[positives:]
            others = [positives + place for place in np.argsort(-own, kind="stable").tolist()]
        if positives:
            first = turn
        else:
            first, others = others[0], others[1:]
        best, rest = others[: self._top], others[self._top :]
        if len(others) > self._negatives:
            rest = rng.sample(rest, self._negatives - len(best))
        return [first, *best, *rest]

    def _fill(self, excluded: set[int], first: int, count: int, rng: random.Random) -> list[int]:
        """Any candidates but these; where there are no others, the first document again."""
        places = rng.sample(range(len(self._all)), min(len(self._all), len(excluded) + count))
        found = [row for row in self._all[places].tolist() if row not in excluded][:count]
        return found + [first] * (count - len(found))


GROUPED_BATCHES = 16
"""Batches whose rows are sorted by length together: enough to spare most of the padding, and few enough that
a row still meets others than those of its own length."""


@dataclass(eq=False)
class DrawnBatches(TrainerCallback):
    """Random batches of documents of similar length; other documents in another order in each epoch.

    All follows from the seed and the epoch alone, so training that is resumed in any epoch goes on with the
    batches that it would have had, and a batch is the same however many processes share it. The trainer tells
    the epoch to a callback always, to a sampler not behind accelerate's wrappers.
    """

    drawn: DrawnExamples  # what is drawn from
    batch_size: int  # draws of a batch, over all processes
    drop_last: bool  # whether a last batch that is smaller is left out
    seed: int = 0  # of their order
    rank: int = 0  # this process takes every `processes`-th draw of a batch, from this one on
    processes: int = 1  # how many share a batch
    epoch: int = 0

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(len(self.drawn))
        size, share = self.batch_size, slice(self.rank, None, self.processes)
        whole = len(order) // size * size
        numbers = rng.permutation(-(-whole // (GROUPED_BATCHES * size)))
        for number in numbers.tolist():
            start = number * GROUPED_BATCHES * size
            draws = self.drawn.draw(order[start : min(start + GROUPED_BATCHES * size, whole)], self.epoch)
            by_length = np.argsort(self.drawn.longest(draws), kind="stable").reshape(-1, size)
            for rows in rng.permutation(by_length):
                yield [draws[row] for row in rows[share]]
        if len(order) > whole and not self.drop_last:
            yield self.drawn.draw(order[whole:], self.epoch)[share]

    def __len__(self) -> int:
        whole, rest = divmod(len(self.drawn), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The batches of another epoch follow."""
        # In the middle of an epoch it is a fraction, and a sum of fractions may miss a whole number.
        self.epoch = int((state.epoch or 0) + 1e-6)


@dataclass
class ExampleCollator(SparseEncoderDataCollator):
    """Draws with their texts to a batch of ``B`` queries and ``B x C`` documents.

    Attributes:
        teachers: Those that label the whole batch; None where there are none.
    """

    teachers: BatchTeachers | None = None

    def __call__(self, features: list[tuple[Draw, str, list[str]]]) -> dict[str, Any]:  # type: ignore[override]
        """The tokenized columns ``query`` (``B`` texts) and ``document`` (``C * B``: all first documents,
        then all second ones, …), and beside them

        * ``query_ids`` int64 ``[B]``: the same for queries that ask the same;
        * ``query_rows`` int64 ``[B]`` and ``document_ids`` int64 ``[B, C]``: rows of examples and corpus;
        * ``positives`` bool ``[B, C]``: which documents are known to answer;
        * ``labels`` float32 ``[B, C]``, NaN where there is none; only of labelled examples;
        * ``query_lengths`` and ``document_lengths``, lists: tokens of each text;
        * ``query_token_rows`` and ``document_token_rows`` int64 ``[tokens]``: where tokens are in the
          flattened attention mask;
        * what the teachers need.
        """
        draws = [draw for draw, _, _ in features]
        texts = [text for column in zip(*(texts for _, _, texts in features), strict=True) for text in column]
        batch: dict[str, Any] = super().__call__([{QUERY: query} for _, query, _ in features])
        batch |= super().__call__([{DOCUMENT: text} for text in texts])
        batch |= _tokens_of(batch, QUERY) | _tokens_of(batch, DOCUMENT)
        batch["query_ids"] = torch.from_numpy(text_keys(query for _, query, _ in features))
        batch["query_rows"] = torch.tensor([draw.example for draw in draws])
        batch["document_ids"] = torch.from_numpy(
            np.stack([draw.documents for draw in draws]).astype(np.int64)
        )
        batch["positives"] = torch.from_numpy(np.stack([draw.positives for draw in draws]))
        if labels := [draw.labels for draw in draws if draw.labels is not None]:
            batch["labels"] = torch.from_numpy(np.stack(labels))
        if self.teachers is not None:
            batch |= self.teachers.collate(batch["query_rows"].numpy(), batch["document_ids"].numpy())
        return batch


def _tokens_of(batch: dict[str, Any], side: str) -> dict[str, Any]:
    """Lengths, and where the tokens are, of one side; nothing where it has no attention mask (a table)."""
    mask = batch.get(f"{side}_attention_mask")
    if mask is None:
        return {}
    rows = mask.flatten().nonzero().squeeze(1)
    return {f"{side}_lengths": mask.sum(1).tolist(), f"{side}_token_rows": rows}
