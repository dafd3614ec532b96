"""The process: its address and who may use it, its threads, its beginning and its end."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.serve.app import Service

BACKLOG = 2048
"""Connections that may wait to be taken: a node opens all of its pool at once."""

KEEP_ALIVE_S = 120
"""ML Commons keeps idle connections for a minute and does not try again where one was closed just then."""

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
    """

    host: str = "127.0.0.1"
    port: int = 8080
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Sequence[str] = ()
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
        if self.certificate is not None:
            try:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(self.certificate, self.key)
                if self.client_ca is not None:
                    context.load_verify_locations(self.client_ca)
            except (OSError, ssl.SSLError) as error:
                raise UsageError(f"the certificates cannot be used: {error}") from error

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
            raise UsageError(
                f"cannot listen on {self.host}, port {self.port}: {getattr(error, 'strerror', error)}",
                hint="Choose another --port or --host",
            ) from error
        return bound

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


class Server(uvicorn.Server):
    """uvicorn's, with an end of its own: a signal that was obeyed is not raised again.

    Args:
        service: Answers.
        address: With TLS or without.
        drain: Seconds that requests under way have at the end.
        ready: Called as soon as requests are taken.
    """

    def __init__(
        self, service: Service, address: Address, *, drain: float, ready: Callable[[], object]
    ) -> None:
        config = uvicorn.Config(
            service.app(),
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(drain)),
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
            ssl_ca_certs=str(address.client_ca) if address.client_ca else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if address.client_ca else ssl.CERT_NONE,
        )
        super().__init__(config)
        self.service = service
        self._ready = ready
        self.cut_off = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.cut_off = len(self.server_state.tasks)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.getsignal(number) for number in wanted}
        for number in wanted:
            if before[number] is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

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
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
