"""From statement and snapshots to a running DataFusion stream; blocking, called in the engine's threads.

Names are resolved under a lock, against schemas that hold exactly this query's snapshots, so a query sees one
snapshot of each table and no other database. Physical planning and execution go on outside the lock.
"""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from engine import names, onescan
from engine.changes import ChangeKind, RowChange
from engine.deleterange import range_delete
from engine.distribution import Distribution
from engine.errors import EngineError, InvalidStatement, NotSupported, QueryFailed, UnknownTable
from engine.files import FileRoot, FileTables
from engine.ladder import Rung
from engine.materialized import Materialized, state_of, unfolded_of
from engine.misread import steadied
from engine.pushed import TIMES, probe_name, usable
from engine.scan import system_tables
from engine.scans import pushed_scans, scan_counts
from engine.session import (
    CATALOG,
    SCHEMA,
    SYSTEM_SCHEMA,
    assigned,
    bind,
    change_statement,
    new_context,
    read_statement,
    s3_store,
    set_option,
    set_partitions,
)
from engine.starting import started
from engine.stoppable import joins
from engine.tails import TailCache
from engine.viewdefinition import SHAPE, check_steady, definition, with_names
from engine.views import Views
from engine.viewsql import keys, quote, shown
from engine.viewstatements import CreateStatement
from storage.errors import SnapshotTooOld
from storage.filecache import Lease
from storage.schema import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from datafusion import DataFrame, SessionContext
    from datafusion.object_store import AmazonS3

    from engine.batches import Source
    from engine.distribution import Offer
    from engine.ladder import LadderLimits, Workers
    from engine.layers import Range
    from engine.materialized import Unfolded, ViewSnapshots
    from engine.scan import SystemTable
    from engine.views import Tails, View
    from engine.viewstatements import RefreshStatement
    from storage.deletes import RangeDelete
    from storage.objects import S3Options
    from storage.schema import Column, DataFile, Table, TableSnapshot

DESCRIBE_BYTES: Final = 64 * 2**20
"""Memory pool of a statement about the schema: it has its own context, which no other query can change."""
CONDITIONS: Final = frozenset({"where", "join", "having", "on", "using"})
HEAVY_TAILS_BYTES: Final = 8 * 2**20
"""More rows in memory are not carried with a plan that is written down if a second plan can do without some of them."""
HEAVY_FILES_BYTES: Final = 32 * 2**20
"""Statements that read less of files are not written down for it."""


@dataclass(frozen=True)
class PlanRequest:
    """One statement with everything that it reads. ``snapshots`` are of the tables that it mentions.

    ``frugal`` plans it for one partition: it takes longer and less memory, and sorts spill much better. ``runs_on``
    hears on which rung it runs, and on how many workers, each time that is settled.
    """

    statement: str
    params: Mapping[str, object]
    tables: Sequence[Table]
    snapshots: Sequence[TableSnapshot]
    system: Sequence[SystemTable]
    frugal: bool = False
    views: Sequence[ViewSnapshots] = ()
    """Of the materialized views that it mentions; they are in ``snapshots`` too, as are their own snapshots here."""
    asked: CreateStatement | RefreshStatement | None = None
    """Of a statement about a materialized view."""
    runs_on: Callable[[Rung, int], None] = lambda rung, workers: None


@dataclass(frozen=True)
class Started:
    """A query that runs as its source is read. ``change``: what its rows are for, of a statement that writes.

    ``lease`` is to be released when the source is not read any more: what it holds was there for it.
    """

    schema: pa.Schema
    source: Source
    lease: Lease
    change: RowChange | None = None


@dataclass(frozen=True)
class PlannerLimits:
    """What queries may use together."""

    memory_bytes: int
    spill_folder: Path | None
    spill_bytes_max: int
    target_partitions: int
    batch_rows: int
    tails_bytes_max: int
    query_bytes_max: int = 0
    """Of one query, in a pool of its own; 0: all share one."""
    query_spill_bytes_max: int = 0


