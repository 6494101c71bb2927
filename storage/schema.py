"""What the Catalog says of a table: immutable values that every floor above passes around.

Names are data and may change; ids never do and are never used again (FORMAT F19). A column is stored
under ``storage_name`` for ever and shown under ``name``.
"""

from __future__ import annotations

import enum
import functools
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa

if TYPE_CHECKING:
    from storage.deletes import PendingDelete, RangeDelete

TIME_COLUMN: Final = "time"
RESERVED_PREFIX: Final = "_runnel_"
OFFSET_COLUMN: Final = "_runnel_offset"
"""int64: a row's offset in its partition; stored in every DataFile (LOG L24)."""
OP_COLUMN: Final = "_runnel_op"
"""int8, a code of `Op`: stored only where a row's op is not its table's default, which NULL means (FORMAT F11)."""
OP_TYPE: Final = pa.int8()
OP_COLUMN_ID: Final = 2**31 - 3
"""Stands for `OP_COLUMN` where columns are named by their ids."""
SERIES_COLUMN: Final = "_runnel_series"
"""int64: the hash of a row's canonical key (FORMAT F22); in files of a kind with `KEYS`, beside `KEY_COLUMN`."""
KEY_COLUMN: Final = "_runnel_key"
"""binary: a row's canonical key: rows of one file or layer and another's are of one series where it is equal."""


class Role(enum.StrEnum):
    """What a column is for, apart from its type (FORMAT F20)."""

    TAG = "tag"
    FIELD = "field"
    TIME = "time"


class TypeKind(enum.StrEnum):
    """The type classes that line protocol can write; more are added, none is ever renumbered (F20)."""

    INT64 = "int64"
    UINT64 = "uint64"
    FLOAT64 = "float64"
    STRING = "string"
    BOOL = "bool"
    TIMESTAMP = "timestamp"


class Op(enum.StrEnum):
    """What a row does to the rows before it with the same key (FORMAT F11)."""

    PATCH = "patch"
    PUT = "put"
    DELETE = "delete"

    @property
    def code(self) -> int:
        """In `OP_COLUMN`; numbers are for ever."""
        return OP_CODES[self]


OP_CODES: Final[dict[Op, int]] = {Op.PATCH: 0, Op.PUT: 1, Op.DELETE: 2}
TABLE_COLUMN: Final = "_runnel_table"
"""int64: in bundles, the id of a row's table (FORMAT F18)."""
PARTITION_COLUMN: Final = "_runnel_partition"
"""int32: in bundles, the id of a row's partition."""
PARQUET: Final = "parquet"
OPS: Final = "ops"
"""A trait of a DataFile: it has `OP_COLUMN`, which a reader must heed; else its rows are of the table's default op."""
KEYS: Final = "keys"
"""It has `SERIES_COLUMN` and `KEY_COLUMN`."""
WHOLE: Final = "whole"
"""Each of its rows is a put, a delete, or has a value in every field that the table has at the file's schema version:
it leaves nothing of older rows with its key."""
PARQUET_OPS: Final = f"{PARQUET}-{OPS}"
BUNDLE: Final = "bundle"
BUNDLE_OPS: Final = f"{BUNDLE}-{OPS}"
SLICE_KINDS: Final = frozenset({BUNDLE, BUNDLE_OPS})
FILE_KINDS: Final = SLICE_KINDS | frozenset(
    "-".join((PARQUET, *some)) for count in range(4) for some in itertools.combinations((OPS, KEYS, WHOLE), count)
)
"""Kinds of DataFiles: `PARQUET` and its traits, in this order, as an object of its own; and as a slice of a bundle,
which has rows of other partitions too."""


ARROW_TYPES: Final[dict[TypeKind, pa.DataType]] = {
    TypeKind.INT64: pa.int64(),
    TypeKind.UINT64: pa.uint64(),
    TypeKind.FLOAT64: pa.float64(),
    TypeKind.STRING: pa.string(),
    TypeKind.BOOL: pa.bool_(),
    TypeKind.TIMESTAMP: pa.timestamp("ns"),
}
TAG_ARROW_TYPE: Final = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``id`` is unique within its table for ever; ``storage_name`` names it in files."""

    id: int
    name: str
    storage_name: str
    role: Role
    kind: TypeKind

    @property
    def arrow_type(self) -> pa.DataType:
        """The type in memtables: tags are dictionaries of strings."""
        return TAG_ARROW_TYPE if self.role is Role.TAG else ARROW_TYPES[self.kind]

    @property
    def plain_type(self) -> pa.DataType:
        """The type in `rows` frames and in DataFiles' logical schema: plain strings (FORMAT F8)."""
        return ARROW_TYPES[self.kind]


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry of a table's partition map (FORMAT F21): hashes in [hash_low, hash_high) live in ``log_id``."""

    id: int
    hash_low: int
    hash_high: int
    log_id: int


@dataclass(frozen=True, slots=True)
class ViewDefinition:
    """What a materialized view keeps: the rows of ``text``, a SELECT that groups one table by time and tags.

    ``table_id`` is that of the table it reads. A row belongs to the bucket of ``width_ns`` in which its time lies, of
    those that begin at ``origin_ns``. How far the stored rows go is said in the table ``state_id``, whose one partition
    is in the same Log as the view's, so that both are written at once.
    """

    table_id: int
    state_id: int
    text: str
    width_ns: int
    origin_ns: int = 0


