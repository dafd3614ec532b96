"""What a search found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from oskit.cluster.index.sparse_fields import SEMANTIC_INFO, vectors_of, without
from oskit.cluster.search.passages import Passage, read_passage

if TYPE_CHECKING:
    from oskit.archive.text_encoder import KeyFormat
    from oskit.cluster.index.mapping import IndexInfo

SearchBy = Literal["model", "tokenizer", "analyzer", "tokens", "bm25"]

SEARCH_BY: tuple[SearchBy, ...] = get_args(SearchBy)


@dataclass(frozen=True)
class Match:
    """A token that query and document share."""

    query: float
    document: float

    @property
    def product(self) -> float:
        """What the token adds to the score."""
        return self.query * self.document


@dataclass(frozen=True)
class Share:
    """What one side of a hybrid search says of a hit.

    Attributes:
        rank: In the side's list, from 1; None if it is not among its best ``pagination_depth``.
        score: By the side.
        normalized: What goes into the fusion.
        share: Of the fused score, in [0, 1]; None where scores are not added up (geometric, harmonic).
    """

    rank: int | None
    score: float | None
    normalized: float
    share: float | None


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        id: Its ``_id``.
        score: Its score.
        source: Its own fields.
        title: Its title, by whatever name; empty if it has none.
        text: Its text.
        others: Its own fields but the text.
        sides: With ``explain``, of a hybrid search: what each side says of it.
        matched: With ``explain``: the tokens (or token ids) that matched, the heaviest product first.
            The products sum up to the score, but for the 9 bits that the index keeps of a weight.
        passage: Where documents have several vectors: the passage whose vector matched best.
    """

    id: str
    score: float
    source: dict[str, Any]
    title: str = ""
    text: str = ""
    others: dict[str, Any] = field(default_factory=dict, compare=False)
    matched: dict[str, Match] = field(default_factory=dict)
    passage: Passage | None = None
    sides: dict[str, Share] = field(default_factory=dict)

    @classmethod
    def read(cls, hit: Mapping[str, Any], info: IndexInfo, weights: Mapping[str, float] | None) -> Hit:
        """A hit as OpenSearch tells it; ``weights`` are the query's, where matches are to be told."""
        source = dict(hit.get("_source") or {})
        text_field = info.text_field or "text"
        title, text = source.get(info.title_field or "title"), source.get(text_field)
        passage, vectors = read_passage(hit, info, str(title or ""), text)
        vectors = vectors or vectors_of(source, info.embedding_field)
        source = without(source, info.embedding_field)
        matched: dict[str, Match] = {}
        if weights is not None:
            if not info.nested:  # the parts of one vector
                vectors = [{key: weight for vector in vectors for key, weight in vector.items()}]
            shared = [
                {key: Match(weights[key], vector[key]) for key in weights if key in vector}
                for vector in vectors
            ]
            best = max(shared, key=lambda found: sum(match.product for match in found.values()), default={})
            matched = dict(sorted(best.items(), key=lambda item: -item[1].product))
        if text is None and info.passage_field is not None:
            text = source.get(info.passage_field)
        made = {text_field, info.passage_field, info.nested, f"{info.passage_field}{SEMANTIC_INFO}"}
        others = {name: value for name, value in source.items() if name not in made}
        shown = str(title or ""), str(text or "")
        return cls(hit["_id"], float(hit["_score"]), source, *shown, others, matched, passage)


@dataclass(frozen=True)
class SearchResult:
    """The answer to a query.

    Attributes:
        index: Where, by the name that was asked.
        by: How the query was encoded.
        took_ms: Milliseconds that the cluster says it took.
        total: Documents that matched.
        hits: The best of them.
        key: Whether matched tokens and query weights are called by token text or by token id.
        query_weights: With ``explain`` or ``by="tokens"``: the query's token weights.
        warning: What makes the answer doubtful: the query was encoded by something else than the documents,
            or had more or heavier tokens than OpenSearch takes.
        total_relation: ``"eq"``, or ``"gte"`` where at least ``total`` documents matched: OpenSearch stops
            counting at 10,000, the first of two phases does not see all, nor does an approximate search.
        search_pipeline: The index's default search pipeline, which took part.
        tokens: With ``explain``, where the keys are ids: what these tokens are called, as far as the encoder
            or the model tells.
        hybrid: Of a hybrid search: the weights of its sides, how they were fused, and how deep.
    """

    index: str
    by: SearchBy
    took_ms: int
    total: int
    hits: list[Hit]
    key: KeyFormat
    query_weights: dict[str, float] | None = None
    warning: str | None = None
    total_relation: Literal["eq", "gte"] = "eq"
    search_pipeline: str | None = None
    tokens: dict[str, str] = field(default_factory=dict)
    hybrid: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        for hit, found in zip(values["hits"], self.hits, strict=True):
            del hit["title"], hit["text"], hit["others"]  # they are in the source
            hit["matched"] = {
                token: {"query": match.query, "document": match.document, "product": match.product}
                for token, match in found.matched.items()
            }
        return values
