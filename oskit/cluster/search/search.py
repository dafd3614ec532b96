"""Search an index of sparse vectors in every way that the cluster offers, and explain what matched."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import IndexInfo, find_index
from oskit.cluster.models.predict import await_ready, means_not_ready, predict
from oskit.cluster.models.registry import ModelInfo, find_model, list_models
from oskit.data.values import clean_text
from oskit.errors import ClusterError, SearchError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import KeyFormat, TextEncoder

SearchBy = Literal["model", "tokenizer", "analyzer", "tokens", "bm25"]

SEARCH_BY: tuple[SearchBy, ...] = get_args(SearchBy)

DEFAULT_ANALYZER = "bert-uncased"

TWO_PHASE = {"prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10_000}
"""OpenSearch's defaults for the two phases: heavy tokens first, the others only to rescore."""


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
        index: Where.
        by: How the query was encoded.
        took_ms: Milliseconds that the cluster says it took.
        total: Documents that matched, at least.
        hits: The best of them.
        key: Whether matched tokens and query weights are called by token text or by token id.
        query_weights: With ``explain`` or ``by="tokens"``: the query's token weights.
        warning: What makes the answer doubtful: the query was encoded by something else than the documents.
    """

    index: str
    by: SearchBy
    took_ms: int
    total: int
    hits: list[Hit]
    key: KeyFormat
    query_weights: dict[str, float] | None = None
    warning: str | None = None

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
    size: int = 10,
    two_phase: bool = False,
    explain: bool = False,
    method_parameters: Mapping[str, Any] | None = None,
    notify: Callable[[str], None] | None = None,
) -> SearchResult:
    """Search an index.

    Args:
        client: From :func:`oskit.cluster.client.connection.connect`.
        index: An index or alias.
        query: A text; for ``by="tokens"`` also token weights, keyed as the index is.
        by: How the query becomes a vector. ``"model"``: by a deployed encoder. ``"tokenizer"``: by a deployed
            tokenizer model (inference-free). ``"analyzer"``: by an analyzer and its built-in weights.
            ``"tokens"``: here, by ``encoder``. ``"bm25"``: not at all, as a plain text query for comparison.
            Without it, what is given decides, and else how the index was made.
        model_id: Name or id of the model; without it the one that made the index.
        analyzer: ``bert-uncased`` or ``mbert-uncased``.
        encoder: For ``"tokens"``; also tells the ids behind an analyzer's tokens for ``explain``.
        size: Number of hits.
        two_phase: Score by the heavy tokens first and by all of them only the best; ``rank_features`` only.
        explain: Tell the tokens that matched.
        method_parameters: ``top_n``, ``k``, ``heap_factor``, ``filter``; ``sparse_vector`` only. ``k`` is
            ``size`` if it is not given, or OpenSearch would find 10.
        notify: Told, in one line, that the model is being waited for, as after the restart of a node.

    Raises:
        UsageError: Options that do not fit together, or not the index.
        SearchError: There is no such index, or the cluster refuses.
        ModelError: There is no such model.
    """
    found = find_index(client, index)
    if found is None:
        raise SearchError(f"there is no index {index!r}", hint=f"Load one with: oskit ingest {index} FILE")
    target, info = found
    by = by or _default_way(query, model_id, analyzer, encoder)
    _check(info, by, size, two_phase, method_parameters, explain)
    if isinstance(query, Mapping):
        if by != "tokens":
            raise UsageError("token weights can only be searched by tokens")
    elif not (query := clean_text(query)).strip():
        return SearchResult(index, by, 0, 0, [], info.key)  # no tokens; the cluster would call it an error
    model = query_model(client, info, by, model_id) if by in ("model", "tokenizer") else None
    request = _Request(client, info, by, query, encoder, analyzer or DEFAULT_ANALYZER, model)

    def ask() -> tuple[dict[str, Any] | None, dict[str, float] | None]:
        clause = request.clause(size, method_parameters)
        if clause is None:
            return None, {}
        weights = request.weights if explain or by == "tokens" else None
        if target.filter is not None:  # what an alias hides stays hidden
            clause = {"bool": {"should": [clause], "minimum_should_match": 1, "filter": [target.filter]}}
        body: dict[str, Any] = {"query": clause, "size": size}
        if not explain:
            body["_source"] = {"excludes": [info.embedding_field]}
        if two_phase:
            body["search_pipeline"] = two_phase_pipeline()
        return _send(client, info, body), weights

    try:
        answer, weights = ask()
    except ClusterError as error:
        if model is None or not means_not_ready(error):
            raise
        await_ready(client, model, notify=notify)
        answer, weights = ask()
    if answer is None:
        return SearchResult(index, by, 0, 0, [], info.key, weights)
    hits = [_hit(hit, info, weights if explain else None) for hit in answer["hits"]["hits"]]
    total = int(answer["hits"]["total"]["value"])
    warning = request.mismatch()
    return SearchResult(index, by, int(answer["took"]), total, hits, info.key, weights, warning)


def two_phase_pipeline() -> dict[str, Any]:
    """A search pipeline, to be sent within a request, that searches in two phases."""
    return {"request_processors": [{"neural_sparse_two_phase_processor": {"two_phase_parameter": TWO_PHASE}}]}


def _default_way(query: object, model_id: object, analyzer: object, encoder: object) -> SearchBy:
    if isinstance(query, Mapping):
        return "tokens"
    if model_id is not None:
        return "model"
    if analyzer is not None:
        return "analyzer"
    return "model" if encoder is None else "tokens"


def _check(
    info: IndexInfo,
    by: SearchBy,
    size: int,
    two_phase: bool,
    method_parameters: Mapping[str, Any] | None,
    explain: bool,
) -> None:
    if size < 1:
        raise UsageError(f"the number of hits must be at least 1, not {size}")
    if by not in SEARCH_BY:
        raise UsageError(f"unknown way to search {by!r}", hint=f"Use one of {', '.join(SEARCH_BY)}")
    if by == "bm25" and (explain or two_phase or method_parameters):
        raise UsageError("BM25 has no token weights: neither explain, two-phase nor method parameters")
    if by == "bm25" and info.passage_field is None:
        raise UsageError(f"the index {info.name!r} was not made by oskit and has no passages for BM25")
    if info.kind == "sparse_vector" and two_phase:
        raise UsageError(
            f"two-phase search works on rank_features, and {info.name!r} is a sparse_vector index",
            hint="Search without it",
        )
    if info.kind != "sparse_vector" and method_parameters:
        raise UsageError(f"method parameters are for sparse_vector, and {info.name!r} is {info.kind}")


@dataclass
class _Request:
    """One query, and how it becomes a vector."""

    client: OpenSearch
    info: IndexInfo
    by: SearchBy
    query: str | Mapping[str, float]
    encoder: TextEncoder | None
    analyzer: str
    model: ModelInfo | None
    """Encodes the query, if the cluster does."""

    def clause(self, size: int, method_parameters: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The query's clause; None if the query has no tokens."""
        if self.by == "bm25":
            return {"match": {str(self.info.passage_field): {"query": self.query}}}
        neural: dict[str, Any]
        # Left to itself the cluster looks for token texts, also where rank_features are keyed by ids.
        texts_mislead = self.info.kind == "rank_features" and self.info.key == "id"
        if self.model is not None and not texts_mislead:
            neural = {"query_text": self.query, "model_id": self.model.model_id}
        elif self.by == "analyzer":
            neural = {"query_text": self.query, "analyzer": self.analyzer}
        else:
            if not self.weights:
                return None
            neural = {"query_tokens": self.weights}
        if self.info.kind == "sparse_vector":
            neural["method_parameters"] = {"k": size, **(method_parameters or {})}
        return {"neural_sparse": {self.info.embedding_field: neural}}

    @cached_property
    def weights(self) -> dict[str, float]:
        """The query's token weights, keyed as the index is."""
        if isinstance(self.query, Mapping):
            return {key: float(weight) for key, weight in self.query.items() if weight > 0}
        if self.model is not None:
            return predict(self.client, self.model, [self.query], key=self.info.key)[0]
        if self.by == "analyzer":
            return self._analyzed()
        if self.encoder is None:
            raise UsageError("token weights made here need an encoder", hint="Give --archive DIR")
        return self.encoder.query_weights([self.query], key=self.info.key)[0]

    def mismatch(self) -> str | None:
        """A warning if the query's encoder is known not to be that of the documents."""
        recorded = self.info.encoder
        used, due = None, recorded.sha256
        if self.model is not None:
            used = self.model.sha256
            due = recorded.query_sha256 if self.model.function_name == "SPARSE_TOKENIZE" else due
        elif self.by == "tokens" and self.encoder is not None:
            used = getattr(getattr(self.encoder, "archive", None), "sha256", None)
        if not used or not due or used == due:
            return None
        return (
            f"{self.info.name} was made with another archive ({recorded.name or 'unnamed'}, {due[:12]}) "
            f"than the one that encoded the query ({used[:12]}); "
            "scores mean nothing unless both hold the same encoder"
        )

    def _analyzed(self) -> dict[str, float]:
        found = analyzer_weights(self.client, self.info, self.analyzer, str(self.query))
        if self.info.key == "token":
            return found
        if self.encoder is None:
            raise UsageError(
                f"{self.info.name!r} is keyed by token ids, which an analyzer does not tell",
                hint="Explain by model, or give the encoder with --archive DIR",
            )
        ids = {self.encoder.vocabulary.id_of(token): weight for token, weight in found.items()}
        return {str(token_id): weight for token_id, weight in ids.items() if token_id is not None}


