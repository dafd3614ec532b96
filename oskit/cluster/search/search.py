"""Search an index of sparse vectors in every way that the cluster offers, and explain what matched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from oskit.archive.siblings import known_sha256
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.server_words import NO_INDEX
from oskit.cluster.index.mapping import IndexInfo, find_index
from oskit.cluster.index.names import Target
from oskit.cluster.index.sparse_fields import vectors_of, without
from oskit.cluster.models.predict import predict, with_model
from oskit.cluster.models.registry import ModelInfo
from oskit.cluster.search.answers import complete_search
from oskit.cluster.search.query_model import check_same_encoder, query_model
from oskit.cluster.search.query_weights import analyzer_weights, checked, fitted
from oskit.data.values import clean_text
from oskit.errors import ClusterError, SearchError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import KeyFormat, TextEncoder

SearchBy = Literal["model", "tokenizer", "analyzer", "tokens", "bm25"]

SEARCH_BY: tuple[SearchBy, ...] = get_args(SearchBy)

LOOKS = 4
"""How often a name is looked up whose index is gone when it is searched."""

DEFAULT_ANALYZER = "bert-uncased"

TWO_PHASE = {"prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10_000}
"""OpenSearch's defaults for the two phases: heavy tokens first, the others only to rescore."""

CHUNKS_OF_A_DOCUMENT = 10
"""Vectors of one document that an approximate search of nested ones makes room for among its ``k``."""

_ABOVE_NOTHING = 1e-30
"""A filter within an approximate search lets in what shares no token with the query, with score 0."""


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
class Hit:
    """A document that was found.

    Attributes:
        id: Its ``_id``.
        score: Its score.
        source: Its own fields.
        title: Its title, by whatever name; empty if it has none.
        text: Its text.
        matched: With ``explain``: the tokens (or token ids) that matched, the heaviest product first.
            The products sum up to the score, but for the 9 bits that the index keeps of a weight.
    """

    id: str
    score: float
    source: dict[str, Any]
    title: str = ""
    text: str = ""
    matched: dict[str, Match] = field(default_factory=dict)


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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        for hit, found in zip(values["hits"], self.hits, strict=True):
            del hit["title"], hit["text"]  # they are in the source
            hit["matched"] = {
                token: {"query": match.query, "document": match.document, "product": match.product}
                for token, match in found.matched.items()
            }
        return values


def search(
    client: OpenSearch,
    index: str,
    query: str | Mapping[str, float],
    *,
    by: SearchBy | None = None,
    model_id: str | None = None,
    analyzer: str | None = None,
    encoder: TextEncoder | None = None,
    field: str | None = None,
    size: int = 10,
    two_phase: bool = False,
    explain: bool = False,
    method_parameters: Mapping[str, Any] | None = None,
    notify: Callable[[str], object] | None = None,
) -> SearchResult:
    """Search an index.

    Args:
        client: From :func:`oskit.cluster.client.connection.connect`.
        index: An index or an alias of one. What the alias hides stays hidden.
        query: A text; for ``by="tokens"`` also token weights, keyed as the index is.
        by: How the query becomes a vector. ``"model"``: by a deployed encoder. ``"tokenizer"``: by a deployed
            tokenizer model (inference-free). ``"analyzer"``: by an analyzer and its built-in weights.
            ``"tokens"``: here, by ``encoder``. ``"bm25"``: not at all, as a plain text query for comparison.
            Without it, what is given decides, and else how the index was made.
        model_id: Name or id of the model; without it the one that made the index.
        analyzer: ``bert-uncased`` or ``mbert-uncased``.
        encoder: For ``"tokens"``; also tells the ids behind an analyzer's tokens, and is checked against the
            model where one encodes.
        field: Of the vectors, where the index has several.
        size: Number of hits.
        two_phase: Score by the heavy tokens first and by all of them only the best; ``rank_features`` only.
        explain: Tell the tokens that matched.
        method_parameters: ``top_n``, ``k``, ``heap_factor``, ``filter``; ``sparse_vector`` only. ``k`` is
            ``size`` if it is not given, or OpenSearch would find 10.
        notify: Told, in one line, that the model is being waited for, as after the restart of a node.

    Raises:
        UsageError: Options that do not fit together, or not the index.
        IndexingError: The name stands for several indexes or a data stream, or which field is not clear.
        SearchError: There is no such index, or the cluster refuses.
        ModelError: There is no such model.
    """
    by = by or _default_way(query, model_id, analyzer, encoder)
    _check_options(by, query, model_id, analyzer, size)
    options = _Options(
        by, model_id, analyzer, encoder, size, two_phase, explain, method_parameters or {}, notify
    )
    for looks_left in reversed(range(LOOKS)):
        try:
            return _search(client, *_find(client, index, field), query, options)
        except ClusterError as error:
            # An alias may move, and the index behind it be deleted, between the look and the search.
            if not looks_left or heard(error.__cause__) is not NO_INDEX:
                raise
    raise AssertionError("the last look returns or raises")


