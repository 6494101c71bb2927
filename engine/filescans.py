"""DataFiles as frames of a table's columns: whole objects, and slices of bundles (FORMAT F18).

Driven by `engine.views`, which merges what it makes, and by `engine.materialized`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from engine.files import SCAN_NAME
from engine.onescan import PART_NAME, parts
from engine.viewsql import quote
from storage.schema import (
    KEY_COLUMN,
    OFFSET_COLUMN,
    OP_COLUMN,
    OP_TYPE,
    PARTITION_COLUMN,
    SERIES_COLUMN,
    TABLE_COLUMN,
    TIME_COLUMN,
    TypeKind,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datafusion import DataFrame, Expr

    from engine.files import FileTables
    from storage.schema import DataFile, Table


class Place(NamedTuple):
    """From where files are read; of slices those of one ``partition``, and whether their table has since grown."""

    is_cached: bool
    partition: int | None = None
    is_older: bool = False


def file_schema(table: Table, has_ops: bool = False, has_keys: bool = False) -> pa.Schema:
    """How DataFiles are read: string views are what DataFusion groups, joins and compares fastest."""
    fields = [(c.storage_name, pa.string_view() if c.kind is TypeKind.STRING else c.plain_type) for c in table.columns]
    fields += [(OP_COLUMN, OP_TYPE)] if has_ops else []
    fields += [(SERIES_COLUMN, pa.int64()), (KEY_COLUMN, pa.binary_view())] if has_keys else []
    return pa.schema([*fields, (OFFSET_COLUMN, pa.int64())])


def bundle_schema(schema: pa.Schema) -> pa.Schema:
    """The same for slices of bundles: with the columns that say whose rows they are."""
    return pa.schema([(TABLE_COLUMN, pa.int64()), (PARTITION_COLUMN, pa.int32()), *schema])


def as_text(schema: pa.Schema) -> pa.Schema:
    """The same for slices that are older than their table's newest columns, whose values are read as text.

    Another table of the bundle may have a column of such a name and of another type, and a scan turns the values of all
    rows into what is asked for before it is seen whose they are: to text everything can be turned.
    """
    is_plain = (TIME_COLUMN, OP_COLUMN, OFFSET_COLUMN)
    return pa.schema([f if f.name in is_plain else pa.field(f.name, pa.string_view()) for f in schema])


def place_of(table: Table, file: DataFile, is_cached: bool = False) -> Place:
    """From where a file is read."""
    if not file.is_slice:
        return Place(is_cached)
    return Place(is_cached, file.partition, file.schema_version < table.version)


def scan(tables: FileTables, table: Table, schema: pa.Schema, files: Sequence[DataFile], place: Place) -> DataFrame:
    """The rows of files, by storage names. Whole files, many large ones in parts (`engine.onescan`); or a partition's
    slices of bundles, of which row groups without its rows are skipped (F18)."""
    if place.partition is not None:
        return _slices(tables, table, schema, files, place)
    divided = parts(files) if tables.is_local(place.is_cached) else [files]
    name = SCAN_NAME if len(divided) == 1 else PART_NAME
    return union([tables.table(schema, [f.path for f in part], name, place.is_cached) for part in divided])


def _slices(tables: FileTables, table: Table, schema: pa.Schema, files: Sequence[DataFile], place: Place) -> DataFrame:
    from datafusion import col, literal

    stored = as_text(schema) if place.is_older else schema
    frame = tables.table(bundle_schema(stored), [file.path for file in files], is_cached=place.is_cached)
    of_table = col(quote(TABLE_COLUMN)) == literal(pa.scalar(table.id, pa.int64()))
    of_partition = col(quote(PARTITION_COLUMN)) == literal(pa.scalar(place.partition, pa.int32()))
    frame = frame.filter(of_table, of_partition)
    return frame.select(*(_read_as(field, stored.field(field.name).type) for field in schema))


def _read_as(field: pa.Field, stored: pa.DataType) -> Expr:
    """A column of a slice with the type that it has in its table."""
    from datafusion import col

    value = col(quote(field.name))
    return value if stored == field.type else opaque(value.try_cast(field.type)).alias(field.name)


def opaque(value: Expr) -> Expr:
    """The value itself, but DataFusion moves no condition on it below: it might be another each time that it is asked.

    It leaves a column out of sorts that has to be equal to a constant. Where the column is computed above the filter,
    DataFusion 55 then forgets that it was constant, misses the order, and refuses its own plan. A random number is made
    of rows without a value only.
    """
    from datafusion import functions, lit

    is_nothing = functions.random() < lit(2.0)
    return functions.when(value.is_not_null(), value).when(is_nothing, lit(None)).end()


def union(parts: Sequence[DataFrame]) -> DataFrame:
    """The rows of all parts; the plan's depth is the logarithm of their number."""
    frames = list(parts)
    while len(frames) > 1:
        pairs = [frames[at].union(frames[at + 1]) for at in range(0, len(frames) - 1, 2)]
        frames = pairs + frames[2 * len(pairs) :]
    return frames[0]