def query_model(client: OpenSearch, info: IndexInfo, by: SearchBy, model_id: str | None) -> ModelInfo:
    """The model that encodes queries: the one asked for, or the one that made the index.

    Raises:
        SearchError: None is known or deployed, or it is not of the kind that was asked for.
        ModelError: There is none of this name or id.
    """
    model = find_model(client, model_id) if model_id else _recorded_model(client, info, by)
    if model is None:
        raise SearchError(
            f"which model encodes the queries for {info.name!r} is not recorded, or it is not deployed",
            hint="Give one with --model (oskit models lists them), or search with --archive DIR",
        )
    if by == "tokenizer" and model.function_name != "SPARSE_TOKENIZE":
        raise SearchError(
            f"the model {model.name!r} is no tokenizer but {model.function_name}", hint="Use --by model"
        )
    return model.deployed(SearchError)


def _recorded_model(client: OpenSearch, info: IndexInfo, by: SearchBy) -> ModelInfo | None:
    """A deployed model with the id, or else with the content, that stands in the index."""
    encoder = info.encoder
    wants_tokenizer = by == "tokenizer" or encoder.architecture == "inference-free" or encoder.query_model_id
    model_id = encoder.query_model_id if wants_tokenizer else encoder.model_id
    sha256 = encoder.query_sha256 if wants_tokenizer else encoder.sha256
    if not model_id and not sha256:
        return None
    models = [model for model in list_models(client) if model.is_deployed]
    by_id = [model for model in models if model.model_id == model_id]
    by_content = [model for model in models if sha256 and model.sha256 == sha256]
    return next(iter(by_id + by_content), None)


