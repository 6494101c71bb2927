"""A Backend that keeps Arrow tables in memory: for tests of the doors, which need one that is real but small.

Rows are kept as they were written (no folding). SQL runs on DataFusion over the kept batches.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datafusion import SessionContext

from engine.errors import NoSuchQuery
from nodes.backend import (
    Batch,
    Change,
    CreateDatabase,
    DropDatabase,
    DropTable,
    EnsureTable,
    Principal,
    QueryRequest,
    QueryResult,
    SetRetention,
    SetRetentionBytes,
)
from storage.errors import (
    AlreadyExists,
    InvalidName,
    LimitExceeded,
    NoSuchDatabase,
    NoSuchTable,
    SchemaConflict,
    StorageError,
)
from storage.schema import Column, Database, Partition, Role, Table, TypeKind

if TYPE_CHECKING:
    from nodes.status import QueryStatus

STORE_ID = "0190c0de-0000-7000-8000-000000000001"
TIME = Column(0, "time", "time", Role.TIME, TypeKind.TIMESTAMP)


@dataclasses.dataclass(frozen=True)
class MemoryCatalog:
    """The Catalog at one Revision."""

    revision: int = 0
    by_name: dict[str, Database] = dataclasses.field(default_factory=dict)
    gone: tuple[Database, ...] = ()
    by_table: dict[tuple[str, str], Table] = dataclasses.field(default_factory=dict)

    @property
    def tables_by_id(self) -> dict[int, Table]:
        return {table.id: table for table in self.by_table.values()}

    def database(self, name: str) -> Database | None:
        return self.by_name.get(name)

    def table(self, database: str, name: str) -> Table | None:
        return self.by_table.get((database, name))

    def databases(self, *, deleted: bool = False) -> Sequence[Database]:
        return [*self.by_name.values(), *(self.gone if deleted else ())]

    def tables(self, database: str, *, deleted: bool = False) -> Sequence[Table]:
        return [table for (owner, _), table in self.by_table.items() if owner == database]


class Result:
    """A query's batches, one at a time."""

    def __init__(self, schema: pa.Schema, batches: AsyncIterator[pa.RecordBatch]) -> None:
        self._schema, self._batches = schema, batches
        self.is_closed = False

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        return self._batches

    async def aclose(self) -> None:
        self.is_closed = True
        if isinstance(self._batches, AsyncGenerator):
            await self._batches.aclose()


Query = Callable[[QueryRequest], Awaitable[Result]]


