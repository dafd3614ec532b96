"""Settings of a search that a sweep compares, and how each goes into a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from oskit.archive.token_weights import Prune, prune
from oskit.cluster.search.clauses import TWO_PHASE, neural_sparse, two_phase_pipeline
from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.cluster.index.mapping import IndexInfo

MAX_SETTINGS = 200


@dataclass(frozen=True)
class Setting:
    """One way of searching; what is None is left to OpenSearch.

    Attributes:
        prune: Which weights of the query are kept, as ``TYPE:RATIO``; all if None.
        top_n: Heaviest query tokens whose postings are looked through (``sparse_vector``).
        k: Hits that are looked for in each segment (``sparse_vector``); it bounds how many are found.
        heap_factor: More looks into more clusters of documents (``sparse_vector``).
        prune_ratio: Of two phases: tokens lighter than this part of the heaviest one only rescore.
        expansion_rate: Of two phases: times as many documents as hits are rescored.
        pipeline: Name of the index's own search pipeline, which takes part.
    """

    prune: str | None = None
    top_n: int | None = None
    k: int | None = None
    heap_factor: float | None = None
    prune_ratio: float | None = None
    expansion_rate: float | None = None
    pipeline: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        told = [f"{name} {value:g}" for name, value in self.method.items()]
        if self.prune_ratio is not None:
            told.append(f"two phases, ratio {self.prune_ratio:g}, rate {self.expansion_rate:g}")
        told += [f"pruned {self.prune}"] if self.prune else []
        told += [f"pipeline {self.pipeline}"] if self.pipeline else []
        return ", ".join(told) or "as it is"

    @property
    def method(self) -> dict[str, float]:
        """Parameters of an approximate search."""
        values = {"top_n": self.top_n, "k": self.k, "heap_factor": self.heap_factor}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def phases(self) -> dict[str, float] | None:
        """Parameters of two phases; None for one."""
        if self.prune_ratio is None:
            return None
        own = {"prune_ratio": self.prune_ratio, "expansion_rate": self.expansion_rate}
        return TWO_PHASE | {name: value for name, value in own.items() if value is not None}

    def tokens(self, weights: Mapping[str, float]) -> dict[str, float]:
        """What is asked for of a query's weights."""
        return prune(weights, Prune.parse(self.prune)) if self.prune else dict(weights)

    def body(self, info: IndexInfo, tokens: Mapping[str, float], size: int) -> dict[str, Any]:
        """Of a search: nothing but ids and scores, and no count of what matched."""
        query = neural_sparse(info, {"query_tokens": tokens}, self.method)
        body = {"query": query, "size": size, "_source": False, "track_total_hits": False}
        # Within the request, in the place of the index's own: nothing is left in the cluster.
        return body | ({"search_pipeline": two_phase_pipeline(self.phases)} if self.phases else {})

    def finds(self, depth: int) -> bool:
        """Whether so many hits can be asked for."""
        if self.phases is not None:
            return depth * self.phases["expansion_rate"] <= self.phases["max_window_size"]
        return self.k is None or depth <= self.k

    def request(self) -> dict[str, Any]:
        """What a search has to be given: parts of OpenSearch's request, and the rule for the weights."""
        parts: dict[str, Any] = {"method_parameters": self.method} if self.method else {}
        parts |= {"search_pipeline": two_phase_pipeline(self.phases)} if self.phases else {}
        return parts | ({"prune": self.prune} if self.prune else {})

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not left to OpenSearch."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Grid:
    """Values to try; None takes those that fit the index's kind.

    Attributes:
        top_n, k, heap_factor: Each with each, on ``sparse_vector``.
        prune: Rules for the weights of queries, ``TYPE:RATIO``, besides none.
        prune_ratio, expansion_rate: Of two phases, each with each, besides one phase, on ``rank_features``.
    """

    top_n: Sequence[int] | None = None
    k: Sequence[int] | None = None
    heap_factor: Sequence[float] | None = None
    prune: Sequence[str] | None = None
    prune_ratio: Sequence[float] | None = None
    expansion_rate: Sequence[float] | None = None

    def settings(
        self,
        kind: str,
        *,
        approximate: bool,
        pipeline: str | None = None,
        passages: int = 1,
        nested: str | None = None,
    ) -> list[Setting]:
        """The settings to compare, the one that changes nothing first.

        Args:
            kind: Of the index.
            approximate: Whether a ``sparse_vector`` index is searched so; else nothing but pruning matters.
            pipeline: The index's own search pipeline.
            passages: Vectors that a document has: ``k`` counts these, so its default values are as many times
                as large.
            nested: The objects that hold them, if any: two phases do not look into these.

        Raises:
            UsageError: Values that are for the other kind, or too many.
        """
        foreign = ("prune_ratio", "expansion_rate") if kind == "sparse_vector" else _METHOD
        if given := [name for name in foreign if getattr(self, name) is not None]:
            other = "rank_features" if kind == "sparse_vector" else "sparse_vector"
            raise UsageError(f"{', '.join(given)}: only for {other}, and the index is {kind}")
        for rule in self.prune or ():
            Prune.parse(rule)
        found = [Setting()]
        if kind == "sparse_vector":
            rules = [None, *(self.prune or ())]
            defaults = _METHOD | {"k": tuple(k * passages for k in _METHOD["k"])}
            values = [_given(getattr(self, name), default) for name, default in defaults.items()]
            if approximate:
                found = [
                    Setting(rule, top_n, k, heap_factor)
                    for rule, top_n, k, heap_factor in product(rules, *values)
                ]
            else:
                found += [Setting(prune=rule) for rule in rules[1:]]
        else:
            found += [Setting(prune=rule) for rule in _given(self.prune, PRUNE)]
            if nested and (self.prune_ratio is not None or self.expansion_rate is not None):
                raise UsageError(f"two phases do not look into the nested {nested!r}, and so change nothing")
            ratios = () if nested else _given(self.prune_ratio, RATIOS)
            phases = product(ratios, _given(self.expansion_rate, RATES))
            found += [Setting(prune_ratio=ratio, expansion_rate=rate) for ratio, rate in phases]
        found += [Setting(pipeline=pipeline, k=found[0].k)] if pipeline else []
        if len(found) > MAX_SETTINGS:
            raise UsageError(f"{len(found):,} settings are too many", hint=f"Try {MAX_SETTINGS} at most")
        return found


_METHOD: dict[str, Sequence[Any]] = {
    "top_n": (5, 10, 20),
    "k": (10, 100, 1000),
    "heap_factor": (0.8, 1.0, 1.5),
}
PRUNE = ("max_ratio:0.1", "max_ratio:0.2", "max_ratio:0.4", "top_k:5", "top_k:10")
RATIOS = (0.2, 0.4, 0.6)
RATES = (5.0, 20.0)


def _given(values: Sequence[Any] | None, default: Sequence[Any]) -> Sequence[Any]:
    return default if values is None else values
