"""Materialized views as frames: stored rows for buckets that are folded, computed ones for those that are not.

`engine.planner` drives it, from its planning thread. What makes frames (`*_frame`, `read`, `fold`) goes on under the
planner's lock, what runs them (`state_of`, `unfolded_of`) does not. The rules are in `engine.viewstate`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from engine import viewsql, viewstate
from engine.changes import ViewProgress
from engine.filescans import Place, file_schema, place_of, scan
from engine.pushed import Pushed, probe_name
from engine.session import CATALOG, LAYERS_SCHEMA, SCHEMA, running_error
from engine.views import View
from engine.viewsql import NEWER, OLDER, OP, quote
from engine.viewstatements import BUCKETS_FIRST
from storage.catalogplan import STATE_FIELD
from storage.deletes import TIME_MAX, TIME_MIN
from storage.schema import OFFSET_COLUMN, TIME_COLUMN, Op, Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datafusion import DataFrame, SessionContext

    from engine.layers import Range
    from engine.views import Tails, Views
    from engine.viewstate import ViewState
    from storage.filecache import Lease
    from storage.schema import DataFile, Table, TableSnapshot, ViewDefinition

WAS_THERE: Final = quote("_runnel_there")
GROUPS_MAX: Final = 65_536
"""Of times that are looked for in files: where there are more buckets several are looked for together."""


@dataclass(frozen=True)
class ViewSnapshots:
    """What a statement reads of a materialized view: its stored rows, the table that it reads, and its state.

    The state is the oldest of them: what it says is folded is in the stored rows, and what came to the table since
    is seen in the table.
    """

    stored: TableSnapshot
    source: TableSnapshot
    state: TableSnapshot

    @property
    def definition(self) -> ViewDefinition:
        view = self.stored.table.view
        assert view is not None, "snapshots of a materialized view"
        return view

    @property
    def visible_from(self) -> int:
        """Buckets from here on are computed again; older ones have lost rows, here or in the table (LOG L36)."""
        found = [part.cutoff_ns for one in (self.source, self.stored) for part in one.partitions]
        return viewstate.visible_from(self.definition, self.source.cutoff_ns, self.stored.cutoff_ns, *found)


@dataclass(frozen=True)
class Unfolded:
    """What the stored rows of a view do not have: the buckets in ``ranges``, as of the ``state`` that would have all.

    Those that a retention cut-off hides are left in that state: a period that is made longer shows them again.
    ``files`` were looked into for it.
    """

    before: ViewState
    state: ViewState
    ranges: tuple[Range, ...]
    files: tuple[DataFile, ...]


class Materialized:
    """Builds the frames of views in one DataFusion context."""

    def __init__(self, context: SessionContext, views: Views, tails: Mapping[int, Tails], lease: Lease) -> None:
        self._context = context
        self._views = views
        self._tails = tails
        self._lease = lease

    # -- what is folded ----------------------------------------------------------------------------------

    def state_frame(self, view: ViewSnapshots) -> DataFrame:
        """The text of its state, in one row or none."""
        found = self._views.view(view.state, self._tails[view.state.table.id], self._lease)
        return found.frame.select(STATE_FIELD)

    def changed_frames(
        self, view: ViewSnapshots, before: ViewState
    ) -> tuple[list[Range], list[DataFrame], list[DataFile]]:
        """What has changed since ``before``: known ranges, the frames of times that say others, and their files."""
        table, definition = view.source.table, view.definition
        ranges, frames = list(before.left), []
        files: list[DataFile] = []
        parts = [(part, before.positions.get(part.partition, 0)) for part in view.source.partitions]
        changed = [(since, viewstate.changes_since(part, since, table, definition)) for part, since in parts]
        ranges += [one for _, changes in changed for one in changes.ranges]
        if viewstate.EVERYTHING[0] in ranges:
            return list(viewstate.EVERYTHING), [], []
        for since, changes in changed:
            places: dict[tuple[bool, Place], list[DataFile]] = {}
            for file in changes.files:
                places.setdefault((file.has_ops, place_of(table, file)), []).append(file)
            for (has_ops, place), found in places.items():
                frame = scan(self._views.files, table, file_schema(table, has_ops), found, place)
                frames.append(_buckets_of(frame, table, definition, since, found))
            files += changes.files
        return ranges, frames, files

    # -- rows --------------------------------------------------------------------------------------------

    def read(self, view: ViewSnapshots, unfolded: Unfolded, times: Range) -> View:
        """The view as a query sees it. Rows outside of ``times`` may be left out."""
        stored = self._views.view(view.stored, self._tails[view.stored.table.id], self._lease, times)
        wanted = viewstate.clipped(_with_never_folded(view, unfolded.ranges), *_span(view))
        ranges = viewstate.clipped(wanted, *viewstate.bucket_range(view.definition, *times))
        if not ranges:
            return stored
        fresh, source = self._fresh(view, ranges)
        kept = stored.frame.filter(f"NOT ({viewsql.in_ranges(view.stored.table, ranges)})")
        return _both(kept.union(fresh), stored, source)

    def fold(
        self, view: ViewSnapshots, unfolded: Unfolded, buckets_max: int | None
    ) -> tuple[DataFrame, ViewProgress, View]:
        """The rows that make the oldest buckets that are out of date right, with their ops; and how far it is then."""
        definition, table = view.definition, view.stored.table
        todo = viewstate.clipped(unfolded.ranges, *_span(view))
        now, later = viewstate.first_buckets(definition, todo, buckets_max or BUCKETS_FIRST)
        state = replace(unfolded.state, left=(*unfolded.state.left, *later))
        text = "" if state == unfolded.before else state.encode()
        progress = ViewProgress(definition.state_id, text, bool(later))
        if not now:
            nothing = self._context.sql("SELECT 0 AS count LIMIT 0")
            return nothing, progress, View(nothing, False, (), frozenset())
        fresh, source = self._fresh(view, now)
        pushed = _pushed(table, now)
        stored = self._views.narrowed(view.stored, self._tails[table.id], self._lease, pushed)
        kept = stored.frame.filter(viewsql.in_ranges(table, now))
        frame = self._joined(table, fresh, kept)
        return frame, progress, _both(frame, stored, source)

    def _fresh(self, view: ViewSnapshots, ranges: Sequence[Range]) -> tuple[DataFrame, View]:
        """The view's rows in these buckets, computed from its table."""
        from datafusion import col, functions
        from datafusion.catalog import Schema

        source, table = view.source.table, view.stored.table
        pushed = _pushed(source, ranges)
        found = self._views.narrowed(view.source, self._tails[source.id], self._lease, pushed)
        schema = Schema.memory_schema()
        schema.register_table(source.name, found.frame.filter(viewsql.in_ranges(source, ranges)).into_view())
        self._context.catalog(CATALOG).register_schema(SCHEMA, schema)
        frame = self._context.sql(view.definition.text)
        items = [
            functions.arrow_cast(col(quote(c.name)), viewsql.SQL_TYPES[c.kind]).alias(c.name)
            for c in viewsql.shown(table)
        ]
        return frame.select(*items), found

    def _joined(self, table: Table, fresh: DataFrame, stored: DataFrame) -> DataFrame:
        """Puts for rows that are new or others than those that are stored, deletes for those that are no more."""
        from datafusion import lit
        from datafusion.catalog import Schema

        catalog, schema = self._context.catalog(CATALOG), Schema.memory_schema()
        for name, frame in (("fresh", fresh), ("stored", stored)):
            marked = frame.with_column(WAS_THERE.strip('"'), lit(True))
            schema.register_table(name, marked.into_view())
        catalog.register_schema(LAYERS_SCHEMA, schema)
        try:
            return self._context.sql(_fold_text(table))
        finally:
            catalog.register_schema(LAYERS_SCHEMA, Schema.memory_schema())


