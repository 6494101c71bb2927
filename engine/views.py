"""A table's snapshot as one DataFusion view: files where they stand alone, merged layers where they overlap.

`engine.planner` drives it from its planning thread; a `Views` is not thread safe. Built views are kept until
the snapshot changes, so a repeated query plans against the same object.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from engine import viewsql
from engine.deletedrows import divided, without_deleted
from engine.filescans import Place, file_schema, opaque, place_of, scan, union
from engine.layers import Span, levels, split
from engine.pushed import TIMES, Pushed, constants, probe_name
from engine.session import CATALOG, LAYERS_SCHEMA
from engine.viewsql import Frame
from storage.cutoffs import higher
from storage.datafile import is_whole, with_keys
from storage.deletes import of_file
from storage.schema import (
    KEY_COLUMN,
    OP_COLUMN,
    TIME_COLUMN,
    Op,
    Role,
    TypeKind,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from datafusion import DataFrame, Expr, SessionContext
    from datafusion.catalog import Table as Provider

    from engine.deletedrows import Divided
    from engine.files import FileTables
    from engine.layers import Alone, Merge, Range
    from storage.deletes import RangeDelete
    from storage.filecache import Lease
    from storage.schema import Column, DataFile, PartitionSnapshot, Table, TableSnapshot

VIEWS_KEPT: Final = 256
JOINS_MAX: Final = 6
"""A merge of more layers than this is grouped by key instead of joined one by one."""
SLICE_ROWS: Final = 16_384
"""Rows of a slice of a tail: several threads can work on it."""
ORDER_MAX: Final = 2**63 - 1
"""A tail is newer than every file."""

TAIL_SERIES_MAX: Final = 16_384
"""A tail of more series is merged by its tags: to find their keys takes a microsecond or two for each."""

FILES_MANY: Final = 24
"""A table of more files is worth a second plan that names only those in the query's range of time."""
Tails = dict[int, tuple[pa.RecordBatch, ...]]
"""Folded tail layers by partition, older first."""
Key = tuple[object, ...]


@dataclass(frozen=True)
class View:
    """A table to register. ``narrows`` says that a query's conditions on keys make a cheaper view of it.

    ``files`` are those that it reads; of these it reads ``cached``, by their paths, from the cache. It reads
    ``tails_bytes`` of rows in memory.
    """

    frame: DataFrame
    narrows: bool
    files: tuple[DataFile, ...]
    cached: frozenset[str]
    tails_bytes: int = 0

    @functools.cached_property
    def provider(self) -> Provider:
        """To be registered."""
        return self.frame.into_view()


@dataclass(frozen=True)
class _Own:
    """Columns of ours that the rows of a layer are to have."""

    offset: bool = False
    op: bool = False
    keys: bool = False


@dataclass(frozen=True)
class _Layer:
    """One layer: a file or a folded tail batch."""

    span: Span
    source: DataFile | pa.RecordBatch
    deletes: tuple[RangeDelete, ...] = ()
    """Of a file: range deletes that are not carried out in it."""
    is_clipped: bool = False
    """Whether it has rows outside of its span, which the query does not need."""

    @property
    def has_ops(self) -> bool:
        """Whether rows of it have an op that is not the table's default (F11)."""
        if isinstance(self.source, pa.RecordBatch):
            return OP_COLUMN in self.source.schema.names
        return self.source.has_ops

    @property
    def has_keys(self) -> bool:
        """Whether it has its rows' canonical keys and their hashes."""
        if isinstance(self.source, pa.RecordBatch):
            return KEY_COLUMN in self.source.schema.names
        return self.source.has_keys

    def is_whole(self, table: Table) -> bool:
        """Whether no row of it leaves anything of an older one with its key."""
        return is_whole(table, self.source) if isinstance(self.source, pa.RecordBatch) else self.source.is_whole

    def is_within(self, ranges: Sequence[Range]) -> bool:
        """Whether all of its rows are in one of the ranges."""
        return not self.is_clipped and any(low <= self.span.low and self.span.high <= high for low, high in ranges)


