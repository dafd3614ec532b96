"""Which documents an index has already, as they are and as this encoder makes them: they are left alone.

Every document carries a mark, in the field :data:`~oskit.data.documents.MARK_FIELD`: a digest of its id, its
content, what made its vector, and the ``_version`` that the cluster gives it when it takes the document.
Where the mark is the one that this load expects at the document's present version, the document is the one
that this load would make. So nothing is remembered outside the index; a load that was killed costs only what
it had not sent; and whatever somebody else does to a document (``_update``, another tool's load) makes
another version of it, to which its mark does not belong: it is encoded again.

The mark is a part of ``_source``. Left out of it (``_source.excludes``), it would go with every ``_update``
by itself, but cost a node 23 % more CPU for each document that comes in (3.6.0, 120 words and 200 weights):
the whole document is parsed and written once more for that. Asking costs a node 18 µs a document: versions
by ``_mget``, which read no stored fields, and marks from doc values alone.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import AuthorizationException

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import IndexInfo
from oskit.data.documents import MARK_FIELD, Document
from oskit.data.values import clean_text
from oskit.errors import ClusterAuthError, IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.pipeline import PipelineChange

ASKED_AT_ONCE = 1_000
"""Documents of one question; ``index.max_result_window`` may be lower than its default of 10,000."""

_GONE = {"ignore": 404}
"""An index that is gone has nothing; what that means, the senders tell."""

_FORMAT = 1
"""Of what is digested, and of the vectors that :mod:`oskit.cluster.ingest.actions` writes."""


def recipe_of(info: IndexInfo, pipeline: PipelineChange | None) -> bytes | None:
    """A digest of all that makes a vector of a document; None where nobody knows what does.

    Args:
        info: The index as it shall be.
        pipeline: What the documents go through, where the cluster encodes.
    """
    encoder = info.encoder.sha256 or (info.encoder.model_id if info.encode == "cluster" else None)
    if info.encode == "none":
        encoder = "none"  # a document's digest covers the vector that comes with it
    if encoder is None:
        return None
    steps = pipeline.made_of if info.encode == "cluster" and pipeline is not None else None
    parts = [_FORMAT, encoder, info.prune, info.kind, info.key, info.embedding_field, info.passage_field,
             info.generation, steps, *([info.chunking] if info.chunking else [])]  # fmt: skip
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).digest()


class Known:
    """A stage of a load: windows of documents go in, those that the index does not have yet come out.

    Attributes:
        stays: Documents of the last window that the index has otherwise and that cannot take their place.

    Args:
        client: Asked only by :meth:`sift`, from one thread at a time.
        index: The index.
        recipe: From :func:`recipe_of`; None asks and marks nothing.
        is_new: The index is made by this load, and has nothing yet; it is not asked.
        reencode: Documents come out even if the index has them.
        at_once: Documents of one question.
        notify: Told, in one line, why nothing is known.
    """

    def __init__(
        self,
        client: OpenSearch,
        index: str,
        recipe: bytes | None,
        *,
        is_new: bool = False,
        reencode: bool = False,
        at_once: int = ASKED_AT_ONCE,
        notify: Callable[[str], object] | None = None,
    ) -> None:
        self._client = client
        self._index = index
        self._recipe = recipe
        self._asks = not is_new
        self._reencode = reencode
        self._at_once = at_once
        self._notify = notify or (lambda _: None)
        self._is_fresh = False
        self.stays: list[Document] = []
        self._marks: dict[str, str] = {}

    def sift(self, window: Sequence[Document]) -> list[Document]:
        """Those of a window that have to be encoded and sent, in their order; the others are in the index.

        Raises:
            ClusterError: The cluster cannot be asked.
        """
        self.stays = []
        return [
            document
            for start in range(0, len(window), self._at_once)
            for document in self._sifted(window[start : start + self._at_once])
        ]

    def mark(self, document: Document) -> str | None:
        """What to write into the document's mark, once, when it is sent; None for none. From any thread."""
        return self._marks.pop(document.id, None)

    def _sifted(self, documents: Sequence[Document]) -> Sequence[Document]:
        if self._recipe is None:
            return documents
        ids = [clean_text(document.id) for document in documents]
        states = [state_of(self._recipe, *pair) for pair in zip(ids, documents, strict=True)]
        try:
            versions = self._versions(ids) if self._asks else {}
            there = {
                mark_of(state, version): identity
                for identity, state in zip(ids, states, strict=True)
                if (version := versions.get(identity)) is not None
            }
            unchanged = set() if self._reencode else {there[mark] for mark in self._found(there)}
        except ClusterAuthError as error:
            self._recipe = None
            self._notify(f"All documents are encoded: {error.message}")
            return documents
        wanted = []
        for identity, state, document in zip(ids, states, documents, strict=True):
            if identity not in unchanged:
                self._marks[document.id] = mark_of(state, versions.get(identity, 0) + 1)
                wanted.append(document)
        return wanted

    def _versions(self, ids: Sequence[str]) -> dict[str, int]:
        """Of those that are there, seen by searches or not."""
        params = {"_source": "false", "filter_path": "docs._id,docs._version,docs.error"}
        self._refresh()
        with cluster_errors(f"see what the index {self._index!r} has", IndexingError):
            docs = self._client.mget(index=self._index, body={"ids": ids}, params=params).get("docs", ())
            # Who may send _mget and not read this index is told so of each document.
            errors = (found.get("error") or {} for found in docs)
            if denied := next((error for error in errors if error.get("type") == "security_exception"), None):
                raise AuthorizationException(403, "security_exception", {"error": denied})
        return {found["_id"]: found["_version"] for found in docs if "_version" in found}

    def _refresh(self) -> None:
        """Once: marks are searched for."""
        if not self._is_fresh:
            with cluster_errors(f"see what the index {self._index!r} has", IndexingError):
                self._client.indices.refresh(index=self._index, params=_GONE)
            self._is_fresh = True

    def _found(self, there: dict[str, str]) -> list[str]:
        """Those of the marks that are on the documents that shall have them."""
        if not there:
            return []
        body = {
            "query": {"ids": {"values": list(there.values())}},
            "stored_fields": "_none_",
            "docvalue_fields": [MARK_FIELD],
            "size": len(there),
            "sort": "_doc",
            "track_total_hits": False,
        }
        # The index's default search pipeline may do anything to a query.
        params = {"search_pipeline": "_none", "filter_path": "took,hits.hits.fields", **_GONE}
        with cluster_errors(f"see what the index {self._index!r} has", IndexingError):
            answer: dict[str, Any] = self._client.search(index=self._index, body=body, params=params)
        hits = (answer.get("hits") or {}).get("hits") or []
        marks = (mark for hit in hits for mark in (hit.get("fields") or {}).get(MARK_FIELD, ()))
        return [mark for mark in marks if mark in there]


