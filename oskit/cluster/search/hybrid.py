"""Hybrid search: several ways of searching at once, whose lists the cluster fuses into one.

OpenSearch lets a hybrid query go wrong in silence: without a search pipeline its scores are sentinels, and
without ``pagination_depth`` scores and order depend on how many hits are asked for. Here a depth and a
pipeline are part of each request, so no pipeline of that name has to be there, and none takes part by
chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from oskit.cluster.search.fusion import Fusion
from oskit.errors import DataError, UsageError

if TYPE_CHECKING:
    from oskit.cluster.index.mapping import IndexInfo
    from oskit.cluster.search.clauses import Clause
    from oskit.cluster.search.place import Shape

SideKind = Literal["bm25", "sparse", "dense"]

SIDE_KINDS: tuple[SideKind, ...] = get_args(SideKind)

MAX_SIDES = 5
"""Queries that a ``hybrid`` query takes."""

_TYPES = {
    "bm25": ("text", "semantic", "match_only_text", "search_as_you_type", "annotated_text"),
    "dense": ("knn_vector",),
}

DEPTH = 100
"""Hits of each side, on each shard, that are fused unless told otherwise."""

_HOW = "Give sides with their weights, such as bm25=0.3,sparse=0.7 (bm25:title for another field; dense)"

Embed = Callable[[Sequence[str]], Any]
"""Makes dense vectors of queries, ``[n, dimensions]``."""


@dataclass(frozen=True)
class Side:
    """One way of searching, as part of a hybrid one.

    Attributes:
        weight: Its share, in sum 1.
        field: Another field than the index's own passages, or the dense vector's.
    """

    kind: SideKind
    weight: float
    field: str | None = None

    @property
    def name(self) -> str:
        """How it is told: ``bm25``, or ``bm25:title``."""
        return f"{self.kind}:{self.field}" if self.field else self.kind


@dataclass(frozen=True)
class Hybrid:
    """What is searched at once, and how it is fused.

    Attributes:
        sides: Two to :data:`MAX_SIDES`.
        depth: Hits of each side, on each shard, that are fused; scores depend on it, on the number of hits
            that are asked for they do not.
        dense_model: Name or id of the deployed model that encodes queries for the dense side.
        embed: Encodes them here, in its place.
        told: What was made of the weights that were given; None if they stayed.

    Raises:
        UsageError: OpenSearch would refuse it, or answer without a word of what is wrong.
    """

    sides: tuple[Side, ...]
    fusion: Fusion = Fusion()  # noqa: RUF009 - frozen
    depth: int = DEPTH
    dense_model: str | None = None
    embed: Embed | None = field(default=None, compare=False)
    told: str | None = None

    def __post_init__(self) -> None:
        names = [side.name for side in self.sides]
        if not 2 <= len(names) <= MAX_SIDES:
            what = f"a hybrid search has 2 to {MAX_SIDES} sides, and this one {len(names)}"
            raise UsageError(what, hint=_HOW)
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"the side {twice!r} is given twice", hint=_HOW)
        if not 1 <= self.depth <= 10_000:
            raise UsageError(f"a depth of {self.depth} hits is not possible", hint="Use 1 to 10000")
        given = (self.dense_model is not None) + (self.embed is not None)
        if given != ("dense" in (side.kind for side in self.sides)):
            raise UsageError(
                "the dense side and what makes its queries' vectors go together, and there is one of that",
                hint="Give dense=WEIGHT with --dense-model or with --dense-vector",
            )

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        fusion: str = "min_max",
        depth: int = DEPTH,
        dense_field: str | None = None,
        dense_model: str | None = None,
        embed: Embed | None = None,
    ) -> Hybrid:
        """Reads ``bm25=0.3,sparse=0.7``; weights of another sum than 1 are divided by it, and that is told.

        Args:
            fusion: As :meth:`oskit.cluster.search.fusion.Fusion.parse` reads it.
            dense_field: Of a ``dense`` side without a field; else the only one that the index has.

        Raises:
            UsageError: It is something else.
        """
        sides = [_side(part, dense_field) for part in text.split(",") if part.strip()]
        if dense_field is not None and dense_field not in [side.field for side in sides]:
            raise UsageError("a dense field goes with a dense side", hint=_HOW)
        total, told = fsum(side.weight for side in sides), None
        if sides and abs(total - 1) > 1e-9:
            sides = [Side(side.kind, side.weight / total, side.field) for side in sides]
            told = f"the weights are divided by their sum, {total:g}: " + ", ".join(
                f"{side.name}={side.weight:.4g}" for side in sides
            )
        return cls(tuple(sides), Fusion.parse(fusion), depth, dense_model, embed, told)

    def fused_by(self, fusion: Fusion, weights: Sequence[float]) -> Hybrid:
        """The same sides with other weights, fused in another way."""
        sides = [
            Side(side.kind, weight, side.field) for side, weight in zip(self.sides, weights, strict=True)
        ]
        return replace(self, sides=tuple(sides), fusion=fusion, told=None)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the sides."""
        return tuple(side.weight for side in self.sides)

    @property
    def name(self) -> str:
        """In words: ``bm25=0.3,sparse=0.7 by min_max``."""
        return f"{','.join(f'{side.name}={side.weight:.4g}' for side in self.sides)} by {self.fusion.name}"

    def has(self, kind: SideKind) -> bool:
        """Whether it has a side of that kind."""
        return any(side.kind == kind for side in self.sides)

    def check(self, info: IndexInfo, size: int, *, two_phase: bool, sorts: bool) -> None:
        """Refuse what does nothing or goes wrong.

        Args:
            size: Hits that are asked for, with those that are skipped.

        Raises:
            UsageError: Names it.
        """
        if two_phase:
            raise UsageError("two phases do nothing inside a hybrid search", hint="Leave one of the two out")
        if sorts:
            raise UsageError("hits that are sorted by a field have no fused scores", hint="Leave --sort out")
        if size > self.depth:
            raise UsageError(
                f"{size:,} hits are more than the {self.depth:,} of each side that are fused",
                hint=f"Give a depth of at least {size}, and the same for every page: scores depend on it",
            )
        if self.has("dense") and info.kind == "sparse_vector":
            raise UsageError(
                f"{info.name!r} is a sparse_vector index, and OpenSearch builds no dense vectors beside "
                "them (index.sparse and index.knn exclude each other)",
                hint="Load the documents into a rank_features index",
            )

    def fields(self, info: IndexInfo, shape: Shape) -> list[str]:
        """The field of each side, looked up in the index.

        Raises:
            UsageError: There is none, or it is of another type: such a side would find nothing.
        """
        return [self._field(side, info, shape) for side in self.sides]

    def _field(self, side: Side, info: IndexInfo, shape: Shape) -> str:
        if side.kind == "sparse":
            return info.embedding_field
        types = _TYPES[side.kind]
        there = [path for path, kind in shape.types.items() if kind in types]
        own = [info.passage_field] if side.kind == "bm25" else there if len(there) == 1 else []
        if side.kind == "bm25" and info.text_fields:
            own = [name.partition("^")[0] for name in info.text_fields.split(",")]
        names = [name for name in ([side.field] if side.field else own) if name]
        hint = f"Name the field, such as {side.kind}:NAME=WEIGHT. It has: {', '.join(there) or 'none'}"
        if not names:
            raise UsageError(f"which field of {info.name!r} {side.kind} is to search is not known", hint=hint)
        for name in names:
            if shape.types.get(name) not in (*types, "alias"):
                found = f"is {shape.types[name]}" if name in shape.types else "does not exist"
                raise UsageError(
                    f"{side.kind} would find nothing: the field {name!r} {found} in {info.name!r}", hint=hint
                )
        return names[0]

    def body(self, clauses: Sequence[Clause]) -> dict[str, Any]:
        """Query and pipeline of a search body, from the clause of each side."""
        query = {"hybrid": {"queries": list(clauses), "pagination_depth": self.depth}}
        return {"query": query, "search_pipeline": self.fusion.pipeline(self.weights)}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        weights = {side.name: side.weight for side in self.sides}
        return {"weights": weights, "fusion": self.fusion.name, "pagination_depth": self.depth}


