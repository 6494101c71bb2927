"""What `GET /api/runnel/status` answers and `runnel status` prints.

Pure values. `nodes.node` or the backend provides them through `NodeControl`; the HTTP door encodes them with
msgspec; `nodes.cli.status` decodes them. Likewise for the whole cluster: `ClusterControl`, `GET /api/runnel/cluster`,
`runnel cluster status`.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - msgspec reads the annotations when it decodes
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

STATUS_PATH: Final = "/api/runnel/status"
CHECKPOINT_PATH: Final = "/api/runnel/checkpoint"
COMPACT_PATH: Final = "/api/runnel/compact"
CLUSTER_PATH: Final = "/api/runnel/cluster"
DRAIN_PATH: Final = "/api/runnel/cluster/drain"
REBALANCE_PATH: Final = "/api/runnel/cluster/rebalance"
QUERIES_PATH: Final = "/api/runnel/queries"
KILL_PATH: Final = "/api/runnel/queries/kill"
PHASE_UNKNOWN: Final = "unknown"
"""Stands for the queries of a node that did not answer."""


class TableStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One live table. ``rows`` counts stored rows before folding; None if it is not known cheaply.

    ``retention_…`` are its own, 0 for rows that are kept whatever its database says; None: as the database.
    """

    name: str
    columns: int
    partitions: int
    files: int = 0
    file_bytes: int = 0
    rows: int | None = None
    retention_ns: int | None = None
    retention_bytes: int | None = None


class DatabaseStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One live database with its live tables."""

    name: str
    retention_ns: int | None = None
    retention_bytes: int | None = None
    tables: list[TableStatus] = []


class LogStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One Log: ``sequence`` is its newest object that is applied here, ``covered`` the newest Checkpoint's k."""

    id: int
    name: str
    state: str
    epoch: int
    sequence: int
    covered: int
    checkpoint_sequence: int
    bytes_above_checkpoint: int
    objects_above_checkpoint: int


class MemoryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Memory in bytes: what is used of each part of the budget, and the process's resident size."""

    resident_bytes: int
    budget_bytes: int
    memtable_bytes: int = 0
    memtable_bytes_max: int = 0
    query_bytes_max: int = 0
    waiting_bytes: int = 0
    waiting_bytes_max: int = 0


class CompactionStatus(msgspec.Struct, kw_only=True):
    """What compaction has done since the start. ``waiting`` are the merges that are planned and not done.

    ``on_ray`` were made by Ray workers, whatever became of them.
    ``void`` merges came too late: a file that they would have replaced was gone (LOG L21). ``files_gone`` are those of
    expired and of dropped rows that were taken off the lists, merged or not. ``files_with_deletes`` have rows that
    delete others: until they are merged with all that is below them both are on the disk.
    """

    waiting: int = 0
    merges: int = 0
    failed: int = 0
    void: int = 0
    on_ray: int = 0
    files_in: int = 0
    files_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rows: int = 0
    cpu_seconds: float = 0.0
    files_gone: int = 0
    files_with_deletes: int = 0
    put_off: str = ""
    """Why the last merge that was wanted was not begun; empty if it was."""


class FileCacheStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Copies of an S3 store's files on this node's disk: what it holds, and what was done since the start, in files."""

    files: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    fetched: int = 0
    fetched_bytes: int = 0
    evicted: int = 0
    damaged: int = 0
    refused: int = 0


class ViewsStatus(msgspec.Struct, kw_only=True):
    """What the keeper of materialized views has done since the start: refreshes, and those that failed."""

    refreshes: int = 0
    failed: int = 0


class BackendStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a node's status that its backend knows."""

    store_id: str = ""
    catalog_revision: int = 0
    memtable_bytes: int = 0
    queries_running: int = 0
    queries_waiting: int = 0
    databases: list[DatabaseStatus] = []
    logs: list[LogStatus] = []
    compaction: CompactionStatus = msgspec.field(default_factory=CompactionStatus)
    file_cache: FileCacheStatus = FileCacheStatus()
    views: ViewsStatus = msgspec.field(default_factory=ViewsStatus)


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node: ``phase`` is `nodes.health.Phase`'s value; ``reasons`` say why it is not, or not wholly, ready."""

    name: str
    version: str
    pid: int
    store_id: str
    store_url: str
    data_dir: str
    phase: str
    ready: bool
    uptime_seconds: float
    reasons: dict[str, str] = {}
    listen: dict[str, str] = {}
    catalog_revision: int = 0
    databases: list[DatabaseStatus] = []
    memory: MemoryStatus
    queries_running: int = 0
    queries_waiting: int = 0
    logs: list[LogStatus] = []
    compaction: CompactionStatus = msgspec.field(default_factory=CompactionStatus)
    file_cache: FileCacheStatus = FileCacheStatus()
    views: ViewsStatus = msgspec.field(default_factory=ViewsStatus)