class Views:
    """Builds and keeps views of snapshots; those kept hold at most ``tails_bytes_max`` of tails."""

    def __init__(self, context: SessionContext, files: FileTables, tails_bytes_max: int) -> None:
        self.files = files
        self._context = context
        self._tails_bytes_max = tails_bytes_max
        self._kept: OrderedDict[tuple[int, Range], tuple[Key, View, int]] = OrderedDict()

    def view(self, snapshot: TableSnapshot, tails: Tails, lease: Lease, times: Range = TIMES) -> View:
        """The table as users see it at this snapshot.

        Rows outside of `times` may be left out: each file that has none inside costs a plan 0.6 ms, and layers that
        overlap elsewhere need no merge. What of its files is cached `lease` holds.
        """
        table = snapshot.table
        if not _leaves_out(snapshot, times):
            times = TIMES
        key, place = _key(snapshot), (table.id, times)
        kept = self._kept.get(place)
        if kept is not None and kept[0] == key and lease.hold(kept[1].files).keys() == kept[1].cached:
            self._kept.move_to_end(place)
            return kept[1]
        pushed = None if times == TIMES else Pushed(probe_name(table), (), *times)
        view = _Builder(self._context, self.files, snapshot, tails, lease, pushed).build()
        held = sum(layer.get_total_buffer_size() for layers in tails.values() for layer in layers)
        self._kept[place] = (key, view, held)
        self._kept.move_to_end(place)
        self._let_go()
        return view

    def _let_go(self) -> None:
        """The least recently used first: a view keeps the tail that it was built over, also when rows are in files."""
        total = sum(held for _, _, held in self._kept.values())
        while self._kept and (len(self._kept) > VIEWS_KEPT or total > self._tails_bytes_max):
            total -= self._kept.popitem(last=False)[1][2]

    def narrowed(self, snapshot: TableSnapshot, tails: Tails, lease: Lease, pushed: Pushed) -> View:
        """The same rows without those that no condition of `pushed` lets through, for one query."""
        return _Builder(self._context, self.files, snapshot, tails, lease, pushed).build()

    def unsteady(self, snapshot: TableSnapshot, tails: Tails, lease: Lease, times: Range) -> View:
        """As `view`, for one query with conditions that say something else each time."""
        pushed = Pushed(probe_name(snapshot.table), (), *times, is_unsteady=True)
        return self.narrowed(snapshot, tails, lease, pushed)

    def probe(self, table: Table) -> Provider:
        """A table that takes every condition a query has, to learn them from an optimized plan; it is never run."""
        fields = {c.name: file_schema(table).field(c.storage_name).type for c in viewsql.shown(table)}
        return self.files.table(pa.schema(list(fields.items())), ["probe.parquet"], probe_name(table)).into_view()


def _leaves_out(snapshot: TableSnapshot, times: Range) -> bool:
    """Whether a file has no row within `times`."""
    low, high = times
    return any(file.time_high < low or file.time_low > high for part in snapshot.partitions for file in part.files)


def _key(snapshot: TableSnapshot) -> Key:
    parts = tuple((part.partition, part.position, part.cutoff_ns) for part in snapshot.partitions)
    return (snapshot.table.version, snapshot.table.name, snapshot.cutoff_ns, parts)


