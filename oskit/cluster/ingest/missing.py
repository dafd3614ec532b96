"""Documents of earlier loads that a source no longer has: found, told, and taken out of the index.

Only documents with a mark (:mod:`oskit.cluster.ingest.known`) are looked at: what somebody else wrote into
the index is none of ours. Neither is what anybody wrote since the load began, another load for one: a
document goes only at the sequence number at which it was found.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from opensearchpy.helpers import scan

from oskit.cluster.client.failures import cluster_errors, error_words
from oskit.cluster.client.retry import Patience, policy_of, tell, with_retries
from oskit.cluster.client.server_words import meaning
from oskit.cluster.ingest.accounting import Account
from oskit.data.documents import MARK_FIELD
from oskit.errors import IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.data.duplicates import SeenTexts

MOST_GONE = 0.2
"""Share of the documents of earlier loads that may go without anybody's word."""

FEW = 10
"""So many may go in any case."""

_EXAMPLES = 3

_AT_ONCE = 1_000
"""Documents of one page and of one request, where the index lets a page have so many."""

_WINDOW = "index.max_result_window"


@dataclass(frozen=True)
class Missing:
    """What a source no longer has.

    Attributes:
        count: Documents that are in the index and not in the source.
        of: Documents that earlier loads have put there, all in all.
        examples: Ids of some that are missing.
    """

    count: int
    of: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For messages: ``3 of 1,000 documents that the source no longer has, such as 'a', 'b', 'c'``."""
        some = f", such as {', '.join(map(repr, self.examples))}" if self.examples else ""
        return f"{self.count:,} of {self.of:,} documents that the source no longer has{some}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Sweeper:
    """Finds and deletes what a source no longer has. Make it before the load sends anything.

    Args:
        client: From :func:`oskit.cluster.client.connection.connect`.
        index: The index itself.

    Raises:
        IndexingError: The cluster refuses.
    """

    def __init__(self, client: OpenSearch, index: str) -> None:
        self._client = client
        self._index = index
        self._action = f"see which documents of {index!r} the source no longer has"
        with cluster_errors(self._action, IndexingError):
            client.indices.refresh(index=index)
            marked = {"query": {"exists": {"field": MARK_FIELD}}}
            self._of = int(client.count(index=index, body=marked)["count"])  # what comes is no earlier load's
            answer = client.indices.stats(index=index, metric="_all", params={"level": "shards"})
            found = client.indices.get_settings(index=index, name=_WINDOW, params={"flat_settings": "true"})
        given = found.get(index, {}).get("settings", {})  # nothing where it has the default
        self._at_once = min(_AT_ONCE, int(given.get(_WINDOW, _AT_ONCE)))
        shards: Mapping[str, list[dict[str, Any]]] = answer["indices"][index]["shards"]
        self._last = {
            shard: max(int(copy["seq_no"]["max_seq_no"]) for copy in copies if "seq_no" in copy)
            for shard, copies in shards.items()
        }

    def look(self, seen: SeenTexts) -> Missing:
        """What is missing.

        Args:
            seen: The ids of the source.

        Raises:
            IndexingError: The cluster refuses.
        """
        count = 0
        examples: list[str] = []
        for hit in self._gone(seen):
            count += 1
            if len(examples) < _EXAMPLES:
                examples.append(hit["_id"])
        return Missing(count, self._of, tuple(examples))

    def sweep(self, seen: SeenTexts, deleted: Callable[[int], object]) -> None:
        """Delete what is missing; ``deleted`` is told of each request's documents.

        Raises:
            IndexingError: The cluster refuses.
        """
        gone = self._gone(seen)
        while page := list(islice(gone, _AT_ONCE)):
            deleted(delete_as_found(self._client, self._index, page))
        with cluster_errors(f"refresh the index {self._index!r}", IndexingError):
            self._client.indices.refresh(index=self._index)

    def _gone(self, seen: SeenTexts) -> Iterator[dict[str, Any]]:
        for shard, last in self._last.items():
            old = [{"exists": {"field": MARK_FIELD}}, {"range": {"_seq_no": {"lte": last}}}]
            body = {"query": {"bool": {"filter": old}}, "seq_no_primary_term": True, "_source": False}
            hits = scan(
                self._client,
                index=self._index,
                query=body,
                size=self._at_once,
                preference=f"_shards:{shard}",
                search_pipeline="_none",
            )
            while True:
                with cluster_errors(self._action, IndexingError):
                    hit = next(hits, None)
                if hit is None:
                    break
                if hit["_id"] not in seen:
                    yield hit


def delete_as_found(client: OpenSearch, index: str, hits: Sequence[Mapping[str, Any]]) -> int:
    """Delete these documents, unless somebody has changed them; how many went.

    Args:
        index: Where they are if they do not say.
        hits: With the number of the write that made them.

    Raises:
        IndexingError: The cluster refuses.
    """
    gone, patience = 0, Patience(policy_of(client))
    while hits:
        results = _request(client, index, hits)
        gone += sum(status == 200 for status, _ in results)
        again, wait_s = [], 0.0
        for hit, (status, reason) in zip(hits, results, strict=True):
            if status in (200, 404, 409):  # 404, 409: somebody was there before
                continue
            known = meaning(reason, status, "item")
            wait = patience.wait_s(known) if known is not None and known.passes != "never" else None
            if wait is None:
                raise IndexingError(
                    f"cannot delete documents from {index!r}: {reason} ({status})",
                    hint=known.advice(index) if known is not None else None,
                )
            again.append(hit)
            wait_s = max(wait_s, wait)
        if again:
            tell(f"The cluster is too busy to delete {len(again)} documents", wait_s)
            time.sleep(wait_s)
        hits = again
    return gone


def _request(client: OpenSearch, index: str, hits: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Status and reason of each deletion."""
    body = "".join(f"{json.dumps({'delete': _at(hit)})}\n" for hit in hits)
    with cluster_errors(f"delete documents from {index!r}", IndexingError):
        answer = with_retries(lambda: client.bulk(body=body, index=index), policy_of(client))
    results = [next(iter(item.values())) for item in answer["items"]]
    return [(int(result["status"]), error_words(result.get("error"))) for result in results]


