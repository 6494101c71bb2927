"""The engine: read-only SQL over snapshots, as streams of Arrow batches, within limits.

`nodes` drives it: one `Engine` for a process, `query` for each statement. Planning runs in the engine's threads,
execution in DataFusion's; the event loop only waits.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from engine import names
from engine.errors import (
    NotReadOnly,
    NotSupported,
    QueryCancelled,
    QueryFailed,
    QueryMemoryExhausted,
    QueryTimeout,
    TooManyQueries,
    UnknownTable,
)
from engine.files import FileRoot
from engine.ladder import LadderLimits
from engine.materialized import ViewSnapshots
from engine.names import first_word, is_change
from engine.planner import Planner, PlannerLimits, PlanRequest
from engine.running import UNKNOWN_ORIGIN, Phase, RunningQueries
from engine.session import bind
from engine.stream import QueryStream
from engine.viewstatements import SHOWN, CreateStatement, DropStatement, ShowStatement, view_statement
from storage.errors import SnapshotTooOld

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from engine.ladder import Workers
    from engine.planner import Started
    from engine.running import EndListener, Origin, RunningQuery
    from engine.scan import SnapshotSource, SystemTable
    from engine.viewstatements import RefreshStatement
    from storage.filecache import CacheCounters, Lease
    from storage.objects import S3Options
    from storage.schema import Table, TableSnapshot

PLANS_MAX: Final = 3
"""A statement is planned so often while no row was handed out: its snapshot's files may go away (LOG L16), one that
runs out of memory is tried once more in a thriftier way, and one that failed over cached files once they were looked
at."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What queries may use. ``memory_bytes`` is one fair pool for all; above it they spill, at most
    ``spill_bytes_max`` (0: never). With ``query_bytes_max`` each has a pool of so much, and no more run at once than
    ``memory_bytes`` has room for. Over ``queries_max`` statements wait, over ``waiting_max`` they are refused.
    ``cache_folder`` has at most ``cache_bytes_max`` (0: none) of a remote store's files."""

    memory_bytes: int
    spill_folder: Path | None = None
    spill_bytes_max: int = 10 * 2**30
    query_seconds: float = 300.0
    target_partitions: int = 2
    queries_max: int = 16
    waiting_max: int = 512
    wait_seconds: float = 60.0
    batch_rows: int = 8_192
    tails_bytes_max: int = 256 * 2**20
    cache_folder: Path | None = None
    cache_bytes_max: int = 0
    query_bytes_max: int = 0
    ladder: LadderLimits = field(default_factory=LadderLimits)

    @property
    def places(self) -> int:
        """How many statements run at once."""
        room = self.memory_bytes // self.query_bytes_max if self.query_bytes_max else self.queries_max
        return max(1, min(self.queries_max, room))


@dataclass(frozen=True, slots=True)
class _Statement:
    """One statement with what its attempts share. ``deadline`` is the loop's time."""

    text: str
    params: Mapping[str, object]
    tables: Sequence[Table]
    source: SnapshotSource
    system: Sequence[SystemTable]
    deadline: float
    query: RunningQuery
    asked: CreateStatement | RefreshStatement | None
    by_id: Callable[[int], Table | None]


