"""The settings of a node as values: each field declares its kind, default and meaning once.

``Settings()`` has every default, so tests build it with plain values; `nodes.settings` fills it from flags,
environment and file, and docs/settings.md is made from it.
"""
# ruff: noqa: RUF009 - `setting` is dataclasses.field under the name that says what it declares

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodes import machine
from nodes.settings_cluster import ClusterSettings, GossipSettings, GrpcSettings, RaftSettings, TlsSettings
from nodes.settings_kinds import (
    ADDRESS,
    AUTO,
    COUNT,
    DURATION,
    NONE,
    SECRET,
    SHARE,
    SIZE,
    TEXT,
    Address,
    Secret,
    at_least,
    choice,
    optional,
    setting,
)
from nodes.settings_ray import RaySettings

HTTP_PORT_DEFAULT: Final = 8181
MEMORY_PROCESS_BYTES: Final = 256 * 2**20
"""The interpreter, the libraries and their caches."""
MEMORY_BUDGET_SHARE: Final = 1 / 3
"""Of the rest. Measured: at its worst moment the process holds three times what is counted, as sorting a memtable
copies it, checkpoints and queries do so at the same time, and allocators give back late."""
MEMORY_BUDGET_BYTES_MIN: Final = 96 * 2**20
WAITING_SHARE: Final = 0.1
"""Of the memory budget, for request bodies that wait."""


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where this node keeps its own files."""

    dir: str = setting(
        "runnel-data",
        TEXT,
        "Folder for this node's files: the lock file, spilled queries, cached files, and the store if it has no URL.",
    )


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The process itself."""

    name: str = setting("", TEXT, "This node's name in logs and status. Empty: the machine's host name.")
    drain_seconds: float = setting("30s", DURATION, "After SIGTERM: how long requests under way may take to finish.")


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The object store that holds everything durable."""

    url: str = setting(
        "",
        TEXT,
        "Where the data lies: a folder, `file:///folder`, or `s3://bucket/prefix`. Empty: `store` inside `data.dir`.",
    )
    s3_endpoint: str = setting("", TEXT, "Endpoint URL of an S3-compatible store. Empty: AWS.")
    s3_region: str = setting("", TEXT, "Region of the bucket.")
    s3_access_key: Secret = setting(
        "", SECRET, "Access key id. Empty: the S3 client's own sources (profile, instance role)."
    )
    s3_secret_key: Secret = setting("", SECRET, "Secret access key.")
    request_seconds: float = setting(
        "30s", at_least(DURATION, 1), "How long one request to the store may take before it counts as unanswered."
    )


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The HTTP server."""

    listen: Address = setting(
        f"127.0.0.1:{HTTP_PORT_DEFAULT}",
        ADDRESS,
        "Where HTTP is served. Port 0 takes a free one. Beyond loopback, `auth.mode` must be written out.",
    )
    request_bytes_max: int = setting(
        "10 MiB", at_least(SIZE, 1024), "Largest request body, as sent and also after inflating; over it: 413."
    )
    body_seconds: float = setting(
        "30s", at_least(DURATION, 1), "A request's body must arrive within this time; over it: 408."
    )
    send_stall_seconds: float = setting(
        "30s", at_least(DURATION, 1), "A client that takes nothing of its response for this long is cut off."
    )
    keep_alive_seconds: float = setting("75s", DURATION, "An idle connection is closed after this time.")
    connections_max: int = setting(4096, at_least(COUNT, 1), "Connections at once; over it: 503.")


