"""The chunks of an archive: which ones the cluster holds, and sending them.

A chunk is stored under its number, so sending one again changes nothing, and their order is free. But the
last one, whatever its neighbours, turns the model into REGISTERED, so it goes last and alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

from opensearchpy import OpenSearch
from opensearchpy.exceptions import TransportError

from oskit.archive.archive import CHUNK_SIZE, Archive
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.retry import Patience, impatient, is_transient, policy_of, tell
from oskit.cluster.models.registry import existing_model, quoted, request, search
from oskit.errors import ArchiveError, ModelError

CHUNKS_AT_A_TIME = 4
"""Each is held in memory, here and, as base64, on the node, whose heap may be small."""

ARRIVES_WITHIN_S = 5.0
"""A link that is slower than that takes fewer chunks at a time: other runs take an upload of which nothing
arrives for 15 s for abandoned (:mod:`oskit.cluster.models.rivals`)."""


def chunks_present(client: OpenSearch, model_id: str) -> set[int]:
    """Numbers of the chunks that the cluster holds of a model."""
    chunks = {"bool": {"filter": [{"term": {"model_id": model_id}}, {"exists": {"field": "chunk_number"}}]}}
    hits = search(client, "models", query=chunks, _source=["chunk_number"])
    return {int(hit["_source"]["chunk_number"]) for hit in hits}


@dataclass(frozen=True)
class Chunks:
    """The chunks of one model.

    Attributes:
        client: The cluster.
        archive: Its file is read chunk by chunk.
        model_id: The registered model.
    """

    client: OpenSearch
    archive: Archive
    model_id: str

    def send(self, number: int) -> None:
        """Send one, as often as the client's policy says.

        Raises:
            TransportError: It could not be sent.
            ArchiveError: The file changed on disk meanwhile.
        """
        start = number * CHUNK_SIZE
        with self.archive.path.open("rb") as stream:
            stream.seek(start)
            chunk = stream.read(CHUNK_SIZE)
        if len(chunk) != min(CHUNK_SIZE, self.archive.size - start):
            raise ArchiveError(f"{self.archive.path} changed while it was uploaded", hint="Deploy it again")
        # The content type stays JSON: ML Commons refuses application/octet-stream with 406.
        request(self.client, "POST", f"/models/{quoted(self.model_id)}/upload_chunk/{number}", chunk)

    def send_side_by_side(self, numbers: Collection[int], arrived: Callable[[int], None]) -> None:
        """Send several at a time.

        Args:
            numbers: Which ones.
            arrived: Told, in this thread, the bytes of each that arrived.

        Raises:
            ClusterError: One could not be sent, even after several attempts. Nothing is under way any more.
            ArchiveError: The file changed on disk meanwhile.
        """
        _Flight(self, sorted(numbers, reverse=True)).land(arrived)

    def send_last(self) -> None:
        """Send the last one, and never blindly: it would take its state from a model that is whole.

        Raises:
            ClusterError: It could not be sent, even after several attempts.
            ArchiveError: The file changed on disk meanwhile.
        """
        number = self.archive.total_chunks - 1
        patience = Patience(policy_of(self.client))
        with cluster_errors(self.describe(number), ModelError):
            while not is_whole(self.client, self.model_id):
                try:
                    with impatient(self.client):
                        self.send(number)
                except TransportError as failure:
                    wait_s = patience.wait_s(heard(failure)) if is_transient(failure) else None
                    if wait_s is None:
                        raise
                    tell(failure, wait_s)
                    time.sleep(wait_s)
                else:
                    return

    def describe(self, number: int) -> str:
        """What sending a chunk is called in a message."""
        return f"upload chunk {number + 1} of {self.archive.total_chunks} of the model {self.model_id}"


def is_whole(client: OpenSearch, model_id: str) -> bool:
    """Whether the last chunk of a model arrived."""
    return existing_model(client, model_id, "upload").state != "REGISTERING"


class _Landing(NamedTuple):
    """How a chunk's attempt ended, after how many seconds."""

    number: int
    seconds: float
    failure: BaseException | None


@dataclass
class _Flight:
    """Chunks under way, each in a thread that makes one attempt; the caller's thread waits and decides.

    After a failure nothing more is sent until all that is under way has ended, so that whoever is told of it
    may take the model back: no chunk arrives behind its back.
    """

    _chunks: Chunks
    _waiting: list[int]  # the next one last
    _width: int = 1
    _most: int = CHUNKS_AT_A_TIME
    _under_way: int = 0
    _landings: SimpleQueue[_Landing] = field(default_factory=SimpleQueue)
    _patience: dict[int, Patience] = field(default_factory=dict)

    def land(self, arrived: Callable[[int], None]) -> None:
        """Until all have arrived, or one cannot."""
        try:
            while self._waiting:
                failed = self._until_a_failure(arrived)
                if failed:
                    self._wait(sorted(failed))
        except Exception:
            while self._under_way:
                self._landed()
            raise

    def _until_a_failure(self, arrived: Callable[[int], None]) -> list[_Landing]:
        failed: list[_Landing] = []
        while self._under_way or (self._waiting and not failed):
            if self._waiting and not failed and self._under_way < self._width:
                self._start(self._waiting.pop())
                continue
            landing = self._landed()
            if landing.failure is None:
                self._adapt(landing.seconds)
                arrived(CHUNK_SIZE)
            else:
                failed.append(landing)
        return failed

    def _start(self, number: int) -> None:
        # A daemon, so that Ctrl-C ends the process at once.
        Thread(target=self._attempt, args=(number,), name=f"oskit-chunk-{number}", daemon=True).start()
        self._under_way += 1

    def _attempt(self, number: int) -> None:
        failure: BaseException | None = None
        start = time.monotonic()
        try:
            with impatient(self._chunks.client):
                self._chunks.send(number)
        except BaseException as error:  # what nobody is told of would be waited for
            failure = error
        self._landings.put(_Landing(number, time.monotonic() - start, failure))

    def _landed(self) -> _Landing:
        landing = self._landings.get()
        self._under_way -= 1
        return landing

    def _adapt(self, seconds: float) -> None:
        if seconds > ARRIVES_WITHIN_S:
            self._width = max(1, self._width - 1)
        elif 2 * seconds <= ARRIVES_WITHIN_S:
            self._width = min(self._most, self._width + 1)

    def _wait(self, failed: Sequence[_Landing]) -> None:
        """Wait as the failures want it, and go on with half as many at a time; raise what does not pass.

        Fewer they stay: a node whose heap took no four chunks takes none a moment later, and each refusal
        costs seconds.
        """
        waits: list[tuple[float, Exception]] = []
        for number, _, failure in failed:
            assert failure is not None
            if not isinstance(failure, Exception):
                raise failure
            patience = self._patience.setdefault(number, Patience(policy_of(self._chunks.client)))
            wait_s = patience.wait_s(heard(failure)) if is_transient(failure) else None
            if wait_s is None:
                with cluster_errors(self._chunks.describe(number), ModelError):
                    raise failure
            waits.append((wait_s, failure))
        self._waiting = sorted({*self._waiting, *(landing.number for landing in failed)}, reverse=True)
        self._width = self._most = max(1, self._width // 2)
        wait_s, failure = max(waits, key=lambda wait: wait[0])
        tell(failure, wait_s)
        time.sleep(wait_s)
