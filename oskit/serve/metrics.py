"""What Prometheus is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from oskit.serve.lane import Lane

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 8192, 65536)


class Metrics:
    """The numbers of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        by_lane = ["model", "kind"]
        self.requests = Counter(
            "oskit_requests", "Requests answered.", ["model", "endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "oskit_request_seconds",
            "From the first byte of a request to its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.texts = Counter("oskit_texts", "Texts encoded.", by_lane, registry=registry)
        self.tokens = Counter(
            "oskit_tokens", "Their tokens, special ones included.", by_lane, registry=registry
        )
        self.waited = Histogram(
            "oskit_queue_seconds", "Time in the queue.", by_lane, buckets=_SECONDS, registry=registry
        )
        self.batch_texts = Histogram(
            "oskit_batch_texts", "Texts of a batch.", by_lane, buckets=_TEXTS, registry=registry
        )
        self.batch_tokens = Histogram(
            "oskit_batch_tokens", "Its tokens, with padding.", by_lane, buckets=_TOKENS, registry=registry
        )
        self.batch_seconds = Histogram(
            "oskit_batch_seconds", "A batch in the model.", by_lane, buckets=_SECONDS, registry=registry
        )
        self.queue = Gauge("oskit_queue_texts", "Texts that wait or are encoded.", by_lane, registry=registry)
        self.truncated = Gauge(
            "oskit_truncated_texts",
            "Texts so far that were longer than the encoder reads.",
            ["model"],
            registry=registry,
        )

    def lane(self, model: str, kind: str) -> LaneMetrics:
        """What a lane reports to."""
        return LaneMetrics(self, model, kind)

    def watch(self, model: str, kind: str, lane: Lane) -> None:
        """Show a lane's queue from now on."""
        self.queue.labels(model, kind).set_function(lambda: lane.under_way)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class LaneMetrics:
    """See :class:`oskit.serve.lane.Watcher`."""

    metrics: Metrics
    model: str
    kind: str

    def opened(self, texts: int, tokens: int, waited: float) -> None:
        labels = (self.model, self.kind)
        self.metrics.texts.labels(*labels).inc(texts)
        self.metrics.tokens.labels(*labels).inc(tokens)
        self.metrics.waited.labels(*labels).observe(waited)

    def computed(self, texts: int, tokens: int, seconds: float) -> None:
        labels = (self.model, self.kind)
        self.metrics.batch_texts.labels(*labels).observe(texts)
        self.metrics.batch_tokens.labels(*labels).observe(tokens)
        self.metrics.batch_seconds.labels(*labels).observe(seconds)