def _both(frame: DataFrame, stored: View, source: View) -> View:
    """A frame that reads what two views read."""
    files, cached = (*stored.files, *source.files), stored.cached | source.cached
    return View(frame, False, files, cached, stored.tails_bytes + source.tails_bytes)


def state_of(frame: DataFrame, view: ViewSnapshots) -> ViewState:
    """What a view's state frame says; nothing if rows that were folded may be lost since."""
    if any(viewstate.is_cut_off(part) for part in view.state.partitions):
        return viewstate.NEW
    rows = _collected(frame)
    texts = rows.column(0).to_pylist() if rows is not None else []
    return viewstate.decode(texts[0] if texts else None, f"materialized view {view.stored.table.name!r}")


def unfolded_of(
    view: ViewSnapshots,
    before: ViewState,
    ranges: Sequence[Range],
    frames: Sequence[DataFrame],
    files: Sequence[DataFile],
) -> Unfolded:
    """What the parts of `Materialized.changed_frames` add up to."""
    found = list(ranges)
    for frame in frames:
        rows = _collected(frame)
        if rows is not None:
            lows, highs = (column.combine_chunks().to_numpy() for column in rows.columns)
            found += viewstate.buckets(view.definition, lows, highs)
    low, high = viewstate.foldable(view.definition)
    changed = viewstate.clipped(viewstate.joined(found), low, high)
    visible = viewstate.clipped(changed, view.visible_from, high)
    hidden = viewstate.clipped(changed, low, view.visible_from - 1)
    positions = {part.partition: viewstate.end_of(part) for part in view.source.partitions}
    return Unfolded(before, viewstate.ViewState(positions, hidden), visible, tuple(files))


