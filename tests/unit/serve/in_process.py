"""``oskit serve`` in this process, and a client."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from oskit.archive.encoder import ArchiveEncoder, Steps
from oskit.errors import EncoderError
from oskit.serve.app import Limits, Service
from oskit.serve.metrics import Metrics
from oskit.serve.model import Model
from oskit.serve.protocol import Patience
from oskit.serve.server import Address, Server

POISON = "quick quick quick"


class GatedEncoder(ArchiveEncoder):
    """An archive whose model waits at a gate, and fails on any batch with :data:`POISON` in it."""

    gate: threading.Event
    entered: threading.Semaphore
    wrong = False

    @classmethod
    def at(cls, path: Path) -> GatedEncoder:
        found = cls.open(path, threads=1)
        assert isinstance(found, GatedEncoder)
        found.gate, found.entered = threading.Event(), threading.Semaphore(0)
        found.gate.set()
        return found

    def document_steps(self) -> Steps:
        steps = super().document_steps()
        poison = steps.tokenize([POISON])[0]

        def weigh(ids: Any) -> Any:
            self.entered.release()
            assert self.gate.wait(30)
            if poison in [list(row) for row in ids]:
                raise EncoderError("the model fails")
            return steps.weigh(ids) * (2 if self.wrong else 1)

        return replace(steps, weigh=weigh)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any


class Client:
    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self.url = url
        self._host = urlsplit(url).netloc
        self._tls = tls

    def connection(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._host, timeout=120, context=self._tls)
        return http.client.HTTPConnection(self._host, timeout=120)

    def ask(self, path: str, body: Any = None, *, method: str | None = None, **headers: str) -> Answer:
        connection = self.connection()
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method or ("GET" if body is None else "POST"), path, content, headers)
        response = connection.getresponse()
        found = response.read()
        connection.close()
        is_json = response.headers["content-type"] == "application/json"
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, json.loads(found) if is_json else found)


@contextmanager
def serving(
    encoders: Mapping[str, ArchiveEncoder],
    limits: Limits | None = None,
    address: Address | None = None,
    tls: ssl.SSLContext | None = None,
    patience: Patience | None = None,
) -> Iterator[Client]:
    metrics, limits = Metrics(), limits or Limits()
    models = {
        name: Model(name, encoder, threads=2, limit=limits.queue, metrics=metrics)
        for name, encoder in encoders.items()
    }
    for model in models.values():
        model.prove()
    address = replace(address or Address(), port=0)
    bound, ready = address.bind(), threading.Event()
    service = Service(models, limits, metrics, address.tokens)
    server = Server(service, address, drain=5, ready=ready.set, patience=patience)
    thread = threading.Thread(target=server.run, args=([bound],))
    url = address.url(bound)
    thread.start()
    assert ready.wait(10)
    try:
        yield Client(url, tls)
    finally:
        server.should_exit = True
        thread.join()
        for model in models.values():
            model.close()


def close(given: Sequence[Mapping[str, float]], wanted: Sequence[Mapping[str, float]]) -> bool:
    return all(
        row.keys() == other.keys() and row == pytest.approx(other, abs=1e-5)
        for row, other in zip(given, wanted, strict=True)
    )


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)
