"""Metrics in Prometheus' format.

Labels have few values: they name declared routes, never the paths that clients request.
"""

from __future__ import annotations

import os
import sys
from typing import Final

_PREFIX: Final = "vision_encoder_"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ITEMS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one service. Every name begins with `vision_encoder_`."""

    def __init__(self, *, workers: int) -> None:
        if workers == 1:
            # Several workers share a folder of BentoML's, which the next service that starts on
            # this host empties. One worker does not need it and counts in memory.
            os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        import prometheus_client as prometheus  # reads the variable at its import

        prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.content_type = prometheus.CONTENT_TYPE_LATEST
        self._registry = prometheus.CollectorRegistry()
        if not shared:
            prometheus.ProcessCollector(registry=self._registry)
        else:
            from prometheus_client.multiprocess import MultiProcessCollector

            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        registry = None if shared else self._registry

        def counter(name: str, about: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(_PREFIX + name, about, labels, registry=registry)

        def gauge(name: str, about: str, *labels: str) -> prometheus.Gauge:
            return prometheus.Gauge(
                _PREFIX + name, about, labels, multiprocess_mode="livesum", registry=registry
            )

        def histogram(
            name: str, about: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> prometheus.Histogram:
            return prometheus.Histogram(
                _PREFIX + name, about, labels, buckets=buckets, registry=registry
            )

        self.requests = counter(
            "requests", "Requests that the service answered.", "method", "route", "status"
        )
        self.request_seconds = histogram("request_seconds", "Time from request to answer.", "route")
        self.stage_seconds = histogram(
            "stage_seconds",
            "Time per stage: decode and queue of an item, device of a batch, respond of an answer.",
            "tower",
            "stage",
        )
        self.batch_size = histogram("batch_size", "Items in a batch.", "tower", buckets=_ITEMS)
        self.queue_length = gauge(
            "queue_length", "Items that are accepted but not yet answered.", "tower"
        )
        self.rejected = counter(
            "rejected", "Requests answered 429, by the limit that they exceeded.", "limit"
        )
        self.dropped = counter("dropped", "Items whose client disconnected.", "tower")
        self.failed = counter("failed", "Items that failed on the device.", "tower")
        self.device_memory = gauge(
            "device_memory_bytes", "GPU memory that torch has allocated; 0 on a CPU."
        )

    def tower(self, name: str) -> TowerMetrics:
        """Return the metrics to which the runner of a tower reports."""
        return TowerMetrics(self, name)

    def exposition(self) -> bytes:
        """Return all metrics in the text format that Prometheus reads."""
        from prometheus_client import generate_latest

        if torch := sys.modules.get("torch"):  # never imports torch itself
            gpus = range(torch.cuda.device_count())  # the service uses one, not always the first
            self.device_memory.set(sum(map(torch.cuda.memory_allocated, gpus)))
        return generate_latest(self._registry)


class TowerMetrics:
    """The metrics of one tower's queue."""

    def __init__(self, metrics: Metrics, tower: str) -> None:
        self.accepted = metrics.queue_length.labels(tower).set
        self.rejected = metrics.rejected.labels("queue").inc
        self._batch_size = metrics.batch_size.labels(tower)
        self._dropped = metrics.dropped.labels(tower)
        self._late = metrics.rejected.labels("late")
        self._failed = metrics.failed.labels(tower)
        stage = metrics.stage_seconds.labels
        self.decoded = stage(tower, "decode").observe
        self.waited = stage(tower, "queue").observe
        self._device = stage(tower, "device")

    def ran(self, count: int, seconds: float) -> None:
        self._batch_size.observe(count)
        self._device.observe(seconds)

    def dropped(self) -> None:
        self._dropped.inc()

    def late(self) -> None:
        self._late.inc()

    def failed(self) -> None:
        self._failed.inc()
