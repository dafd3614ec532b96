"""The process: its address and who may use it, its threads, its beginning and its end."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from oskit.errors import UsageError
from oskit.serve.certificates import check_certificates
from oskit.serve.process import Process
from oskit.serve.protocol import Patience, bounded
from oskit.serve.renewal import Renewal, read_tokens

if TYPE_CHECKING:
    from oskit.serve.app import Service

BACKLOG = 2048
"""Connections that may wait to be taken: a node opens all of its pool at once."""

KEEP_ALIVE_S = 120
"""ML Commons keeps idle connections for a minute and does not try again where one was closed just then."""

RENEW_EVERY_S = 5
"""How often tokens and certificates are looked at."""

FILES_OF_ITS_OWN = 100
"""Open files besides connections."""

SWITCH_S = 0.0005
"""How long a thread that computes in Python may keep one that has a query to answer waiting."""


@dataclass(frozen=True)
class Address:
    """Where the service listens, and what it asks of clients.

    Attributes:
        host: An address or a name.
        port: 0 takes a free one.
        certificate: For TLS, with the chain, PEM.
        key: Of the certificate.
        client_ca: Authority that must have signed a client's certificate.
        tokens: Bearer tokens, of which a client needs one.
        guarded: Whether something else sees to it who comes.
        token_file: Where they were read, and will be again.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Sequence[str] = ()
    token_file: Path | None = None
    guarded: bool = False

    def check(self) -> None:
        """Refuse what is open to everybody, or cannot work.

        Raises:
            UsageError: It is.
        """
        if (self.certificate is None) != (self.key is None):
            raise UsageError("--tls-cert and --tls-key go together")
        if self.client_ca is not None and self.certificate is None:
            raise UsageError("--client-ca needs --tls-cert and --tls-key")
        if not (self.tokens or self.client_ca or self.guarded or self.is_loopback):
            raise UsageError(
                f"{self.host} can be reached from other machines, and nothing would ask who they are",
                hint="Give --token-file, or --client-ca with --tls-cert and --tls-key",
            )
        if self.certificate is not None and self.key is not None:
            check_certificates(self.certificate, self.key, self.client_ca)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return all(ipaddress.ip_address(found).is_loopback for _, found in self._resolved())

    @property
    def in_clear(self) -> bool:
        """Whether texts and tokens go over a network unencrypted."""
        return self.certificate is None and not self.is_loopback

    def bind(self) -> socket.socket:
        """A socket there; connections are refused until the service listens.

        Raises:
            UsageError: It is taken, or not this machine's.
        """
        family, found = self._resolved()[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((found, self.port))
        except (OSError, OverflowError) as error:
            bound.close()
            raise self.taken(error) from error
        return bound

    def taken(self, error: Exception) -> UsageError:
        """What to say of an address where one cannot listen."""
        return UsageError(
            f"cannot listen on {self.host}, port {self.port}: {getattr(error, 'strerror', None) or error}",
            hint="Choose another --port or --host",
        )

    def url(self, bound: socket.socket) -> str:
        """Its URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{bound.getsockname()[1]}"

    def _resolved(self) -> list[tuple[int, str]]:
        try:
            found = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise UsageError(f"cannot listen on {self.host}: {error}") from error
        return [(family, str(place[0]).partition("%")[0]) for family, _, _, _, place in found]


def run(server: Server, bound: socket.socket) -> int:
    """Serve until a signal comes; what is under way then is answered.

    Args:
        server: Serves.
        bound: Where.

    Returns:
        Requests that were not answered in time at the end.
    """
    _prepare_process()
    server.run([bound])
    if not server.cut_off:
        for model in server.service.models.values():
            model.close()
    return server.cut_off


class Server(Process):
    """Serves archives, and lets what is under way end.

    Args:
        service: Answers.
        address: With TLS or without.
        drain: Seconds that requests under way have at the end.
        ready: Called as soon as requests are taken.
        patience: With clients.
    """

    def __init__(
        self,
        service: Service,
        address: Address,
        *,
        drain: float,
        ready: Callable[[], object],
        patience: Patience | None = None,
    ) -> None:
        super().__init__(
            service.app(),
            ready,
            http=bounded(patience or _patience(service.limits.timeout)),
            log_level="error",
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(drain)),
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
            ssl_ca_certs=str(address.client_ca) if address.client_ca else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if address.client_ca else ssl.CERT_NONE,
        )
        self.service = service
        self._address = address
        self._renewals = list(self._found_renewals())
        self.cut_off = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            for bound in sockets or ():  # uvloop does not say where that fails
                bound.listen(BACKLOG)
        except OSError as error:  # another one was bound there too, and was quicker
            raise self._address.taken(error) from error
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.cut_off = len(self.server_state.tasks)

    async def on_tick(self, counter: int) -> bool:
        if counter % (10 * RENEW_EVERY_S) == 0:
            for renewal in self._renewals:
                renewal.renew()
        return await super().on_tick(counter)

    def _found_renewals(self) -> Iterator[Renewal]:
        address = self._address
        if (tokens := address.token_file) is not None:
            yield Renewal([tokens], lambda: self.service.accept(read_tokens(tokens)))
        if (certificate := address.certificate) is not None and (key := address.key) is not None:

            def read() -> None:
                check_certificates(certificate, key, address.client_ca)
                if self.config.ssl is not None:
                    self.config.ssl.load_cert_chain(certificate, key)

            yield Renewal([certificate, key], read)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.draining = True
        super().handle_exit(sig, frame)


def usable_cores() -> int:
    """Cores that this process may use, of which a container may have a share."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def _prepare_process() -> None:
    sys.setswitchinterval(SWITCH_S)
    # A query must not wait for a thread pool that tokenizes documents: the lanes' threads do it themselves.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _patience(answer_s: float) -> Patience:
    """Of a connection, each of which takes a file; this process asks for all that it may have."""
    most = Patience.connections
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        if files != resource.RLIM_INFINITY:
            most = max(1, min(most, files - FILES_OF_ITS_OWN))
    return Patience(body=answer_s + 5, connections=most)
