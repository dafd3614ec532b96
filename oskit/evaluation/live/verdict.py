"""What is wrong, in words: one line for each reason."""

from __future__ import annotations

from collections.abc import Sequence

from oskit.evaluation.live.comparison import Comparison, DisagreementKind
from oskit.evaluation.live.index_facts import IndexFacts
from oskit.evaluation.live.result import StoredVectors
from oskit.evaluation.offline.result import RunFigures

LOW_RECALL = 0.9
"""Share of the exact hits below which an approximate search is worth a warning."""


def failures(
    facts: IndexFacts,
    encoder_sha256: frozenset[str],
    comparison: Comparison,
    missing: Sequence[str],
    vectors: StoredVectors,
) -> list[str]:
    """Why the cluster is not right; empty if it is.

    Args:
        facts: Of the index.
        encoder_sha256: Of the archives of the encoder that it is compared with; empty if unknown.
        comparison: Hit by hit.
        missing: Documents of the corpus that the index lacks.
        vectors: The check of stored weights.
    """
    return [
        *_identity(facts, encoder_sha256),
        *_documents(facts, len(comparison.document_ids), missing),
        *_hits(comparison, approximate=facts.storage.approximate),
        *_vectors(vectors),
    ]


def warnings(facts: IndexFacts, cluster: RunFigures, shattering: str | None) -> list[str]:
    """What is worth knowing although it is not wrong; ``shattering`` of the texts first."""
    found = [] if shattering is None else [shattering]
    if facts.search_pipeline:
        found.append(f"queries run through the index's default search pipeline {facts.search_pipeline!r}")
    if facts.info.prune:
        found.append(f"of each document only the weights by {facts.info.prune} are indexed, and expected")
    recall = cluster.recall_of_exact
    if facts.storage.approximate and recall is not None and recall < LOW_RECALL:
        found.append(
            f"the approximate search finds {recall:.1%} of the exact hits; "
            "a larger top_n, heap_factor or n_postings finds more"
        )
    if facts.storage.approximate and facts.storage.features:
        found.append("some segments are searched exactly and others approximately")
    return found


def _identity(facts: IndexFacts, known: frozenset[str]) -> list[str]:
    made_with = facts.info.encoder.sha256
    if not known or made_with is None or made_with in known:
        return []
    name = f" {facts.info.encoder.name}" if facts.info.encoder.name else ""
    ours = ", ".join(sorted(sha256[:12] for sha256 in known))
    return [f"the index was made with another encoder:{name} with sha256 {made_with[:12]}…, not {ours}…"]


def _documents(facts: IndexFacts, corpus: int, missing: Sequence[str]) -> list[str]:
    found = []
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        found.append(f"the index lacks document {missing[0]!r}{more} of the corpus")
    if facts.documents > corpus - len(missing):
        found.append(f"the index holds {facts.documents:,} documents, the corpus {corpus:,}")
    return found


def _hits(comparison: Comparison, *, approximate: bool) -> list[str]:
    counts, found = comparison.counts, []
    if counts["score"]:
        first = next(item for item in comparison.disagreements if item.kind == "score")
        found.append(
            f"{counts['score']:,} of {comparison.hits:,} hits have a score that rounding does not explain, "
            f"such as document {first.document_id!r} for query {first.query_id!r}: "
            f"{first.cluster_score:.4f} where {first.low:.4f} to {first.high:.4f} is due"
        )
    if counts["missing"] and not approximate:
        found.append(f"{counts['missing']:,} hits are missing, such as {_first(comparison, 'missing')}")
    if counts["unknown"]:
        found.append(
            f"{counts['unknown']:,} hits are not in the corpus, such as {_first(comparison, 'unknown')}"
        )
    if counts["rank"]:
        found.append(
            f"{counts['rank']:,} hits are ahead of a document that must come before them, such as "
            f"{_first(comparison, 'rank')}"
        )
    return found


def _first(comparison: Comparison, kind: DisagreementKind) -> str:
    item = next(item for item in comparison.disagreements if item.kind == kind)
    return f"document {item.document_id!r} for query {item.query_id!r}"


def _vectors(vectors: StoredVectors) -> list[str]:
    if not vectors.wrong:
        return []
    return [
        f"{len(vectors.wrong):,} of {vectors.checked:,} documents have other weights in the index than the "
        f"encoder gives, such as {vectors.wrong[0]['document_id']!r}"
    ]
