"""The one family of errors that storage raises.

Each class fixes a machine-readable ``code`` and whether trying the same thing again can help
(``retriable``); the doors map codes to their own status words (``nodes.errors``).
"""

from __future__ import annotations

from typing import ClassVar


class StorageError(Exception):
    """Root of everything that storage raises on purpose. The message says what, where and what to do."""

    code: ClassVar[str] = "storage"
    retriable: ClassVar[bool] = False
    tables: frozenset[int] = frozenset()
    """Of a write: the ids of the tables that it failed for, when the rows of all others were written."""


class StoreUnavailable(StorageError):
    """The object store did not answer, or answered that it cannot now. Nothing is known to have changed."""

    code = "store_unavailable"
    retriable = True


class StoreUnsuitable(StorageError):
    """The object store failed the proof at start (LOG L33): it cannot keep a Log."""

    code = "store_unsuitable"


class StoreFull(StorageError):
    """No space is left where objects are written."""

    code = "store_full"
    retriable = True


class FsyncFailed(StorageError):
    """fsync failed: what the disk holds is unknown, so the process must end (LOG L34)."""

    code = "fsync_failed"


class ObjectMissing(StorageError):
    """A named object is not in the store."""

    code = "object_missing"


class CorruptObject(StorageError):
    """Bytes that are not what was written: bad magic, checksum, length or reserved field (LOG L3)."""

    code = "corrupt_object"


class UnsupportedFormat(StorageError):
    """Bytes written by a newer version, or a reserved field that this version must refuse (FORMAT F6)."""

    code = "unsupported_format"


class LogDamaged(StorageError):
    """A gap or a corrupt object in a Log: its shard stays closed until an operator decides (LOG L3, L10)."""

    code = "log_damaged"


class Fenced(StorageError):
    """Another owner has taken this Log over; what was in flight has an unknown outcome (LOG L6, L12)."""

    code = "fenced"
    retriable = True


class OutcomeUnknown(StorageError):
    """The write may or may not stand; it must not be reported as failed (LOG L6)."""

    code = "outcome_unknown"
    retriable = True


class WriteRefused(StorageError):
    """The write id was born below the horizon: a first try may take a newer ``born`` (LOG L7)."""

    code = "write_refused"
    retriable = True


class ShardClosed(StorageError):
    """This shard is not open here (starting, handed over, or closed after damage)."""

    code = "shard_closed"
    retriable = True


class CatalogBehind(StorageError):
    """This node has not yet seen the Revision that something rests on; it catches up (LOG L30)."""

    code = "catalog_behind"
    retriable = True


class MemoryExhausted(StorageError):
    """The memory budget for rows not yet in DataFiles is used up; a checkpoint is under way (LOG L23)."""

    code = "memory_exhausted"
    retriable = True


class LogBacklogFull(StorageError):
    """Too much stands above the last Checkpoint; a checkpoint is under way (LOG L23)."""

    code = "log_backlog_full"
    retriable = True


class RowsChanged(StorageError):
    """Rows that a DELETE or UPDATE rests on were written again before it was; nothing of it was written (LOG L26)."""

    code = "rows_changed"
    retriable = True


class RequestTooLarge(StorageError):
    """One request does not fit into one object of a Log (FORMAT F15)."""

    code = "request_too_large"


class SnapshotTooOld(StorageError):
    """A file of the snapshot is gone: plan again (LOG L16)."""

    code = "snapshot_too_old"
    retriable = True


class NoSuchDatabase(StorageError):
    """No live database has this name."""

    code = "no_such_database"


class NoSuchTable(StorageError):
    """No live table has this name."""

    code = "no_such_table"


class TableDropping(StorageError):
    """A table or database of this name is being dropped; the name is free when every shard knows (LOG L31)."""

    code = "table_dropping"
    retriable = True


class AlreadyExists(StorageError):
    """A database or table of this name is live."""

    code = "already_exists"


class ViewNotWritable(StorageError):
    """The rows of a materialized view come from the table that it reads."""

    code = "view_not_writable"


class TableInUse(StorageError):
    """A materialized view reads this table: it is to be dropped first."""

    code = "table_in_use"


class SchemaConflict(StorageError):
    """A change that is not additive: a column with another type or role than the one it has."""

    code = "schema_conflict"


class InvalidName(StorageError):
    """A name that cannot be used (reserved, empty, too long)."""

    code = "invalid_name"


class LimitExceeded(StorageError):
    """A limit that the operator has set (databases, tables, columns) would be passed."""

    code = "limit_exceeded"
