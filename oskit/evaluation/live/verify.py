"""Does the cluster retrieve what the encoder says it should? The proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from oskit.archive.agreement import is_quantized, largest_difference
from oskit.archive.siblings import known_sha256
from oskit.archive.tokenization import SAMPLED_TEXTS, shattering, spread, tokenizations
from oskit.cluster.client.kind import kind_of
from oskit.cluster.search.clauses import filtered, two_phase_pipeline
from oskit.cluster.search.query_model import check_same_encoder, query_model
from oskit.cluster.search.query_weights import analyzer_weights
from oskit.cluster.search.search import Searcher
from oskit.data.values import clean_text
from oskit.errors import UsageError
from oskit.evaluation.live import verdict
from oskit.evaluation.live.comparison import Comparison, compare
from oskit.evaluation.live.examples import SHOWN_HITS, build_examples, choose_examples
from oskit.evaluation.live.fused import check_fusion
from oskit.evaluation.live.index_facts import IndexFacts, read_facts, staying, was_written
from oskit.evaluation.live.presence import look_for
from oskit.evaluation.live.query_modes import SearchBy, SearchRequest, bm25_clauses, sparse_clauses
from oskit.evaluation.live.result import StoredVectors, VerificationReport
from oskit.evaluation.live.retrieval import ClusterRun, retrieve
from oskit.evaluation.live.stored_vectors import check_vectors
from oskit.evaluation.offline.description import describe_encoder
from oskit.evaluation.offline.exact_scores import encoded_texts, themselves
from oskit.evaluation.offline.metrics import Run
from oskit.evaluation.offline.pruning_levels import PrunedDocuments
from oskit.evaluation.offline.result import BM25, RunFigures, Step, now

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.search.hybrid import Hybrid
    from oskit.data.collection import Collection

WEIGHT_TOLERANCE = 2e-4
"""Each exported graph is within 1e-4 of its encoder, so two of them are within twice that."""

QUANTIZED_TOLERANCE = 0.6
"""Two ONNX Runtimes round an int8 activation to different sides now and then, and all that follows differs:
a weight of a 6-layer BERT by up to 0.56 in 40 texts. Whole vectors are compared more strictly, see
:func:`oskit.cluster.models.prediction_parity.agree`."""

_SUSPECTS = 100
"""Documents of wrong hits whose stored weights are looked at, where the sample showed nothing."""

_ANALYZED_QUERIES = 20
"""Queries whose weights by an analyzer are compared with the encoder's."""


def verify(
    client: OpenSearch,
    index: str,
    collection: Collection,
    encoder: TextEncoder,
    *,
    by: SearchBy = "tokens",
    model_id: str | None = None,
    analyzer: str | None = None,
    field: str | None = None,
    k: int = 100,
    top_n: int | None = None,
    tolerance: float | None = None,
    baseline_bm25: bool = True,
    two_phase: bool = False,
    hybrid: Hybrid | None = None,
    sample: int = 200,
    examples: int = 3,
    part: bool = False,
    on_step: Step = lambda _: None,
) -> VerificationReport:
    """Ask a cluster every query of a collection and compare with exact scores.

    Args:
        client: The cluster.
        index: Index, or alias of one, that holds the collection's corpus.
        collection: Corpus, queries and relevance judgements.
        encoder: The encoder that the index was made with; an :class:`~oskit.archive.encoder.ArchiveEncoder`
            will do, so no torch is needed.
        by: ``tokens``: the weights are made here. ``model``: the cluster runs ``model_id`` on the text.
            ``analyzer``: the cluster runs ``analyzer``.
        model_id: Name or id of an encoder model or, for an inference-free encoder, of a tokenizer model.
            It is waited for, as after the restart of a node.
        analyzer: Name of the analyzer.
        field: Of the vectors, where the index has several.
        k: Hits to compare for each query, at most 10,000.
        top_n: Query tokens that an approximate search looks up; the cluster's default is 10.
        tolerance: How far a weight on the cluster may be from the encoder's before it is rounded. Default:
            :data:`WEIGHT_TOLERANCE`, or :data:`QUANTIZED_TOLERANCE` for an int8 archive.
        baseline_bm25: Also ask with BM25 on the same text.
        two_phase: Also ask through a two-phase search pipeline, and report what it loses.
        hybrid: Also search so, and compare with what the cluster's lists and exact scores fuse to here.
        sample: Documents whose stored weights are checked directly.
        examples: Queries that the report shows with their hits.
        part: The corpus is a part of what the index holds: only among its documents is searched, and others
            are no reason to fail.
        on_step: Told what is being done, and that the model is being waited for.

    Returns:
        The report; ``report.raise_for_disagreement()`` raises if the cluster disagrees.

    Raises:
        UsageError: Options that do not go together.
        SearchError: The cluster refused a query, there is no such index, it was replaced meanwhile, or the
            model is another encoder.
        ModelError: There is no such model, or it does not answer.
        DataError: The collection cannot be read, or judges no query.
    """
    request = SearchRequest(by, model_id, analyzer, k, top_n)
    on_step(f"looking at {index}")
    facts = read_facts(client, index, field)
    if k > facts.max_hits:
        raise UsageError(f"{facts.target} gives {facts.max_hits:,} hits at most (index.max_result_window)")
    if two_phase and facts.info.kind == "sparse_vector":
        raise UsageError(
            "two-phase search works on rank_features only", hint="Leave out --two-phase for this index."
        )
    if two_phase and facts.info.nested:
        raise UsageError(
            f"two-phase search does not look into the chunks of {facts.target}",
            hint="Leave out --two-phase for this index.",
        )
    with staying(client, facts):
        return _verify(
            client, facts, collection, encoder, request, tolerance, baseline_bm25, two_phase, hybrid, sample,
            examples, part, on_step,
        )  # fmt: skip


