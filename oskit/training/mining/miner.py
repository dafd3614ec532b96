"""Mine hard negatives: documents that look like answers and are none, added to each query's candidates."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oskit.errors import DataError, TrainingError
from oskit.evaluation.offline.bm25 import Bm25Index
from oskit.training.data.arrow import (
    EXAMPLES,
    DataFolder,
    RowWriter,
    blocks_of,
    column_of,
    open_rows,
    positives_of,
)
from oskit.training.data.normalising import keys_of, same_key
from oskit.training.data.training_data import TrainingData
from oskit.training.recipe.recipe import MiningConfig
from oskit.training.teachers.ensemble import EnsembleTeacher
from oskit.training.teachers.teacher import Progress, Rows, VectorTeacher, tell_nobody

Scores: TypeAlias = NDArray[np.float32]

_BLOCK_DOCUMENTS = 16_384
_BLOCK_QUERIES = 1024


@dataclass
class MiningReport:
    """What mining found."""

    examples: int  # that were looked at
    queries: int  # distinct ones among them, up to case, punctuation and white space
    documents: int  # size of the corpus
    given: int = 0  # candidates beside the positives that the data had, and that were kept
    mined: int = 0  # candidates that were found
    random: int = 0  # candidates drawn from the whole corpus because too few were left
    filled: int = 0  # examples that got such ones
    short: int = 0  # examples that got fewer than asked for: the corpus is too small
    false_negatives: int = 0  # documents left out because the teacher scores them like the positives
    answers: int = 0  # given candidates that were dropped, for they say what an answer to the query says
    filtered: bool = False  # whether the teacher looked at what was found
    positive_score: float | None = None  # the teacher's mean score of positives; None without a teacher
    mined_score: float | None = None  # its mean score of mined candidates

    def __str__(self) -> str:
        likely = f"{self.false_negatives:,} likely answers left out"
        found = f"{self.mined:,} negatives mined for {self.examples:,} examples"
        parts = [
            (True, f"{found} of {self.documents:,} documents"),
            (self.given, f"{self.given:,} given"),
            (self.answers, f"{self.answers:,} given ones dropped, which are answers"),
            (self.random, f"{self.random:,} random ones for {self.filled:,} examples"),
            (self.short, f"{self.short:,} examples have too few"),
            (True, likely if self.filtered else "no teacher looked for likely answers among them"),
        ]
        told = [text for there, text in parts if there]
        if self.positive_score is not None and self.mined_score is not None:
            means = f"{self.positive_score:.3f} of positives, {self.mined_score:.3f} of mined"
            told.append(f"mean score {means}")
        return "; ".join(told)


def mine_negatives(
    data: TrainingData,
    config: MiningConfig | None = None,
    *,
    teachers: EnsembleTeacher | None = None,
    folder: str | Path | None = None,
    progress: Progress = tell_nobody,
) -> tuple[TrainingData, MiningReport]:
    """Add negatives to the candidates of every example.

    Nothing is added that is known to answer the query: no positive of any example that asks the same, and
    nothing that says what one says, up to case, punctuation and white space; nor the query's own text. Given
    candidates that do are dropped.

    Memory holds ``depth`` candidates of each query, and one block of the corpus; with BM25 an index of it.

    Args:
        data: Examples, and the corpus where candidates come from.
        config: How.
        teachers: Their first dense teacher ranks, and leaves likely answers out. BM25 does without one, but
            then nothing is left out but the known positives.
        folder: Where ``mined.arrow`` is written; without it a temporary one that goes with the data.
        progress: Told how far it is.

    Returns:
        The data with more candidates, which have no score (NaN); and what was found.

    Raises:
        TrainingError: The dense teacher is needed and there is none.
        MissingDependencyError: bm25s is not installed.
        DataError: The result, or the cache, cannot be written.
    """
    config = config or MiningConfig()
    asked = _Asked(data)
    found = _find(data, config, teachers, asked, progress)
    miner = _Miner(data, config, asked, found)
    place = DataFolder(folder)
    with RowWriter(place.path / "mined.arrow", EXAMPLES) as writer:
        for row in miner.rows(progress):
            writer.add(*row)
    if teachers is not None:
        teachers.release()
    return data.with_examples(open_rows(place.path / "mined.arrow"), keep_alive=place), miner.report


class _Asked:
    """Who asks the same, up to case, punctuation and white space, and what is known to answer it."""

    def __init__(self, data: TrainingData) -> None:
        queries = keys_of(map(same_key, column_of(data.examples, "query")))
        self.keys = keys_of(map(same_key, data.passages()))  # of each document, near-identical ones alike
        own, first, inverse = np.unique(queries, return_index=True, return_inverse=True)
        order = np.argsort(first)  # as they come
        self.rows = first[order].astype(np.int64)  # an example of each query; they are ranked for
        self.query = np.argsort(order)[inverse]  # of each example which of them asks as it does
        self.answers = [{key} for key in own[order].tolist()]  # keys of its answers, and of its own text
        self.positives = owners, rows = positives_of(data.examples)
        for query, key in zip(self.query[owners].tolist(), self.keys[rows].tolist(), strict=True):
            self.answers[query].add(key)


class _Found(NamedTuple):
    """What a ranker gave, and what the teacher says of it."""

    candidates: Rows  # the best documents of each query, `[queries, depth]`, -1 where there are fewer
    # The teacher's scores of them, and its mean score of each example's positives, NaN without any; None
    # without a teacher.
    scores: tuple[Scores, Scores] | None = None


def _find(
    data: TrainingData,
    config: MiningConfig,
    teachers: EnsembleTeacher | None,
    asked: _Asked,
    progress: Progress,
) -> _Found:
    dense = None if teachers is None else teachers.dense
    depth = min(config.depth, len(data.corpus))
    if config.ranker == "bm25":
        candidates = _search_bm25(data, asked.rows, depth, progress)
    elif dense is None:
        raise TrainingError("mining needs a dense teacher, and there is none", hint="Or set ranker: bm25.")
    if teachers is None or dense is None:
        return _Found(candidates)
    owners, rows = asked.positives
    try:
        if config.ranker == "dense":
            candidates, scores = _search_dense(dense, data, asked.rows, depth, progress)
        else:
            there = candidates >= 0
            scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
            queries = asked.rows[np.nonzero(there)[0]]
            scores[there] = dense.pair_scores(data, queries, candidates[there], progress)
        known = dense.pair_scores(data, asked.rows[asked.query[owners]], rows, progress)
    except DataError:
        raise
    except Exception as error:  # whatever a model's own code raises
        teachers.fail(dense, error)
        if config.ranker == "dense":
            raise TrainingError(f"the dense teacher that mines failed: {error}", hint="See above.") from error
        return _Found(candidates)
    size = len(data.examples)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(owners, known, minlength=size) / np.bincount(owners, minlength=size)
    return _Found(candidates, (scores, mean.astype(np.float32)))


def _search_dense(
    teacher: VectorTeacher, data: TrainingData, queries: Rows, depth: int, progress: Progress
) -> tuple[Rows, Scores]:
    """The best documents of each query and their scores, ``[queries, depth]``, best first."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vectors = torch.from_numpy(teacher.vectors(data, "query", queries)).to(device)
    best = torch.full((len(queries), depth), -torch.inf, device=device)
    where = torch.full((len(queries), depth), -1, dtype=torch.int64, device=device)
    for start in range(0, len(data.corpus), _BLOCK_DOCUMENTS):
        rows = np.arange(start, min(start + _BLOCK_DOCUMENTS, len(data.corpus)))
        documents = torch.from_numpy(teacher.vectors(data, "document", rows)).to(device)
        for first in range(0, len(queries), _BLOCK_QUERIES):
            part = slice(first, first + _BLOCK_QUERIES)
            top = (vectors[part] @ documents.T).topk(min(depth, len(rows)), dim=1)
            scores = torch.cat([best[part], top.values], dim=1)
            positions = torch.cat([where[part], top.indices + start], dim=1)
            best[part], order = scores.topk(depth, dim=1)
            where[part] = positions.gather(1, order)
        progress("ranking documents", len(rows))
    return where.cpu().numpy(), best.cpu().numpy()


