"""Do documents have the weights of their own texts, where a service encodes them for the cluster?

What answers with nothing, too little or no weights fails its documents. A service, or something in front of
it, that gives texts each other's answers does not: ML Commons takes one answer for each text, in order,
leaves what is too much, and stores them (3.6.0). So some documents of each request are read again, and their
texts are asked for alone, where nothing can be mistaken for another.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.names import Target
from oskit.cluster.ingest.missing import delete_as_found
from oskit.cluster.models.predict import predict
from oskit.data.values import clean_text
from oskit.errors import ClusterAuthError, ClusterError, IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.mapping import IndexInfo
    from oskit.cluster.ingest.bulk import BulkItem
    from oskit.cluster.models.registry import ModelInfo

_log = logging.getLogger("oskit.cluster")

EVERY = 32
"""One of so many documents of a request is compared, and at least one."""

_WRITE = ("_seq_no", "_primary_term")

FAR = 0.2
"""Difference of two vectors, relative to the longer one; a quantised model's may be .14 apart."""


class Proof:
    """Compares stored vectors with what the model says of their texts.

    Args:
        client: Used from several threads.
        target: What is loaded.
        info: How it is made.
        model: Encodes, by a connector.
    """

    def __init__(self, client: OpenSearch, target: Target, info: IndexInfo, model: ModelInfo) -> None:
        self._client = client
        self._target = target
        self._info = info
        self._model = model
        self._may = True

    def check(self, items: Sequence[BulkItem]) -> None:
        """Compare some of the documents that one request has stored; if one is wrong, take all out again.

        What somebody has written over since is neither compared nor taken out.

        Raises:
            IndexingError: One is wrong.
            ClusterError: The cluster or the model does not answer any more.
        """
        if not items or not self._may:
            return
        chosen = random.sample(items, math.ceil(len(items) / EVERY))
        try:
            for identity, text, stored in self._stored(chosen):
                (wanted,) = predict(self._client, self._model, [text], key=self._info.key)
                if not _is_of(stored, wanted):
                    raise self._taken_out(items, identity)
        except ClusterAuthError as error:
            self._may = False
            _log.warning("What encodes is not compared with what is stored: %s", error.message)

    def _stored(self, items: Sequence[BulkItem]) -> Iterator[tuple[str, str, Mapping[str, float]]]:
        """Id, text and vector of each document, or of one of its chunks; of those that hide none of them."""
        written = {clean_text(item.document.id): item.written or {} for item in items}
        ids = list(written)
        with cluster_errors(f"read what {self._target} has", IndexingError):
            if self._target.parts:
                self._client.indices.refresh(index=self._target.written)
                body: dict[str, Any] = {"query": {"ids": {"values": ids}}, "size": len(ids),
                                        "seq_no_primary_term": True}  # fmt: skip
                params = {"search_pipeline": "_none"}
                answer = self._client.search(index=self._target.written, body=body, params=params)
                docs = answer["hits"]["hits"]
            else:
                docs = self._client.mget(index=self._target.written, body={"ids": ids})["docs"]
        for found in docs:
            if any(found.get(name) != written[found["_id"]].get(name) for name in _WRITE):
                continue
            place = found.get("_source") or {}
            if self._info.nested:
                place = random.choice(place.get(self._info.nested) or [{}])  # noqa: S311 - not a secret
            text = place.get("text" if self._info.nested else self._info.passage_field)
            vector = _at(place, self._info.embedding_name)
            if isinstance(text, str) and text.strip() and isinstance(vector, dict):
                yield found["_id"], text, vector

    def _taken_out(self, items: Sequence[BulkItem], identity: str) -> IndexingError:
        what = f"the {len(items):,} documents of its request were taken out of {self._target} again"
        try:
            hits = [item.written for item in items if item.written]
            gone = delete_as_found(self._client, self._target.written, hits)
            with cluster_errors(f"refresh {self._target}", IndexingError):
                self._client.indices.refresh(index=self._target.written)
            if left := len(items) - gone:
                what += f", but for {left:,} that somebody has written or deleted since"
        except ClusterError as error:
            what = (
                f"the {len(items):,} documents of its request are still in {self._target} ({error.message})"
            )
        return IndexingError(
            f"what answers for the model {self._model.name!r} gives texts the weights of others: those of "
            f"{identity!r} are not what its text has when it is asked for alone; {what}",
            hint="Correct that service, or what stands before it, and run the same command again",
        )


def _is_of(stored: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    """Whether stored weights, of which the light ones may have been pruned, are nearly the wanted ones."""
    if not wanted:
        return not stored
    if max(wanted, key=lambda token: wanted[token]) not in stored:
        return False
    apart = math.hypot(*(weight - wanted.get(token, 0.0) for token, weight in stored.items()))
    return apart <= FAR * max(math.hypot(*stored.values()), math.hypot(*wanted.values()))


def _at(source: Mapping[str, Any], path: str) -> Any:
    if path in source or "." not in path:
        return source.get(path)
    first, rest = path.split(".", 1)
    below = source.get(first)
    return _at(below, rest) if isinstance(below, dict) else None
