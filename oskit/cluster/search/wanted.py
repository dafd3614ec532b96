"""What a searcher was told once, and what is wanted of its answers: refused before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import TYPE_CHECKING, Any

from oskit.archive.tokenization import QueryWatch
from oskit.cluster.search.clauses import TWO_PHASE
from oskit.cluster.search.filters import as_list
from oskit.cluster.search.result import SEARCH_BY, SearchBy
from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.index.mapping import IndexInfo
    from oskit.cluster.search.filters import Given
    from oskit.cluster.search.hybrid import Hybrid


@dataclass(frozen=True)
class Asker:
    """How queries become vectors, as :class:`oskit.cluster.search.search.Searcher` was told."""

    by: SearchBy | None = None
    model_id: str | None = None
    analyzer: str | None = None
    encoder: TextEncoder | None = None

    @cached_property
    def watch(self) -> QueryWatch | None:
        """Looks at the script of queries; None where no vocabulary is known."""
        return QueryWatch(self.encoder.vocabulary) if self.encoder is not None else None

    def way(self, query: object) -> SearchBy:
        """How a query becomes a vector.

        Raises:
            UsageError: Options that do not fit together.
        """
        by = self.by or self._default(query)
        if by not in SEARCH_BY:
            raise UsageError(f"unknown way to search {by!r}", hint=f"Use one of {', '.join(SEARCH_BY)}")
        if isinstance(query, Mapping) and by != "tokens":
            raise UsageError("token weights can only be searched by tokens")
        for what, given, fits in (
            ("a model", self.model_id, ("model", "tokenizer")),
            ("an analyzer", self.analyzer, ("analyzer",)),
        ):
            if given is not None and by not in fits:
                raise UsageError(f"{what} does not encode the query by {by}", hint="Leave one of the two out")
        return by

    def _default(self, query: object) -> SearchBy:
        if isinstance(query, Mapping):
            return "tokens"
        if self.model_id is not None:
            return "model"
        if self.analyzer is not None:
            return "analyzer"
        return "model" if self.encoder is None else "tokens"


@dataclass(frozen=True)
class Wanted:
    """What is wanted of the answers."""

    size: int = 10
    two_phase: bool = False
    explain: bool = False
    method_parameters: Mapping[str, Any] | None = None
    filter: Given | Sequence[Given] | None = None
    offset: int = 0
    sort: str | Sequence[str] = ()
    fields: Sequence[str] | None = None
    min_score: float | None = None
    hybrid: Hybrid | None = None

    @property
    def filters(self) -> list[Given]:
        """All that have to hold, be they said of the search or of its method."""
        inside = (self.method_parameters or {}).get("filter")
        return [*as_list(self.filter), *as_list(inside or None)]

    @property
    def reach(self) -> int:
        """The rank of the last hit that is wanted."""
        return self.offset + self.size

    def check_depth(self, index: str, max_hits: int) -> None:
        """Refuse more hits than one search may have.

        Raises:
            UsageError: Tells how many that are.
        """
        if self.size < 1:
            raise UsageError(f"the number of hits must be at least 1, not {self.size}")
        if self.offset < 0:
            raise UsageError(f"the first hit cannot be number {self.offset}")
        if self.min_score is not None and not isfinite(self.min_score):
            raise UsageError(f"the least score of a hit cannot be {self.min_score}")
        if self.hybrid is not None and self.hybrid.depth > max_hits:
            raise UsageError(f"{index!r} gives {max_hits:,} hits of a side at most (index.max_result_window)")
        allowed = max_hits
        if self.two_phase:
            allowed = min(allowed, int(TWO_PHASE["max_window_size"] / TWO_PHASE["expansion_rate"]))
        if self.reach > allowed:
            why = "in two phases" if allowed < max_hits else "index.max_result_window"
            raise UsageError(
                f"{index!r} shows its best {allowed:,} hits ({why}), and {self.reach:,} are wanted",
                hint="Filter, so that fewer match",
            )

    def check(self, info: IndexInfo, by: SearchBy) -> None:
        """Refuse what an index cannot answer.

        Raises:
            UsageError: Names it.
        """
        if self.two_phase and (self.sort or self.min_score is not None):
            raise UsageError(
                "two-phase search neither sorts nor knows a least score: its first phase has no whole scores",
                hint="Search in one phase",
            )
        if self.hybrid is not None:
            if by == "bm25":
                raise UsageError("BM25 is a side of a hybrid search", hint="Leave out BM25 alone")
            self.hybrid.check(info, self.reach, two_phase=self.two_phase, sorts=bool(self.sort))
        if by == "bm25" and (self.explain or self.two_phase or self.method_parameters):
            raise UsageError("BM25 has no token weights: neither explain, two-phase nor method parameters")
        if by == "bm25" and info.passage_field is None and not info.text_fields:
            raise UsageError(f"the index {info.name!r} was not made by oskit and has no passages for BM25")
        if info.kind == "sparse_vector" and self.two_phase:
            raise UsageError(
                f"two-phase search works on rank_features, and {info.name!r} is a sparse_vector index",
                hint="Search without it",
            )
        if info.nested and self.two_phase:
            raise UsageError(
                f"two-phase search does not look into the nested {info.embedding_field!r} of {info.name!r}",
                hint="Search without it",
            )
        if info.kind != "sparse_vector" and self.method_parameters:
            raise UsageError(f"method parameters are for sparse_vector, and {info.name!r} is {info.kind}")