def _search_bm25(data: TrainingData, queries: Rows, depth: int, progress: Progress) -> Rows:
    """The best documents of each query by BM25, ``[queries, depth]``, best first; -1 where there are fewer.

    Raises:
        MissingDependencyError: bm25s is not installed.
    """
    index = Bm25Index(data.passages())
    where = np.full((len(queries), depth), -1, dtype=np.int64)
    found = index.search(column_of(data.examples, "query", queries), depth)
    for number, (positions, _) in enumerate(found):
        where[number, : len(positions)] = positions
        progress("ranking with BM25", 1)
    return where


class _Miner:
    """Chooses, example by example."""

    def __init__(self, data: TrainingData, config: MiningConfig, asked: _Asked, found: _Found) -> None:
        self._data, self._config, self._asked, self._found = data, config, asked, found
        self.report = MiningReport(len(data.examples), len(asked.rows), len(data.corpus))
        self._mined_score = 0.0
        if found.scores is not None:
            _, positives = found.scores
            self._limits = _limits(positives, config)
            self.report.filtered = config.margin is not None or config.positive_share is not None
            if not np.isnan(positives).all():
                self.report.positive_score = float(np.nanmean(positives))

    def rows(self, progress: Progress) -> Iterator[tuple[str, list[int], int, list[float], int]]:
        """The examples with their candidates."""
        examples = enumerate(blocks_of(self._data.examples))
        for row, (query, given, positives, scores, itself, *_) in examples:
            kept = self._kept(row, given, positives)
            candidates = [given[place] for place in kept]
            chosen = self._choose(row, [*candidates, *([itself] if itself >= 0 else [])])
            kept_scores = [*(scores[place] for place in kept), *(math.nan for _ in chosen)] if scores else []
            yield query, candidates + chosen, positives, kept_scores, itself
            progress("choosing negatives", 1)
        if self.report.positive_score is not None and self.report.mined:
            self.report.mined_score = self._mined_score / self.report.mined

    def _kept(self, row: int, given: Sequence[int], positives: int) -> list[int]:
        """Places of the candidates that stay: the positives, and what does not say what an answer says."""
        answers = self._asked.answers[self._asked.query[row]]
        keys = self._asked.keys[np.asarray(given, dtype=np.int64)].tolist()
        others = [place for place in range(positives, len(given)) if keys[place] not in answers]
        self.report.answers += len(given) - positives - len(others)
        self.report.given += len(others)
        return [*range(positives), *others]

    def _choose(self, row: int, taken: Sequence[int]) -> list[int]:
        """The documents that are added, none like an answer or like one that is taken."""
        config, need, keys = self._config, self._config.per_query, self._asked.keys
        rng = np.random.default_rng((config.seed, row))
        query = int(self._asked.query[row])
        excluded = self._asked.answers[query] | set(keys[np.asarray(taken, dtype=np.int64)].tolist())
        found = self._found.candidates[query]
        there = found >= 0
        usable = there.copy()
        usable[: config.skip_top] = False
        left_out = there & ~usable
        usable[there] &= [key not in excluded for key in keys[found[there]].tolist()]
        scores = None if self._found.scores is None else self._found.scores[0][query]
        if scores is not None:
            likely = usable & (scores > self._limits[row])
            self.report.false_negatives += int(likely.sum())
            usable &= ~likely
            left_out |= likely
        ranks = np.flatnonzero(usable)
        if config.sampling == "random" and len(ranks) > need:
            ranks = np.sort(rng.choice(ranks, need, replace=False))
        ranks = ranks[:need]
        if scores is not None:
            self._mined_score += float(scores[ranks].sum())
        self.report.mined += len(ranks)
        chosen: list[int] = found[ranks].tolist()
        if len(chosen) < need:
            excluded |= set(keys[np.concatenate([found[ranks], found[left_out]])].tolist())
            chosen += self._fill(excluded, need - len(chosen), rng)
        return chosen

    def _fill(self, excluded: set[int], need: int, rng: np.random.Generator) -> list[int]:
        """Any documents, where too few were found."""
        documents = len(self._data.corpus)
        chosen: list[int] = []
        # Nearly always enough; of a small corpus, or one that says the same often, look at all.
        for count in (min(documents, need + len(excluded)), documents):
            drawn = rng.choice(documents, count, replace=False)
            keys = self._asked.keys[drawn].tolist()
            free = [place for place, key in zip(drawn.tolist(), keys, strict=True) if key not in excluded]
            chosen = free[:need]
            if len(chosen) == need or count == documents:
                break
        self.report.random += len(chosen)
        self.report.filled += bool(chosen)
        self.report.short += len(chosen) < need
        return chosen


def _limits(positives: Scores, config: MiningConfig) -> Scores:
    """The score above which a candidate counts as a likely answer; NaN, which nothing is above, of an example
    without a positive.
    """
    wide = positives.astype(np.float64)
    margin = math.inf if config.margin is None else -config.margin
    # A share of a negative score would be a higher one.
    share = math.inf if config.positive_share is None else np.abs(wide) * (config.positive_share - 1)
    return (wide + np.minimum(margin, share)).astype(np.float32)