def _verify(
    client: OpenSearch,
    facts: IndexFacts,
    collection: Collection,
    encoder: TextEncoder,
    request: SearchRequest,
    tolerance: float | None,
    baseline_bm25: bool,
    two_phase: bool,
    hybrid: Hybrid | None,
    sample: int,
    examples: int,
    part: bool,
    on_step: Step,
) -> VerificationReport:
    """The report about the index that was found."""
    given, queries = encoder, collection.queries
    if facts.info.prune:
        encoder = PrunedDocuments(given, facts.info.prune)
    manifest = getattr(getattr(given, "archive", None), "manifest", None)
    quantized = tolerance is None and is_quantized(manifest)
    if tolerance is None:
        tolerance = QUANTIZED_TOLERANCE if quantized else WEIGHT_TOLERANCE
    k, by, model = request.k, request.by, None
    if by == "model":
        model = query_model(client, facts.info, "model", request.model_id)
        request = replace(request, model_id=model.model_id)
        check_same_encoder(client, model, given, queries=True, notify=on_step)
    query_tolerance = tolerance if by == "model" and encoder.architecture == "symmetric" else 0.0

    def figures(name: str, answered: ClusterRun, exact: Run | None = None) -> RunFigures:
        took, wall = answered.took, answered.wall
        return RunFigures.measure(
            name,
            answered.run,
            collection.qrels,
            k=k,
            exact=exact,
            took=took,
            wall=wall,
            asked=themselves(answered.run, collection, collection.qrels),
        )

    on_step(f"asking {len(queries):,} queries by {by}")
    ask = partial(retrieve, client, facts.name, k=k, model=model, notify=on_step)
    clauses = sparse_clauses(client, facts, queries, encoder, request, model, on_step)
    if part:
        among = {"ids": {"values": [document.id for document in collection.documents()]}}
        clauses = {query: clause and filtered(clause, among) for query, clause in clauses.items()}
    answered = ask(clauses)
    on_step("computing exact scores")
    comparison = compare(
        answered.run,
        encoder,
        collection,
        k=k,
        storage=facts.storage,
        document_tolerance=tolerance,
        query_tolerance=query_tolerance,
        chunking=facts.chunking,
    )
    exact, ids = comparison.exact, comparison.document_ids
    asked = themselves(exact, collection, collection.qrels)
    runs = [figures("cluster", answered, exact)]
    runs.append(RunFigures.measure("exact", exact, collection.qrels, k=k, asked=asked))
    if two_phase:
        on_step("asking again in two phases")
        again = ask(clauses, search_pipeline=two_phase_pipeline())
        runs.append(figures("two-phase", again, exact))
    fused = None
    if hybrid is not None:
        on_step(f"searching by {hybrid.name}")
        searcher = Searcher(
            client, facts.name, by=by, model_id=request.model_id, analyzer=request.analyzer,
            encoder=given if by == "tokens" else None, field=facts.info.embedding_field, notify=on_step,
            trust_s=60,
        )  # fmt: skip
        rounded = None if facts.storage.bytes or by == "analyzer" else exact
        fused = check_fusion(searcher, queries, hybrid, k, exact=rounded, tolerance=tolerance)
        answered_so = ClusterRun(fused.run, fused.took, [])
        runs.append(figures("hybrid", answered_so))
    if baseline_bm25 and facts.passage_field:
        on_step("asking BM25")
        runs.append(figures(BM25, ask(bm25_clauses(facts.info, queries))))
    on_step("looking for every document")
    presence = look_for(client, facts, ids)
    presence = replace(presence, extra=0, extra_ids=[]) if part else presence
    on_step("checking stored weights")
    chosen = choose_examples(answered.run, examples)
    sampled, cut = ([ids[place] for place in spread(len(ids), size)] for size in (sample, SAMPLED_TEXTS))
    shown = {document for query in chosen for document in list(answered.run[query])[:SHOWN_HITS]}
    suspects = _suspects(comparison, sampled, approximate=facts.storage.approximate)
    wanted = shown.union(sampled, cut, suspects)
    documents = {document.id: document for document in collection.documents() if document.id in wanted}
    texts = dict(encoded_texts(documents.values(), encoder, facts.chunking))

    def stored(names: list[str]) -> StoredVectors:
        weights = encoder.document_matrix([text for name in names for text in texts[name]]).tocsr()
        ends = list(accumulate(len(texts[name]) for name in names))
        due = {name: weights[end - len(texts[name]) : end] for name, end in zip(names, ends, strict=True)}
        return check_vectors(client, facts, due, encoder.vocabulary, tolerance, quantized=quantized)

    vectors = stored(sampled)
    if suspects and not vectors.wrong:
        more = stored(suspects)
        vectors = StoredVectors(vectors.checked + more.checked, more.wrong, vectors.unseen + more.unseen)
    cuts = tokenizations(encoder, [documents[name].passage for name in cut], list(queries.values()))
    return VerificationReport(
        created=now(),
        cluster={"distribution": "opensearch", "version": kind_of(client).number},
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
        missing=presence.missing,
        missing_documents=presence.missing_ids,
        extra=presence.extra,
        extra_documents=presence.extra_ids,
        vectors=vectors,
        examples=build_examples(chosen, answered.run, queries, collection.qrels, texts, encoder),
        fused=fused,
        failures=verdict.failures(
            facts,
            _known(given),
            comparison,
            presence,
            vectors,
            _analyzer_differs(client, facts, request.analyzer, queries, given) if by == "analyzer" else None,
            fused.failure if fused else None,
        ),
        warnings=verdict.warnings(
            facts, runs[0], vectors, shattering(cuts), was_written=was_written(client, facts)
        ),
        took=answered.took,
        wall=answered.wall,
        against_bm25=runs[0].against(runs[-1]) if runs[-1].name == BM25 else None,
        tokenization=cuts,
    )