class Planner:
    """Owns the DataFusion context of an engine. Thread safe."""

    def __init__(
        self,
        root: FileRoot,
        limits: PlannerLimits,
        s3: S3Options | None,
        workers: Workers | None = None,
        ladder: LadderLimits | None = None,
    ) -> None:
        self._root = root
        self._limits = limits
        self._s3 = s3
        self._tails = TailCache(limits.tails_bytes_max)
        self._lock = threading.Lock()
        self._context: SessionContext | None = None
        self._s3_store: AmazonS3 | None = None
        self._views: Views | None = None
        self._partitions = limits.target_partitions
        self._distribution: Distribution | None = None
        if workers is not None and ladder is not None:
            self._distribution = Distribution(workers, ladder, limits.memory_bytes // 2)

    def start(self, request: PlanRequest) -> Started:
        """Plan and start a statement. Raises EngineError, SnapshotTooOld, UnsupportedFormat."""
        lease = self._lease(request)
        try:
            return self._start(request, lease)
        except BaseException:
            lease.release()
            raise

    def _start(self, request: PlanRequest, lease: Lease) -> Started:
        params = bind(request.params)
        read = [*request.snapshots, *(s for v in request.views for s in (v.stored, v.source, v.state))]
        tails = {s.table.id: self._fold(s) for s in read}
        unfolded = {view.stored.table.id: self._unfolded(view, tails, lease) for view in request.views}
        inputs = _Inputs(tails, system_tables(request.statement, request.system), params, lease, unfolded)
        named = self._name(request, inputs)
        lease.keep(named.cached)
        if lease.bring(named.files.values()):
            named = self._name(request, inputs)
            lease.keep(named.cached)
        try:
            source = self._source(named, request.runs_on)
        except EngineError as error:
            _check_cached(lease)  # rather than the statement, one of them may be to blame
            if isinstance(error, QueryFailed):
                error.read_cached = lease.doubt()
            raise
        _check_cached(lease)
        looked_into = {file.path for one in unfolded.values() for file in one.files}
        self._check_files((named.files.keys() - named.cached) | looked_into)
        return Started(named.frame.schema(), source, lease, named.change)

    def _lease(self, request: PlanRequest) -> Lease:
        """What the statement may have of the cache: nothing, if workers run it, who have no such files."""
        read = (*request.snapshots, *(view.source for view in request.views))
        size = sum(file.bytes for s in read for part in s.partitions for file in part.files)
        is_shared = self._distribution is not None and self._distribution.may_take(size)
        return Lease() if is_shared else self._root.lease()

    def _name(self, request: PlanRequest, inputs: _Inputs) -> _Named:
        """Plan up to names. A statement about the schema has a context of its own, which no other query can change."""
        if names.describes(request.statement):
            context, views = self._new_context(min(DESCRIBE_BYTES, self._limits.memory_bytes), None)
            return _Naming(context, views, request, inputs, describes=True).named()
        with self._lock:
            context, views = self._shared()
            self._set_partitions(context, 1 if request.frugal else self._limits.target_partitions)
            named = _Naming(context, views, request, inputs).named()
            named = dataclasses.replace(named, frame=steadied(context, named.frame, request.statement))
            return dataclasses.replace(named, offer=self._offer(named, request))

    def _unfolded(self, view: ViewSnapshots, tails: Mapping[int, Tails], lease: Lease) -> Unfolded:
        """What the stored rows of a materialized view do not have. Runs statements of its own."""
        with self._lock:
            materialized = Materialized(*self._shared(), tails, lease)
            frame = materialized.state_frame(view)
        before = state_of(frame, view)
        with self._lock:
            ranges, frames, files = materialized.changed_frames(view, before)
        return unfolded_of(view, before, ranges, frames, files)

    def _offer(self, named: _Named, request: PlanRequest) -> Offer | None:
        """The statement as its rung has it; one that ran out of memory once has had its chance."""
        if self._distribution is None or request.frugal:
            return None
        size = sum(file.bytes for file in named.files.values())
        return self._distribution.offer(
            named.context,
            named.frame,
            size,
            named.tails_bytes,
            lambda count: self._set_partitions(named.context, count),
        )

    def _source(self, named: _Named, runs_on: Callable[[Rung, int], None]) -> Source:
        """Plan physically and start."""

        def local() -> Source:
            runs_on(Rung.LOCAL, 0)
            return started(
                named.context, named.frame, named.tails_bytes, self._own_pool(), self._limits.query_bytes_max
            )

        def after_all() -> Source:
            source = local()
            self._check_files(named.files.keys() - named.cached)  # again: it is planned now, and `start` looked before
            return source

        if self._distribution is None or named.offer is None:
            return local()
        return self._distribution.source(named.context, named.offer, named.frame, local, after_all, runs_on)

    def _set_partitions(self, context: SessionContext, partitions: int) -> None:
        if partitions != self._partitions:
            set_partitions(context, partitions)
            self._partitions = partitions

    def _fold(self, snapshot: TableSnapshot) -> Tails:
        return {p.partition: self._tails.layers(snapshot.table, p) for p in snapshot.partitions}

    def _shared(self) -> tuple[SessionContext, Views]:
        if self._context is None or self._views is None:
            self._context, self._views = self._new_context(self._limits.memory_bytes, self._limits.spill_folder)
        return self._context, self._views

    def _own_pool(self) -> SessionContext | None:
        """Where a statement runs that has memory of its own: what is planned, and footers, stay with the shared one."""
        limits = self._limits
        if not limits.query_bytes_max:
            return None
        context = new_context(
            limits.query_bytes_max, limits.spill_folder, limits.target_partitions, limits.batch_rows,
            limits.query_spill_bytes_max,
        )  # fmt: skip
        self._register_store(context)
        return context

    def _register_store(self, context: SessionContext) -> None:
        if self._root.bucket is None or self._s3 is None:
            return
        if self._s3_store is None:
            self._s3_store = s3_store(self._root.bucket, self._s3)
        context.register_object_store("s3://", self._s3_store, self._root.bucket)

    def _new_context(self, memory_bytes: int, spill_folder: Path | None) -> tuple[SessionContext, Views]:
        limits = self._limits
        context = new_context(
            memory_bytes, spill_folder, limits.target_partitions, limits.batch_rows, limits.spill_bytes_max
        )
        self._register_store(context)
        if self._root.bucket is None:
            for name, value in onescan.OPTIONS.items():
                set_option(context, name, value)
        files = FileTables(context, self._root.url, self._root.cache_url)
        return context, Views(context, files, limits.tails_bytes_max)

    def _check_files(self, paths: Collection[str]) -> None:
        """LOG L16: DataFusion reads a file that is not there when it plans as an empty one, so look after it.

        Names are never used again: a file that exists now existed while the plan was made.
        """
        missing = self._root.missing(paths)
        if missing:
            raise SnapshotTooOld(f"{len(missing)} files of the snapshot are gone, among them {missing[0]}")


@dataclass(frozen=True)
class _Inputs:
    """What a statement is planned with, beside its request: made once, however often it is planned."""

    tails: Mapping[int, Tails]
    system: Mapping[str, pa.Table]
    params: Mapping[str, pa.Scalar]
    lease: Lease
    unfolded: Mapping[int, Unfolded] = field(default_factory=dict)


@dataclass(frozen=True)
class _Named:
    """A statement whose names are resolved; it reads ``files``, by their paths, of which ``cached`` are in the cache.

    It reads ``tails_bytes`` of rows in memory. ``change``: of a statement that writes, what its rows are for.
    ``offer``: how it may run on workers.
    """

    context: SessionContext
    frame: DataFrame
    change: RowChange | None
    files: Mapping[str, DataFile]
    cached: frozenset[str]
    tails_bytes: int
    offer: Offer | None = None


class _Naming:
    """Gives one statement's names their meaning and plans it."""

    def __init__(
        self, context: SessionContext, views: Views, request: PlanRequest, inputs: _Inputs, describes: bool = False
    ) -> None:
        self._context = context
        self._views = views
        self._request = request
        self._inputs = inputs
        self._tails = inputs.tails
        self._describes = describes
        self._is_unsteady = names.is_unsteady(request.statement)
        self._change: RowChange | None = None
        """Of a statement that writes, once it is planned."""
        self._range: RangeDelete | None = None
        self._files: dict[str, DataFile] = {}
        self._cached: frozenset[str] = frozenset()
        self._tails_bytes = 0

    def named(self) -> _Named:
        """The statement with what its names mean."""
        return _Named(self._context, self._frame(), self._change, self._files, self._cached, self._tails_bytes)

    def _frame(self) -> DataFrame:
        if isinstance(self._request.asked, CreateStatement):
            return self._new_view(self._request.asked)
        if self._request.asked is not None:
            return self._refreshed(self._request.asked)
        snapshots = self._request.snapshots
        # With one table there can be no doubt whose times the statement asks for.
        times = names.times(self._request.statement) if len(snapshots) == 1 else None
        views = {s.table.name: self._view(s, times or TIMES) for s in snapshots}
        providers: dict[str, Any] = {name: view.provider for name, view in views.items()}
        self._register(providers)
        self._reads(views)
        frame, statement = self._plan(self._request.statement)
        self._refuse_described(frame, providers)
        self._look_for_range(statement, providers)
        wide = self._wide(frame, statement, views)
        narrowed = self._narrow(statement, providers, wide) if wide else {}
        if not narrowed:
            return self._counted(frame)
        self._register(providers | {name: view.provider for name, view in narrowed.items()})
        self._reads(views | narrowed)
        return self._counted(self._read(statement))

    def _view(self, snapshot: TableSnapshot, times: Range) -> View:
        materialized = next((v for v in self._request.views if v.stored is snapshot), None)
        if materialized is None:
            view = self._views.unsteady if self._is_unsteady else self._views.view
            return view(snapshot, self._tails[snapshot.table.id], self._inputs.lease, times)
        return self._materialized().read(materialized, self._inputs.unfolded[snapshot.table.id], times)

    def _materialized(self) -> Materialized:
        return Materialized(self._context, self._views, self._tails, self._inputs.lease)

    def _new_view(self, asked: CreateStatement) -> DataFrame:
        """No rows: what the view is stands in the change."""
        check_steady(asked.query)
        tables = names.mentioned_tables(asked.query, self._request.tables)
        self._register({table.name: self._views.probe(table) for table in tables})
        frame, text = self._plan(asked.query)
        counts = scan_counts(frame)
        read = [table for table in tables if counts.get(probe_name(table))]
        if len(read) != 1 or sum(counts.values()) != 1:
            raise NotSupported(f"{SHAPE}: it reads one table, once")
        if read[0].view is not None:
            raise NotSupported(f"{read[0].name!r} is a materialized view itself: read the table that it reads")
        view = definition(self._context, frame, read[0], text, asked.exist_ok)
        later = with_names(read[0], frame)
        self._register({later.name: self._views.probe(later)})
        try:
            is_steady = definition(self._context, self._read(text), read[0], text, asked.exist_ok) == view
        except EngineError:
            is_steady = False
        if not is_steady:
            raise NotSupported("a materialized view with a name of its own in GROUP BY: write what it stands for")
        self._change = RowChange(ChangeKind.CREATE_VIEW, asked.name, 0, view=view)
        return self._context.sql("SELECT 0 AS count LIMIT 0")

    def _refreshed(self, asked: RefreshStatement) -> DataFrame:
        (view,) = self._request.views
        table = view.stored.table
        frame, progress, read = self._materialized().fold(view, self._inputs.unfolded[table.id], asked.buckets_max)
        self._reads({table.name: read})
        positions = {part.partition: part.position[2] for part in view.state.partitions}
        self._change = RowChange(ChangeKind.REFRESH_VIEW, table.name, table.id, positions, view=progress)
        return frame

    def _look_for_range(self, statement: str, providers: Mapping[str, Any]) -> None:
        """Whether a DELETE is one by tags and time: as it would be planned over a plain table."""
        change = self._change
        if change is None or change.kind is not ChangeKind.DELETE or change.table not in providers:
            return
        table = self._own_table((change.table,), change.table)
        self._register({**providers, table.name: self._views.probe(table)})
        plain, _, _ = change_statement(self._context, statement, self._inputs.params)
        self._range = range_delete(plain, table)
        self._register(providers)

    def _counted(self, frame: DataFrame) -> DataFrame:
        """Of a DELETE that is stored as it is written, how many rows it takes; else the rows."""
        if self._range is None or self._change is None:
            return frame
        from datafusion import functions, lit

        self._change = dataclasses.replace(self._change, delete=self._range)
        return frame.aggregate([], [functions.count(lit(1)).alias("count")])

    def _reads(self, views: Mapping[str, View]) -> None:
        self._files = {file.path: file for view in views.values() for file in view.files}
        self._cached = frozenset().union(*(view.cached for view in views.values()))
        self._tails_bytes = sum(view.tails_bytes for view in views.values())

    def _plan(self, statement: str) -> tuple[DataFrame, str]:
        """Plan as written; if that fails, once more with names that differ in case only put right."""
        try:
            return self._read(statement), statement
        except (InvalidStatement, UnknownTable) as error:
            if str(error).startswith("SQL error"):
                raise
            rewritten = names.rewrite(statement, self._known_names(statement))
            if rewritten == statement:
                raise
        return self._read(rewritten), rewritten

    def _read(self, statement: str) -> DataFrame:
        if not names.is_change(statement):
            return read_statement(self._context, statement, self._inputs.params)
        frame, kind, spelt = change_statement(self._context, statement, self._inputs.params)
        table = self._own_table(names.change_target(statement), spelt)
        snapshot = next((s for s in self._request.snapshots if s.table.id == table.id), None)
        positions = {} if snapshot is None else {p.partition: p.position[2] for p in snapshot.partitions}
        self._change = RowChange(kind, table.name, table.id, positions)
        return _changed_rows(frame, kind, table)

    def _own_table(self, parts: tuple[str, ...], spelt: str) -> Table:
        """The database's table that is called so, with or without its schema, as its snapshot has it.

        By the parts of its name: ``spelt``, which is what DataFusion says, joins them, and a name may have dots.
        """
        tables = {t.name: t for t in self._request.tables} | {s.table.name: s.table for s in self._request.snapshots}
        if ".".join(parts) == spelt and parts[:-1] in ((), (SCHEMA,), (CATALOG, SCHEMA)) and parts[-1] in tables:
            if tables[parts[-1]].view is not None:
                raise NotSupported(f"{spelt} is a materialized view: its rows come from the table that it reads")
            return tables[parts[-1]]
        raise NotSupported(f"{spelt} is not a table that can be written")

    def _known_names(self, statement: str) -> list[str]:
        tables = [s.table for s in self._request.snapshots] if not self._describes else list(self._request.tables)
        tables += names.mentioned_tables(statement, self._request.tables)
        found = [table.name for table in self._request.tables]
        found += [column.name for table in tables for column in table.columns]
        return [*found, *self._inputs.system]

    def _register(self, providers: Mapping[str, Any]) -> None:
        from datafusion.catalog import Schema

        user, system = Schema.memory_schema(), Schema.memory_schema()
        for name, provider in providers.items():
            user.register_table(name, provider)
        if self._describes:
            for table in self._request.tables:
                if table.name not in providers:
                    user.register_table(table.name, self._described(table))
        for name, rows in self._inputs.system.items():
            system.register_table(name, self._context.read_batches(_batches(rows)).into_view())
        catalog = self._context.catalog(CATALOG)
        catalog.register_schema(SCHEMA, user)
        catalog.register_schema(SYSTEM_SCHEMA, system)

    def _refuse_described(self, frame: DataFrame, providers: Mapping[str, Any]) -> None:
        """A table that is there for its columns only has no rows to read: an empty answer would be a wrong one."""
        if not self._describes:
            return
        scanned = scan_counts(frame)
        for table in self._request.tables:
            spelt = (table.name, f"{SCHEMA}.{table.name}", f"{CATALOG}.{SCHEMA}.{table.name}")
            if (
                table.name not in providers
                and not table.name.startswith(names.INFORMATION_SCHEMA)
                and scanned.keys() & spelt
            ):
                raise InvalidStatement(
                    f"write the name of table {table.name!r} in double quotes beside {names.INFORMATION_SCHEMA}"
                )

    def _described(self, table: Table) -> Any:
        """A table without rows, with the types that InfluxDB 3 shows."""
        from datafusion.catalog import Table
        from pyarrow import dataset

        columns = shown(table)
        schema = pa.schema([(c.name, _described_type(c)) for c in columns])
        return Table(dataset.dataset(schema.empty_table()))

    def _wide(self, frame: DataFrame, statement: str, views: Mapping[str, View]) -> list[TableSnapshot]:
        """The tables of which the statement may need so much less that it is worth planning it again.

        Conditions make merges cheaper, and large tails are lighter without columns that do not matter, where the plan
        is written down: with joins, and with large files.
        """
        has_conditions = bool(names.words(statement) & CONDITIONS)
        size = sum(file.bytes for file in self._files.values())
        is_heavy = self._tails_bytes > HEAVY_TAILS_BYTES and (size > HEAVY_FILES_BYTES or joins(frame))
        return [
            snapshot
            for snapshot in self._request.snapshots
            for view in (views[snapshot.table.name],)
            if (view.narrows and has_conditions) or (is_heavy and view.tails_bytes and snapshot.table.view is None)
        ]

    def _narrow(self, statement: str, providers: dict[str, Any], wide: Sequence[TableSnapshot]) -> dict[str, View]:
        """Views of what the statement needs of tables: DataFusion pushes no condition into a merge.

        It is what the optimizer pushes into a plain table of the same name. A table that also stands where a plan does
        not show its scan keeps its whole view.
        """
        probes = {s.table.name: self._views.probe(s.table) for s in wide}
        self._register(providers | probes)
        plain = self._read(statement)
        counts = scan_counts(plain)
        scans = pushed_scans(plain)
        is_backwards = names.is_backwards(statement)
        narrowed = {}
        for snapshot in wide:
            table = snapshot.table
            found = scans.get(probe_name(table), [])
            if not found or counts.get(probe_name(table)) != len(found):
                continue
            pushed = usable(table, found)
            pushed = dataclasses.replace(pushed, is_unsteady=self._is_unsteady, is_backwards=is_backwards)
            if pushed.conditions or pushed.columns is not None:
                tails = self._tails[table.id]
                narrowed[table.name] = self._views.narrowed(snapshot, tails, self._inputs.lease, pushed)
        return narrowed


def _changed_rows(frame: DataFrame, kind: ChangeKind, table: Table) -> DataFrame:
    """The planned rows as far as they are needed: of a DELETE the keys."""
    from datafusion import col

    key = [column.name for column in keys(table)]
    if kind is ChangeKind.DELETE:
        return frame.select(*[col(quote(name)) for name in key])
    if kind is ChangeKind.UPDATE and (found := assigned(frame, key)):
        raise NotSupported(
            f"UPDATE cannot change {found[0]!r}, a part of the rows' key: insert new rows, delete the old"
        )
    return frame


def _check_cached(lease: Lease) -> None:
    """LOG L16, and of files in the cache the same: somebody may have laid hands on its folder. Damage is no answer."""
    lost = lease.lost()
    if lost:
        raise SnapshotTooOld(f"{len(lost)} cached files were damaged, among them {lost[0]}")


def _described_type(column: Column) -> pa.DataType:
    return column.arrow_type if column.role is Role.TAG else column.plain_type


def _batches(rows: pa.Table) -> list[pa.RecordBatch]:
    return rows.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], rows.schema)]
