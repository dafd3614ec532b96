"""Does the cluster retrieve what the encoder says it should? The proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from oskit.cluster.connection import cluster_info
from oskit.cluster.failures import cluster_errors
from oskit.errors import SearchError, UsageError
from oskit.evaluation import verdict
from oskit.evaluation.compare import compare
from oskit.evaluation.describe import describe_encoder
from oskit.evaluation.examples import SHOWN_HITS, build_examples, choose_examples
from oskit.evaluation.index_facts import IndexFacts, read_index
from oskit.evaluation.result import RunFigures, StoredVectors, VerificationReport
from oskit.evaluation.retrieval import Clause, ClusterRun, retrieve
from oskit.evaluation.vectors import check_vectors, sample_positions

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.data.collection import Collection
    from oskit.encoder.types import TextEncoder

SearchBy = Literal["tokens", "model", "analyzer"]

WEIGHT_TOLERANCE = 2e-4
"""Each exported graph is within 1e-4 of its encoder, so two of them are within twice that."""

QUANTIZED_TOLERANCE = 0.05
"""int8 graphs quantise activations over the whole batch: a text's weights depend on its neighbours."""

MAX_DEPTH = 10_000
"""``index.max_result_window``."""

_MISSING_LISTED = 200
_MGET_BATCH = 1000

Step = Callable[[str], object]
"""Told what is being done now."""


@dataclass(frozen=True)
class _Request:
    """How the queries are asked."""

    by: SearchBy
    model_id: str | None
    analyzer: str | None
    k: int
    top_n: int | None


def verify(
    client: OpenSearch,
    index: str,
    collection: Collection,
    encoder: TextEncoder,
    *,
    by: SearchBy = "tokens",
    model_id: str | None = None,
    analyzer: str | None = None,
    k: int = 100,
    top_n: int | None = None,
    tolerance: float | None = None,
    baseline_bm25: bool = True,
    two_phase: bool = False,
    sample: int = 200,
    examples: int = 3,
    batch_size: int = 32,
    on_step: Step = lambda _: None,
) -> VerificationReport:
    """Ask a cluster every query of a collection and compare with exact scores.

    Args:
        client: The cluster.
        index: Index or alias that holds the collection's corpus.
        collection: Corpus, queries and relevance judgements.
        encoder: The encoder that the index was made with; an :class:`~oskit.encoder.runtime.ArchiveEncoder`
            will do, so no torch is needed.
        by: ``tokens``: the weights are made here. ``model``: the cluster runs ``model_id`` on the text.
            ``analyzer``: the cluster runs ``analyzer``.
        model_id: An encoder model or, for an inference-free encoder, a tokenizer model.
        analyzer: Name of the analyzer.
        k: Hits to compare for each query, at most 10,000.
        top_n: Query tokens that an approximate search looks up; the cluster's default is 10.
        tolerance: How far a weight on the cluster may be from the encoder's before it is rounded. Default:
            :data:`WEIGHT_TOLERANCE`, or :data:`QUANTIZED_TOLERANCE` for an int8 archive.
        baseline_bm25: Also ask with BM25 on the same text.
        two_phase: Also ask through a two-phase search pipeline, and report what it loses.
        sample: Documents whose stored weights are checked directly.
        examples: Queries that the report shows with their hits.
        batch_size: Texts that the encoder computes at once.
        on_step: Told what is being done.

    Returns:
        The report; ``report.raise_for_disagreement()`` raises if the cluster disagrees.

    Raises:
        UsageError: Options that do not go together.
        SearchError: The cluster refused a query, or there is no such index.
        DataError: The collection cannot be read, or judges no query.
    """
    request = _Request(by, model_id, analyzer, k, top_n)
    _check_request(request)
    on_step(f"looking at {index}")
    facts = read_index(client, index)
    if two_phase and facts.kind == "sparse_vector":
        raise UsageError(
            "two-phase search works on rank_features only", hint="Leave out --two-phase for this index."
        )
    tolerance = _tolerance(encoder) if tolerance is None else tolerance
    query_tolerance = tolerance if by == "model" and encoder.architecture == "symmetric" else 0.0
    on_step(f"asking {len(collection.queries):,} queries by {by}")
    clauses = _sparse_clauses(facts, collection.queries, encoder, request, batch_size)
    answered = retrieve(client, index, clauses, k=k)
    on_step("computing exact scores")
    comparison = compare(
        answered.run,
        encoder,
        collection,
        k=k,
        storage=facts.storage,
        document_tolerance=tolerance,
        query_tolerance=query_tolerance,
        batch_size=batch_size,
    )
    runs = [
        _measured("cluster", answered, collection, k, comparison.exact),
        RunFigures.measure("exact", comparison.exact, collection.qrels, k=k),
    ]
    if two_phase:
        on_step("asking again in two phases")
        runs.append(
            _measured(
                "two-phase",
                retrieve(client, index, clauses, k=k, search_pipeline=TWO_PHASE),
                collection,
                k,
                comparison.exact,
            )
        )
    if baseline_bm25 and facts.passage_field:
        on_step("asking BM25")
        bm25 = retrieve(client, index, _bm25_clauses(facts.passage_field, collection.queries), k=k)
        runs.append(_measured("BM25", bm25, collection, k, None))
    on_step("looking for every document")
    missing = missing_documents(client, index, comparison.document_ids)
    on_step("checking stored weights and collecting examples")
    chosen = choose_examples(answered.run, examples)
    passages = _passages(collection, comparison.document_ids, sample, chosen, answered)
    vectors = _check_sample(client, facts, encoder, passages.sample, tolerance, batch_size)
    identity = describe_encoder(encoder)
    report = VerificationReport(
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        cluster=_cluster(client),
        index=facts.to_dict(),
        collection={
            "name": collection.name,
            "split": collection.split,
            "documents": len(comparison.document_ids),
            "queries": len(collection.queries),
        },
        encoder=identity,
        search={
            "by": by,
            "model_id": model_id,
            "analyzer": analyzer,
            "k": k,
            "top_n": top_n,
            "document_tolerance": tolerance,
            "query_tolerance": query_tolerance,
        },
        runs=runs,
        comparison=comparison,
        missing_documents=missing,
        vectors=vectors,
        examples=build_examples(
            chosen, answered.run, collection.queries, collection.qrels, passages.shown, encoder
        ),
        failures=verdict.failures(facts, identity["sha256"], comparison, missing, vectors),
        warnings=verdict.warnings(facts, runs[0]),
        took=answered.took,
        wall=answered.wall,
    )
    on_step("done")
    return report