def _known(encoder: TextEncoder) -> dict[str, frozenset[str]]:
    """sha256 by which both sides of an encoder are known."""
    query = getattr(getattr(encoder, "query", None), "sha256", None)
    return {"documents": known_sha256(encoder), "queries": frozenset({query} if query else ())}


def _suspects(comparison: Comparison, sampled: Sequence[str], *, approximate: bool) -> list[str]:
    """Documents of wrong hits, other than the sampled ones: what is wrong may be in few documents."""
    counted = (item for item in comparison.disagreements if not (approximate and item.kind == "missing"))
    known = set(comparison.document_ids) - set(sampled)
    return list(dict.fromkeys(item.document_id for item in counted if item.document_id in known))[:_SUSPECTS]


def _analyzer_differs(
    client: OpenSearch,
    facts: IndexFacts,
    analyzer: str | None,
    queries: Mapping[str, str],
    encoder: TextEncoder,
) -> str | None:
    """That an analyzer gives queries other weights than the encoder, in words; None if it does not."""
    for query, text in list(queries.items())[:_ANALYZED_QUERIES]:
        (due,) = encoder.query_weights([clean_text(text)])
        found = analyzer_weights(client, facts.info, str(analyzer), clean_text(text))
        token, difference = largest_difference(due, found)
        if difference > WEIGHT_TOLERANCE:
            return (
                f"the analyzer {analyzer!r} gives queries weights of its own, which are built into "
                f"OpenSearch: {token!r} of query {query!r} weighs {found.get(token, 0.0):.4f} by it, and "
                f"{due.get(token, 0.0):.4f} by the encoder"
            )
    return None
