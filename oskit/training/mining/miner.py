"""Hard negatives: texts that rank high for a query and do not answer it.

``sentence_transformers.util.mine_hard_negatives`` does a part of this. It is not used because it ranks with a
dense model only, holds the corpus and all scores in memory, draws from Python's global random state, gives
examples with too few negatives up or repeats theirs, forgets negatives that the data has, and computes
embeddings that the teachers' cache already holds. The filters are the same: its ``absolute_margin`` is our
``margin``, its ``relative_margin=0.05`` our ``positive_share=0.95``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oskit.data.duplicates import digest_of
from oskit.errors import TrainingError
from oskit.evaluation.offline.dense import DenseEncoder
from oskit.training.data.arrow import EXAMPLES, DataFolder, RowWriter, blocks_of, column_of, open_rows
from oskit.training.data.training_data import TrainingData
from oskit.training.recipe.recipe import MiningConfig as MiningConfig
from oskit.training.teachers.ensemble import EnsembleTeacher

if TYPE_CHECKING:
    from datasets import Dataset

Positions = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

_BLOCK_DOCUMENTS = 16_384
_BLOCK_QUERIES = 1024
_ROWS = 1024

Progress = Callable[[str, int], object]
"""Told what is being done, and how many (documents, queries) were done since the last call."""


@dataclass
class MiningReport:
    """What mining found.

    Attributes:
        examples: Examples that got negatives.
        queries: Distinct queries among them.
        documents: Size of the corpus.
        given: Negatives that the data had, and that were kept.
        mined: Negatives that were found.
        random: Negatives drawn from the whole corpus because too few candidates were left.
        filled: Examples that got such ones.
        short: Examples that have fewer than asked for: the corpus is too small.
        false_negatives: Candidates that were dropped because the teacher scores them like the positive.
        filtered: Whether the teacher looked at the candidates.
        positive_score: The teacher's mean score of positives; None without a teacher.
        mined_score: Its mean score of mined negatives.
    """

    examples: int
    queries: int
    documents: int
    given: int = 0
    mined: int = 0
    random: int = 0
    filled: int = 0
    short: int = 0
    false_negatives: int = 0
    filtered: bool = False
    positive_score: float | None = None
    mined_score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All attributes, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [
            f"{self.mined:,} negatives mined for {self.examples:,} examples of {self.documents:,} documents"
        ]
        parts += [f"{self.given:,} given"] if self.given else []
        parts += [f"{self.random:,} random ones for {self.filled:,} examples"] if self.random else []
        parts += [f"{self.short:,} examples have too few"] if self.short else []
        if self.filtered:
            parts.append(f"{self.false_negatives:,} likely answers dropped")
        else:
            parts.append("no teacher looked for likely answers among them")
        if self.positive_score is not None and self.mined_score is not None:
            parts.append(
                f"mean score {self.positive_score:.3f} of positives, {self.mined_score:.3f} of mined"
            )
        return "; ".join(parts)


def mine_negatives(
    data: TrainingData,
    config: MiningConfig | None = None,
    *,
    teacher: EnsembleTeacher | DenseEncoder | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[TrainingData, MiningReport]:
    """Give every example the same number of negatives.

    Memory holds the vectors of the queries and ``depth`` candidates of each, and one block of the corpus;
    with BM25 an index of the corpus.

    Args:
        data: Examples, and the corpus where candidates come from; without one, the texts of the examples.
            All positives of a query, over all examples that have it, are never its negatives.
        config: How.
        teacher: Its dense teacher ranks, and drops likely answers. BM25 does without one, but then nothing
            is dropped except the positives.
        folder: Where ``mined.arrow`` is written; without it a temporary one that goes with the data.
        progress: Told how far it is.

    Raises:
        TrainingError: The dense teacher is needed and there is none.
        MissingDependencyError: bm25s is not installed.
        DataError: The result, or the cache, cannot be written.
    """
    config = config or MiningConfig()
    dense = teacher.dense if isinstance(teacher, EnsembleTeacher) else teacher
    if config.ranker == "dense" and dense is None:
        raise TrainingError(
            "the ranker dense needs a dense teacher", hint="Or set data.negatives.ranker to bm25."
        )
    miner = _Miner(data, config, dense, progress or (lambda _what, _count: None))
    miner.find_candidates()
    place = DataFolder(folder)
    path = place.path / "mined.arrow"
    with RowWriter(path, EXAMPLES) as writer:
        for row in miner.rows():
            writer.add(*row)
    mined = replace(data, examples=open_rows(path), keep_alive=(data.keep_alive, place))
    return mined, miner.report


class _Miner:
    """The steps of :func:`mine_negatives`, with what they share."""

    def __init__(
        self, data: TrainingData, config: MiningConfig, dense: DenseEncoder | None, progress: Progress
    ) -> None:
        self._examples: Dataset = data.examples
        self._config = config
        self._dense = dense
        self._progress = progress
        self._corpus = data.corpus if data.corpus is not None else _corpus_of(data.examples)
        self._keys = np.concatenate([_keys(rows["text"]) for rows in blocks_of(self._corpus, _ROWS)])
        self._candidates: Positions = np.empty((0, 0), dtype=np.int64)
        self._scores: Scores | None = None
        self._queries: dict[str, int] = {}
        self._positives: list[set[int]] = []
        for rows in blocks_of(data.examples, _ROWS):
            for query, key in zip(rows["query"], _keys(rows["positive"]).tolist(), strict=True):
                number = self._queries.setdefault(query, len(self._queries))
                if number == len(self._positives):
                    self._positives.append(set())
                self._positives[number].add(key)
        self.report = MiningReport(len(data.examples), len(self._queries), len(self._corpus))
        looks = config.margin is not None or config.positive_share is not None
        self.report.filtered = dense is not None and looks
        self._sums = np.zeros(2)

    def find_candidates(self) -> None:
        """The best documents of each query, and the teacher's scores of them, ``[queries, depth]``."""
        depth = min(self._config.depth, len(self._corpus))
        queries = list(self._queries)
        if self._config.ranker == "dense":
            assert self._dense is not None
            self._candidates, self._scores = self._search(self._dense, queries, depth)
        else:
            self._candidates = self._search_bm25(queries, depth)
            self._scores = None if self._dense is None else self._score(self._dense, queries)

    def rows(self) -> Iterator[tuple[str, str, list[str]]]:
        """The examples with their negatives."""
        done = 0
        for rows in blocks_of(self._examples, _ROWS):
            queries, positives = rows["query"], rows["positive"]
            scores = None
            if self._dense is not None:
                vectors = self._dense.embed_queries(queries), self._dense.embed_documents(positives)
                scores = np.einsum("nd,nd->n", *vectors)
            chosen: list[list[int]] = []
            given: list[list[str]] = []
            for number, (query, negatives) in enumerate(zip(queries, rows["negatives"], strict=True)):
                kept = self._kept(query, negatives or [])
                given.append(kept)
                score = None if scores is None else float(scores[number])
                chosen.append(self._choose(self._queries[query], kept, score, done + number))
            wanted = [position for positions in chosen for position in positions]
            texts = iter(self._corpus[wanted]["text"] if wanted else [])
            for number, (query, positive) in enumerate(zip(queries, positives, strict=True)):
                yield query, positive, given[number] + [next(texts) for _ in chosen[number]]
            done += len(queries)
            self._progress("choosing negatives", len(queries))
        if self._dense is not None and done:
            self.report.positive_score = float(self._sums[0] / done)
            if self.report.mined:
                self.report.mined_score = float(self._sums[1] / self.report.mined)

    def _kept(self, query: str, negatives: Sequence[str]) -> list[str]:
        """Negatives that the data has, each once and none a positive of the query."""
        positives = self._positives[self._queries[query]]
        unique = list(dict.fromkeys(negatives))
        keys = _keys(unique).tolist()
        kept = [text for text, key in zip(unique, keys, strict=True) if key not in positives]
        kept = kept[: self._config.per_query]
        self.report.given += len(kept)
        return kept

    def _choose(self, query: int, kept: Sequence[str], positive_score: float | None, row: int) -> list[int]:
        """Positions of the negatives to add to ``kept``."""
        config = self._config
        rng = np.random.default_rng((config.seed, row))
        excluded = self._positives[query] | set(_keys(kept).tolist())
        need = config.per_query - len(kept)
        found = self._candidates[query]
        usable = found >= 0
        usable[: config.skip_top] = False
        dropped = ~usable & (found >= 0)
        usable &= ~np.isin(self._keys[found], list(excluded))
        if self._scores is not None and positive_score is not None:
            false = usable & (self._scores[query] > _limit(positive_score, config))
            self.report.false_negatives += int(false.sum())
            usable &= ~false
            dropped |= false
            self._sums[0] += positive_score
        ranks = np.flatnonzero(usable)
        if config.sampling == "random" and len(ranks) > need:
            ranks = np.sort(rng.choice(ranks, need, replace=False))
        ranks = ranks[:need]
        if self._scores is not None:
            self._sums[1] += float(self._scores[query][ranks].sum())
        self.report.mined += len(ranks)
        chosen: list[int] = found[ranks].tolist()
        if len(chosen) < need:
            taken = [*chosen, *found[dropped].tolist()]
            chosen += self._fill(excluded | set(self._keys[taken].tolist()), need - len(chosen), rng)
        return chosen

    def _fill(self, excluded: set[int], need: int, rng: np.random.Generator) -> list[int]:
        """Any documents, where too few candidates are left."""
        drawn: list[int] = []
        # As many as can be excluded, and those needed: then enough are left if the corpus has them.
        count = min(len(self._keys), need + len(excluded))
        for position in rng.choice(len(self._keys), count, replace=False).tolist():
            if int(self._keys[position]) not in excluded and len(drawn) < need:
                drawn.append(position)
        self.report.random += len(drawn)
        self.report.filled += bool(drawn)
        self.report.short += len(drawn) < need
        return drawn

    def _search(self, teacher: DenseEncoder, queries: Sequence[str], depth: int) -> tuple[Positions, Scores]:
        """Exact search, a block of documents against a block of queries at a time."""
        import torch

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        vectors = torch.from_numpy(np.array(teacher.embed_queries(queries)))
        best = torch.full((len(queries), depth), -torch.inf)
        where = torch.full((len(queries), depth), -1, dtype=torch.int64)
        start = 0
        for rows in blocks_of(self._corpus, _BLOCK_DOCUMENTS):
            texts = rows["text"]
            documents = torch.from_numpy(np.array(teacher.embed_documents(texts))).to(device)
            for first in range(0, len(queries), _BLOCK_QUERIES):
                part = slice(first, first + _BLOCK_QUERIES)
                scores = vectors[part].to(device) @ documents.T
                top = scores.topk(min(depth, len(texts)), dim=1)
                all_scores = torch.cat([best[part], top.values.cpu()], dim=1)
                all_where = torch.cat([where[part], top.indices.cpu() + start], dim=1)
                best[part], order = all_scores.topk(depth, dim=1)
                where[part] = all_where.gather(1, order)
            start += len(texts)
            self._progress("ranking documents", len(texts))
        return where.numpy(), best.numpy()

    def _search_bm25(self, queries: Sequence[str], depth: int) -> Positions:
        from oskit.evaluation.offline.bm25 import Bm25Index

        index = Bm25Index(column_of(self._corpus, "text"))
        where = np.full((len(queries), depth), -1, dtype=np.int64)
        for number, (positions, _) in enumerate(index.search(queries, depth)):
            where[number, : len(positions)] = positions
            self._progress("ranking with BM25", 1)
        return where

    def _score(self, teacher: DenseEncoder, queries: Sequence[str]) -> Scores:
        """The teacher's scores of BM25's candidates."""
        scores = np.full(self._candidates.shape, -np.inf, dtype=np.float32)
        for first in range(0, len(queries), _BLOCK_QUERIES // 8):
            part = slice(first, first + _BLOCK_QUERIES // 8)
            found = self._candidates[part]
            positions, places = np.unique(found[found >= 0], return_inverse=True)
            if not len(positions):
                continue
            documents = teacher.embed_documents(self._corpus[positions]["text"])
            rows = np.nonzero(found >= 0)[0]
            vectors = teacher.embed_queries(queries[part])
            scores[part][found >= 0] = np.einsum("nd,nd->n", vectors[rows], documents[places])
            self._progress("scoring candidates", len(vectors))
        return scores


def _limit(positive: float, config: MiningConfig) -> float:
    """The score above which a candidate counts as a likely answer."""
    limits = [np.inf]
    if config.margin is not None:
        limits.append(positive - config.margin)
    if config.positive_share is not None:
        # A share of a negative score would be a higher one.
        limits.append(positive - abs(positive) * (1 - config.positive_share))
    return float(min(limits))


def _keys(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """64 bits of a digest of each text: enough to tell the texts of any corpus apart."""
    digests = b"".join(digest_of(text)[:8] for text in texts)
    return np.frombuffer(digests, dtype=np.int64)


def _corpus_of(examples: Dataset) -> Dataset:
    """The texts of the examples, each once."""
    from datasets import Dataset as Table

    texts: dict[str, None] = {}
    for rows in blocks_of(examples, _ROWS):
        texts.update(dict.fromkeys(rows["positive"]))
        texts.update(dict.fromkeys(text for negatives in rows["negatives"] for text in negatives or []))
    return Table.from_dict({"text": list(texts)})
