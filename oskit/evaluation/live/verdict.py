"""What is wrong, in words: one line for each reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from oskit.evaluation.live.comparison import Comparison
from oskit.evaluation.live.index_facts import IndexFacts
from oskit.evaluation.live.presence import Presence
from oskit.evaluation.live.result import StoredVectors
from oskit.evaluation.offline.result import RunFigures

LOW_RECALL = 0.9
"""Share of the exact hits below which an approximate search is worth a warning."""


def failures(
    facts: IndexFacts,
    encoder: Mapping[str, frozenset[str]],
    comparison: Comparison,
    presence: Presence,
    vectors: StoredVectors,
    query_side: str | None = None,
    fused: str | None = None,
) -> list[str]:
    """Why the cluster is not right; empty if it is.

    Args:
        encoder: sha256 by which the encoder's ``documents`` and ``queries`` are known; empty where they are
            not.
        query_side: What makes the cluster's query weights other than the encoder's, if that is known.
        fused: What is wrong with hybrid scores.
    """
    hits = _hits(comparison, approximate=facts.storage.approximate)
    documents = _documents(facts, len(comparison.document_ids), presence)
    stored = _vectors(facts, vectors)
    cause = [query_side] if hits and query_side else []
    if hits and not (cause or documents or stored) and vectors.checked:
        pipeline = f", such as its search pipeline {facts.search_pipeline!r}" if facts.search_pipeline else ""
        hits.append(
            f"the stored vectors are the encoder's ({vectors.checked:,} checked), so it is the queries that "
            f"the cluster changes{pipeline}"
        )
    hybrid = [fused] if fused else []
    return [*_identity(facts, encoder), *documents, *cause, *stored, *hits, *hybrid]


def warnings(
    facts: IndexFacts,
    cluster: RunFigures,
    vectors: StoredVectors,
    shattering: str | None,
    *,
    was_written: bool = False,
) -> list[str]:
    """What is worth knowing although it is not wrong; ``shattering`` of the texts first."""
    found = [] if shattering is None else [shattering]
    if was_written:
        found.append("documents were written to the index meanwhile: what disagrees may be newer than this")
    if vectors.unseen:
        found.append(
            f"{vectors.unseen:,} of {vectors.checked:,} documents keep no vector in _source: tokens that "
            "they have besides are seen only where a query meets them"
        )
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


def _identity(facts: IndexFacts, known: Mapping[str, frozenset[str]]) -> list[str]:
    recorded = facts.info.encoder
    name = f" {recorded.name}" if recorded.name else ""
    made_with = {
        "documents": (recorded.sha256, f"the index was made with another encoder:{name} with"),
        "queries": (recorded.query_sha256, "the index's queries are made with another tokenizer:"),
    }
    return [
        f"{said} sha256 {sha256[:12]}…, not {', '.join(sorted(other[:12] for other in known[side]))}…"
        for side, (sha256, said) in made_with.items()
        if sha256 is not None and known.get(side) and sha256 not in known[side]
    ]


def _documents(facts: IndexFacts, corpus: int, presence: Presence) -> list[str]:
    found = []
    if presence.missing:
        more = f" and {presence.missing - 1:,} more" if presence.missing > 1 else ""
        found.append(f"the index lacks document {presence.missing_ids[0]!r}{more} of the corpus")
    if presence.extra:
        such = f", such as {presence.extra_ids[0]!r}" if presence.extra_ids else ""
        found.append(
            f"the index holds {facts.documents:,} documents, the corpus {corpus:,}: {presence.extra:,} are "
            f"not of the corpus{such}"
        )
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


def _vectors(facts: IndexFacts, vectors: StoredVectors) -> list[str]:
    if not vectors.wrong:
        return []
    first, rule = vectors.wrong[0], facts.info.prune
    told = [
        f"{what} {len(tokens):,} token{'s' * (len(tokens) > 1)} ({_tokens(tokens)})"
        for key, what in (("lacks", "lacks"), ("extra", "has besides"), ("other", "weighs otherwise"))
        if (tokens := first.get(key))
    ]
    such = f"{first['document_id']!r}" + (f", which {' and '.join(told)}" if told else "")
    cause = ""
    if all("lacks" in each and not {"extra", "other"} & set(each) for each in vectors.wrong):
        recorded = f"more than by {rule}, which it records" if rule else "and records no pruning"
        cause = f"; the index lacks weights, as if it was loaded with --prune, {recorded}"
    elif rule and all("extra" in each and not {"lacks", "other"} & set(each) for each in vectors.wrong):
        cause = f"; the index records pruning by {rule}, and they look as if loaded without it"
    return [
        f"{len(vectors.wrong):,} of {vectors.checked:,} documents have other weights in the index than the "
        f"encoder gives, such as {such}{cause}"
    ]


def _tokens(weights: Mapping[str, Any]) -> str:
    heaviest: Iterable[tuple[str, float]] = sorted(weights.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{token!r} {weight:.4g}" for token, weight in heaviest)
