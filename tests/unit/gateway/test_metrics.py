"""Metrics: cheap updates, bounded labels, and text that Prometheus reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from nodes.gateway.middleware.access import AccessMetrics
from nodes.gateway.nodemetrics import NodeMetrics
from nodes.metrics import Counter, Histogram, Metrics, Vector
from nodes.status import DatabaseStatus, LogStatus, MemoryStatus, NodeStatus, TableStatus


class Control:
    """A node of which only the status is asked."""

    def status(self) -> NodeStatus:
        table = TableStatus(name="t", columns=3, partitions=1, files=2, file_bytes=10)
        log = LogStatus(
            id=1, name="shard-1", state="open", epoch=3, sequence=9, covered=4, checkpoint_sequence=5,
            bytes_above_checkpoint=100, objects_above_checkpoint=4,
        )  # fmt: skip
        return NodeStatus(
            name="n", version="1", pid=1, store_id="s", store_url="u", data_dir="d", phase="ready", ready=True,
            uptime_seconds=2.5, databases=[DatabaseStatus(name="d", tables=[table, table])],
            memory=MemoryStatus(resident_bytes=1, budget_bytes=2, memtable_bytes=3, memtable_bytes_max=4), logs=[log],
        )  # fmt: skip

    async def compact(self) -> int:
        return 0

    async def checkpoint(self) -> None:
        """Never asked."""


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_what_is_counted_is_scraped() -> None:
    metrics = Metrics(process=False)
    metrics.counter("runnel_things", "Things.", "db").of("a").add(3)
    metrics.gauge("runnel_level", "Level.").of().value = 2.5
    metrics.read_gauge("runnel_asked", "Asked.", lambda: 7)
    assert samples(metrics) == {
        ("runnel_things_total", (("db", "a"),)): 3,
        ("runnel_level", ()): 2.5,
        ("runnel_asked", ()): 7,
    }


def test_declaring_twice_is_the_same_metric() -> None:
    metrics = Metrics(process=False)
    metrics.counter("runnel_x", "X.").of().add()
    metrics.counter("runnel_x", "X.").of().add()
    assert samples(metrics)[("runnel_x_total", ())] == 2


def test_the_text_ends_as_influxdbs_does() -> None:
    assert Metrics(process=False).text() == b"# EOF\n"
    assert b"process_resident_memory_bytes" in Metrics().text()


def test_histograms_are_cumulative() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.1, 0.2, 1.0, 5.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("0.1", 1.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == 6.3


def test_labels_are_bounded() -> None:
    vector = Vector("x", "X.", ("db",), Counter, children_max=2)
    for name in ("a", "b", "c", "d", "a"):
        vector.of(name).add()
    assert {labels: child.value for labels, child in vector.children.items()} == {("a",): 2, ("b",): 1, ("other",): 2}


def test_label_values_from_clients_are_escaped() -> None:
    metrics = Metrics(process=False)
    metrics.counter("x", "X.", "db").of('a"b\\c\nd').add()
    assert samples(metrics) == {("x_total", (("db", 'a"b\\c\nd'),)): 1}


def test_access_counts_by_route_and_status() -> None:
    metrics = Metrics(process=False)
    access = AccessMetrics(metrics)
    access.count("POST", "/write", 204, 0.002, 0)
    access.count("POST", "/write", 204, 0.003, 0)
    access.count("BREW", "/write", 405, 0.1, 30)
    found = samples(metrics)
    assert found[("http_requests_total", (("method", "POST"), ("path", "/write"), ("status", "204")))] == 2
    assert found[("http_requests_total", (("method", "other"), ("path", "/write"), ("status", "405")))] == 1
    assert found[("http_request_duration_seconds_count", (("method", "POST"), ("path", "/write")))] == 2
    assert found[("http_response_body_bytes_total", (("path", "/write"),))] == 30


def test_the_nodes_status_becomes_metrics() -> None:
    metrics = Metrics(process=False)
    metrics.add_source(NodeMetrics(Control()))
    found = samples(metrics)
    assert found[("runnel_ready", ())] == 1
    assert found[("runnel_tables", ())] == 2
    assert found[("runnel_data_files", ())] == 4
    assert found[("runnel_memtable_bytes", ())] == 3
    assert found[("runnel_log_objects_above_checkpoint", (("log", "shard-1"),))] == 4
    assert found[("runnel_log_epoch", (("log", "shard-1"),))] == 3
