"""Parsed lines to Batches: what the parser must know of a table, what the Catalog must add, which schema fits.

Pure, and per table rather than per row. Driven by `nodes.gateway.coalesce`; ``known`` is also called from the
parser's thread, on immutable values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from nodes.backend import Batch, ColumnSpec, EnsureTable
from storage.keys import RowSeries, SeriesPlaces
from storage.schema import TIME_COLUMN, Role, Table, TypeKind
from wire.lineprotocol.model import FieldType, KnownTable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wire.lineprotocol.model import ParsedTable

CACHED_MAX: Final = 4096
"""Schemas and tables remembered; more are made again when they are needed."""
PLACES_MAX: Final = 8
"""Tables of one name whose series' places are remembered."""
TIME_TYPE: Final = pa.timestamp("ns")

FIELD_KINDS: Final[dict[FieldType, TypeKind]] = {
    FieldType.INT64: TypeKind.INT64,
    FieldType.UINT64: TypeKind.UINT64,
    FieldType.FLOAT64: TypeKind.FLOAT64,
    FieldType.BOOL: TypeKind.BOOL,
    FieldType.STRING: TypeKind.STRING,
}
KIND_FIELDS: Final[dict[TypeKind, FieldType]] = {kind: field for field, kind in FIELD_KINDS.items()}


class StaleTable(Exception):
    """The table is not what it was when the lines were parsed: parse again."""


class TableShapes:
    """Remembers, for each table version, what the parser is told and the Arrow schemas of its Batches."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], KnownTable] = {}
        self._schemas: dict[tuple[object, ...], pa.Schema] = {}

    def known(self, table: Table) -> KnownTable:
        """What the parser needs: tags in the order of the series key, fields with their types."""
        key = (table.id, table.version)
        known = self._known.get(key)
        if known is None:
            fields = {c.name: KIND_FIELDS[c.kind] for c in table.fields if c.kind in KIND_FIELDS}
            known = KnownTable(key=key, tags=tuple(c.name for c in table.tags), fields=fields)
            _remember(self._known, key, known)
        return known

    def batch(self, table: Table, parsed: ParsedTable) -> Batch:
        """The rows under the table's storage names. StaleTable if a column is missing or of another type."""
        columns: tuple[tuple[str, FieldType | None], ...] = (
            *((tag.name, None) for tag in parsed.tags),
            *((one.name, one.type) for one in parsed.fields),
        )
        key = (table.id, table.version, columns)
        schema = self._schemas.get(key)
        if schema is None:
            schema = _schema(table, columns)
            _remember(self._schemas, key, schema)
        time = pa.Array.from_buffers(TIME_TYPE, parsed.rows, [None, pa.py_buffer(parsed.time)])
        arrays = [time, *(tag.values for tag in parsed.tags), *(field.values for field in parsed.fields)]
        return Batch(table, pa.RecordBatch.from_arrays(arrays, schema=schema), _series(table, parsed))


def ensure(database: str, parsed: ParsedTable) -> EnsureTable | None:
    """What the Catalog must add before these rows can be written; None if nothing."""
    if not parsed.new_tags and not parsed.new_fields:
        return None
    return EnsureTable(database, parsed.name, (*tag_specs(parsed.new_tags), *_field_specs(parsed)))


def tag_specs(names: Iterable[str]) -> list[ColumnSpec]:
    """Columns for new tags."""
    return [ColumnSpec(name, Role.TAG, TypeKind.STRING) for name in names]


def _field_specs(parsed: ParsedTable) -> list[ColumnSpec]:
    types = {field.name: field.type for field in parsed.fields}
    return [ColumnSpec(name, Role.FIELD, FIELD_KINDS[types[name]]) for name in parsed.new_fields]


def _series(table: Table, parsed: ParsedTable) -> RowSeries | None:
    """Each row's series, for a table whose rows have more than one place to go."""
    if parsed.series is None or parsed.numbering is None or len(table.partitions) == 1:
        return None
    memo = parsed.numbering.memo  # of all tables of this name: of other databases, and of those that were dropped
    places = memo.get(table.id)
    if places is None:
        places = SeriesPlaces()
        _remember(memo, table.id, places, PLACES_MAX)
    return RowSeries(parsed.series, places)


def _schema(table: Table, columns: tuple[tuple[str, FieldType | None], ...]) -> pa.Schema:
    """The Arrow schema for time and these columns; a column without a field type is a tag."""
    fields = [pa.field(_storage_name(table, TIME_COLUMN, Role.TIME, TypeKind.TIMESTAMP), TIME_TYPE, nullable=False)]
    for name, kind in columns:
        role, wanted = (Role.TAG, TypeKind.STRING) if kind is None else (Role.FIELD, FIELD_KINDS[kind])
        storage_name = _storage_name(table, name, role, wanted)
        fields.append(pa.field(storage_name, table.by_storage_name[storage_name].arrow_type))
    return pa.schema(fields)


def _storage_name(table: Table, name: str, role: Role, kind: TypeKind) -> str:
    column = table.by_name.get(name)
    if column is None or column.role is not role or column.kind is not kind:
        raise StaleTable(f"column {name!r} of table {table.name!r} is not a {role} of type {kind}")
    return column.storage_name


def _remember(cache: dict, key: object, value: object, count_max: int = CACHED_MAX) -> None:  # type: ignore[type-arg]
    if len(cache) >= count_max:
        cache.clear()
    cache[key] = value
