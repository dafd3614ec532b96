"""The end of a process that serves: a signal that was obeyed is not raised again."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class Process(uvicorn.Server):
    """uvicorn's server, for an application without a life of its own, which says when it serves.

    Args:
        app: Answers.
        ready: Called as soon as requests are taken.
        options: Of :class:`uvicorn.Config`.
    """

    def __init__(self, app: ASGIApp, ready: Callable[[], object], **options: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=False,
                **options,
            )
        )
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    @contextmanager
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
