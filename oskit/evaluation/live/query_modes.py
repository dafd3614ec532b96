"""How the queries of a verification are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from oskit.cluster.models.predict import predict, with_model
from oskit.cluster.search.clauses import Clause, bm25, neural_sparse
from oskit.cluster.search.query_weights import MAX_TOKENS, MAX_WEIGHT
from oskit.data.values import clean_text
from oskit.errors import UsageError
from oskit.evaluation.live.index_facts import IndexFacts

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder, TokenWeights
    from oskit.cluster.index.mapping import IndexInfo
    from oskit.cluster.models.registry import ModelInfo

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

    def method(self, facts: IndexFacts) -> dict[str, int | None]:
        """Parameters of an approximate search."""
        return {"k": facts.passages.k(self.k) if facts.passages else self.k, "top_n": self.top_n}


def sparse_clauses(
    client: OpenSearch,
    facts: IndexFacts,
    queries: Mapping[str, str],
    encoder: TextEncoder,
    request: SearchRequest,
    model: ModelInfo | None = None,
    notify: Callable[[str], object] | None = None,
) -> dict[str, Clause | None]:
    """The ``neural_sparse`` clause of each query; None for one without tokens, which nobody can ask.

    Args:
        model: What ``request.model_id`` stands for.
        notify: Told, in one line, that the model is being waited for.

    Raises:
        ModelError: The model does not answer in time.
        UsageError: A query has more tokens, or heavier ones, than OpenSearch takes; or an analyzer would look
            for texts where the index has ids.
    """
    texts = {query: clean_text(text) for query, text in queries.items()}
    if request.by == "tokens":
        made = encoder.query_weights(list(texts.values()), key=facts.key)
        return _token_clauses(facts, dict(zip(texts, made, strict=True)), request)
    if facts.info.kind == "rank_features" and facts.key == "id":
        # Left to itself the cluster would look for token texts, and the index has ids.
        if model is None:
            raise UsageError(
                f"{facts.name!r} is keyed by token ids, which an analyzer does not tell",
                hint="Verify by tokens or by model",
            )
        return _token_clauses(facts, _predicted(client, model, texts, notify), request)
    by = {"model_id": request.model_id, "analyzer": request.analyzer}
    return {
        query: neural_sparse(facts.info, {"query_text": text, **by}, request.method(facts))
        if text.strip()
        else None
        for query, text in texts.items()
    }


def bm25_clauses(info: IndexInfo, queries: Mapping[str, str]) -> dict[str, Clause | None]:
    """A BM25 query for each query."""
    return {query: bm25(info, clean_text(text)) for query, text in queries.items()}


def _token_clauses(
    facts: IndexFacts, weights: Mapping[str, TokenWeights], request: SearchRequest
) -> dict[str, Clause | None]:
    for query, tokens in weights.items():
        heaviest = max(tokens.values(), default=0.0)
        if len(tokens) > MAX_TOKENS or heaviest > MAX_WEIGHT:
            raise UsageError(
                f"query {query!r} has {len(tokens):,} tokens, of weights up to {heaviest:g}: "
                f"OpenSearch takes {MAX_TOKENS:,}, of weights up to {MAX_WEIGHT:g}",
                hint="Leave the query out, or give the encoder's queries fewer tokens",
            )
    return {
        query: neural_sparse(facts.info, {"query_tokens": tokens}, request.method(facts)) if tokens else None
        for query, tokens in weights.items()
    }


def _predicted(
    client: OpenSearch,
    model: ModelInfo,
    texts: Mapping[str, str],
    notify: Callable[[str], object] | None,
) -> dict[str, TokenWeights]:
    def ask(text: str) -> TokenWeights:
        return with_model(client, model, lambda: predict(client, model, [text], key="id")[0], notify=notify)

    return {query: ask(text) if text.strip() else {} for query, text in texts.items()}
