"""Hybrid scores as OpenSearch 3.6 computes them: several lists of hits made one, here.

neural-search's ``normalization-processor`` and ``score-ranker-processor``, number for number: 32-bit floats
in the order in which they are added there, and equal scores in the order of its hash table. Four things
that nobody expects:

* Lists are cut before they are fused: each side gives the best ``pagination_depth`` hits *of each shard*, and
  the smallest, the mean and the norm are those of what is left.
* ``min_max`` gives the last of a list .001 and not 0; a list of equal scores has 1 throughout.
* ``z_score`` gives all below the mean .001; and a score that *is* the mean, such as that of a side's only
  hit, becomes the side's largest raw score, whatever its scale.
* The arithmetic mean counts a side that lacks a document as 0, the geometric and the harmonic one leave it
  out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

from oskit.errors import UsageError

Technique = Literal["min_max", "l2", "z_score", "rrf"]
Mean = Literal["arithmetic", "geometric", "harmonic"]
Array = npt.NDArray[np.float32]

TECHNIQUES: tuple[Technique, ...] = get_args(Technique)
MEANS: tuple[Mean, ...] = get_args(Mean)

RANK_CONSTANT = 60
"""OpenSearch's default, and that of Cormack, Clarke and Büttcher (SIGIR 2009)."""

_LEAST = np.float32(0.001)
"""What the last of a list has in the place of 0."""


_KNOWN = "Use min_max, l2, z_score (min_max and l2 also :geometric, :harmonic) or rrf:60"


class Found(NamedTuple):
    """A hit of one side.

    Attributes:
        number: Lucene's number of the document within its shard (``"sort": ["_score", "_doc"]`` tells it),
            which decides between equal scores; None where nobody knows, and the order of the lists decides.
    """

    id: str
    score: float
    number: int | None = None


@dataclass(frozen=True)
class Fusion:
    """How the lists of several sides become one.

    Args:
        technique: How each side's scores are made comparable; ``rrf`` takes ranks in their place.
        mean: How those of a document become one; of ``rrf`` the sum.
        rank_constant: Of ``rrf``: a hit counts 1 / (rank_constant + rank), ranks from 1.

    Raises:
        UsageError: What OpenSearch would refuse.
    """

    technique: Technique = "min_max"
    mean: Mean = "arithmetic"
    rank_constant: int = RANK_CONSTANT

    def __post_init__(self) -> None:
        if self.technique not in TECHNIQUES or self.mean not in MEANS:
            raise UsageError(
                f"unknown fusion {self.technique}:{self.mean}",
                hint=_KNOWN,
            )
        if self.technique in ("z_score", "rrf") and self.mean != "arithmetic":
            raise UsageError(f"{self.technique} knows no {self.mean} mean", hint="Use it alone")
        if not 1 <= self.rank_constant <= 10_000:
            raise UsageError(f"a rank constant of {self.rank_constant} is not possible", hint="Use 1-10000")

    @classmethod
    def parse(cls, text: str) -> Fusion:
        """Reads ``min_max``, ``l2:geometric``, ``z_score`` and ``rrf:60``.

        Raises:
            UsageError: It is none of these.
        """
        technique, _, more = text.strip().partition(":")
        if technique not in TECHNIQUES:
            raise UsageError(f"unknown fusion {text!r}", hint=_KNOWN)
        if technique == "rrf":
            if more and not more.isdecimal():
                raise UsageError(f"{text!r} has no rank constant", hint=f"Use rrf:{RANK_CONSTANT}")
            return cls("rrf", rank_constant=int(more) if more else RANK_CONSTANT)
        mean = more.removesuffix("_mean") or "arithmetic"
        return cls(cast(Technique, technique), cast(Mean, mean))

    @property
    def name(self) -> str:
        """As :meth:`parse` reads it."""
        if self.technique == "rrf":
            return f"rrf:{self.rank_constant}"
        return self.technique if self.mean == "arithmetic" else f"{self.technique}:{self.mean}"

    def pipeline(self, weights: Sequence[float]) -> dict[str, Any]:
        """The search pipeline that fuses so, to be sent within a request or to be stored.

        Args:
            weights: Of each side, in sum 1.
        """
        parameters = {"weights": [float(weight) for weight in weights]}  # an integer is a ClassCastException
        if self.technique == "rrf":
            ranks = {"technique": "rrf", "rank_constant": self.rank_constant, "parameters": parameters}
            return {"phase_results_processors": [{"score-ranker-processor": {"combination": ranks}}]}
        steps = {
            "normalization": {"technique": self.technique},
            "combination": {"technique": f"{self.mean}_mean", "parameters": parameters},
        }
        return {"phase_results_processors": [{"normalization-processor": steps}]}


