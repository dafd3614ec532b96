"""Mine hard negatives: documents that look like answers and are none, added to each query's candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from oskit.errors import DataError, TrainingError
from oskit.evaluation.offline.dense import DenseEncoder
from oskit.training.data.arrow import EXAMPLES, DataFolder, RowWriter, open_rows
from oskit.training.data.training_data import TrainingData
from oskit.training.mining.answers import Asked
from oskit.training.mining.rankers import Dense, Positions, Scores, search_bm25
from oskit.training.mining.report import MiningReport
from oskit.training.recipe.recipe import MiningConfig as MiningConfig
from oskit.training.teachers.ensemble import EnsembleTeacher
from oskit.training.teachers.teacher import Progress

_ROWS = 1024


def mine_negatives(
    data: TrainingData,
    config: MiningConfig | None = None,
    *,
    teachers: EnsembleTeacher | DenseEncoder | None = None,
    folder: str | Path | None = None,
    progress: Progress | None = None,
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
        The data with more candidates; those that were added have no score (NaN). And what was found.

    Raises:
        TrainingError: The dense teacher is needed and there is none.
        MissingDependencyError: bm25s is not installed.
        DataError: The result, or the cache, cannot be written.
    """
    config = config or MiningConfig()
    told = progress or (lambda _what, _count: None)
    ensemble = teachers if isinstance(teachers, EnsembleTeacher) else None
    model = teachers.dense if isinstance(teachers, EnsembleTeacher) else teachers
    if config.ranker == "dense" and model is None:
        raise TrainingError("mining needs a dense teacher, and there is none", hint="Or set ranker: bm25.")
    place = DataFolder(folder)
    dense = None if model is None else Dense(model, data, told)
    asked = Asked(data)
    found = _find(data, config, dense, ensemble, asked, told)
    miner = _Miner(data, config, asked, found)
    path = place.path / "mined.arrow"
    with RowWriter(path, EXAMPLES) as writer:
        for row in miner.rows(told):
            writer.add(*row)
    if ensemble is not None:
        ensemble.release()
    mined = replace(data, examples=open_rows(path), keep_alive=(data.keep_alive, place))
    return mined, miner.report


class _Found(NamedTuple):
    """What a ranker gave, and what the teacher says of it.

    Attributes:
        candidates: The best documents of each query, ``[queries, depth]``, -1 where there are fewer.
        scores: The teacher's scores of them; None without one.
        dense: The teacher; None without one.
    """

    candidates: Positions
    scores: Scores | None
    dense: Dense | None


def _find(
    data: TrainingData,
    config: MiningConfig,
    dense: Dense | None,
    ensemble: EnsembleTeacher | None,
    asked: Asked,
    progress: Progress,
) -> _Found:
    depth = min(config.depth, len(data.corpus))
    if config.ranker == "bm25":
        candidates = search_bm25(data, asked.rows, depth, progress)
        if dense is None:
            return _Found(candidates, None, None)
    try:
        assert dense is not None
        if config.ranker == "dense":
            candidates, scores = dense.search(asked.rows, depth)
        else:
            scores = dense.scores(asked.rows, candidates)
    except DataError:
        raise
    except Exception as error:  # whatever a model's own code raises
        if ensemble is None or ensemble.dense is None:
            raise
        ensemble.fail(ensemble.dense, error)
        if config.ranker == "dense":
            raise TrainingError(f"the dense teacher that mines failed: {error}", hint="See above.") from error
        return _Found(candidates, None, None)
    return _Found(candidates, scores, dense)