def _side(text: str, dense_field: str | None) -> Side:
    name, equals, given = text.strip().partition("=")
    kind, _, at = name.strip().partition(":")
    try:
        weight = float(given)
    except ValueError:
        weight = -1.0
    if kind not in SIDE_KINDS or not equals or (kind == "sparse" and at):
        raise UsageError(f"{text.strip()!r} is no side of a hybrid search", hint=_HOW)
    if not isfinite(weight) or weight <= 0:
        hint = "Leave a side out that is to count for nothing" if weight == 0 else _HOW
        raise UsageError(f"the weight of {text.strip()!r} is no number above 0", hint=hint)
    return Side(kind, weight, at or (dense_field if kind == "dense" else None))


def given_vector(text: str) -> Embed:
    """A query's dense vector, as JSON or in a file with it; for one query.

    Raises:
        DataError: It is no list of numbers.
    """
    where = "the dense vector"
    if not text.lstrip().startswith("["):
        where = text
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"the dense vector cannot be read from {where}: {error}") from None
    try:
        vector = [float(number) for number in json.loads(text)]
    except (ValueError, TypeError):
        raise DataError(f"{where} is no list of numbers", hint="Give JSON such as [0.1, -0.2]") from None
    if not vector or not all(map(isfinite, vector)):
        raise DataError(f"{where} is no list of numbers", hint="Give JSON such as [0.1, -0.2]")

    def embed(queries: Sequence[str]) -> list[list[float]]:
        if len(queries) > 1:
            raise UsageError("a given dense vector is that of one query", hint="Give a dense model")
        return [vector] * len(queries)

    return embed
