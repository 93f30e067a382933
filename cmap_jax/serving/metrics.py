"""What the service counts and times, for Prometheus (`GET /metrics`)."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    exposition,
)

CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self):
        """Begin at zero."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = {"namespace": "cmap", "registry": self.registry}
        self._requests = Counter(
            "requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            **own,
        )
        self._request_seconds = Histogram(
            "request_seconds", "Time of a request.", ("route",), buckets=_SECONDS, **own
        )
        self._batch_size = Histogram(
            "batch_size", "Searches that were computed together.", buckets=_SIZES, **own
        )
        self._batch_seconds = Histogram(
            "batch_seconds", "Time of computing a batch.", buckets=_SECONDS, **own
        )
        self._reloads = Counter("reloads", "New generations of the index.", ("outcome",), **own)
        self._ready = Gauge("ready", "1 when searches are answered.", **own)
        self._items = Gauge("items", "Items of the index.", **own)
        self._index = Info("index", "The generation of the index that is served.", **own)
        self._searches = Gauge("searches_in_flight", "Searches in flight.", **own)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request and its time; ``route`` is the pattern, lest each id have a series."""
        self._requests.labels(route, method, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def observe_batch(self, size: int, seconds: float) -> None:
        """Count a batch of searches and the time of computing it."""
        self._batch_size.observe(size)
        self._batch_seconds.observe(seconds)

    def observe_reload(self, outcome: str) -> None:
        """Count a reload: "loaded" or "failed"."""
        self._reloads.labels(outcome).inc()

    def show_generation(self, generation: str, items: int) -> None:
        """Show which generation of the index is served, and that searches are answered."""
        self._index.info({"generation": generation})
        self._items.set(items)
        self._ready.set(1)

    def watch_searches(self, count: Callable[[], int]) -> None:
        """Have the number of searches in flight asked for at each scrape."""
        self._searches.set_function(count)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return exposition.generate_latest(self.registry)