@dataclass(frozen=True)
class Table:
    """A table at one schema version. Two values with equal ``id`` and ``version`` are the same schema.

    ``columns`` hold ``time`` first, then tags in the order of their first write (the series key),
    then fields in the order of their first write. While ``dropping`` is a Revision, its name is still bound,
    and each shard's Log says by itself whether rows of it are there (LOG L31).

    ``retention_ns`` and ``retention_bytes`` are its own, which replace its database's: None if it has none, 0 if its
    rows are kept whatever the database says.
    """

    id: int
    uuid: str
    database_id: int
    name: str
    version: int
    columns: tuple[Column, ...]
    partitions: tuple[Partition, ...]
    default_op: Op = Op.PATCH
    router: str = "hash"
    deleted: bool = False
    dropping: int = 0
    retention_ns: int | None = None
    retention_bytes: int | None = None
    view: ViewDefinition | None = None
    """Of a materialized view, whose stored rows these are."""

    @property
    def is_hidden(self) -> bool:
        """Whether it is ours, for no user to see."""
        return self.name.startswith(RESERVED_PREFIX)

    @functools.cached_property
    def by_name(self) -> dict[str, Column]:
        """Columns by the name that users see."""
        return {c.name: c for c in self.columns}

    @functools.cached_property
    def by_id(self) -> dict[int, Column]:
        return {c.id: c for c in self.columns}

    @functools.cached_property
    def by_storage_name(self) -> dict[str, Column]:
        return {c.storage_name: c for c in self.columns}

    @functools.cached_property
    def tags(self) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.role is Role.TAG)

    @functools.cached_property
    def fields(self) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.role is Role.FIELD)


@dataclass(frozen=True, slots=True)
class Database:
    """A database: a name for tables, with a retention period and a limit by bytes (None keeps rows for ever).

    While ``dropping`` is a Revision, its tables are being dropped, and its name is still bound (LOG L31).
    """

    id: int
    name: str
    retention_ns: int | None = None
    deleted: bool = False
    dropping: int = 0
    retention_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DataFile:
    """One immutable, sorted Parquet object, or a partition's slice of one, as a Checkpoint names it (FORMAT F18).

    ``path`` is relative to the store's root; of the slices of a bundle it is the same, and each has its share of the
    object's bytes. Ranges are inclusive: order and offset of rows, and event
    time in ns. Within one file each primary key stands once.
    """

    path: str
    table_id: int
    partition: int
    order_low: int
    order_high: int
    offset_low: int
    offset_high: int
    time_low: int
    time_high: int
    rows: int
    bytes: int
    schema_version: int
    kind: str = PARQUET
    key_id: int = 0
    borrowed: bool = False

    @property
    def has_ops(self) -> bool:
        """Whether rows of it have an op that is not the table's default (F11)."""
        return OPS in self.kind.split("-")

    @property
    def has_keys(self) -> bool:
        """Whether it has its rows' canonical keys and their hashes."""
        return KEYS in self.kind.split("-")

    @property
    def is_whole(self) -> bool:
        """Whether no row of it leaves anything of an older one with its key."""
        return WHOLE in self.kind.split("-")

    @property
    def is_slice(self) -> bool:
        """Whether only those rows of the object are its own that have its table's and its partition's ids."""
        return self.kind in SLICE_KINDS

    @property
    def identity(self) -> tuple[str, int, int]:
        """What no other entry of a list has: in one object each partition has at most one slice."""
        return self.path, self.table_id, self.partition


@dataclass(frozen=True, slots=True)
class TailBatch:
    """Rows of the memtable: ``rows`` has fields named by storage names; row i has offset ``first_offset + i``.

    Or a range delete at ``first_offset``, which takes what stands before it; then there are no rows.
    """

    first_offset: int
    rows: pa.RecordBatch
    delete: RangeDelete | None = None

    @property
    def end(self) -> int:
        """The offset after it."""
        return self.first_offset + (self.rows.num_rows if self.delete is None else 1)


NO_ROWS: Final = pa.RecordBatch.from_arrays([], names=[])


@dataclass(frozen=True, slots=True)
class PartitionSnapshot:
    """One partition at one position of its Log (LOG L14): the Checkpoint's files and the tail above its k.

    ``position`` is (log id, epoch, sequence of the last object applied); equal positions of one
    partition have equal content.
    """

    partition: int
    position: tuple[int, int, int]
    files: tuple[DataFile, ...]
    tail: tuple[TailBatch, ...]
    pending: tuple[PendingDelete, ...] = ()
    """Deletes at or below k that are not carried out in all files yet; those of the tail hold for all files."""
    changes_from: int = 0
    """Below this offset there were deletes of which nothing can be seen any more (L25)."""
    cutoff_ns: int | None = None
    """Its own cut-off, by bytes: rows below it are hidden (LOG L36)."""


@dataclass(frozen=True, slots=True)
class TableSnapshot:
    """What a query reads of one table: rows whose time is below ``cutoff_ns``, by age, are hidden (LOG L36)."""

    table: Table
    partitions: tuple[PartitionSnapshot, ...]
    cutoff_ns: int | None = None