@dataclass(frozen=True, slots=True)
class WriteSettings:
    """Writes between the HTTP server and the Log."""

    waiting_bytes_max: int | None = setting(
        AUTO,
        optional(at_least(SIZE, 2**20), AUTO),
        "Bodies that wait for their turn, inflated; over it: 503 with Retry-After. auto: a tenth of the memory budget.",
    )
    coalesce_bytes: int = setting(
        "1 MiB", SIZE, "Waiting bodies are joined and parsed together up to this size. 0: each by itself."
    )
    timeout: float = setting(
        "30s",
        at_least(DURATION, 1),
        "How long a gateway goes on with a write while no ingest node owns its shard; over it: 503 with Retry-After.",
    )


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What rows and queries may hold in memory."""

    budget: int | None = setting(
        AUTO,
        optional(at_least(SIZE, 32 * 2**20), AUTO),
        "Memory for rows and queries. auto: a third of what the cgroup or the machine allows above 256 MiB.",
    )
    memtable_share: float = setting(
        0.4, SHARE, "Of the budget, for rows that are not yet in DataFiles; over it writes get 503."
    )
    query_share: float = setting(0.4, SHARE, "Of the budget, for queries; over it they spill to disk.")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The Logs and their Checkpoints."""

    shards: int = setting(
        8, at_least(COUNT, 1), "Shards of a store that is created now. A store that exists keeps its own number."
    )
    checkpoint_bytes: int = setting(
        "64 MiB",
        at_least(SIZE, 1024),
        "A shard checkpoints when this much stands in its Log; appends wait at twice it.",
    )
    checkpoint_age: float = setting(
        "10 min",
        at_least(DURATION, 1),
        "A shard checkpoints when its oldest row above the last Checkpoint is this old.",
    )
    checkpoint_objects: int = setting(
        4096, at_least(COUNT, 1), "A shard checkpoints when this many objects stand in its Log."
    )
    group_min_interval: float = setting(
        0, DURATION, "Least time between two objects of one Log, for stores that charge for each put. 0: none."
    )
    collect_grace: float = setting(
        "15 min", DURATION, "How long replaced files stay. Must be longer than `query.timeout`."
    )


@dataclass(frozen=True, slots=True)
class CompactionSettings:
    """Merging DataFiles in the background."""

    cpu_share: float | None = setting(
        "0.25",
        optional(SHARE, NONE),
        "Of one core, for merging files in the background, over 10 s. none: only when `runnel compact` asks.",
    )
    on_ray: str = setting(
        AUTO,
        choice(AUTO, "on", "off"),
        "Whether a Ray worker merges, if there is one. auto: if `ray.address` is HOST:PORT, a cluster's.",
    )


@dataclass(frozen=True, slots=True)
class QuerySettings:
    """Queries."""

    timeout: float = setting("5 min", at_least(DURATION, 1), "Longest run of one query; over it: 504.")
    memory: int | None = setting(
        AUTO,
        optional(at_least(SIZE, 2**20), AUTO),
        "Memory for all queries together. auto: `memory.query_share` of the budget.",
    )
    memory_max: int | None = setting(
        NONE,
        optional(at_least(SIZE, 2**20), NONE),
        "Memory of one query; over it, and if it cannot spill: 422. Only so many run as `query.memory` has room for."
        " none: all share `query.memory`.",
    )
    spill_bytes_max: int = setting("10 GiB", SIZE, "Disk for queries that do not fit into memory. 0: never spill.")
    file_cache_bytes_max: int = setting(
        "10 GiB",
        SIZE,
        "Disk for copies of an S3 store's files, whole, the least recently used go; a restart finds them. 0: none.",
    )
    copy_dir: str = setting(
        "", TEXT, "The one folder whose files SQL's COPY may read and write, on the node with the door. Empty: none."
    )
    queries_max: int = setting(64, at_least(COUNT, 1), "Queries that run at once; the others wait.")
    waiting_max: int = setting(
        512, COUNT, "Queries that wait while `query.queries_max` run; over it: 503 with Retry-After."
    )
    wait_seconds: float = setting(
        "1 min", at_least(DURATION, 0.1), "Longest wait of a query for its turn; over it: 503 with Retry-After."
    )
    slow_log_seconds: float = setting(
        "10s", DURATION, "A query that took longer, waiting and sending included, is logged when it ends. 0: none is."
    )
    slow_log_text: str = setting(
        "on",
        choice("on", "off"),
        "Whether that line has the statement's text, which may hold what users want kept secret. off: it is left out.",
    )
    target_partitions: int | None = setting(
        AUTO, optional(at_least(COUNT, 1), AUTO), "Parallel streams of one query. auto: the CPUs this process may use."
    )