@dataclass(frozen=True)
class Candidates:
    """What the sides found for one query, as arrays; made once, fused in many ways.

    Attributes:
        ids: The documents, in the order in which equal fused scores stay.
        scores: ``[documents, sides]``, NaN where a side lacks a document.
        ranks: ``[documents, sides]``, from 0; -1 where a side lacks it.
        lists: Each side's documents, as positions in ``ids``, shard after shard.
    """

    ids: list[str]
    scores: Array
    ranks: npt.NDArray[np.int64]
    lists: list[npt.NDArray[np.int64]]

    @classmethod
    def of(cls, shards: Sequence[Sequence[Sequence[Found]]]) -> Candidates:
        """Lists by shard and side, each best first."""
        sides = max(map(len, shards), default=0)
        places: dict[tuple[int, str], int] = {}
        for shard, of_shard in enumerate(shards):
            for found in _in_order(of_shard):
                places[shard, found.id] = len(places)
        scores = np.full((len(places), sides), np.nan, dtype=np.float32)
        ranks = np.full((len(places), sides), -1, dtype=np.int64)
        lists = []
        for side in range(sides):
            hits = [(shard, hit) for shard, of_shard in enumerate(shards) for hit in of_shard[side]]
            at = [places[shard, hit.id] for shard, hit in hits]
            scores[at, side] = [hit.score for _, hit in hits]
            lists.append(np.array(at, dtype=np.int64))
            # One shard's list is taken as it stands; of several, all hits are ranked together.
            if len(shards) > 1:
                hits.sort(key=lambda item: (-item[1].score, item[1].number or 0, item[0]))
            ranks[[places[shard, hit.id] for shard, hit in hits], side] = np.arange(len(hits))
        return cls([document for _, document in places], scores, ranks, lists)

    def normalized(self, fusion: Fusion) -> Array:
        """Comparable scores, ``[documents, sides]``, 0 where a side lacks a document."""
        found = np.zeros_like(self.scores)
        for side, listed in enumerate(self.lists):
            if not len(listed):
                continue
            if fusion.technique == "rrf":
                found[listed, side] = _reciprocal(self.ranks[listed, side] + 1 + fusion.rank_constant)
            else:
                found[listed, side] = _NORMALIZE[fusion.technique](self.scores[listed, side])
        return found

    def fused(self, normalized: Array, fusion: Fusion, weights: Sequence[float]) -> Array:
        """Each document's score, ``[documents]``; ``normalized`` as :meth:`normalized` makes it."""
        total, counted = np.zeros((2, len(self.ids)), dtype=np.float32)
        for side, weight in enumerate(np.asarray(weights, dtype=np.float32)):
            scores = normalized[:, side]
            if fusion.mean == "arithmetic":
                total += scores * weight
                counted += weight
                continue
            there = scores > 0
            counted[there] += weight
            if fusion.mean == "harmonic":
                total[there] += weight / scores[there]
            else:
                total[there] = total[there] + np.float64(weight) * np.log(scores[there].astype(np.float64))
        if fusion.technique == "rrf":
            return total
        some = counted > 0
        if fusion.mean == "harmonic":
            return np.divide(counted, total, out=np.zeros_like(total), where=total > 0)
        mean = np.divide(total, counted, out=np.zeros_like(total), where=some)
        if fusion.mean == "arithmetic":
            return mean
        return np.where(some, np.exp(mean.astype(np.float64)), 0).astype(np.float32)

    def ranking(self, scores: Array, size: int | None = None) -> dict[str, float]:
        """Documents with their fused scores, best first, as the cluster orders them."""
        best = np.argsort(-scores, kind="stable")[:size]
        return {self.ids[place]: float(scores[place]) for place in best}

    def fuse(self, fusion: Fusion, weights: Sequence[float], size: int | None = None) -> dict[str, float]:
        """The best documents of all sides together, with their scores."""
        return self.ranking(self.fused(self.normalized(fusion), fusion, weights), size)


def _in_order(sides: Sequence[Sequence[Found]]) -> list[Found]:
    """A shard's documents as a Java ``HashMap`` of their numbers lists them: equal scores stay so.

    A table of the next power of two that is at most three quarters full, in it the numbers modulo its size;
    ``computeIfAbsent`` puts a newcomer before those of the same place.
    """
    first: dict[str, Found] = {}
    for hit in (hit for side in sides for hit in side):
        first.setdefault(hit.id, hit)
    found = list(first.values())
    if any(hit.number is None for hit in found):
        return found
    size = 16
    while len(found) > size * 3 // 4:
        size *= 2
    numbers = {hit.id: hit.number or 0 for hit in found}
    found.reverse()
    return sorted(found, key=lambda hit: (numbers[hit.id] ^ numbers[hit.id] >> 16) & (size - 1))


def _reciprocal(numbers: npt.NDArray[np.int64]) -> Array:
    """1 / number, ten decimals, halves rounded up, then as a float."""
    return np.asarray(((2 * 10**10 + numbers) // (2 * numbers)) / 1e10, dtype=np.float32)


def _min_max(scores: Array) -> Array:
    low, high = scores.min(), scores.max()
    if low == high:
        return np.ones_like(scores)
    found = (scores - low) / (high - low)
    return np.where(found == 0, _LEAST, found)


def _l2(scores: Array) -> Array:
    norm = np.sqrt(np.cumsum(scores * scores, dtype=np.float32)[-1].astype(np.float64)).astype(np.float32)
    return np.asarray(scores / norm) if norm else np.full_like(scores, _LEAST)


def _z_score(scores: Array) -> Array:
    values = scores.astype(np.float64)
    mean, deviation = values.mean(), np.float32(values.std(ddof=1) if len(values) > 1 else 0.0)
    average = np.float32(mean)
    if deviation == 0:
        return np.asarray(np.where(scores == average, scores.max(), scores.min()))
    found = (scores - average) / deviation
    return np.asarray(np.where(scores == average, scores.max(), np.where(found <= 0, _LEAST, found)))


_NORMALIZE: dict[str, Callable[[Array], Array]] = {"min_max": _min_max, "l2": _l2, "z_score": _z_score}