class MemoryBackend:
    """See the module. ``fail_writes`` and ``fail_alters`` are raised, one for each call, before anything changes."""

    store_id = STORE_ID

    def __init__(self) -> None:
        self.catalog = MemoryCatalog()
        self.rows: dict[tuple[str, str], list[pa.RecordBatch]] = {}
        self.writes: list[list[Batch]] = []
        self.keys: list[str] = []
        self.done: set[tuple[int, str]] = set()
        self.alters: list[list[Change]] = []
        self.results: list[Result] = []
        self.fail_writes: list[Exception] = []
        self.fail_alters: list[Exception] = []
        self.write_seconds = 0.0
        self.write_gate: asyncio.Event | None = None
        self.running: list[QueryStatus] = []
        self.special_queries: dict[str, Query] = {}
        self.columns_max: int | None = None
        self._ids = itertools.count(1)

    async def refresh(self) -> MemoryCatalog:
        return self.catalog

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        if self.write_gate is not None:
            await self.write_gate.wait()
        if self.write_seconds:
            await asyncio.sleep(self.write_seconds)
        if self.fail_writes:
            raise self.fail_writes.pop(0)
        names = {table.id: key for key, table in self.catalog.by_table.items()}
        for batch in batches:
            if idempotency_key and (batch.table.id, idempotency_key) in self.done:
                continue
            if batch.table.id not in names:
                raise NoSuchTable(f"table {batch.table.name!r} is gone")
            batch.rows.validate(full=True)
            self.rows.setdefault(names[batch.table.id], []).append(batch.rows)
        self.done.update((batch.table.id, idempotency_key) for batch in batches)
        self.writes.append(list(batches))
        self.keys.append(idempotency_key)

    async def alter(self, changes: Sequence[Change], principal: Principal) -> MemoryCatalog:
        await asyncio.sleep(0)
        self.alters.append(list(changes))
        if self.fail_alters:
            raise self.fail_alters.pop(0)
        draft = dataclasses.replace(
            self.catalog,
            revision=self.catalog.revision + 1,
            by_name=dict(self.catalog.by_name),
            by_table=dict(self.catalog.by_table),
        )
        for change in changes:
            draft = self._apply(draft, change)
        self.catalog = draft
        return draft

    async def queries(self) -> Sequence[QueryStatus]:
        return list(self.running)

    async def kill(self, query_id: str) -> QueryStatus:
        for query in self.running:
            if query.id == query_id:
                self.running.remove(query)
                return query
        raise NoSuchQuery(f"no query with the id {query_id!r}")

    async def query(self, request: QueryRequest, principal: Principal) -> Result:
        if request.text in self.special_queries:
            result = await self.special_queries[request.text](request)
        else:
            result = await asyncio.to_thread(self._run, request)
        self.results.append(result)
        return result

    async def query_text(self, request: QueryRequest, format: str, principal: Principal) -> AsyncGenerator[bytes, None]:
        return encode(format, await self.query(request, principal))

    def table(self, database: str, name: str) -> pa.Table:
        """Everything written to a table, under the names that users see, sorted by time."""
        table = self.catalog.by_table[(database, name)]
        shown = {column.storage_name: column.name for column in table.columns}
        plain = pa.schema([pa.field(c.name, c.plain_type) for c in table.columns])
        parts = []
        for rows in self.rows.get((database, name), []):
            have = {
                shown[field.name]: rows.column(field.name).cast(plain.field(shown[field.name]).type)
                for field in rows.schema
            }
            parts.append(pa.table({n: have.get(n, pa.nulls(rows.num_rows, plain.field(n).type)) for n in plain.names}))
        return pa.concat_tables(parts).sort_by("time") if parts else plain.empty_table()

    def _run(self, request: QueryRequest) -> Result:
        context = SessionContext()
        for database, name in self.catalog.by_table:
            if database == request.database:
                context.register_record_batches(name, [self.table(database, name).to_batches()])
        try:
            batches = context.sql(request.text, param_values=dict(request.params)).collect()
        except Exception as error:
            raise StatementRefused(str(error)) from error
        schema = batches[0].schema if batches else pa.schema([])

        async def stream() -> AsyncIterator[pa.RecordBatch]:
            for batch in batches:
                yield batch

        return Result(schema, stream())

    def _apply(self, draft: MemoryCatalog, change: Change) -> MemoryCatalog:
        match change:
            case CreateDatabase():
                self._create_database(draft, change.name, change.retention_ns, change.exist_ok)
            case SetRetention() | SetRetentionBytes():
                self._set_retention(draft, change)
            case DropDatabase():
                old = self._database(draft, change.name)
                del draft.by_name[change.name]
                gone = dataclasses.replace(old, name=f"{old.name}-20260101T000000", deleted=True)
                return dataclasses.replace(draft, gone=(*draft.gone, gone))
            case EnsureTable():
                self._ensure(draft, change)
            case DropTable():
                self._database(draft, change.database)
                if draft.by_table.pop((change.database, change.table), None) is None:
                    raise NoSuchTable(f"table {change.table!r} does not exist")
        return draft

    def _set_retention(self, draft: MemoryCatalog, change: SetRetention | SetRetentionBytes) -> None:
        what: Any = self._database(draft, change.database)
        if change.table:
            what = draft.by_table.get((change.database, change.table))
            if what is None:
                raise NoSuchTable(f"table {change.table!r} does not exist")
        if isinstance(change, SetRetention):
            what = dataclasses.replace(what, retention_ns=change.retention_ns)
        else:
            what = dataclasses.replace(what, retention_bytes=change.retention_bytes)
        if change.table:
            draft.by_table[change.database, change.table] = what
        else:
            draft.by_name[change.database] = what

    def _database(self, draft: MemoryCatalog, name: str) -> Database:
        found = draft.by_name.get(name)
        if found is None:
            raise NoSuchDatabase(f"database {name!r} does not exist")
        return found

    def _create_database(self, draft: MemoryCatalog, name: str, retention_ns: int | None, exist_ok: bool) -> None:
        if name in draft.by_name:
            if exist_ok:
                return
            raise AlreadyExists(f"database {name!r} exists")
        draft.by_name[name] = Database(next(self._ids), name, retention_ns)

    def _ensure(self, draft: MemoryCatalog, change: EnsureTable) -> None:
        if change.table.startswith("_runnel_"):
            raise InvalidName(f"{change.table!r} is reserved")
        if change.create_database:
            self._create_database(draft, change.database, None, exist_ok=True)
        database = self._database(draft, change.database)
        old = draft.by_table.get((change.database, change.table))
        if old is not None and not change.exist_ok:
            raise AlreadyExists(f"table {change.table!r} exists")
        columns = list(old.columns if old else (TIME,))
        have = {column.name: column for column in columns}
        for spec in change.columns:
            known = have.get(spec.name)
            if known is not None and (known.role, known.kind) != (spec.role, spec.kind):
                raise SchemaConflict(f"column {spec.name!r} is a {known.role} of type {known.kind}")
            if known is None:
                columns.append(Column(len(columns), spec.name, f"c{len(columns)}", spec.role, spec.kind))
        if self.columns_max is not None and len(columns) > self.columns_max + 1:
            raise LimitExceeded(
                f"Update to schema would exceed number of columns per table limit of {self.columns_max} columns"
            )
        number = next(self._ids)
        draft.by_table[(change.database, change.table)] = Table(
            id=old.id if old else number,
            uuid=str(number),
            database_id=database.id,
            name=change.table,
            version=(old.version + 1) if old else 1,
            columns=tuple(columns),
            partitions=(Partition(0, 0, 2**64, 1),),
        )


class StatementRefused(StorageError):
    """What DataFusion says of a bad statement, under the engine's code."""

    code = "invalid_statement"


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Rows without nulls, times as integers: short to compare with."""
    at = table.schema.get_field_index("time")
    if at >= 0:
        table = table.set_column(at, "time", table.column("time").cast(pa.int64()))
    return [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]


async def encode(format: str, result: QueryResult) -> AsyncGenerator[bytes, None]:
    """Enough of the formats for the doors' tests: rows as JSON, one array or one object a line."""
    first = True
    try:
        async for batch in result:
            for row in batch.to_pylist():
                text = json.dumps({k: v for k, v in row.items() if v is not None}, default=str, separators=(",", ":"))
                yield (text + "\n" if format == "jsonl" else ("[" if first else ",") + text).encode()
                first = False
        if format != "jsonl":
            yield b"[]" if first else b"]"
    finally:
        await result.aclose()