class Engine:
    """Runs statements. Nothing is opened or imported before the first query. ``running`` lists them; ``workers`` may
    run parts of large ones, and are the engine's from now on."""

    def __init__(
        self,
        store_url: str,
        limits: EngineLimits,
        s3: S3Options | None = None,
        on_end: EndListener | None = None,
        workers: Workers | None = None,
    ) -> None:
        self.running = RunningQueries(on_end)
        self._limits = limits
        self._root = FileRoot(store_url, s3, limits.cache_folder, limits.cache_bytes_max)
        planner_limits = PlannerLimits(
            memory_bytes=limits.memory_bytes,
            spill_folder=limits.spill_folder,
            spill_bytes_max=limits.spill_bytes_max,
            target_partitions=limits.target_partitions,
            batch_rows=limits.batch_rows,
            tails_bytes_max=limits.tails_bytes_max,
            query_bytes_max=min(limits.query_bytes_max, limits.memory_bytes),
            query_spill_bytes_max=limits.spill_bytes_max // limits.places,
        )
        self._workers = workers
        self._planner = Planner(self._root, planner_limits, s3, workers, limits.ladder)
        self._places = asyncio.Semaphore(limits.places)
        self._waiting = 0
        self._streams: set[QueryStream] = set()
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    @property
    def cache_counters(self) -> CacheCounters:
        """What the cache of a remote store's files has done; zeros without one."""
        return self._root.cache_counters

    async def query(
        self,
        statement: str,
        *,
        database: str,
        revision: int,
        tables: Sequence[Table],
        source: SnapshotSource,
        params: Mapping[str, object] | None = None,
        timeout_seconds: float | None = None,
        system: Sequence[SystemTable] = (),
        origin: Origin = UNKNOWN_ORIGIN,
        may_write: bool = False,
        table_by_id: Callable[[int], Table | None] | None = None,
    ) -> QueryStream:
        """Plan one statement and run it up to its first batch. One that writes gives the rows that are to be written.

        `tables` are the database's at `revision`; only those that the statement mentions are asked of `source`, and of
        materialized views what `table_by_id` says of their ids: by default, `tables`.
        The time limit is the lower of `timeout_seconds` and the engine's, and holds until the last batch. Raises
        EngineError, or StorageError from `source`, and SnapshotTooOld if files vanish faster than plans are made.
        """
        params = params or {}
        bind(params)
        names.mentioned_tables(statement, ())
        asked = view_statement(statement)
        if isinstance(asked, ShowStatement):
            statement, asked = SHOWN, None
        if isinstance(asked, DropStatement):
            raise NotSupported("DROP MATERIALIZED VIEW is carried out where the statement arrives")
        if (is_change(statement) or asked is not None) and not may_write:
            word = first_word(statement).upper()
            raise NotReadOnly(f"{word} changes rows, and this request may not: send it by POST")
        limit = min(timeout_seconds or self._limits.query_seconds, self._limits.query_seconds)
        deadline = asyncio.get_running_loop().time() + limit
        query = self.running.add(database, statement, origin)
        try:
            by_id = table_by_id or {table.id: table for table in tables}.get
            whole = _Statement(statement, params, tables, source, system, deadline, query, asked, by_id)
            stream = await _until_killed(query, self._attempts(whole))
        except BaseException as error:
            query.end(_outcome(error))
            raise
        stream.take_over()
        return stream

    async def _attempts(self, statement: _Statement) -> QueryStream:
        frugal = doubted = False
        for _ in range(PLANS_MAX - 1):
            try:
                return await self._attempt(statement, frugal)
            except SnapshotTooOld:
                pass
            except QueryMemoryExhausted:
                if frugal:
                    raise
                frugal = True
            except QueryFailed as error:
                if doubted or not error.read_cached:
                    raise
                doubted = True
            statement.query.enter(Phase.WAITING)
        return await self._attempt(statement, frugal)

    async def close(self) -> None:
        """Cancel what runs and refuse what comes. Idempotent; a plan that is being made is not waited for."""
        self._closed = True
        for stream in list(self._streams):
            stream.stop(QueryCancelled("the engine is closing"))
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._workers is not None:
            await self._workers.aclose()
        self._root.close()

    async def _enter(self, deadline: float) -> None:
        """Wait for a place among the running queries."""
        if self._closed:
            raise QueryCancelled("the engine is closed")
        limits = self._limits
        if self._places.locked() and self._waiting >= limits.waiting_max:
            raise TooManyQueries(f"{limits.places} queries run and {self._waiting} wait: try again later")
        self._waiting += 1
        try:
            async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + limits.wait_seconds)):
                await self._places.acquire()
        except TimeoutError as error:
            raise TooManyQueries(
                f"no place among the {limits.places} running queries in time: try again later"
            ) from error
        finally:
            self._waiting -= 1

    async def _attempt(self, statement: _Statement, frugal: bool) -> QueryStream:
        await self._enter(statement.deadline)
        place = _Place(self._places)
        try:
            statement.query.enter(Phase.PLANNING)
            snapshots, views = await self._snapshots(statement)
            request = PlanRequest(
                statement.text, statement.params, statement.tables, snapshots, statement.system, frugal, views,
                statement.asked, statement.query.runs_on,
            )  # fmt: skip
            return await self._start(request, statement, place)
        except BaseException:
            place.leave()
            raise

    async def _snapshots(self, statement: _Statement) -> tuple[Sequence[TableSnapshot], Sequence[ViewSnapshots]]:
        """Of the tables that it mentions, and of what its materialized views are made of."""
        mentioned = _mentioned(statement)
        views = [(table, table.view) for table in mentioned if table.view is not None]
        states = [_existing(statement, view.state_id, table) for table, view in views]
        sources = [_existing(statement, view.table_id, table) for table, view in views]
        wanted = {table.id: table for table in (*mentioned, *sources)}
        try:
            async with asyncio.timeout_at(statement.deadline):
                told = await statement.source.snapshot(states) if states else ()  # first: see `ViewSnapshots`
                found = await statement.source.snapshot(list(wanted.values())) if wanted else ()
        except TimeoutError as error:
            raise QueryTimeout("the time limit passed before the snapshot was there") from error
        by_id = dict(zip(wanted, found, strict=True))
        sizes = [file.bytes for snapshot in found for part in snapshot.partitions for file in part.files]
        statement.query.reads(len(sizes), sum(sizes))
        return [by_id[table.id] for table in mentioned], [
            ViewSnapshots(by_id[table.id], by_id[source.id], state)
            for (table, _), source, state in zip(views, sources, told, strict=True)
        ]

    async def _start(self, request: PlanRequest, statement: _Statement, place: _Place) -> QueryStream:
        started = await self._plan(request, statement.deadline, place)
        stream = QueryStream(
            started.schema, started.source, statement.deadline, statement.query,
            lambda: self._finished(stream, place, started.lease), started.change,
        )  # fmt: skip
        self._streams.add(stream)
        if self._closed:
            stream.stop(QueryCancelled("the engine is closing"))
        try:
            await stream.fetch_first()
        except QueryFailed as error:
            error.read_cached = started.lease.is_doubted
            raise
        return stream

    async def _plan(self, request: PlanRequest, deadline: float, place: _Place) -> Started:
        """Plan in a thread. A plan that outlives the time limit keeps its place until it is done."""
        loop = asyncio.get_running_loop()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._limits.places, thread_name_prefix="plan")
        planning = loop.run_in_executor(self._threads, self._planner.start, request)
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(planning)
        except TimeoutError as error:
            place.leave_after(planning)
            raise QueryTimeout("the time limit passed while the statement was being planned") from error
        except asyncio.CancelledError:
            place.leave_after(planning)
            raise

    def _finished(self, stream: QueryStream, place: _Place, lease: Lease) -> None:
        self._streams.discard(stream)
        if stream.outcome == QueryFailed.code:
            lease.doubt()
        lease.release()
        place.leave()