def _with_never_folded(view: ViewSnapshots, ranges: Sequence[Range]) -> tuple[Range, ...]:
    """These ranges, and what is around those that are folded; ascending."""
    low, high = viewstate.foldable(view.definition)
    around = ((TIME_MIN, low - 1), *ranges, (high + 1, TIME_MAX))
    return viewstate.clipped(around, view.visible_from, TIME_MAX)


def _collected(frame: DataFrame) -> pa.Table | None:
    try:
        batches = frame.collect()
    except Exception as error:
        raise running_error(error) from error
    return pa.Table.from_batches(batches) if batches else None


def _buckets_of(
    frame: DataFrame, table: Table, view: ViewDefinition, since: int, files: Sequence[DataFile]
) -> DataFrame:
    """The least and the greatest time of the rows at an offset or above, in each of few spans of about a bucket."""
    from datafusion import col, functions, lit

    span = max(file.time_high for file in files) - min(file.time_low for file in files)
    width = max(view.width_ns, span // GROUPS_MAX + 1)
    time = functions.arrow_cast(col(quote(table.by_name[TIME_COLUMN].storage_name)), "Int64")
    number = (time - lit(view.origin_ns)) / lit(width)  # towards zero: there two are one
    rows = frame.filter(f"{quote(OFFSET_COLUMN)} >= {since}").select(time.alias("t"), number.alias("b"))
    ends = rows.aggregate([col("b")], [functions.min(col("t")).alias("low"), functions.max(col("t")).alias("high")])
    return ends.select(col("low"), col("high"))


def _pushed(table: Table, ranges: Sequence[Range]) -> Pushed:
    return Pushed(probe_name(table), (viewsql.in_ranges(table, ranges),), ranges[0][0], ranges[-1][1])


def _span(view: ViewSnapshots) -> Range:
    """Whole buckets around all rows that there are, of the table and of the view."""
    lows, highs = [], []
    for snapshot in (view.source, view.stored):
        for part in snapshot.partitions:
            lows += [file.time_low for file in part.files]
            highs += [file.time_high for file in part.files]
            for batch in part.tail:
                if batch.delete is None and batch.rows.num_rows:
                    times = batch.rows.column(TIME_COLUMN).view(pa.int64()).to_numpy()
                    lows.append(int(times.min()))
                    highs.append(int(times.max()))
    return viewstate.bucket_range(view.definition, min(lows), max(highs)) if lows else (0, -1)


def _fold_text(table: Table) -> str:
    """A full join by key, in which NULL tags are equal; see `viewsql.join_layers`."""
    columns = viewsql.shown(table)
    matches = viewsql.same_key(table)
    items = [
        f"coalesce({NEWER}.{quote(c.name)}, {OLDER}.{quote(c.name)}) AS {quote(c.name)}"
        if c.role is not Role.FIELD
        else f"{NEWER}.{quote(c.name)} AS {quote(c.name)}"
        for c in columns
    ]
    differs = " OR ".join(
        f"({NEWER}.{quote(c.name)} IS DISTINCT FROM {OLDER}.{quote(c.name)})" for c in columns if c.role is Role.FIELD
    )
    op = f"arrow_cast(CASE WHEN {NEWER}.{WAS_THERE} THEN {Op.PUT.code} ELSE {Op.DELETE.code} END, 'Int8') AS {OP}"
    return (
        f"SELECT {', '.join(items)}, {op} FROM {LAYERS_SCHEMA}.fresh AS {NEWER} "  # noqa: S608 - quoted names
        f"FULL JOIN {LAYERS_SCHEMA}.stored AS {OLDER} ON {matches} "
        f"WHERE {NEWER}.{WAS_THERE} IS NULL OR {OLDER}.{WAS_THERE} IS NULL OR {differs}"
    )
