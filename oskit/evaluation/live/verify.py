"""Does the cluster retrieve what the encoder says it should? The proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from oskit.cluster.client.connection import cluster_info
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.search.search import two_phase_pipeline
from oskit.errors import SearchError, UsageError
from oskit.evaluation.live import verdict
from oskit.evaluation.live.comparison import compare
from oskit.evaluation.live.examples import SHOWN_HITS, build_examples, choose_examples
from oskit.evaluation.live.index_facts import read_facts
from oskit.evaluation.live.query_modes import SearchBy, SearchRequest, bm25_clauses, sparse_clauses
from oskit.evaluation.live.result import VerificationReport
from oskit.evaluation.live.retrieval import ClusterRun, retrieve
from oskit.evaluation.live.stored_vectors import check_vectors
from oskit.evaluation.offline.description import describe_encoder, known_sha256
from oskit.evaluation.offline.metrics import Run
from oskit.evaluation.offline.pruning_levels import PrunedDocuments
from oskit.evaluation.offline.result import BM25, RunFigures, Step, now
from oskit.evaluation.offline.tokenization import SAMPLED_TEXTS, shattering, spread, tokenizations

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.data.collection import Collection

WEIGHT_TOLERANCE = 2e-4
"""Each exported graph is within 1e-4 of its encoder, so two of them are within twice that."""

QUANTIZED_TOLERANCE = 0.2
"""Two ONNX Runtimes round an int8 activation to different sides now and then, and all that follows differs:
by less than 1e-6 for most texts, by up to 0.11 in 500 texts between 1.16.3 (OpenSearch 3.6) and 1.32."""

_MISSING_LISTED = 200
_MGET_BATCH = 1000


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
        encoder: The encoder that the index was made with; an :class:`~oskit.archive.encoder.ArchiveEncoder`
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
    request = SearchRequest(by, model_id, analyzer, k, top_n)
    on_step(f"looking at {index}")
    facts = read_facts(client, index)
    if two_phase and facts.info.kind == "sparse_vector":
        raise UsageError(
            "two-phase search works on rank_features only", hint="Leave out --two-phase for this index."
        )
    given, queries = encoder, collection.queries
    if facts.info.prune:
        encoder = PrunedDocuments(given, facts.info.prune)
    if tolerance is None:
        tolerance = _tolerance(given)
    query_tolerance = tolerance if by == "model" and encoder.architecture == "symmetric" else 0.0

    def figures(name: str, answered: ClusterRun, exact: Run | None = None) -> RunFigures:
        took, wall = answered.took, answered.wall
        return RunFigures.measure(
            name, answered.run, collection.qrels, k=k, exact=exact, took=took, wall=wall
        )

    on_step(f"asking {len(queries):,} queries by {by}")
    clauses = sparse_clauses(client, facts, queries, encoder, request, batch_size)
    answered = retrieve(client, facts.name, clauses, k=k)
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
    exact, ids = comparison.exact, comparison.document_ids
    runs = [figures("cluster", answered, exact), RunFigures.measure("exact", exact, collection.qrels, k=k)]
    if two_phase:
        on_step("asking again in two phases")
        again = retrieve(client, facts.name, clauses, k=k, search_pipeline=two_phase_pipeline())
        runs.append(figures("two-phase", again, exact))
    if baseline_bm25 and facts.passage_field:
        on_step("asking BM25")
        asked = bm25_clauses(facts.passage_field, queries)
        runs.append(figures(BM25, retrieve(client, facts.name, asked, k=k)))
    on_step("looking for every document")
    missing = missing_documents(client, facts.name, ids)
    on_step("checking stored weights")
    chosen = choose_examples(answered.run, examples)
    sampled, cut = ([ids[place] for place in spread(len(ids), size)] for size in (sample, SAMPLED_TEXTS))
    shown = {document for query in chosen for document in list(answered.run[query])[:SHOWN_HITS]}
    wanted = shown.union(sampled, cut)
    texts = {document.id: document.passage for document in collection.documents() if document.id in wanted}
    weights = encoder.document_matrix([texts[name] for name in sampled], batch_size=batch_size).tocsr()
    vectors = check_vectors(client, facts, sampled, weights, encoder.vocabulary, tolerance)
    cuts = tokenizations(encoder, [texts[name] for name in cut], list(queries.values()))
    info = cluster_info(client)
    return VerificationReport(
        created=now(),
        cluster={"distribution": "opensearch", "version": info.version},
        index=facts.to_dict(),
        collection={
            "name": collection.name,
            "split": collection.split,
            "documents": len(ids),
            "queries": len(queries),
        },
        encoder=describe_encoder(given),
        search={**asdict(request), "document_tolerance": tolerance, "query_tolerance": query_tolerance},
        runs=runs,
        comparison=comparison,
        missing_documents=missing,
        vectors=vectors,
        examples=build_examples(chosen, answered.run, queries, collection.qrels, texts, encoder),
        failures=verdict.failures(facts, known_sha256(given), comparison, missing, vectors),
        warnings=verdict.warnings(facts, runs[0], shattering(cuts)),
        took=answered.took,
        wall=answered.wall,
        against_bm25=runs[0].against(runs[-1]) if runs[-1].name == BM25 else None,
        tokenization=cuts,
    )


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


def _tolerance(encoder: TextEncoder) -> float:
    manifest = getattr(getattr(encoder, "archive", None), "manifest", None)
    return QUANTIZED_TOLERANCE if getattr(manifest, "quantization", None) else WEIGHT_TOLERANCE
