"""Metrics in Prometheus' format.

Labels have few values: they name declared routes, never the paths that clients request.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import psutil  # type: ignore[import-untyped]

_PREFIX: Final = "vision_encoder_"
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ITEMS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

_OfAll = Literal["livesum", "mostrecent"]  # how several workers' values of a gauge become one


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

        def gauge(
            name: str, about: str, *labels: str, of_all: _OfAll = "mostrecent"
        ) -> prometheus.Gauge:
            return prometheus.Gauge(
                _PREFIX + name, about, labels, multiprocess_mode=of_all, registry=registry
            )

        def histogram(
            name: str, about: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
        ) -> prometheus.Histogram:
            return prometheus.Histogram(
                _PREFIX + name, about, labels, buckets=buckets, registry=registry
            )

        self.requests = counter(
            "requests",
            "Requests that the service answered; the code is that of an error.",
            "method",
            "route",
            "status",
            "code",
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
            "queue_length",
            "Items that are accepted but not yet answered.",
            "tower",
            of_all="livesum",
        )
        self.rejected = counter(
            "rejected", "Requests answered 429, by the limit that they exceeded.", "limit"
        )
        self.dropped = counter("dropped", "Items whose client disconnected.", "tower")
        self.failed = counter("failed", "Items that failed on the device.", "tower")
        self.device_memory = gauge(
            "device_memory_bytes",
            "GPU memory that torch has allocated; 0 on a CPU.",
            of_all="livesum",
        )
        self.model_info = gauge(
            "model_info",
            "1; the labels describe the model.",
            *("model", "digest", "text_dtype", "image_dtype", "device"),
        )
        self.cold_start_seconds = gauge(
            "cold_start_seconds", "Time from the worker's start until its model was loaded."
        )
        self.store_up = gauge(
            "store_up", "1 if the store answered its last call, 0 if not.", "collection"
        )
        self.store_seconds = histogram("store_seconds", "Time per call of the store.", "operation")
        self.store_points = gauge(
            "store_points", "Pictures in the published version of the collection.", "collection"
        )
        self.store_free_bytes = gauge(
            "store_free_bytes", "Free space on the disk of the embedded store.", "collection"
        )
        self.collection_mismatch = gauge(
            "collection_mismatch",
            "1 if the collection holds another model's vectors.",
            "collection",
        )

    def tower(self, name: str) -> TowerMetrics:
        """Return the metrics to which the runner of a tower reports."""
        return TowerMetrics(self, name)

    def store(self, collection: str) -> StoreMetrics:
        """Return the metrics to which image search reports the state of its store."""
        return StoreMetrics(self, collection)

    def loaded(self, model: str, digest: str, dtypes: Mapping[str, str], device: str) -> None:
        """Record that this worker has loaded its model."""
        info = self.model_info.labels(model, digest, dtypes["text"], dtypes["image"], device)
        info.set(1)
        self.cold_start_seconds.set(time.time() - psutil.Process().create_time())

    def exposition(self) -> bytes:
        """Return all metrics in the text format that Prometheus reads."""
        from prometheus_client import generate_latest

        if torch := sys.modules.get("torch"):  # never imports torch itself
            gpus = range(torch.cuda.device_count())  # the service uses one, not always the first
            self.device_memory.set(sum(map(torch.cuda.memory_allocated, gpus)))
        if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            _forget_dead_workers(Path(folder))
        return generate_latest(self._registry)


def _forget_dead_workers(folder: Path) -> None:
    """Remove the gauges of workers that no longer run. Their sums would include them forever."""
    from prometheus_client.multiprocess import mark_process_dead

    for file in folder.glob("gauge_live*_*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


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


class StoreMetrics:
    """The metrics of the store, and of the collection that the service uses by default.

    A service without search exposes none of them, because each appears with its first value.
    """

    def __init__(self, metrics: Metrics, collection: str) -> None:
        self._metrics = metrics
        self._collection = collection

    def called(self, operation: str, seconds: float, *, answered: bool) -> None:
        self._metrics.store_seconds.labels(operation).observe(seconds)
        self._metrics.store_up.labels(self._collection).set(answered)

    def points(self, count: int) -> None:
        self._metrics.store_points.labels(self._collection).set(count)

    def mismatch(self, found: bool) -> None:
        self._metrics.collection_mismatch.labels(self._collection).set(found)

    def free_bytes(self, count: int) -> None:
        self._metrics.store_free_bytes.labels(self._collection).set(count)