@dataclass(frozen=True)
class _Options:
    """What :func:`search` was told."""

    by: SearchBy
    model_id: str | None
    analyzer: str | None
    encoder: TextEncoder | None
    size: int
    two_phase: bool
    explain: bool
    method: Mapping[str, Any]
    notify: Callable[[str], object] | None


def _find(client: OpenSearch, index: str, field: str | None) -> tuple[Target, IndexInfo]:
    # Once more, as an alias may move within a look.
    found = find_index(client, index, field) or find_index(client, index, field)
    if found is None:
        raise SearchError(f"there is no index {index!r}", hint=f"Load one with: oskit ingest {index} FILE")
    target, info = found
    return target, with_key(client, info)


def _search(
    client: OpenSearch, target: Target, info: IndexInfo, query: str | Mapping[str, float], options: _Options
) -> SearchResult:
    """The search in the index that was found."""
    by, encoder, notify = options.by, options.encoder, options.notify
    _check(info, options)
    if isinstance(query, Mapping):
        query = checked(query, info)
    elif not (query := clean_text(query)).strip():
        return SearchResult(target.asked, by, 0, 0, [], info.key)  # no tokens: the cluster would refuse it
    model = query_model(client, info, by, options.model_id) if by in ("model", "tokenizer") else None
    if model is not None and encoder is not None:
        check_same_encoder(client, model, encoder, notify=notify)
    pipeline = default_pipeline(client, target.index)
    # One that names a model would make the cluster refuse an analyzer.
    by_weights = by == "analyzer" and info.key == "token" and pipeline is not None
    request = _Request(client, target, info, query, options, model, by_weights)
    answer, weights = with_model(client, model, request.ask, notify=notify)
    if answer is None:
        return SearchResult(target.asked, by, 0, 0, [], info.key, weights)
    found = answer["hits"]["hits"]
    _show_passages(client, target, info, [hit for hit in found if not hit.get("_source")])
    hits = [_hit(hit, info, weights if options.explain else None) for hit in found]
    total = answer["hits"]["total"]
    replaced = f"two phases take the place of the index's search pipeline {pipeline!r}"
    doubts = [request.mismatch(), request.changed, replaced if pipeline and options.two_phase else None]
    sees_all = total["relation"] == "eq" and not options.two_phase
    if info.kind == "sparse_vector" and by != "bm25":
        sees_all = sees_all and total["value"] < options.size
    return SearchResult(
        index=target.asked,
        by=by,
        took_ms=int(answer["took"]),
        total=int(total["value"]),
        hits=hits,
        key=info.key,
        query_weights=weights,
        warning="; ".join(filter(None, doubts)) or None,
        total_relation="eq" if sees_all else "gte",
        search_pipeline=None if options.two_phase else pipeline,
    )


def two_phase_pipeline() -> dict[str, Any]:
    """A search pipeline, to be sent within a request, that searches in two phases."""
    return {"request_processors": [{"neural_sparse_two_phase_processor": {"two_phase_parameter": TWO_PHASE}}]}


def default_pipeline(client: OpenSearch, index: str) -> str | None:
    """The search pipeline that an index's searches run through unless told otherwise."""
    setting = "index.search.default_pipeline"
    with cluster_errors(f"read the index {index!r}", SearchError):
        answer = client.indices.get_settings(index=index, name=setting, params={"flat_settings": "true"})
    return next((found["settings"].get(setting) for found in answer.values()), None)


def with_key(client: OpenSearch, info: IndexInfo) -> IndexInfo:
    """An index that others made, with what its documents show: whether ``rank_features`` have ids as keys."""
    if info.encode is not None or info.kind != "rank_features" or info.key == "id":
        return info
    body = {"size": 5, "_source": [info.embedding_field]}
    answer = complete_search(client, info.name, body, search_pipeline="_none")
    keys = {
        key
        for hit in answer["hits"]["hits"]
        for vector in vectors_of(hit.get("_source") or {}, info.embedding_field)
        for key in vector
    }
    return replace(info, key="id") if len(keys) > 4 and all(key.isdecimal() for key in keys) else info


def _default_way(query: object, model_id: object, analyzer: object, encoder: object) -> SearchBy:
    if isinstance(query, Mapping):
        return "tokens"
    if model_id is not None:
        return "model"
    if analyzer is not None:
        return "analyzer"
    return "model" if encoder is None else "tokens"