def analyzer_weights(client: OpenSearch, info: IndexInfo, analyzer: str, text: str) -> dict[str, float]:
    """Token weights that an analyzer gives a text: the floats in its tokens' payloads.

    Keys are token texts. An analyzer does not tell its token ids.
    """
    body = {"analyzer": analyzer, "text": text, "explain": True, "attributes": ["payload"]}
    with cluster_errors(f"search the index {info.name!r}", SearchError):
        answer = client.indices.analyze(index=info.name, body=body)
    tokens = (answer["detail"].get("analyzer") or {}).get("tokens") or []
    return {token["token"]: _payload_weight(token.get("payload")) for token in tokens}


def _payload_weight(payload: str | None) -> float:
    """A 32-bit float, printed by Lucene as ``[40 de 2 1a]``; 1 for analyzers without weights."""
    if not payload:
        return 1.0
    octets = bytes(int(octet, 16) for octet in re.findall(r"[0-9a-f]+", payload))
    return float(struct.unpack(">f", octets)[0]) if len(octets) == 4 else 1.0


def _hit(hit: Mapping[str, Any], info: IndexInfo, weights: Mapping[str, float] | None) -> Hit:
    source = dict(hit.get("_source") or {})
    vector = source.pop(info.embedding_field, None) or {}
    matched: dict[str, Match] = {}
    if weights is not None:
        shared = {key: Match(weights[key], float(vector[key])) for key in weights if key in vector}
        matched = dict(sorted(shared.items(), key=lambda item: -item[1].product))
    title, text = source.get(info.title_field or "title"), source.get(info.text_field or "text")
    return Hit(hit["_id"], float(hit["_score"]), source, str(title or ""), str(text or ""), matched)


def _send(client: OpenSearch, info: IndexInfo, body: dict[str, Any]) -> dict[str, Any]:
    with cluster_errors(f"search the index {info.name!r}", SearchError):
        answer: dict[str, Any] = client.search(index=info.name, body=body)
    if answer.get("timed_out") or answer["_shards"]["failed"]:
        failed = answer["_shards"]["failed"]
        raise SearchError(f"the answer of {info.name!r} is incomplete: {failed} shards failed")
    return answer
