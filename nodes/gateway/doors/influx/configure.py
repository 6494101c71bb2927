"""Databases, retention periods and tables: the /api/v3/configure endpoints."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar

import msgspec
import pyarrow as pa

from nodes.backend import (
    ColumnSpec,
    CreateDatabase,
    DropDatabase,
    DropTable,
    EnsureTable,
    Principal,
    SetRetention,
    SetRetentionBytes,
)
from nodes.gateway.doors.influx.durations import parse_human
from nodes.gateway.doors.influx.names import check_database_name
from nodes.gateway.doors.influx.params import SerdeError, boolean, required, take
from nodes.gateway.doors.influx.query import CONTENT_TYPES, decode_json, read_format
from nodes.gateway.faults import BadContentType, BadRequest
from nodes.gateway.http import Response
from nodes.resulttext import ReadyResult
from nodes.retention import read_age, read_bytes
from storage.errors import NoSuchDatabase
from storage.schema import TIME_COLUMN, Role, TypeKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from nodes.backend import Backend, Change, QueryResult
    from nodes.gateway.doors.influx.answers import Answers
    from nodes.gateway.http import Request

_T = TypeVar("_T")
ANONYMOUS: Final = Principal()
HARD_DELETE_WORDS: Final = frozenset({"never", "now", "default"})
DATABASES_SCHEMA: Final = pa.schema(
    [pa.field("iox::database", pa.string(), nullable=False), pa.field("deleted", pa.bool_(), nullable=False)]
)
FIELD_TYPES: Final[dict[str, TypeKind]] = {
    "utf8": TypeKind.STRING,
    "int64": TypeKind.INT64,
    "uint64": TypeKind.UINT64,
    "float64": TypeKind.FLOAT64,
    "bool": TypeKind.BOOL,
}


class _Database(msgspec.Struct, frozen=True):
    db: str
    retention_period: str | None = None
    retention_bytes: str | int | msgspec.UnsetType | None = msgspec.UNSET


class _Field(msgspec.Struct, frozen=True):
    name: str
    type: Literal["utf8", "int64", "uint64", "float64", "bool"]


class _Table(msgspec.Struct, frozen=True):
    db: str
    table: str
    tags: list[str]
    fields: list[_Field]
    retention_period: str | None = None
    retention_bytes: str | int | None = None


class _TableUpdate(msgspec.Struct, frozen=True):
    db: str
    table: str
    retention_period: str | msgspec.UnsetType | None = msgspec.UNSET
    retention_bytes: str | int | msgspec.UnsetType | None = msgspec.UNSET


class Encoder(Protocol):
    """Writes a result in one of `engine.formats.ResultFormat`, with InfluxDB's bytes."""

    def __call__(self, format: str, result: QueryResult) -> AsyncIterator[bytes]: ...


class ConfigureDoor:
    """Handlers for databases and tables."""

    def __init__(self, backend: Backend, answers: Answers, encode: Encoder) -> None:
        self._backend = backend
        self._answers = answers
        self._encode = encode

    async def list_databases(self, request: Request) -> Response:
        """GET /api/v3/configure/database: ``format`` is required, as InfluxDB has it."""
        found = _parameters(request, "format", "show_deleted")
        format = read_format(_required(found, "format"), None)
        try:
            show_deleted = boolean(found, "show_deleted", default=False)
        except SerdeError as error:
            raise BadRequest(f"serde error: {error}") from error
        catalog = await self._backend.refresh()
        databases = sorted(catalog.databases(deleted=show_deleted), key=lambda database: database.name)
        rows = pa.RecordBatch.from_arrays(
            [
                pa.array([database.name for database in databases], pa.string()),
                pa.array([database.deleted for database in databases], pa.bool_()),
            ],
            schema=DATABASES_SCHEMA,
        )
        # Most ask for JSON, and for that a gateway of a cluster need not load a query engine.
        body = msgspec.json.encode(rows.to_pylist()) if format == "json" else self._encode(format, ReadyResult(rows))
        return Response(200, self._answers.success(CONTENT_TYPES[format]), body)

    async def create_database(self, request: Request) -> Response:
        """POST: 200, 409 if it is there."""
        asked = await self._json(request, _Database)
        check_database_name(asked.db)
        await self._alter(CreateDatabase(asked.db, _database_age(asked)), *_database_bytes(asked))
        return self._answers.ok()

    async def update_database(self, request: Request) -> Response:
        """PUT: set the retention period, or clear it with null. A limit by bytes that is not named stays."""
        asked = await self._json(request, _Database)
        await self._alter(SetRetention(asked.db, _database_age(asked)), *_database_bytes(asked))
        return self._answers.ok()

    async def delete_database(self, request: Request) -> Response:
        """DELETE: the name is free at once."""
        found = _parameters(request, "db", "hard_delete_at")
        name = _required(found, "db")
        _check_hard_delete(found.get("hard_delete_at"))
        await self._alter(DropDatabase(name))
        return self._answers.ok()

    async def set_retention(self, request: Request) -> Response:
        """POST /api/v3/configure/database/retention_period."""
        found = _parameters(request, "db", "duration")
        name, duration = _required(found, "db"), _required(found, "duration")
        try:
            retention_ns = parse_human(duration)
        except ValueError as error:
            raise BadRequest(f"Cannot parse the given human time: {error}") from error
        await self._alter(SetRetention(name, retention_ns))
        return self._answers.done

    async def clear_retention(self, request: Request) -> Response:
        """DELETE /api/v3/configure/database/retention_period."""
        await self._alter(SetRetention(_required(_parameters(request, "db"), "db"), None))
        return self._answers.done

    async def create_table(self, request: Request) -> Response:
        """POST /api/v3/configure/table: the database must be there, the table must not."""
        asked = await self._json(request, _Table)
        check_database_name(asked.db)
        if (
            self._backend.catalog.database(asked.db) is None
            and (await self._backend.refresh()).database(asked.db) is None
        ):
            raise NoSuchDatabase(f"database {asked.db!r} does not exist; create it first")
        change = EnsureTable(asked.db, asked.table, _columns(asked), exist_ok=False, create_database=False)
        await self._alter(change, *_table_retention(asked))
        return self._answers.ok()

    async def update_table(self, request: Request) -> Response:
        """PUT: set the table's own retention period or limit by bytes; with null it follows its database again."""
        asked = await self._json(request, _TableUpdate)
        await self._alter(*_table_retention(asked))
        return self._answers.ok()

    async def delete_table(self, request: Request) -> Response:
        """DELETE /api/v3/configure/table."""
        found = _parameters(request, "db", "table", "hard_delete_at")
        database, table = _required(found, "db"), _required(found, "table")
        _check_hard_delete(found.get("hard_delete_at"))
        await self._alter(DropTable(database, table))
        return self._answers.ok()

    async def _alter(self, *changes: Change) -> None:
        await self._backend.alter(changes, ANONYMOUS)

    async def _json(self, request: Request, kind: type[_T]) -> _T:
        if not is_json(request.header(b"content-type")):
            raise BadContentType
        return decode_json(await request.body(), kind)


