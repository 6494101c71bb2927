"""How long rows are kept, and in how many bytes: ALTER TABLE and ALTER DATABASE carried out (LOG L36).

Every Backend asks here before it plans a statement; the door for InfluxDB's configuration reads values here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from engine.errors import InvalidStatement, NotReadOnly
from engine.retentionstatement import AGE, BYTES, retain_of
from nodes.gateway.doors.influx.durations import parse_human
from nodes.resulttext import ReadyResult
from nodes.systemtables import setting_age
from nodes.units import parse_size
from storage.changes import SetRetention, SetRetentionBytes
from storage.cutoffs import KEEP
from storage.errors import NoSuchDatabase, NoSuchTable

if TYPE_CHECKING:
    from engine.retentionstatement import Retain
    from nodes.backend import Backend, CatalogView, Change, Principal, QueryRequest
    from storage.schema import Database, Table

NONE: Final = "none"
BYTES_MAX: Final = 2**63 - 1
ALTERED_SCHEMA: Final = pa.schema(
    [
        ("database_name", pa.string()), ("table_name", pa.string()), ("retention", pa.string()),
        ("retention_bytes", pa.int64()),
    ]
)  # fmt: skip


def read_age(text: str) -> int:
    """A period in ns; `KEEP` for 'none'. ValueError."""
    if text.strip().lower() == NONE:
        return KEEP
    found = parse_human(text)
    if found <= 0:
        raise ValueError("a period must be longer than nothing; 'none' keeps rows for ever")
    return found


def read_bytes(text: str) -> int:
    """A limit in bytes; `KEEP` for 'none'. ValueError."""
    if text.strip().lower() == NONE:
        return KEEP
    found = parse_size(text)
    if not 0 < found <= BYTES_MAX:
        raise ValueError("a limit must be greater than nothing; 'none' keeps rows whatever they take")
    return found


async def retention_if_asked(request: QueryRequest, backend: Backend, principal: Principal) -> ReadyResult | None:
    """Carry ALTER ... SET or RESET out; None if the statement is another one. Answers with what is set now.

    Raises InvalidStatement, AmbiguousName, NotReadOnly, NoSuchDatabase, NoSuchTable, and as the Backend does.
    """
    asked = retain_of(request.text)
    if asked is None:
        return None
    if not request.may_write:
        raise NotReadOnly("ALTER changes something, and this request may not: send it by POST")
    database, table = _target(asked, await backend.refresh(), request.database)
    catalog = await backend.alter(_changes(asked, database, table), principal)
    return ReadyResult(_altered(catalog, database, table))


def _target(asked: Retain, catalog: CatalogView, database: str) -> tuple[str, str]:
    """The names of the database and the table; without a table the database itself is altered."""
    if not asked.is_table:
        found = asked.of(one.name for one in catalog.databases())
        if found is None:
            raise InvalidStatement(f"ALTER DATABASE: there is no database {asked.name!r}")
        return found, ""
    if catalog.database(database) is None:
        raise NoSuchDatabase(f"database not found: {database}")
    table = asked.of(one.name for one in catalog.tables(database))
    if table is None:
        raise NoSuchTable(f"table not found: {asked.name}")
    return database, table


def _changes(asked: Retain, database: str, table: str) -> list[Change]:
    changes: list[Change] = []
    for key, text in asked.settings.items():
        try:
            value = None if text is None else read_age(text) if key == AGE else read_bytes(text)
        except ValueError as error:
            example = "'30d'" if key == AGE else "'10GB'"
            raise InvalidStatement(f"{key} = {text!r}: {error}; write {example} or 'none'") from error
        changes.append(_change(key, database, value, table))
    return changes


def _change(key: str, database: str, value: int | None, table: str) -> Change:
    if value == KEEP and not table:  # a database has nobody above it to be free of
        value = None
    if key == BYTES:
        return SetRetentionBytes(database, value, table)
    return SetRetention(database, value, table)


def _altered(catalog: CatalogView, database: str, table: str) -> pa.RecordBatch:
    """What is set now; of what was dropped meanwhile nothing."""
    what: Database | Table | None = catalog.table(database, table) if table else catalog.database(database)
    age = None if what is None else setting_age(what)
    size = None if what is None else what.retention_bytes
    row = {"database_name": database, "table_name": table or None, "retention": age, "retention_bytes": size}
    return pa.RecordBatch.from_pylist([row], ALTERED_SCHEMA)
