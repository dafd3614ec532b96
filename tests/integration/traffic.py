"""Predictions all the while: what serves must go on serving."""

from __future__ import annotations

import threading
import time
from typing import Self

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.retry import RetryPolicy
from oskit.cluster.models.predict import predict
from oskit.cluster.models.registry import ModelInfo


class Traffic:
    """Loops of predictions, never sent again. Use it as a context manager.

    Attributes:
        answered: How many were right.
        failures: What the others said.
    """

    def __init__(self, url: str, model: ModelInfo, *, loops: int = 2) -> None:
        self._url = url
        self._model = model
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(loops)]
        self.answered = 0
        self.failures: list[str] = []

    def _ask(self) -> None:
        client = connect(ConnectionSettings(url=self._url), policy=RetryPolicy(retry_for_s=0))
        while not self._over.is_set():
            try:
                (weights,) = predict(client, self._model, ["a building permit " * 20])
                assert weights
                self.answered += 1
            except Exception as failure:
                self.failures.append(str(failure))
                time.sleep(0.1)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        while self.answered < 5 and not self.failures:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        before = self.answered
        end = time.monotonic() + 10
        while self.answered < before + 5 and time.monotonic() < end:
            time.sleep(0.01)
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        assert not self.failures, self.failures[:3]
        assert self.answered >= before + 5