def _check_options(by: SearchBy, query: object, model_id: object, analyzer: object, size: int) -> None:
    if size < 1:
        raise UsageError(f"the number of hits must be at least 1, not {size}")
    if by not in SEARCH_BY:
        raise UsageError(f"unknown way to search {by!r}", hint=f"Use one of {', '.join(SEARCH_BY)}")
    if isinstance(query, Mapping) and by != "tokens":
        raise UsageError("token weights can only be searched by tokens")
    if model_id is not None and by not in ("model", "tokenizer"):
        raise UsageError(f"a model does not encode the query by {by}", hint="Leave one of the two out")
    if analyzer is not None and by != "analyzer":
        raise UsageError(f"an analyzer does not encode the query by {by}", hint="Leave one of the two out")


def _check(info: IndexInfo, options: _Options) -> None:
    by, two_phase = options.by, options.two_phase
    if by == "bm25" and (options.explain or two_phase or options.method):
        raise UsageError("BM25 has no token weights: neither explain, two-phase nor method parameters")
    if by == "bm25" and info.passage_field is None:
        raise UsageError(f"the index {info.name!r} was not made by oskit and has no passages for BM25")
    if info.kind == "sparse_vector" and two_phase:
        raise UsageError(
            f"two-phase search works on rank_features, and {info.name!r} is a sparse_vector index",
            hint="Search without it",
        )
    if info.nested and two_phase:
        raise UsageError(
            f"two-phase search does not look into the nested {info.embedding_field!r} of {info.name!r}",
            hint="Search without it",
        )
    if info.kind != "sparse_vector" and options.method:
        raise UsageError(f"method parameters are for sparse_vector, and {info.name!r} is {info.kind}")


@dataclass
class _Request:
    """One query, and how it becomes a vector."""

    client: OpenSearch
    target: Target
    info: IndexInfo
    query: str | Mapping[str, float]
    options: _Options
    model: ModelInfo | None
    """Encodes the query, if the cluster does."""
    by_weights: bool
    """Send weights where a text would do, too."""
    changed: str | None = None
    """What OpenSearch does not take of the weights."""

    def __post_init__(self) -> None:
        # Left to itself the cluster looks for token texts, also where rank_features are keyed by ids.
        self.by_weights |= self.info.kind == "rank_features" and self.info.key == "id"

    def ask(self) -> tuple[dict[str, Any] | None, dict[str, float] | None]:
        """The answer, None for a query without tokens; and the query's weights, if they are to be told."""
        clause = self._clause()
        if clause is None:
            return None, {}
        explain = self.options.explain
        weights = self.weights if explain or self.options.by == "tokens" else None
        unseen = _unseen(self.info, explain)
        body: dict[str, Any] = {"query": clause, "size": self.options.size, "_source": {"excludes": unseen}}
        if self.info.kind == "sparse_vector" and self.target.filter is not None:
            body["min_score"] = _ABOVE_NOTHING
        if self.options.two_phase:
            body["search_pipeline"] = two_phase_pipeline()
        try:
            return complete_search(self.client, self.target.index, body, routing=self.target.routing), weights
        except ClusterError as error:
            if self.model is None or self.by_weights or not _is_beyond_limits(error):
                raise
        self.by_weights = True  # more tokens, or heavier ones, than may be: ask by what fits of them
        return self.ask()

    def _clause(self) -> dict[str, Any] | None:
        """The query's clause; None if the query has no tokens."""
        if self.options.by == "bm25":
            return self._seen({"match": {str(self.info.passage_field): {"query": self.query}}})
        neural: dict[str, Any]
        if self.model is not None and not self.by_weights:
            neural = {"query_text": self.query, "model_id": self.model.model_id}
        elif self.options.by == "analyzer" and not self.by_weights:
            neural = {"query_text": self.query, "analyzer": self.options.analyzer or DEFAULT_ANALYZER}
        elif self.weights:
            neural = {"query_tokens": self.weights}
        else:
            return None
        if self.info.kind == "sparse_vector":
            neural["method_parameters"] = self._method()
        clause: dict[str, Any] = {"neural_sparse": {self.info.embedding_field: neural}}
        if self.info.nested:
            clause = {"nested": {"path": self.info.nested, "score_mode": "max", "query": clause}}
        return self._seen(clause)

    def _seen(self, clause: dict[str, Any]) -> dict[str, Any]:
        """The clause for what an alias shows: what it hides stays hidden."""
        if self.target.filter is None:
            return clause
        return {"bool": {"should": [clause], "minimum_should_match": 1, "filter": [self.target.filter]}}

    def _method(self) -> dict[str, Any]:
        """An approximate search filters the best k, unless it knows the filter and k is as many as match."""
        size, given = self.options.size, self.options.method
        method = {"k": size * CHUNKS_OF_A_DOCUMENT if self.info.nested else size, **given}
        if self.target.filter is not None and not self.info.nested:
            filters = [self.target.filter, *([given["filter"]] if "filter" in given else [])]
            method["filter"] = {"bool": {"filter": filters}}
            with cluster_errors(f"search the index {self.info.name!r}", SearchError):
                matching = self.client.count(index=self.target.index, body={"query": method["filter"]})
            method["k"] = max(int(method["k"]), int(matching["count"]))
        return method

    @cached_property
    def weights(self) -> dict[str, float]:
        """The query's token weights, keyed as the index is, as OpenSearch takes them."""
        if isinstance(self.query, Mapping):
            return dict(self.query)
        found, self.changed = fitted(self._encoded(self.query))
        return found

    def _encoded(self, text: str) -> Mapping[str, float]:
        if self.model is not None:
            return predict(self.client, self.model, [text], key=self.info.key)[0]
        if self.options.by == "analyzer":
            return self._analyzed(text)
        if self.options.encoder is None:
            raise UsageError("token weights made here need an encoder", hint="Give --archive DIR")
        return self.options.encoder.query_weights([text], key=self.info.key)[0]

    def mismatch(self) -> str | None:
        """A warning if the query's encoder is known not to be that of the documents."""
        recorded = self.info.encoder
        used, due = None, recorded.sha256
        known = known_sha256(self.options.encoder) if self.options.encoder is not None else frozenset()
        if self.model is not None:
            if self.model.model_id in (recorded.model_id, recorded.query_model_id):
                return None  # its predictions were compared when it was recorded
            used = self.model.sha256
            due = recorded.query_sha256 if self.model.function_name == "SPARSE_TOKENIZE" else due
        elif self.options.by == "tokens" and self.options.encoder is not None:
            used = getattr(getattr(self.options.encoder, "archive", None), "sha256", None)
        if not used or not due or used == due or due in known:
            return None
        return (
            f"{self.info.name} was made with another archive ({recorded.name or 'unnamed'}, {due[:12]}) "
            f"than the one that encoded the query ({used[:12]}); "
            "scores mean nothing unless both hold the same encoder"
        )

    def _analyzed(self, text: str) -> dict[str, float]:
        found = analyzer_weights(self.client, self.info, self.options.analyzer or DEFAULT_ANALYZER, text)
        if self.info.key == "token":
            return found
        if self.options.encoder is None:
            raise UsageError(
                f"{self.info.name!r} is keyed by token ids, which an analyzer does not tell",
                hint="Search by model, or give the encoder with --archive DIR",
            )
        ids = {self.options.encoder.vocabulary.id_of(token): weight for token, weight in found.items()}
        return {str(token_id): weight for token_id, weight in ids.items() if token_id is not None}


