"""The waist: what every door talks to, whether the rows are in this process or behind gRPC.

A door decodes its protocol into `Batch`es and statements and calls a `Backend`; it never sees Logs,
shards or placement. `nodes.embedded` serves it in one process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from storage.changes import (
    Change,
    ColumnSpec,
    CreateDatabase,
    CreateView,
    DropDatabase,
    DropTable,
    EnsureTable,
    SetRetention,
    SetRetentionBytes,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    import pyarrow as pa

    from engine.changes import RowChange
    from nodes.status import QueryStatus
    from storage.deletes import RangeDelete
    from storage.keys import RowSeries
    from storage.schema import Database, Table


__all__ = [
    "Backend",
    "Batch",
    "CatalogView",
    "Change",
    "ChangeResult",
    "ColumnSpec",
    "CreateDatabase",
    "CreateView",
    "DropDatabase",
    "DropTable",
    "EnsureTable",
    "Principal",
    "QueryRequest",
    "QueryResult",
    "SetRetention",
    "SetRetentionBytes",
]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking. Until tokens exist everyone is ``anonymous``."""

    name: str = "anonymous"


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one table. ``rows`` has fields named by the storage names of ``table``'s columns.

    ``time`` (timestamp ns) is always there and never null; tag columns are dictionary<int32, string>. There may be
    `storage.schema.OP_COLUMN` too. With ``unchanged_since``, of each partition the newest object of its Log that the
    rows rest on, a shard refuses them if one of their keys has been written since (LOG L26). A door that
    knows each row's series says so: then rows find their partitions at a tenth of the cost.
    """

    table: Table
    rows: pa.RecordBatch
    series: RowSeries | None = None
    unchanged_since: Mapping[int, int] | None = None
    delete: RangeDelete | None = None
    """In place of rows: the rows of all partitions that it takes, written before it, go."""


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """One statement. ``params`` bind ``$name``; ``timeout_seconds`` None takes the node's limit.

    ``door`` and ``client`` (HOST:PORT) say where it came from, for those who look at what runs. INSERT, UPDATE and
    DELETE are refused unless ``may_write``: a request that promises to change nothing (GET) must not.
    """

    database: str
    text: str
    params: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float | None = None
    request_id: str = ""
    door: str = ""
    client: str = ""
    may_write: bool = False


class QueryResult(Protocol):
    """A running query: its schema, then its batches once. Closing it early cancels the query."""

    @property
    def schema(self) -> pa.Schema: ...

    def __aiter__(self) -> AsyncIterator[pa.RecordBatch]: ...

    async def aclose(self) -> None: ...


class ChangeResult(QueryResult, Protocol):
    """The same; ``change`` says what its rows are for, if the statement is one that writes."""

    @property
    def change(self) -> RowChange | None: ...


class CatalogView(Protocol):
    """The Catalog at one Revision, for look-ups that need no I/O."""

    @property
    def revision(self) -> int: ...

    @property
    def tables_by_id(self) -> Mapping[int, Table]:
        """Deleted and hidden ones too."""
        ...

    def database(self, name: str) -> Database | None: ...

    def table(self, database: str, name: str) -> Table | None: ...

    def databases(self, *, deleted: bool = False) -> Sequence[Database]: ...

    def tables(self, database: str, *, deleted: bool = False) -> Sequence[Table]: ...


class Backend(Protocol):
    """Everything a door can do. All methods raise `storage.errors.StorageError` or `engine.errors.EngineError`."""

    @property
    def catalog(self) -> CatalogView: ...

    @property
    def store_id(self) -> str:
        """The store's id (a UUID): InfluxDB's ``cluster-uuid``."""
        ...

    async def refresh(self) -> CatalogView:
        """Prove the Catalog current before saying that something is not there (LOG L29)."""
        ...

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        """Make the rows durable; return when they are (LOG L4). Atomic per shard (L17).

        The same batches under the same ``idempotency_key`` are written once, however often and wherever they are
        sent within `storage.shard.RETRY_SECONDS_MAX` (`nodes.idempotency`). Raises RowsChanged (`Batch`).
        """
        ...

    async def alter(self, changes: Sequence[Change], principal: Principal) -> CatalogView:
        """Apply the changes in order, all in one Catalog object or none; return the Catalog after them."""
        ...

    async def query(self, request: QueryRequest, principal: Principal) -> QueryResult:
        """Plan and start a statement over one snapshot per table; carry out KILL QUERY, and what writes rows."""
        ...

    async def queries(self) -> Sequence[QueryStatus]:
        """As `nodes.status.QueryControl`."""
        ...

    async def kill(self, query_id: str) -> QueryStatus:
        """As `nodes.status.QueryControl`."""
        ...

    async def query_text(self, request: QueryRequest, format: str, principal: Principal) -> AsyncGenerator[bytes, None]:
        """The same as bytes in one of `engine.formats.ResultFormat`, made where the statement runs, once.

        Closing it early cancels the query.
        """
        ...