class _Miner:
    """Chooses, example by example."""

    def __init__(self, data: TrainingData, config: MiningConfig, asked: Asked, found: _Found) -> None:
        self._data = data
        self._config = config
        self._asked = asked
        self._found = found
        self.report = MiningReport(len(data.examples), asked.queries, len(data.corpus))
        looks = config.margin is not None or config.positive_share is not None
        self.report.filtered = found.dense is not None and looks
        self._sums = np.zeros(2)
        self._judged = 0

    def rows(self, progress: Progress) -> Iterator[tuple[str, list[int], int, list[float], int]]:
        """The examples with their candidates."""
        examples = self._data.examples
        for start in range(0, len(examples), _ROWS):
            rows = examples[start : start + _ROWS]
            self._look_at(start, rows["candidates"])
            known = self._positive_scores(start, rows["candidates"], rows["positives"])
            for number, (query, given, positives, scores, itself) in enumerate(
                zip(*(rows[name] for name in EXAMPLES), strict=True)
            ):
                row = start + number
                kept = self._kept(row, np.asarray(given, dtype=np.int64), positives)
                candidates = [given[place] for place in kept]
                excluded = self._excluded(row, candidates, itself)
                chosen = self._choose(row, excluded, known[number])
                kept_scores = [scores[place] for place in kept] if scores else []
                padding = [float("nan")] * len(chosen) if scores else []
                yield query, candidates + chosen, positives, kept_scores + padding, itself
            progress("choosing negatives", len(rows["query"]))
        if self._judged:
            self.report.positive_score = float(self._sums[0] / self._judged)
            if self.report.mined:
                self.report.mined_score = float(self._sums[1] / self.report.mined)

    def _look_at(self, start: int, candidates: Sequence[Sequence[int]]) -> None:
        """Read at once what the examples of a block need of the corpus."""
        found = self._found.candidates[self._asked.query[start : start + len(candidates)]]
        self._asked.keys(np.fromiter(chain(*candidates, found[found >= 0].tolist()), dtype=np.int64))

    def _positive_scores(
        self, start: int, candidates: Sequence[Sequence[int]], positives: Sequence[int]
    ) -> Scores:
        """The teacher's mean score of each example's positives; NaN without any."""
        counts = np.asarray(positives, dtype=np.int64)
        found = np.full(len(counts), np.nan, dtype=np.float32)
        if self._found.dense is None or not counts.any():
            return found
        width = int(counts.max())
        padded = np.full((len(counts), width), -1, dtype=np.int64)
        for row, (own, count) in enumerate(zip(candidates, positives, strict=True)):
            padded[row, :count] = own[:count]
        asked = self._asked.rows[self._asked.query[start : start + len(counts)]]
        scores = self._found.dense.scores(asked, padded)
        some = counts > 0
        found[some] = np.where(padded >= 0, scores, 0).sum(axis=1)[some] / counts[some]
        return found

    def _kept(self, row: int, given: Positions, positives: int) -> list[int]:
        """Places of the candidates that stay: the positives, and what does not say what an answer says."""
        others = given[positives:]
        known = np.isin(self._asked.keys(others), list(self._asked.answers(row)))
        self.report.answers += int(known.sum())
        self.report.given += int((~known).sum())
        return [*range(positives), *(positives + np.flatnonzero(~known)).tolist()]

    def _excluded(self, row: int, candidates: Sequence[int], itself: int) -> set[int]:
        """Keys of what is no negative of the example, or is one already."""
        there = np.asarray([*candidates, *([itself] if itself >= 0 else [])], dtype=np.int64)
        return self._asked.answers(row) | set(self._asked.keys(there).tolist())

    def _choose(self, row: int, excluded: set[int], positive_score: float) -> list[int]:
        """The documents that are added."""
        config, need = self._config, self._config.per_query
        rng = np.random.default_rng((config.seed, row))
        query = int(self._asked.query[row])
        found = self._found.candidates[query]
        there = found >= 0
        usable = there.copy()
        usable[: config.skip_top] = False
        left_out = there & ~usable
        usable[there] &= ~np.isin(self._asked.keys(found[there]), list(excluded))
        scores = None if self._found.scores is None else self._found.scores[query]
        if scores is not None and not np.isnan(positive_score):
            likely = usable & (scores > _limit(positive_score, config))
            self.report.false_negatives += int(likely.sum())
            usable &= ~likely
            left_out |= likely
            self._sums[0] += positive_score
            self._judged += 1
        ranks = np.flatnonzero(usable)
        if config.sampling == "random" and len(ranks) > need:
            ranks = np.sort(rng.choice(ranks, need, replace=False))
        ranks = ranks[:need]
        if scores is not None:
            self._sums[1] += float(scores[ranks].sum())
        self.report.mined += len(ranks)
        chosen: list[int] = found[ranks].tolist()
        if len(chosen) < need:
            taken = np.concatenate([found[ranks], found[left_out]])
            chosen += self._fill(excluded | set(self._asked.keys(taken).tolist()), need - len(chosen), rng)
        return chosen

    def _fill(self, excluded: set[int], need: int, rng: np.random.Generator) -> list[int]:
        """Any documents, where too few were found."""
        documents = len(self._data.corpus)
        chosen: list[int] = []
        # Nearly always enough; of a small corpus, or one that says the same often, look at all.
        for count in (min(documents, need + len(excluded)), documents):
            drawn = rng.choice(documents, count, replace=False)
            keys = self._asked.keys(drawn).tolist()
            free = [place for place, key in zip(drawn.tolist(), keys, strict=True) if key not in excluded]
            chosen = free[:need]
            if len(chosen) == need or count == documents:
                break
        self.report.random += len(chosen)
        self.report.filled += bool(chosen)
        self.report.short += len(chosen) < need
        return chosen


def _limit(positive: float, config: MiningConfig) -> float:
    """The score above which a candidate counts as a likely answer."""
    limits = [np.inf]
    if config.margin is not None:
        limits.append(positive - config.margin)
    if config.positive_share is not None:
        # A share of a negative score would be a higher one.
        limits.append(positive - abs(positive) * (1 - config.positive_share))
    return float(min(limits))