def _mentioned(statement: _Statement) -> Sequence[Table]:
    """The tables whose rows it reads."""
    if isinstance(statement.asked, CreateStatement):
        return ()
    if statement.asked is None:
        return names.mentioned_tables(statement.text, statement.tables)
    name = statement.asked.name
    found = [table for table in statement.tables if table.name == name and table.view is not None]
    if not found:
        raise UnknownTable(f"there is no materialized view {name!r}")
    return found


def _existing(statement: _Statement, table_id: int, view: Table) -> Table:
    """A table that a view is made of."""
    found = statement.by_id(table_id)
    if found is None or view.dropping or found.deleted:
        raise UnknownTable(f"the materialized view {view.name!r} is being dropped")
    return found


def _outcome(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return QueryCancelled.code
    return str(getattr(error, "code", type(error).__name__))


async def _until_killed(query: RunningQuery, starting: Awaitable[QueryStream]) -> QueryStream:
    """The started stream; QueryKilled if the query is killed before it is there, wherever it waits."""
    scope = asyncio.timeout(None)
    query.stop_by(lambda: scope.reschedule(asyncio.get_running_loop().time()))
    try:
        async with scope:
            stream = await starting
    except TimeoutError:
        if query.is_killed:
            raise query.killed() from None
        raise
    if query.is_killed:  # killed in the moment in which it began
        await stream.aclose()
        raise query.killed()
    return stream


class _Place:
    """One place among the running queries; given back once."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places: asyncio.Semaphore | None = places

    def leave(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places.release()

    def leave_after(self, planning: asyncio.Future[Started]) -> None:
        """Give the place back when the thread is done, whatever it says."""
        places, self._places = self._places, None

        def done(future: asyncio.Future[Started]) -> None:
            if not future.cancelled() and future.exception() is None:
                future.result().lease.release()
            if places is not None:
                places.release()

        planning.add_done_callback(done)
