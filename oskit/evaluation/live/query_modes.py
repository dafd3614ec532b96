"""How the queries of a verification are asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from oskit.cluster.models.predict import predict
from oskit.cluster.models.registry import existing_model
from oskit.data.values import clean_text
from oskit.errors import UsageError
from oskit.evaluation.live.index_facts import IndexFacts
from oskit.evaluation.live.retrieval import Clause

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder, TokenWeights

SearchBy = Literal["tokens", "model", "analyzer"]

MAX_DEPTH = 10_000
"""``index.max_result_window``."""


@dataclass(frozen=True)
class SearchRequest:
    """How the queries are asked, as :func:`oskit.evaluation.live.verify.verify` explains.

    Raises:
        UsageError: Options that do not go together.
    """

    by: SearchBy = "tokens"
    model_id: str | None = None
    analyzer: str | None = None
    k: int = 100
    top_n: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_DEPTH:
            raise UsageError(f"a depth of {self.k} hits is not possible", hint=f"Choose 1 to {MAX_DEPTH}.")
        if self.by == "model" and not self.model_id:
            raise UsageError("searching by model needs a model id", hint="Name it with --model.")
        if self.by == "analyzer" and not self.analyzer:
            raise UsageError("searching by analyzer needs its name", hint="Name it with --analyzer.")


def sparse_clauses(
    client: OpenSearch,
    facts: IndexFacts,
    queries: Mapping[str, str],
    encoder: TextEncoder,
    request: SearchRequest,
    batch_size: int,
) -> dict[str, Clause | None]:
    """The ``neural_sparse`` clause of each query; None for one without tokens, which nobody can ask.

    Raises:
        ModelError: There is no such model.
    """
    texts = {query: clean_text(text) for query, text in queries.items()}
    if request.by == "tokens":
        made = encoder.query_weights(list(texts.values()), batch_size=batch_size, key=facts.key)
        return _token_clauses(facts, dict(zip(texts, made, strict=True)), request)
    if request.by == "model" and facts.info.kind == "rank_features" and facts.key == "id":
        # Left to itself the cluster would look for token texts, and the index has ids.
        return _token_clauses(facts, _predicted(client, str(request.model_id), texts), request)
    by = {"model_id": request.model_id, "analyzer": request.analyzer}
    return {
        query: facts.clause({"query_text": text, **by}, k=request.k, top_n=request.top_n)
        if text.strip()
        else None
        for query, text in texts.items()
    }


def bm25_clauses(field: str, queries: Mapping[str, str]) -> dict[str, Clause | None]:
    """A ``match`` query on the passages for each query."""
    return {query: {"match": {field: {"query": clean_text(text)}}} for query, text in queries.items()}


def _token_clauses(
    facts: IndexFacts, weights: Mapping[str, TokenWeights], request: SearchRequest
) -> dict[str, Clause | None]:
    return {
        query: facts.clause({"query_tokens": tokens}, k=request.k, top_n=request.top_n) if tokens else None
        for query, tokens in weights.items()
    }


def _predicted(client: OpenSearch, model_id: str, texts: Mapping[str, str]) -> dict[str, TokenWeights]:
    model = existing_model(client, model_id)
    return {
        query: predict(client, model, [text], key="id")[0] if text.strip() else {}
        for query, text in texts.items()
    }
