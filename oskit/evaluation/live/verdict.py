"""What is wrong, in words: one line for each reason."""

from __future__ import annotations

from collections.abc import Sequence

from oskit.evaluation.live.comparison import Comparison
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
    """Why the cluster is not right; empty if it is. ``encoder_sha256`` is empty where it is not known."""
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


_WRONG = {
    "score": "have a score that rounding does not explain",
    "missing": "are missing",
    "unknown": "are not in the corpus",
    "rank": "are ahead of a document that must come before them",
}


def _hits(comparison: Comparison, *, approximate: bool) -> list[str]:
    found = []
    for kind, count in comparison.counts.items():
        if not count or (kind == "missing" and approximate):
            continue
        first = next(item for item in comparison.disagreements if item.kind == kind)
        of, due = "", ""
        if kind == "score":
            of = f" of {comparison.hits:,}"
            due = f": {first.cluster_score:.4f} where {first.low:.4f} to {first.high:.4f} is due"
        such = f"such as document {first.document_id!r} for query {first.query_id!r}"
        found.append(f"{count:,}{of} hits {_WRONG[kind]}, {such}{due}")
    return found


def _vectors(vectors: StoredVectors) -> list[str]:
    if not vectors.wrong:
        return []
    return [
        f"{len(vectors.wrong):,} of {vectors.checked:,} documents have other weights in the index than the "
        f"encoder gives, such as {vectors.wrong[0]['document_id']!r}"
    ]