class Compacted(msgspec.Struct, frozen=True, kw_only=True):
    """What `POST /api/runnel/compact` answers: how many merges it took until nothing was worth one."""

    merges: int


class NodeControl(Protocol):
    """What an operator can ask of a node."""

    def status(self) -> NodeStatus:
        """Everything `runnel status` shows; does not block and does no I/O."""
        ...

    async def checkpoint(self) -> None:
        """Checkpoint every shard and the Catalog now; raises a StorageError when one cannot."""
        ...

    async def compact(self) -> int:
        """Merge what is worth it in every shard of this node now; how many merges that took."""
        ...


class MemberStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node as the answering one sees it through gossip: ``kind`` and ``state`` as in `cluster.members`.

    ``addresses`` maps a door ("http", "grpc", "gossip", "raft") to HOST:PORT; ``revision`` is the newest of the
    Catalog that it has said to know.
    """

    name: str
    kind: str
    state: str
    version: str = ""
    zone: str = ""
    addresses: dict[str, str] = {}
    load: float = 0.0
    revision: int = 0


class ShardOwner(msgspec.Struct, frozen=True, kw_only=True):
    """A shard's log id and the name of the node that owns it; ``owner`` is empty while nobody does."""

    shard: int
    owner: str = ""


class ClusterStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster as one node sees it. The Placement's version is (``placement_epoch``, ``placement_number``)."""

    name: str
    controller: str = ""
    placement_epoch: int = 0
    placement_number: int = 0
    members: list[MemberStatus] = []
    shards: list[ShardOwner] = []


class ShardsMoved(msgspec.Struct, frozen=True, kw_only=True):
    """What `drain` and `rebalance` answer: how many shards have another owner now."""

    moved: int


class ClusterControl(Protocol):
    """What an operator can ask of the cluster through any of its nodes."""

    def cluster_status(self) -> ClusterStatus:
        """Everything `runnel cluster status` shows; does not block and does no I/O."""
        ...

    def numbers(self) -> dict[str, float]:
        """What this node counts of the cluster, by the names of `nodes.gateway.clustermetrics`."""
        ...

    async def drain(self, node: str) -> int:
        """Give the shards of ``node`` to others and give it no more; how many moved.

        The caller has seen ``node`` in `cluster_status`. Raises a ClusterError: no controller answers, nobody is
        left to take them.
        """
        ...

    async def rebalance(self) -> int:
        """Spread the shards evenly over the ingest nodes that are not drained; how many moved."""
        ...


class QueryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A query that waits or runs, as `engine.running.QueryView` has it; also one row of ``system.queries``.

    All but ``node`` and ``phase`` is None for a node that did not answer: its phase is `PHASE_UNKNOWN`.
    """

    node: str
    phase: str = PHASE_UNKNOWN
    id: str | None = None
    issue_time: datetime | None = None
    database: str | None = None
    query_text: str | None = None
    door: str | None = None
    client: str | None = None
    request_id: str | None = None
    waiting_seconds: float | None = None
    planning_seconds: float | None = None
    running_seconds: float | None = None
    sending_seconds: float | None = None
    total_seconds: float | None = None
    rows: int | None = None
    bytes: int | None = None
    parquet_files: int | None = None
    parquet_bytes: int | None = None
    rung: str | None = None
    workers: int | None = None


class QueryControl(Protocol):
    """What an operator can ask about queries: of this process, or of the whole cluster through any of its nodes."""

    async def queries(self) -> Sequence[QueryStatus]:
        """Every query that waits or runs, in one process or on every query node."""
        ...

    async def kill(self, query_id: str) -> QueryStatus:
        """End one; what it was until now. Raises NoSuchQuery; a ClusterError if a node that may have it is silent."""
        ...
