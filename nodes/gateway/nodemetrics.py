"""What the node knows of itself, as metrics: read from its status when /metrics is scraped, counted nowhere twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from nodes.status import CompactionStatus, FileCacheStatus, NodeControl, NodeStatus


class NodeMetrics(Collector):
    """A source for `nodes.metrics.Metrics`. Logs are few; databases and tables are only counted."""

    def __init__(self, control: NodeControl) -> None:
        self._control = control

    def describe(self) -> list[Metric]:
        """Nothing before the first scrape: the status may not be there yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._control.status()
        tables = [table for database in status.databases for table in database.tables]
        for name, doc, value in (
            ("runnel_ready", "1 if the node serves.", float(status.ready)),
            ("runnel_uptime_seconds", "Since the process started.", status.uptime_seconds),
            ("runnel_catalog_revision", "The Catalog's Revision.", status.catalog_revision),
            ("runnel_databases", "Live databases.", len(status.databases)),
            ("runnel_tables", "Live tables.", len(tables)),
            ("runnel_data_files", "Live DataFiles.", sum(table.files for table in tables)),
            ("runnel_data_file_bytes", "Their bytes.", sum(table.file_bytes for table in tables)),
            ("runnel_memory_budget_bytes", "Memory for rows and queries.", status.memory.budget_bytes),
            ("runnel_memtable_bytes", "Rows that are not yet in DataFiles.", status.memory.memtable_bytes),
            ("runnel_memtable_bytes_max", "Over it writes wait, then get 503.", status.memory.memtable_bytes_max),
            ("runnel_queries_running", "Queries that run here.", status.queries_running),
            ("runnel_queries_waiting", "Queries that wait for a place here.", status.queries_waiting),
        ):
            yield GaugeMetricFamily(name, doc, value=float(value))
        yield from _log_families(status)
        yield from _compaction_families(status.compaction)
        yield from _file_cache_families(status.file_cache)
        yield from _counters(
            "runnel_views",
            ("refreshes", "Materialized views that were refreshed in the background here.", status.views.refreshes),
            ("refreshes_failed", "Refreshes that failed; they are tried again.", status.views.failed),
        )


def _compaction_families(compaction: CompactionStatus) -> Iterator[Metric]:
    waiting = "Merges that are planned for the shard at hand and not done."
    yield GaugeMetricFamily("runnel_compaction_waiting", waiting, value=float(compaction.waiting))
    deletes = "Files with rows that delete others, until they are merged with all that is below them."
    yield GaugeMetricFamily("runnel_files_with_deletes", deletes, value=float(compaction.files_with_deletes))
    yield from _counters(
        "runnel_compaction",
        ("merges", "Merges that were committed.", compaction.merges),
        ("failed", "Merges that failed; they are tried again.", compaction.failed),
        ("void", "Merges that came too late: their files were replaced meanwhile.", compaction.void),
        ("on_ray", "Merges that Ray workers made.", compaction.on_ray),
        ("files_in", "Files that merges replaced.", compaction.files_in),
        ("files_out", "Files that merges made.", compaction.files_out),
        ("bytes_in", "Bytes of the files that merges replaced.", compaction.bytes_in),
        ("bytes_out", "Bytes of the files that merges made.", compaction.bytes_out),
        ("rows", "Rows of the files that merges made.", compaction.rows),
        ("cpu_seconds", "CPU that merging took, in its own process or a Ray worker's.", compaction.cpu_seconds),
        ("files_gone", "Files of expired or dropped rows that were let go.", compaction.files_gone),
    )


def _file_cache_families(cache: FileCacheStatus) -> Iterator[Metric]:
    for name, doc, value in (
        ("files", "Files of an S3 store that are kept on this node's disk.", cache.files),
        ("bytes", "Bytes of the files that are kept there.", cache.bytes),
    ):
        yield GaugeMetricFamily(f"runnel_file_cache_{name}", doc, value=float(value))
    yield from _counters(
        "runnel_file_cache",
        ("hits", "Files that a statement found on the disk.", cache.hits),
        ("misses", "Files that a statement did not find there.", cache.misses),
        ("fetched", "Files that were brought to the disk.", cache.fetched),
        ("fetched_bytes", "Bytes of the files that were brought.", cache.fetched_bytes),
        ("evicted", "Files that had to go for others.", cache.evicted),
        ("damaged", "Files on the disk that were not as they had been written.", cache.damaged),
        ("refused", "Files that were not brought: no room, or no answer from the store.", cache.refused),
    )


def _counters(prefix: str, *rows: tuple[str, str, float]) -> Iterator[Metric]:
    """A counter for each (name, help, value)."""
    for name, doc, value in rows:
        yield CounterMetricFamily(f"{prefix}_{name}", doc, value=float(value))


def _log_families(status: NodeStatus) -> Iterator[Metric]:
    for name, doc, key in (
        ("runnel_log_sequence", "Newest object of a Log that is applied here.", "sequence"),
        ("runnel_log_checkpoint_sequence", "Its newest Checkpoint.", "checkpoint_sequence"),
        ("runnel_log_epoch", "Its epoch.", "epoch"),
        ("runnel_log_bytes_above_checkpoint", "What a restart replays, in bytes.", "bytes_above_checkpoint"),
        ("runnel_log_objects_above_checkpoint", "What a restart replays, in objects.", "objects_above_checkpoint"),
    ):
        family = GaugeMetricFamily(name, doc, labels=["log"])
        for log in status.logs:
            family.add_metric([log.name], float(getattr(log, key)))
        yield family
