"""What a node counts, for Prometheus: plain numbers on the event loop, turned into families when scraped.

prometheus_client locks on every update, which a hot path cannot pay. Here an update is an addition on an
object that was looked up once, and `Metrics` is one collector that reads them all at scrape time. Update from the
event loop's thread only. Labels are bounded: after ``children_max`` values the rest counts under "other".
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
CHILDREN_MAX: Final = 1000
"""Label values of one metric: databases come from clients, and memory must not grow with them."""
OTHER: Final = "other"
SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, count: int = 1) -> None:
        self.value += count


class Gauge:
    """A number that goes up and down."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Histogram:
    """Observations by size: ``counts[i]`` are those at most ``bounds[i]``, the last one has no bound."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS_BUCKETS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus's buckets: (upper bound as text, observations up to it)."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


M = TypeVar("M", Counter, Gauge, Histogram)


class Vector(Generic[M]):
    """One metric with labels: a child for each combination of label values, at most ``children_max``."""

    def __init__(
        self, name: str, doc: str, labels: Sequence[str], make: Callable[[], M], children_max: int = CHILDREN_MAX
    ) -> None:
        self.name, self.doc, self.labels = name, doc, tuple(labels)
        self.children: dict[tuple[str, ...], M] = {}
        self._make: Callable[[], M] = make
        self._children_max = children_max

    def of(self, *values: str) -> M:
        """The child for these label values, made at first need; keep it where the path is hot."""
        child = self.children.get(values)
        if child is None:
            if len(self.children) >= self._children_max:
                values = (OTHER,) * len(self.labels)
            child = self.children.setdefault(values, self._make())
        return child


class Source(Protocol):
    """Another part's numbers, read when scraped; must not block."""

    def collect(self) -> Iterable[Metric]: ...


class Metrics(Collector):
    """All metrics of one node. Parts declare theirs here and keep what they get back."""

    def __init__(self, process: bool = True) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._counters: dict[str, Vector[Counter]] = {}
        self._gauges: dict[str, Vector[Gauge]] = {}
        self._histograms: dict[str, Vector[Histogram]] = {}
        self._read: dict[str, tuple[str, Callable[[], float]]] = {}
        self.registry.register(self)
        if process:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    def counter(self, name: str, doc: str, *labels: str) -> Vector[Counter]:
        """A counter; ``name`` without ``_total``. Declaring it again returns the same one."""
        return self._counters.setdefault(name, Vector(name, doc, labels, Counter))

    def gauge(self, name: str, doc: str, *labels: str) -> Vector[Gauge]:
        """A gauge that its owner sets."""
        return self._gauges.setdefault(name, Vector(name, doc, labels, Gauge))

    def histogram(
        self, name: str, doc: str, *labels: str, bounds: Sequence[float] = SECONDS_BUCKETS
    ) -> Vector[Histogram]:
        """A histogram with these upper bounds."""
        return self._histograms.setdefault(name, Vector(name, doc, labels, lambda: Histogram(bounds)))

    def read_gauge(self, name: str, doc: str, read: Callable[[], float]) -> None:
        """A gauge whose value is asked for when scraped."""
        self._read[name] = (doc, read)

    def add_source(self, source: Collector) -> None:
        """Another collector, for parts that count in their own way."""
        self.registry.register(source)

    def text(self) -> bytes:
        """Everything in Prometheus's text format 0.0.4, ended as InfluxDB ends it."""
        return generate_latest(self.registry) + b"# EOF\n"

    def collect(self) -> Iterator[Metric]:
        """prometheus_client's way in."""
        yield from map(_counter_family, self._counters.values())
        yield from map(_gauge_family, self._gauges.values())
        yield from map(_histogram_family, self._histograms.values())
        for name, (doc, read) in self._read.items():
            yield GaugeMetricFamily(name, doc, value=read())


def _children(vector: Vector[M]) -> Mapping[tuple[str, ...], M]:
    return dict(vector.children)


def _counter_family(vector: Vector[Counter]) -> Metric:
    family = CounterMetricFamily(vector.name, vector.doc, labels=vector.labels)
    for values, child in _children(vector).items():
        family.add_metric(values, float(child.value))
    return family


def _gauge_family(vector: Vector[Gauge]) -> Metric:
    family = GaugeMetricFamily(vector.name, vector.doc, labels=vector.labels)
    for values, child in _children(vector).items():
        family.add_metric(values, child.value)
    return family


def _histogram_family(vector: Vector[Histogram]) -> Metric:
    family = HistogramMetricFamily(vector.name, vector.doc, labels=vector.labels)
    for values, child in _children(vector).items():
        family.add_metric(values, buckets=child.cumulative(), sum_value=child.sum)
    return family
