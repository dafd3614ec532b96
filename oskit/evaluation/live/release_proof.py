"""Is a release right, and good enough to take the living one's place? Answered before it does."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.ingest.building import Proof
from oskit.cluster.search.search import Searcher
from oskit.data.collection import Collection
from oskit.data.documents import Document, Refusal
from oskit.data.values import clean_text
from oskit.errors import SearchError
from oskit.evaluation.live.index_facts import count_documents
from oskit.evaluation.live.verify import verify
from oskit.evaluation.offline.exact_scores import themselves
from oskit.evaluation.offline.metrics import MAIN_MEASURE
from oskit.evaluation.offline.result import RunFigures, Step

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.ingest.accounting import IngestReport

SAMPLED = 200
"""Documents whose vectors and scores are verified."""

ASKED = 50
"""Queries of a kind that are asked among them."""

_TIE = 1e-9
_WORDS = 8
_DEPTH = 100

MARGIN = 0.01
"""How much lower the main measure may be than the living release's, where nobody says."""


class Sample:
    """Documents of a stream that only passes by once, chosen by their ids."""

    def __init__(self, size: int = SAMPLED) -> None:
        self._size = size
        self._chosen: list[tuple[int, str]] = []
        self._documents: dict[str, Document] = {}
        self._twice: set[str] = set()

    def watch(self, records: Iterable[Document | Refusal]) -> Iterator[Document | Refusal]:
        """The same records."""
        for record in records:
            if isinstance(record, Document):
                self._look_at(record)
            yield record

    def _look_at(self, document: Document) -> None:
        # The smallest hashes stay: of what comes under one id all is chosen or nothing.
        key = clean_text(document.id)
        rank = -int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        if (before := self._documents.get(key)) is not None:
            if before.digest() != document.digest():  # which of the two is loaded is not known here
                self._twice.add(key)
            return
        if len(self._chosen) == self._size and rank <= self._chosen[0][0]:
            return
        if len(self._chosen) == self._size:
            del self._documents[heapq.heappop(self._chosen)[1]]
        heapq.heappush(self._chosen, (rank, key))
        self._documents[key] = document

    def collection(self, without: Iterable[str] = (), more: Mapping[str, str] | None = None) -> Collection:
        """The documents, with queries made of some of their titles and first words, which should find them.

        Args:
            without: Ids of documents that were refused.
            more: Queries that are asked as well.
        """
        left_out = self._twice.union(without)
        documents = [document for key, document in self._documents.items() if key not in left_out]
        asked = [document for document in documents if document.passage.split()][:ASKED]
        made = {
            f"made of {document.id}": document.title or " ".join(document.text.split()[:_WORDS])
            for document in asked
        }
        judged = {f"made of {document.id}": {document.id: 1} for document in asked}
        further = dict(list((more or {}).items())[:ASKED])
        return Collection({**further, **made}, judged, tuple(documents), "sample", "sample")

    def absent(self, client: OpenSearch, index: str) -> list[str]:
        """Ids of the chosen ones that the index does not have."""
        body = {"ids": list(self._documents)}
        with cluster_errors(f"read the index {index!r}", SearchError):
            found = client.mget(index=index, body=body, _source=False) if self._documents else {"docs": []}
        return [one["_id"] for one in found["docs"] if not one.get("found")]


@dataclass(frozen=True)
class Asked:
    """How an index is asked.

    Attributes:
        encoder: Makes the queries' weights; without it a deployed model does.
        model_id: That model; without it the one that is recorded in the index.
    """

    encoder: TextEncoder | None = None
    model_id: str | None = None


def check_release(
    client: OpenSearch,
    index: str,
    report: IngestReport,
    sample: Sample,
    encoder: TextEncoder,
    *,
    model_id: str | None = None,
    queries: Mapping[str, str] | None = None,
    on_step: Step = lambda _: None,
) -> Proof:
    """Verify that a release holds what was loaded, and that what it retrieves equals exact scores.

    Args:
        report: What became of the documents.
        sample: Of those that were loaded.
        encoder: Computes the exact scores.
        model_id: Encodes the queries on the cluster; without it ``encoder`` does.
        queries: Asked beside those that are made of the sample.

    Raises:
        ClusterError: It cannot be asked.
    """
    documents = count_documents(client, index)
    failures = []
    if documents != report.indexed:
        failures.append(f"{report.indexed:,} documents were loaded, and the index has {documents:,}")
    collection = sample.collection(sample.absent(client, index) if report.refused else (), queries)
    if not collection.qrels:
        failures.append("nothing can be asked, as no document that was looked at has text (--no-verify)")
        return Proof(failures)
    found = verify(
        client,
        index,
        collection,
        encoder,
        by="model" if model_id else "tokens",
        model_id=model_id,
        k=len(tuple(collection.documents())),
        baseline_bm25=False,
        examples=0,
        part=True,
        on_step=on_step,
    )
    verified = {
        "documents": found.vectors.checked,
        "queries": len(collection.queries),
        "hits": found.comparison.hits,
    }
    return Proof([*failures, *found.failures], verified)


def measure(client: OpenSearch, index: str, judged: Collection, asked: Asked) -> RunFigures:
    """The retrieval quality of an index.

    Raises:
        ClusterError: It cannot be asked.
    """
    searcher = Searcher(client, index, encoder=asked.encoder, model_id=asked.model_id)
    answers = searcher.search_many(list(judged.queries.values()), size=_DEPTH)
    run = {
        query: {hit.id: hit.score for hit in answer.hits}
        for query, answer in zip(judged.queries, answers, strict=True)
    }
    return RunFigures.measure(index, run, judged.qrels, k=_DEPTH, asked=themselves(run, judged, judged.qrels))


def compare_quality(
    figures: RunFigures, living: RunFigures | None, judged: Collection, margin: float = MARGIN
) -> tuple[dict[str, Any], str | None]:
    """Quality beside that of the living release, for the record; and why that is not enough, if it is not.

    A release does not go live whose mean is lower by more than the margin, whether or not so few queries can
    show it: what is living is known to be good.
    """
    value = figures.quality[MAIN_MEASURE]
    told: dict[str, Any] = {
        "collection": judged.name,
        "split": judged.split,
        "queries": len(figures.per_query),
        "measure": MAIN_MEASURE,
        "value": round(value, 4),
    }
    if living is None:
        return told, None
    beside = figures.against(living)
    told |= {"margin": margin, "living": living.name, "living_value": round(living.quality[MAIN_MEASURE], 4)}
    told |= {"difference": round(beside.difference, 4), "p_value": round(beside.p_value, 4)}
    told["verdict"] = beside.verdict
    if beside.difference >= -margin - _TIE:
        return told, None
    return told, (
        f"its {MAIN_MEASURE} of {value:.3f} on {judged.name} is {-beside.difference:.3f} below that of "
        f"{living.name}, which is living (p = {beside.p_value:.3f}, {beside.queries:,} queries); --margin "
        f"{margin:g} may be lost"
    )