TWO_PHASE: dict[str, Any] = {
    "request_processors": [{"neural_sparse_two_phase_processor": {"enabled": True}}],
}
"""A search pipeline that lives for one request: nothing is left on the cluster."""


def missing_documents(client: OpenSearch, index: str, document_ids: Sequence[str]) -> list[str]:
    """Ids that the index lacks, the first 200 of them."""
    missing: list[str] = []
    for start in range(0, len(document_ids), _MGET_BATCH):
        ids = document_ids[start : start + _MGET_BATCH]
        with cluster_errors(f"look for documents in {index!r}", SearchError):
            answer = client.mget(index=index, body={"ids": list(ids)}, params={"_source": "false"})
        missing.extend(item["_id"] for item in answer["docs"] if not item.get("found"))
        if len(missing) >= _MISSING_LISTED:
            break
    return missing[:_MISSING_LISTED]


def _check_request(request: _Request) -> None:
    if not 1 <= request.k <= MAX_DEPTH:
        raise UsageError(f"a depth of {request.k} hits is not possible", hint=f"Choose 1 to {MAX_DEPTH}.")
    if request.by == "model" and not request.model_id:
        raise UsageError("searching by model needs a model id", hint="Name it with --model.")
    if request.by == "analyzer" and not request.analyzer:
        raise UsageError("searching by analyzer needs its name", hint="Name it with --analyzer.")


def _tolerance(encoder: TextEncoder) -> float:
    manifest = getattr(getattr(encoder, "archive", None), "manifest", None)
    return QUANTIZED_TOLERANCE if getattr(manifest, "quantization", None) else WEIGHT_TOLERANCE


def _sparse_clauses(
    facts: IndexFacts, queries: Mapping[str, str], encoder: TextEncoder, request: _Request, batch_size: int
) -> dict[str, Clause | None]:
    if request.by != "tokens":
        return {
            query: facts.clause(
                query_text=text,
                model_id=request.model_id,
                analyzer=request.analyzer,
                k=request.k,
                top_n=request.top_n,
            )
            for query, text in queries.items()
        }
    weights = encoder.query_weights(list(queries.values()), batch_size=batch_size, key=facts.key)
    return {
        query: facts.clause(query_tokens=tokens, k=request.k, top_n=request.top_n) if tokens else None
        for query, tokens in zip(queries, weights, strict=True)
    }


def _bm25_clauses(field: str, queries: Mapping[str, str]) -> dict[str, Clause | None]:
    return {query: {"match": {field: text}} for query, text in queries.items()}


def _measured(name: str, answered: ClusterRun, collection: Collection, k: int, exact: Any) -> RunFigures:
    return RunFigures.measure(
        name,
        answered.run,
        collection.qrels,
        k=k,
        exact=exact,
        took=answered.took,
        wall=answered.wall,
    )


@dataclass
class _Passages:
    """Texts that are needed once more: of the sampled documents and of the examples' hits."""

    sample: dict[str, str]
    shown: dict[str, str]


def _passages(
    collection: Collection, ids: Sequence[str], sample: int, chosen: Sequence[str], answered: ClusterRun
) -> _Passages:
    sampled = {ids[position] for position in sample_positions(len(ids), sample)}
    shown = {document for query in chosen for document in list(answered.run[query])[:SHOWN_HITS]}
    found = _Passages({}, {})
    for document in collection.documents():
        if document.id in sampled:
            found.sample[document.id] = document.passage
        if document.id in shown:
            found.shown[document.id] = document.passage
    return found


def _check_sample(
    client: OpenSearch,
    facts: IndexFacts,
    encoder: TextEncoder,
    passages: Mapping[str, str],
    tolerance: float,
    batch_size: int,
) -> StoredVectors:
    vocabulary = encoder.vocabulary
    keys = vocabulary.keys if facts.key == "token" else [str(number) for number in range(vocabulary.size)]
    weights = encoder.document_matrix(list(passages.values()), batch_size=batch_size).tocsr()
    return check_vectors(client, facts, list(passages), weights, keys, tolerance)


def _cluster(client: OpenSearch) -> dict[str, Any]:
    info = cluster_info(client)
    return {"distribution": info.distribution, "version": info.version}
