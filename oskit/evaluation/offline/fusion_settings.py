"""Which fusion of several rankings is best, and whether that holds for queries that did not choose it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from oskit.cluster.search.fusion import Candidates, Fusion
from oskit.errors import DataError
from oskit.evaluation.offline.metrics import MAIN_MEASURE, Qrels, quality

Values = npt.NDArray[np.float64]

DEFAULT_FUSIONS = ("min_max", "l2", "z_score", "rrf:10", "rrf:60", "rrf:200")

_STEPS = {2: 20, 3: 10}
"""Parts into which the weight of 1 is cut, by the number of sides; of more sides 5."""

_TOP = 10
"""Documents that :data:`MAIN_MEASURE` looks at."""


@dataclass(frozen=True)
class FusionSetting:
    """A way to make one ranking of several.

    Attributes:
        weights: Of each side, in sum 1.
        fusion: None for one side alone, which is its own ranking.
    """

    weights: tuple[float, ...]
    fusion: Fusion | None = None

    def name(self, sides: Sequence[str]) -> str:
        """In words: ``bm25 alone``, or ``0.3 bm25 + 0.7 sparse by min_max``."""
        if self.fusion is None:
            return f"{sides[self.weights.index(1.0)]} alone"
        parts = " + ".join(f"{weight:g} {side}" for weight, side in zip(self.weights, sides, strict=True))
        return f"{parts} by {self.fusion.name}"


def settings(sides: int, fusions: Sequence[Fusion]) -> list[FusionSetting]:
    """Each side alone, then each fusion with all weights that differ by a step and leave none out."""
    alone = [tuple(float(side == one) for side in range(sides)) for one in range(sides)]
    steps = _STEPS.get(sides, 5)
    shares = [parts for parts in product(range(1, steps), repeat=sides) if sum(parts) == steps]
    weights = [tuple(round(part / steps, 10) for part in parts) for parts in shares]
    return [
        *map(FusionSetting, alone),
        *(FusionSetting(each, fusion) for fusion in fusions for each in weights),
    ]


def rankings(
    candidates: Mapping[str, Candidates], tried: Sequence[FusionSetting], size: int
) -> Iterator[dict[str, dict[str, float]]]:
    """The run of each setting, ``size`` deep; each query's scores are made comparable once a fusion."""
    normalized: dict[Fusion, dict[str, npt.NDArray[np.float32]]] = {}
    for setting in tried:
        fusion = setting.fusion
        if fusion is None:
            side = setting.weights.index(1.0)
            yield {query: _alone(found, side, size) for query, found in candidates.items()}
            continue
        if fusion not in normalized:
            normalized = {fusion: {query: found.normalized(fusion) for query, found in candidates.items()}}
        yield {
            query: found.ranking(found.fused(normalized[fusion][query], fusion, setting.weights), size)
            for query, found in candidates.items()
        }


def _alone(found: Candidates, side: int, size: int) -> dict[str, float]:
    best = sorted(found.lists[side], key=lambda place: found.ranks[place, side])[:size]
    return {found.ids[place]: float(found.scores[place, side]) for place in best}


def measured(
    candidates: Mapping[str, Candidates],
    tried: Sequence[FusionSetting],
    qrels: Qrels,
    *,
    asked: Container[str] = (),
) -> Values:
    """nDCG@10 of each setting on each query, ``[settings, queries]``, in the order of ``candidates``.

    What the queries ``asked`` found of themselves does not count.
    """
    rows = []
    for run in rankings(candidates, tried, _TOP + 1):
        of_query = quality(run, qrels, (MAIN_MEASURE,), asked=asked).per_query
        rows.append([of_query[query][MAIN_MEASURE] for query in candidates])
    return np.array(rows)


@dataclass(frozen=True)
class HeldOut:
    """What choosing brings, measured where it was not chosen.

    Attributes:
        values: Of each query, by the setting that the other folds chose.
        chosen: Position of the setting that each fold was measured with.
    """

    values: Values
    chosen: list[int]


def cross_validated(values: Values, folds: int, *, seed: int = 0) -> HeldOut:
    """Choose by all folds but one, measure on that one, for each of them.

    Args:
        values: ``[settings, queries]``; of equally good settings the first is taken.

    Raises:
        DataError: There are fewer than two queries a fold.
    """
    queries = values.shape[1]
    if queries < 2 * folds:
        raise DataError(
            f"{queries} judged queries are too few to hold one of {folds} folds out",
            hint="Judge more queries, or take fewer folds",
        )
    order = np.random.default_rng(seed).permutation(queries)
    held = np.empty(queries)
    chosen = []
    for fold in range(folds):
        out = order[fold::folds]
        best = int(np.argmax(np.delete(values, out, axis=1).mean(axis=1)))
        held[out] = values[best, out]
        chosen.append(best)
    return HeldOut(held, chosen)