def is_json(content_type: bytes | None) -> bool:
    """``application/json`` or ``application/x+json``, with any parameters."""
    kind, _, subtype = (content_type or b"").partition(b";")[0].strip().lower().partition(b"/")
    return kind == b"application" and (subtype == b"json" or subtype.endswith(b"+json"))


def _parameters(request: Request, *known: str) -> dict[str, str]:
    try:
        return take(request.query(), frozenset(known))
    except SerdeError as error:
        raise BadRequest(f"serde error: {error}") from error


def _required(found: dict[str, str], name: str) -> str:
    try:
        return required(found, name)
    except SerdeError as error:
        raise BadRequest(f"serde error: {error}") from error


def _database_age(asked: _Database) -> int | None:
    return None if asked.retention_period is None else _value(parse_human, asked.retention_period, "duration")


def _database_bytes(asked: _Database) -> list[Change]:
    size = asked.retention_bytes
    return [] if size is msgspec.UNSET else [SetRetentionBytes(asked.db, _bytes(size) or None)]


def _table_retention(asked: _Table | _TableUpdate) -> list[Change]:
    """What is named. Of a new table null is as good as nothing."""
    age, size = asked.retention_period, asked.retention_bytes
    changes: list[Change] = []
    if age is not msgspec.UNSET:
        period = None if age is None else _value(read_age, age, "duration")
        changes.append(SetRetention(asked.db, period, asked.table))
    if size is not msgspec.UNSET:
        changes.append(SetRetentionBytes(asked.db, _bytes(size), asked.table))
    return changes


def _bytes(size: str | int | None) -> int | None:
    return None if size is None else _value(read_bytes, str(size), "size")


def _value(read: Callable[[str], int], text: str, what: str) -> int:
    try:
        return read(text)
    except ValueError as error:
        raise BadRequest(f'serde json error: invalid value: string "{text}", expected a {what} ({error})') from error


def _check_hard_delete(word: str | None) -> None:
    """Any word InfluxDB takes is taken; rows are out of sight at once, their files go with garbage collection."""
    if word is None or word in HARD_DELETE_WORDS:
        return
    try:
        moment = datetime.fromisoformat(word)
    except ValueError as error:
        raise BadRequest("Cannot parse the timestamp: input contains invalid characters") from error
    if moment.tzinfo is None:
        raise BadRequest("Cannot parse the timestamp: premature end of input")


def _columns(asked: _Table) -> Sequence[ColumnSpec]:
    columns = [ColumnSpec(name, Role.TAG, TypeKind.STRING) for name in asked.tags]
    columns += [ColumnSpec(field.name, Role.FIELD, FIELD_TYPES[field.type]) for field in asked.fields]
    seen = {TIME_COLUMN}
    for column in columns:
        if column.name in seen:
            raise BadRequest(f"column {column.name!r} stands twice; every table has {TIME_COLUMN!r} of its own")
        seen.add(column.name)
    return columns