def _is_beyond_limits(error: ClusterError) -> bool:
    """Whether the cluster refused the weights that its own model gave a query."""
    known = heard(error.__cause__)
    return known is not None and known.words.startswith(("maxClauseCount", "weight must be"))


def _unseen(info: IndexInfo, explain: bool) -> list[str]:
    """Fields that nobody wants to see: vectors, and the passage where title and text are there as well."""
    hidden = [] if explain else [info.embedding_field]
    if info.passage_field and info.text_field and info.text_field != info.passage_field:
        hidden.append(info.passage_field)
    return hidden


def _show_passages(client: OpenSearch, target: Target, info: IndexInfo, bare: list[dict[str, Any]]) -> None:
    """Fetch the passages of documents that have nothing else to show."""
    if not bare or info.passage_field is None:
        return
    only = {"ids": {"values": [hit["_id"] for hit in bare]}}
    body = {"size": len(bare), "_source": [info.passage_field], "query": only}
    answer = complete_search(client, target.index, body, search_pipeline="_none", routing=target.routing)
    sources = {hit["_id"]: hit.get("_source") for hit in answer["hits"]["hits"]}
    for hit in bare:
        hit["_source"] = sources.get(hit["_id"])


def _hit(hit: Mapping[str, Any], info: IndexInfo, weights: Mapping[str, float] | None) -> Hit:
    source = dict(hit.get("_source") or {})
    vectors = vectors_of(source, info.embedding_field)
    source = without(source, info.embedding_field)
    matched: dict[str, Match] = {}
    if weights is not None:
        if not info.nested:  # the parts of one vector
            vectors = [{key: weight for vector in vectors for key, weight in vector.items()}]
        shared = [
            {key: Match(weights[key], vector[key]) for key in weights if key in vector} for vector in vectors
        ]
        best = max(shared, key=lambda found: sum(match.product for match in found.values()), default={})
        matched = dict(sorted(best.items(), key=lambda item: -item[1].product))
    title, text = source.get(info.title_field or "title"), source.get(info.text_field or "text")
    if text is None and info.passage_field is not None:
        text = source.get(info.passage_field)
    return Hit(hit["_id"], float(hit["_score"]), source, str(title or ""), str(text or ""), matched)
