"""Windows of documents through the stages of a load: those that the index has stay, the others are sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oskit.cluster.client.retry import RetryingTransport, limit_of
from oskit.cluster.ingest.accounting import Account
from oskit.cluster.ingest.actions import ItemMaker, encoding_stages
from oskit.cluster.ingest.admission import Window
from oskit.cluster.ingest.bulk import TAKEN_ONCE, BulkItem, BulkSender
from oskit.cluster.ingest.known import Known
from oskit.cluster.ingest.senders import Senders
from oskit.cluster.ingest.sizes import RequestSizes
from oskit.cluster.ingest.stages import Line
from oskit.cluster.ingest.witness import Witness
from oskit.errors import DataError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch
    from scipy.sparse import csr_matrix


SOON_S = 2.0
"""In which a request shall be answered where nothing is encoded on the way."""


@dataclass(frozen=True)
class Requests:
    """What bulk requests are like.

    Attributes:
        documents: Of one request at most.
        size: Bytes of one request at most.
        workers: Requests in flight.
        pipeline: Ingest pipeline that they go through.
        timeout: Limit of one in seconds; None for the client's.
    """

    documents: int
    size: int
    workers: int
    pipeline: str = "_none"
    timeout: float | None = None

    def sizes(self, client: OpenSearch) -> RequestSizes:
        """How large they may be over the way of this client, which is learned."""
        is_ours = isinstance(client.transport, RetryingTransport)
        share = (self.timeout or limit_of(client)) / 5
        # What is under way is lost with the process; an encoding cluster has reasons of its own to take long.
        answer_s = share if self.timeout else min(SOON_S, share)
        return RequestSizes(self.size, answer_s, compresses=is_ours)


def unknown(windows: Iterable[Window], known: Known, account: Account) -> Iterator[Window]:
    """The documents that the index does not have yet; the others are settled here."""
    for window in windows:
        wanted = known.sift(window.documents)
        for document in known.stays:
            account.refuse(document, TAKEN_ONCE)
        account.keep(len(window.documents) - len(wanted) - len(known.stays))
        if wanted:
            yield Window(wanted, window.size)


def work_off(
    client: OpenSearch,
    index: str,
    windows: Iterable[Window],
    maker: ItemMaker,
    account: Account,
    requests: Requests,
    sizes: RequestSizes,
    witness: Witness,
    first: Sequence[BulkItem] = (),
) -> None:
    """Read here, where an interruption ends it at once; encode, write and send in threads.

    Args:
        first: Sent before all else.

    Raises:
        OskitError: What fails in any of them; all threads have ended.
    """
    with Line() as line:

        def sender() -> BulkSender:
            return BulkSender(
                client,
                index,
                pipeline=requests.pipeline,
                request_timeout=requests.timeout,
                stop=line.stop,
                sizes=sizes,
                witness=witness,
            )

        sending = Senders(
            line, sender, account, workers=requests.workers, bulk_documents=requests.documents, sizes=sizes
        )
        sending.put(first)

        def write(window: Window, vectors: csr_matrix | None) -> None:
            sending.put(maker.write(window.documents, vectors))

        encoding, writing = encoding_stages(line, maker, write, account.progress)
        broken: DataError | None = None
        try:
            for window in windows:
                encoding.put(window, window.size)
                account.stop_if_hopeless()
        except DataError as error:  # what stands before the damage is loaded
            broken = error
        encoding.finish()
        writing.finish()
        sending.finish()
        if broken is not None:
            raise broken