def delete_missing(
    sweeper: Sweeper, seen: SeenTexts, account: Account, most: float, say: Callable[[str], object]
) -> None:
    """Delete what the source no longer has, if that may be.

    Args:
        seen: The ids of the source.
        account: Of the load that has ended.
        most: Share of the documents of earlier loads that may go.
        say: Told of them before.

    Raises:
        IndexingError: There was nothing in the source, more would go than may, or the cluster refuses.
    """
    if account.read == 0:
        raise IndexingError("there are no documents in the source, so none is deleted")
    if account.refused:
        say(f"Nothing is deleted: {why_none_goes(account.read, account.refused, Missing(0, 0), most)}")
        return
    missing = sweeper.look(seen)
    if why_none_goes(account.read, 0, missing, most):
        raise IndexingError(
            f"all is loaded, but nothing is deleted: it would be {missing}",
            hint="If that is right, run the same command again with --yes",
        )
    if missing.count:
        say(f"Deleting {missing}")
        sweeper.sweep(seen, account.delete)


def why_none_goes(read: int, refused: int, missing: Missing, most: float) -> str:
    """Why a load of so many records, of which so many are refused, deletes nothing; empty if it does."""
    if not read:
        return "there are no documents in the source"
    if refused:
        return f"{refused:,} records were refused, and may be what seems missing"
    return "they are too many to go without --yes" if missing.count > max(FEW, most * missing.of) else ""


def _at(hit: Mapping[str, Any]) -> dict[str, Any]:
    """A document as it was found: another version of it stays."""
    where = {"_id": hit["_id"], "if_seq_no": hit["_seq_no"], "if_primary_term": hit["_primary_term"]}
    named = {"_index": "_index", "routing": "_routing"}
    return where | {name: hit[key] for name, key in named.items() if key in hit}
