"""What the Catalog can be asked to change. Values only; `storage.catalog` turns them into effects (FORMAT F10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.schema import Op, Role, TypeKind


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """A column that a write or an operator asks for."""

    name: str
    role: Role
    kind: TypeKind


@dataclass(frozen=True, slots=True)
class CreateDatabase:
    """Create a database; ``exist_ok`` makes it an "ensure"."""

    name: str
    retention_ns: int | None = None
    exist_ok: bool = False


@dataclass(frozen=True, slots=True)
class SetRetention:
    """Set (or clear with None) the retention period in ns of a database or, if it is named, of one of its tables.

    A table without one follows its database; with 0 its rows are kept for ever.
    """

    database: str
    retention_ns: int | None
    table: str = ""


@dataclass(frozen=True, slots=True)
class SetRetentionBytes:
    """The same of the limit by bytes."""

    database: str
    retention_bytes: int | None
    table: str = ""


@dataclass(frozen=True, slots=True)
class DropDatabase:
    """Soft delete of a database and its tables, which begins here; see `FinishDrop`."""

    name: str


@dataclass(frozen=True, slots=True)
class EnsureTable:
    """Create the database and table if they are not there, and add the columns that are missing.

    With ``exist_ok`` false an existing table is an error (AlreadyExists). A column that exists with
    another role or type is a SchemaConflict and changes nothing; so is a table with another ``default_op``
    (None: whatever it has, and patch for a new one).
    """

    database: str
    table: str
    columns: Sequence[ColumnSpec] = ()
    exist_ok: bool = True
    create_database: bool = True
    default_op: Op | None = None


@dataclass(frozen=True, slots=True)
class CreateView:
    """Create a materialized view of a table of the same database, and the table that says how far it is.

    It reads the table ``table_id``, if that is still the one; ``columns`` are its own, without ``time``.
    """

    database: str
    name: str
    table_id: int
    text: str
    width_ns: int
    origin_ns: int
    columns: Sequence[ColumnSpec]
    exist_ok: bool = False


@dataclass(frozen=True, slots=True)
class DropTable:
    """Soft delete of one table, which begins here: the name stays bound until every shard knows (LOG L31).

    Also of a materialized view; a table that one reads is not dropped before it.
    """

    database: str
    table: str


@dataclass(frozen=True, slots=True)
class FinishDrop:
    """Every Log that holds the table has its drop record: the name is free, under ``<name>-YYYYMMDDTHHMMSS`` it stays.

    With the last of its tables a database that is being dropped is so too.
    """

    table_id: int


Change = CreateDatabase | SetRetention | SetRetentionBytes | DropDatabase | EnsureTable | CreateView | DropTable