class _Builder:
    """Builds one view: registers layers, writes SQL over them, plans it."""

    def __init__(
        self,
        context: SessionContext,
        files: FileTables,
        snapshot: TableSnapshot,
        tails: Tails,
        lease: Lease,
        pushed: Pushed | None,
    ) -> None:
        from datafusion.catalog import Schema

        self._context = context
        self._files = files
        self._table = snapshot.table
        self._snapshot = snapshot
        self._cutoff: int | None = None
        """Of the partition that is being added: by its table's age, or by its own bytes (L36)."""
        self._tails = tails
        self._lease = lease
        self._cached: dict[str, str] = {}
        self._pushed = pushed
        self._schema = Schema.memory_schema()
        self._registered = 0
        self._parts: list[DataFrame] = []
        self._whole: list[DataFile] = []
        self._used: dict[str, DataFile] = {}
        self._whole_tails: dict[pa.Schema, list[pa.RecordBatch]] = {}
        self._divided: dict[tuple[RangeDelete, ...], Divided] = {}
        self._tails_bytes = 0
        self._merges = 0
        self._layers_used = 0

    def build(self) -> View:
        """Plan the view; afterwards the layers have no names any more, so no statement can reach them."""
        from datafusion.catalog import Schema

        catalog = self._context.catalog(CATALOG)
        catalog.register_schema(LAYERS_SCHEMA, self._schema)
        try:
            for part in self._snapshot.partitions:
                self._cutoff = higher(self._snapshot.cutoff_ns, part.cutoff_ns)
                self._add_partition(self._layers(part, self._tails.get(part.partition, ())))
            frame = union(self._finished_parts())
            narrows = self._merges > 0 or self._layers_used > FILES_MANY
            cached = frozenset(self._used.keys() & self._cached.keys())
            return View(frame, narrows, tuple(self._used.values()), cached, self._tails_bytes)
        finally:
            catalog.register_schema(LAYERS_SCHEMA, Schema.memory_schema())

    def _layers(self, part: PartitionSnapshot, tail: Sequence[pa.RecordBatch]) -> list[_Layer]:
        # Before anything is made of them: there may be tens of thousands, of which a query wants a few.
        low, high = TIMES if self._pushed is None else (self._pushed.low, self._pushed.high)
        wanted = [f for f in part.files if f.time_high >= low and f.time_low <= high]
        newer = [batch.delete for batch in part.tail if batch.delete is not None]
        layers = []
        for file in wanted:
            deletes = of_file(file, part.pending, newer) if part.pending or newer else ()
            if not any(delete.takes_all(file.time_low, file.time_high) for delete in deletes):
                span = Span(file.time_low, file.time_high, (file.order_high, file.order_low))
                layers.append(_Layer(span, file, tuple(deletes)))
        self._cached |= self._lease.hold([f.source for f in layers if not isinstance(f.source, pa.RecordBatch)])
        for place, batch in enumerate(tail):
            layers.append(_Layer(_tail_span(self._table, batch, place), batch))
        cutoff = self._cutoff
        visible = [layer for layer in layers if cutoff is None or layer.span.high >= cutoff]
        return visible if self._pushed is None else _clipped(visible, self._pushed)

    def _add_partition(self, layers: Sequence[_Layer]) -> None:
        self._layers_used += len(layers)
        alone, merges = split([layer.span for layer in layers])
        for piece in alone:
            self._add_alone(layers[piece.index], piece)
        for merge in merges:
            self._add_merge(layers, merge)

    def _add_alone(self, layer: _Layer, piece: Alone) -> None:
        ranges = self._visible(piece.ranges or ((layer.span.low, layer.span.high),))
        is_whole = not piece.ranges and ranges == [(layer.span.low, layer.span.high)]
        if layer.has_ops and ranges:
            self._parts.append(self._without_deletes(self._shown(*self._rows(layer), ranges, _Own(op=True))))
        elif ranges and (layer.deletes or not is_whole):
            self._parts.append(self._shown(*self._rows(layer), ranges))
        elif is_whole and isinstance(layer.source, pa.RecordBatch):
            rows = self._needed(layer.source)
            self._whole_tails.setdefault(rows.schema, []).extend(_slices(rows))
        elif is_whole:
            self._whole.append(layer.source)

    def _add_merge(self, layers: Sequence[_Layer], merge: Merge) -> None:
        ranges = self._visible([(merge.low, merge.high)])
        if not ranges:
            return
        self._merges += 1
        found = [[layers[i] for i in level] for level in levels([layer.span for layer in layers], merge.indexes)]
        has_ops = any(layers[i].has_ops for i in merge.indexes)
        if len(found) > JOINS_MAX:
            has_ops = has_ops or self._table.default_op is not Op.PATCH
            frames = [self._merge_frame(level, ranges, _Own(offset=True, op=has_ops)) for level in found]
            text, is_patched = viewsql.group_layers(self._table, frames, has_ops), False
        else:
            found, has_keys = self._with_keys(found)
            frames = [self._merge_frame(level, ranges, _Own(op=has_ops, keys=has_keys)) for level in found]
            text = viewsql.join_layers(self._table, frames, has_ops, has_keys)
            is_patched = not all(frame.is_whole for frame in frames[:-1])
        self._parts.append(self._hidden(self._context.sql(text), is_patched))

    def _hidden(self, merged: DataFrame, is_patched: bool) -> DataFrame:
        """Merged rows with columns hidden from the optimizer, which makes mistakes with conditions on them.

        Keys, where our own conditions on them are in the layers already: DataFusion 55 takes `host = 'a' AND 'a' =
        host` for a contradiction where strings or times are compared, and pushes a statement's own conditions down to
        ours. The greatest of one value is that value; what equals a constant is that, and the condition is gone. All
        columns of patched rows, which are computed of those of two sides: see `opaque`. And all where a condition is
        unsteady: DataFusion gives one on the keys of a join to both sides, and what is hidden was seen again.
        """
        from datafusion import col, functions

        conditions = () if self._pushed is None else self._pushed.conditions
        is_opaque = is_patched or (self._pushed is not None and self._pushed.is_unsteady)
        if not conditions and not is_opaque:
            return merged
        # A constant in a column's place, and one before an equals sign: of these two, too, it makes a contradiction.
        known = {} if self._pushed is not None and self._pushed.is_backwards else constants(conditions)
        keys = {column.name for column in viewsql.keys(self._table)}

        def item(name: str) -> Expr:
            column = col(viewsql.quote(name))
            if name in known:
                return known[name].alias(name)
            if is_opaque:
                return opaque(column).alias(name)
            return functions.greatest(column).alias(name) if name in keys else column

        return merged.select(*map(item, merged.schema().names))

    def _with_keys(self, found: list[list[_Layer]]) -> tuple[list[list[_Layer]], bool]:
        """The levels with the keys of tails, if then all layers have them; else as they are."""
        layers = [layer for level in found for layer in level]
        if not all(layer.has_keys for layer in layers if not isinstance(layer.source, pa.RecordBatch)):
            return found, False
        keyed = [[self._keyed(layer) for layer in level] for level in found]
        has_keys = all(layer.has_keys for level in keyed for layer in level)
        return (keyed if has_keys else found), has_keys

    def _keyed(self, layer: _Layer) -> _Layer:
        if not isinstance(layer.source, pa.RecordBatch):
            return layer
        return dataclasses.replace(layer, source=with_keys(self._table, layer.source, TAIL_SERIES_MAX))

    def _merge_frame(self, level: Sequence[_Layer], ranges: Sequence[Range], own: _Own) -> Frame:
        limits = [] if all(layer.is_within(ranges) for layer in level) else ranges
        parts = [self._shown(frame, schema, limits, own) for frame, schema in self._level_rows(level, own.keys)]
        frame = union(parts)
        if self._pushed is not None:
            frame = frame.alias(self._pushed.qualifier)
            for condition in self._pushed.conditions:
                frame = frame.filter(condition)
        return Frame(self._name(frame), all(layer.is_whole(self._table) for layer in level))

    def _level_rows(self, level: Sequence[_Layer], with_keys: bool) -> list[tuple[DataFrame, pa.Schema]]:
        """The rows of layers that share no key; files of one kind are one scan, as far as deletes leave them whole."""
        plain: dict[bool, list[DataFile]] = {}
        found: list[tuple[DataFrame, pa.Schema]] = []
        for layer in level:
            if isinstance(layer.source, pa.RecordBatch) or layer.deletes:
                found.append(self._rows(layer, with_keys, merges=True))
            else:
                plain.setdefault(layer.has_ops, []).append(layer.source)
        for has_ops, files in plain.items():
            schema = file_schema(self._table, has_ops, with_keys)
            found += [(frame, schema) for frame in self._scans(schema, files)]
        return found

    def _finished_parts(self) -> list[DataFrame]:
        """The parts, of which there is at least one: files that stand alone are one scan, tails one for each schema.

        Each scan costs a plan 0.6 ms, and a table has a tail in each of its partitions.
        """
        schema = file_schema(self._table)
        for tail_schema, batches in self._whole_tails.items():
            self._parts.append(self._shown(self._context.read_batches(batches), tail_schema, []))
        frames = self._scans(schema, self._whole)
        self._parts[:0] = [self._shown(frame, schema, []) for frame in frames]
        if not self._parts:
            nothing = self._context.read_batch(pa.RecordBatch.from_pylist([], schema))
            self._parts.append(self._shown(nothing, schema, []))
        return self._parts

    def _rows(self, layer: _Layer, with_keys: bool = False, *, merges: bool = False) -> tuple[DataFrame, pa.Schema]:
        """A layer's rows, without those that range deletes take, by storage names, and its schema."""
        source = layer.source
        if isinstance(source, pa.RecordBatch):
            rows = self._needed(source, merges)
            return self._context.read_batches(_slices(rows)), rows.schema
        schema = file_schema(self._table, source.has_ops, with_keys)
        (frame,) = self._scans(schema, [source])
        if layer.deletes:
            if layer.deletes not in self._divided:  # files mostly have the same ones
                self._divided[layer.deletes] = divided(layer.deletes)
            frame = without_deleted(self._context, self._table, frame, self._divided[layer.deletes])
        return frame, schema

    def _needed(self, tail: pa.RecordBatch, merges: bool = False) -> pa.RecordBatch:
        """A tail without the columns that nobody looks at: a merge looks at keys, and at what is ours.

        Where a plan is written down its rows in memory are written with it, as they are here.
        """
        columns = None if self._pushed is None else self._pushed.columns
        if columns is not None:
            known = self._table.by_storage_name
            tail = tail.select(
                [name for name in tail.schema.names if _is_needed(name, known.get(name), columns, merges)]
            )
        self._tails_bytes += tail.get_total_buffer_size()
        return tail

    def _scans(self, schema: pa.Schema, files: Sequence[DataFile]) -> list[DataFrame]:
        """One scan of those that are cached, one of those in the store: a scan reads from one place only.

        And for slices one for each partition: an object may also have rows of others that are not to be read from it.
        """
        self._used |= {file.path: file for file in files}
        places: dict[Place, list[DataFile]] = {}
        for file in files:
            cached = self._cached.get(file.path)
            place = place_of(self._table, file, cached is not None)
            places.setdefault(place, []).append(file if cached is None else replace(file, path=cached))
        return [scan(self._files, self._table, schema, found, place) for place, found in places.items()]

    def _without_deletes(self, frame: DataFrame) -> DataFrame:
        """A layer that stands alone, without rows that only delete what is below them."""
        return frame.filter(viewsql.IS_THERE).drop(OP_COLUMN)

    def _shown(
        self,
        frame: DataFrame,
        schema: pa.Schema,
        ranges: Sequence[Range],
        own: _Own | None = None,
    ) -> DataFrame:
        """A layer under the users' names; without `ranges` all of its rows.

        Not as SQL: there DataFusion's time grows with the square of the columns, to seconds at ten thousand.
        """
        from datafusion import col, functions

        if ranges:
            frame = frame.filter(viewsql.in_ranges(self._table, ranges))
        types = dict(zip(schema.names, schema.types, strict=True))  # ten thousand look-ups in a list took seconds
        items = [_value(column, types).alias(column.name) for column in viewsql.shown(self._table)]
        if own is not None and own.op:
            items.append(_op(self._table, types).alias(OP_COLUMN))
        if own is not None and own.keys:
            items.append(col(viewsql.SERIES))
            items.append(functions.arrow_cast(col(viewsql.KEY), "BinaryView").alias(KEY_COLUMN))
        if own is not None and own.offset:
            items.append(col(viewsql.OFFSET))
        return frame.select(*items)

    def _name(self, frame: DataFrame) -> str:
        name = f"l{self._registered}"
        self._registered += 1
        self._schema.register_table(name, frame.into_view())
        return f"{LAYERS_SCHEMA}.{name}"

    def _visible(self, ranges: Sequence[Range]) -> list[Range]:
        """The ranges without what is below the cut-off."""
        cutoff = self._cutoff
        if cutoff is None:
            return list(ranges)
        return [(max(low, cutoff), high) for low, high in ranges if high >= cutoff]