@dataclass(frozen=True, slots=True)
class ViewSettings:
    """Materialized views."""

    refresh_every: float = setting(
        "10s",
        DURATION,
        "How often materialized views are folded in the background. What is not yet is computed by each query. 0: only "
        "REFRESH MATERIALIZED VIEW folds them.",
    )


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Limits an operator may set; there are none by default."""

    databases_max: int | None = setting(NONE, optional(COUNT, NONE), "Databases in the store; over it: 422.")
    tables_max: int | None = setting(NONE, optional(COUNT, NONE), "Tables in one database; over it: 422.")
    columns_max: int | None = setting(
        NONE, optional(COUNT, NONE), "Columns in one table, without `time`; over it: 422."
    )


@dataclass(frozen=True, slots=True)
class LogsSettings:
    """What the node says about itself (its log lines, not the Logs)."""

    level: str = setting("info", choice("debug", "info", "warning", "error"), "Least level that is written.")
    format: str = setting(AUTO, choice("auto", "text", "json"), "auto: text on a terminal, JSON lines otherwise.")


@dataclass(frozen=True, slots=True)
class AuthSettings:
    """Who may do what."""

    mode: str = setting(
        "off",
        choice("off"),
        "off: everyone who reaches the port may do everything. Must be written out to listen beyond loopback.",
    )


@dataclass(frozen=True, slots=True)
class Budgets:
    """The parts of the memory budget, in bytes."""

    total_bytes: int
    memtable_bytes: int
    query_bytes: int
    waiting_bytes: int


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a node; ``Settings()`` has every default."""

    data: DataSettings = DataSettings()
    node: NodeSettings = NodeSettings()
    store: StoreSettings = StoreSettings()
    http: HttpSettings = HttpSettings()
    write: WriteSettings = WriteSettings()
    memory: MemorySettings = MemorySettings()
    log: LogSettings = LogSettings()
    compaction: CompactionSettings = CompactionSettings()
    query: QuerySettings = QuerySettings()
    ray: RaySettings = RaySettings()
    views: ViewSettings = ViewSettings()
    limits: LimitSettings = LimitSettings()
    logs: LogsSettings = LogsSettings()
    auth: AuthSettings = AuthSettings()
    cluster: ClusterSettings = ClusterSettings()
    grpc: GrpcSettings = GrpcSettings()
    gossip: GossipSettings = GossipSettings()
    raft: RaftSettings = RaftSettings()
    tls: TlsSettings = TlsSettings()

    @property
    def data_dir(self) -> Path:
        """This node's folder, absolute."""
        return Path(self.data.dir).expanduser().absolute()

    @property
    def store_url(self) -> str:
        """The store's URL or folder; never empty."""
        return self.store.url or str(self.data_dir / "store")

    @property
    def spill_dir(self) -> Path:
        """Where queries spill; emptied at start."""
        return self.data_dir / "spill"

    @property
    def file_cache_dir(self) -> Path:
        """Where copies of a remote store's files lie."""
        return self.data_dir / "file-cache"

    @property
    def copy_dir(self) -> Path | None:
        """The folder for COPY, absolute; None if there is none."""
        return Path(self.query.copy_dir).expanduser().absolute() if self.query.copy_dir else None

    @property
    def node_name(self) -> str:
        """The name in logs and status; never empty."""
        return self.node.name or socket.gethostname()

    @property
    def target_partitions(self) -> int:
        """Parallel streams of one query."""
        return self.query.target_partitions or machine.cpus_allowed()

    def budgets(self, limit_bytes: int | None = None) -> Budgets:
        """The memory budget and its parts; ``limit_bytes`` is what the machine allows (None: ask it)."""
        total = self.memory.budget
        if total is None:
            limit = machine.memory_limit_bytes() if limit_bytes is None else limit_bytes
            total = max(MEMORY_BUDGET_BYTES_MIN, int((limit - MEMORY_PROCESS_BYTES) * MEMORY_BUDGET_SHARE))
        return Budgets(
            total_bytes=total,
            memtable_bytes=int(total * self.memory.memtable_share),
            query_bytes=self.query.memory or int(total * self.memory.query_share),
            waiting_bytes=self.write.waiting_bytes_max or int(total * WAITING_SHARE),
        )