def marks_there(
    client: OpenSearch, index: str, ids: Sequence[str]
) -> dict[str, list[tuple[int, str | None]]]:
    """Version and mark of each document with one of these ids, of which several indexes may have one each.

    Raises:
        IndexingError: The cluster refuses.
    """
    body = {
        "query": {"ids": {"values": list(ids)}},
        "version": True,
        "_source": False,
        "docvalue_fields": [MARK_FIELD],
        "size": 2 * len(ids),
    }
    with cluster_errors(f"see what {index!r} has", IndexingError):
        answer = client.search(index=index, body=body, params={"search_pipeline": "_none"})
    found: dict[str, list[tuple[int, str | None]]] = {}
    for hit in answer["hits"]["hits"]:
        mark = next(iter((hit.get("fields") or {}).get(MARK_FIELD, ())), None)
        found.setdefault(hit["_id"], []).append((hit["_version"], mark))
    return found


def state_of(recipe: bytes, identity: str, document: Document) -> bytes:
    """A digest of what a document is and what is made of it."""
    digest = hashlib.blake2b(recipe, digest_size=16)
    digest.update(document.digest())
    digest.update(len(encoded := identity.encode()).to_bytes(4, "little") + encoded)
    digest.update(document.passage.encode("utf-8", "surrogatepass"))
    return digest.digest()


def mark_of(state: bytes, version: int) -> str:
    digest = hashlib.blake2b(state + version.to_bytes(8, "little"), digest_size=15)
    return urlsafe_b64encode(digest.digest()).decode()