def _value(column: Column, types: Mapping[str, pa.DataType]) -> Expr:
    """The column's value in a layer, as strings that DataFusion compares fastest, or NULL of its type."""
    from datafusion import col, functions, lit

    if column.storage_name not in types:
        return functions.arrow_cast(lit(None), viewsql.SQL_TYPES[column.kind])
    value = col(viewsql.quote(column.storage_name))
    if column.kind is not TypeKind.STRING or types[column.storage_name] == pa.string_view():
        return value
    return opaque(functions.arrow_cast(value, "Utf8View"))


def _is_needed(name: str, column: Column | None, columns: Collection[str], merges: bool) -> bool:
    """Whether a column of a tail, which is one of ours if the table does not know it, is looked at."""
    if column is None:
        return merges or name == OP_COLUMN
    return column.name in columns or column.role is Role.TIME or (merges and column.role is Role.TAG)


def _op(table: Table, present: Collection[str]) -> Expr:
    """What a row does to older ones; never NULL."""
    from datafusion import col, functions, lit

    default = functions.arrow_cast(lit(table.default_op.code), "Int8")
    return functions.coalesce(col(viewsql.OP), default) if OP_COLUMN in present else default


def _clipped(layers: Sequence[_Layer], pushed: Pushed) -> list[_Layer]:
    """The layers with rows in a range of time, as if they had none outside: what is outside no query row needs."""
    clipped = []
    for layer in layers:
        low, high = max(layer.span.low, pushed.low), min(layer.span.high, pushed.high)
        if low <= high:
            span = Span(low, high, layer.span.order)
            is_clipped = layer.is_clipped or span != layer.span
            clipped.append(dataclasses.replace(layer, span=span, is_clipped=is_clipped))
    return clipped


def _tail_span(table: Table, batch: pa.RecordBatch, place: int) -> Span:
    times: Any = batch.column(table.by_name[TIME_COLUMN].storage_name).view(pa.int64()).to_numpy()
    return Span(int(times.min()), int(times.max()), (ORDER_MAX, place))


def _slices(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    return [batch.slice(at, SLICE_ROWS) for at in range(0, batch.num_rows, SLICE_ROWS)]
