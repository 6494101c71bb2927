"""Write line protocol for many clients at once: bodies that wait together are parsed once and written once.

There is no timer. A lane holds the bodies of one database and precision; while one group of them is parsed or
made durable, the next one gathers. Each client still gets its own lines' errors. Groups of a database are written
in the order they were parsed, so rows of one table keep their order. Driven by the InfluxDB door.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from nodes.gateway.batches import StaleTable, TableShapes, ensure
from nodes.gateway.faults import BadRequest
from nodes.gateway.refusals import Refused, refuse_rows
from storage.errors import NoSuchDatabase, NoSuchTable, RequestTooLarge, SchemaConflict, ShardClosed, StorageError
from wire.lineprotocol.model import body_bytes, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from nodes.backend import Backend, Batch, CatalogView, EnsureTable, Principal
    from nodes.metrics import Metrics
    from wire.lineprotocol.model import Body, KnownTable, LineError, LineParser, Parsed, Precision

GROUP_BODIES_MAX: Final = 512
SMALL_GROUP_BYTES: Final = 256 * 1024
"""A smaller group waits while its database is writing: gathering more costs it nothing, parsing alone would."""
CROWD_SECONDS: Final = 0.002
CROWD_WAITS_MAX: Final = 4
"""How long, and how often as long as more come, a small group waits for the clients that were just answered. A group
costs about 1.5 ms of CPU however small it is. One client alone never waits."""
CROWDS_MAX: Final = 1024
READY_BYTES_MAX: Final = 16 * 2**20
"""Parsed bodies of one database that wait for its write under way."""
PARSE_HERE_BYTES: Final = 8 * 1024
"""Parsed on the event loop (about 0.15 ms) where a hop to the parser's thread would cost as much again."""
NO_TIME: Final = -9_223_372_036 * 1_000_000_000
"""Given to lines without a time under an idempotency key, to find them: whole in every unit, and the least that is."""
ATTEMPTS_MAX: Final = 5
"""How often a group is parsed because the Catalog changed under it, before its clients are told to retry."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What became of one body: ``errors`` are its refused lines (at most the parser's limit), in order.

    ``rejected`` counts all of them; ``is_over_limit`` says that a limit of the Catalog refused some.
    """

    errors: tuple[LineError, ...] = ()
    rejected: int = 0
    is_over_limit: bool = False


WRITTEN: Final = WriteReport()


@dataclass(slots=True, eq=False)
class _Body:
    """One client's body. ``now_ns`` is the time of its lines without one; once it was parsed it never changes (L8)."""

    data: Body
    size: int
    is_all_or_nothing: bool
    answer: asyncio.Future[WriteReport]
    now_ns: int
    attempts: int = 0
    key: str = ""
    only: frozenset[str] | None = None
    """Tables whose rows are still to be written; None is all. A table may go while the others are written."""


@dataclass(slots=True, eq=False)
class _Group:
    """Bodies that were parsed together, and what is to be written for them."""

    lane: _Lane
    bodies: list[_Body]
    size: int
    batches: list[Batch]
    reports: list[WriteReport]


@dataclass(slots=True, eq=False)
class _Lane:
    """The waiting bodies of one (database, precision, principal)."""

    database: str
    precision: Precision
    principal: Principal
    waiting: deque[_Body] = field(default_factory=deque)
    waiting_bytes: int = 0
    task: asyncio.Task[None] | None = None
    goal: int = 0
    gathered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def key(self) -> tuple[str, Precision, Principal]:
        return self.database, self.precision, self.principal


class _Writer:
    """Writes one database's groups, one call at a time, all that are ready in each."""

    def __init__(self) -> None:
        self.ready: deque[_Group] = deque()
        self.ready_bytes = 0
        self.is_busy = False
        self.lanes = 0
        self.turn = asyncio.Event()

    def put(self, group: _Group) -> None:
        self.ready.append(group)
        self.ready_bytes += group.size

    def take(self) -> list[_Group]:
        groups = list(self.ready)
        self.ready.clear()
        self.ready_bytes = 0
        return groups

    def end_turn(self) -> None:
        """One call is over: wake the lanes that wait for it."""
        self.turn.set()
        self.turn = asyncio.Event()


class Coalescer:
    """`write` returns when the body's accepted rows are durable. Made without I/O; `aclose` ends its thread."""

    def __init__(
        self,
        backend: Backend,
        make_parser: Callable[[], LineParser],
        metrics: Metrics,
        *,
        coalesce_bytes: int = 1 << 20,
    ) -> None:
        self._backend = backend
        self._make_parser = make_parser
        self._coalesce_bytes = coalesce_bytes
        self._shapes = TableShapes()
        self._parser: LineParser | None = None
        self._parsing = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lineprotocol")
        self._lanes: dict[tuple[str, Precision, Principal], _Lane] = {}
        self._writers: dict[str, _Writer] = {}
        self._crowds: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines = metrics.counter("influxdb3_write_lines", "Lines of line protocol that became rows.", "db")
        self._rejected = metrics.counter("influxdb3_write_lines_rejected", "Lines that were refused.", "db")
        self._bytes = metrics.counter("influxdb3_write_bytes", "Bytes of line protocol, inflated.", "db")
        self._groups = metrics.counter("runnel_write_groups", "Groups of bodies that were parsed together.").of()
        self._bodies = metrics.counter("runnel_write_bodies", "Bodies in these groups.").of()

    async def write(
        self,
        database: str,
        precision: Precision,
        body: Body,
        *,
        is_all_or_nothing: bool,
        principal: Principal,
        idempotency_key: str = "",
    ) -> WriteReport:
        """Parse, create what is missing, write. Raises StorageError and whatever the Backend raises.

        A body with an ``idempotency_key`` is parsed and written by itself, so that a second try has the same parts.
        BadRequest if one of its lines has no time: the second try would get another one.
        """
        loop = asyncio.get_running_loop()
        now_ns = NO_TIME if idempotency_key else time.time_ns()
        item = _Body(body, body_bytes(body), is_all_or_nothing, loop.create_future(), now_ns, key=idempotency_key)
        key = (database, precision, principal)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(database, precision, principal)
        lane.waiting.append(item)
        lane.waiting_bytes += item.size
        if lane.task is None:
            lane.task = self._spawn(self._run_lane(lane))
        elif lane.goal and len(lane.waiting) >= lane.goal:
            lane.gathered.set()
        return await item.answer

    async def aclose(self) -> None:
        """Stop parsing; bodies that still wait fail. The server has drained before."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_lane(self, lane: _Lane) -> None:
        """Take groups while bodies wait; then forget the lane, so that idle databases cost nothing."""
        writer = self._writers.setdefault(lane.database, _Writer())
        writer.lanes += 1
        try:
            while lane.waiting:
                if lane.waiting_bytes < SMALL_GROUP_BYTES:
                    if writer.is_busy:
                        await writer.turn.wait()
                    await self._gather(lane)
                while writer.ready_bytes > READY_BYTES_MAX:
                    await writer.turn.wait()
                await self._run_group(lane, writer, _take(lane, self._coalesce_bytes))
        finally:
            lane.task = None
            if self._lanes.get(lane.key) is lane:
                del self._lanes[lane.key]
            _fail(lane.waiting, asyncio.CancelledError())
            writer.lanes -= 1
            self._forget(lane.database, writer)

    async def _gather(self, lane: _Lane) -> None:
        """Wait for as many bodies as there were clients at the last write, while they still come in."""
        loop = asyncio.get_running_loop()
        lane.goal = self._crowds.get(lane.database, 1)
        for _ in range(CROWD_WAITS_MAX):
            before = len(lane.waiting)
            if before >= lane.goal or lane.waiting_bytes >= SMALL_GROUP_BYTES:
                break
            lane.gathered.clear()
            timer = loop.call_later(CROWD_SECONDS, lane.gathered.set)
            await lane.gathered.wait()
            timer.cancel()
            if len(lane.waiting) == before:
                break
        lane.goal = 0

    def _note_crowd(self, groups: Sequence[_Group]) -> None:
        """How many clients write to this database: those answered now and those that wait."""
        database = groups[0].lane.database
        if len(self._crowds) >= CROWDS_MAX:
            self._crowds.clear()
        waiting = sum(len(lane.waiting) for lane in {id(group.lane): group.lane for group in groups}.values())
        self._crowds[database] = waiting + sum(len(group.bodies) for group in groups)

    def _forget(self, database: str, writer: _Writer) -> None:
        if not writer.lanes and not writer.is_busy:
            self._writers.pop(database, None)

    async def _run_group(self, lane: _Lane, writer: _Writer, bodies: list[_Body]) -> None:
        try:
            try:
                group = await self._prepare(lane, bodies)
            except Exception as error:  # noqa: BLE001 - it is the answer of these bodies, and of no others
                if len(bodies) == 1 or getattr(error, "retriable", False):
                    _fail(bodies, error)
                    return
                for body in bodies:  # one of them is to blame: the others must not suffer for it
                    await self._run_group(lane, writer, [body])
                return
        except asyncio.CancelledError as error:
            _fail(bodies, error)
            raise
        if not group.batches:
            self._answer(group)
            return
        writer.put(group)
        if not writer.is_busy:
            writer.is_busy = True
            self._spawn(self._run_writer(lane.database, writer))

    async def _run_writer(self, database: str, writer: _Writer) -> None:
        """Write what is ready until nothing is; groups that gather meanwhile go together."""
        groups: list[_Group] = []
        try:
            while writer.ready:
                groups = writer.take()
                await self._write(groups)
                self._note_crowd(groups)
                groups = []
                writer.end_turn()
        finally:
            for group in (*groups, *writer.take()):
                _fail(group.bodies, asyncio.CancelledError())
            writer.is_busy = False
            writer.end_turn()
            self._forget(database, writer)

    async def _write(self, groups: Sequence[_Group]) -> None:
        principal, key = groups[0].lane.principal, groups[0].bodies[0].key
        if len(groups) > 1 and any(group.lane.principal != principal or group.bodies[0].key for group in groups):
            for group in groups:
                await self._write([group])
            return
        try:
            batches = [batch for group in groups for batch in group.batches]
            await self._backend.write(batches, principal, idempotency_key=key)
        except (RequestTooLarge, ShardClosed) as error:
            await self._write_apart(groups, error)
        except (NoSuchTable, NoSuchDatabase, SchemaConflict) as error:
            await self._backend.refresh()
            for group in groups:
                self._again(group, error)
        except Exception as error:  # noqa: BLE001 - it is the answer of these bodies
            for group in groups:
                _fail(group.bodies, error)
        else:
            for group in groups:
                self._answer(group)

    async def _write_apart(self, groups: Sequence[_Group], error: StorageError) -> None:
        """Too much for one object, or for a shard that is closed: not the fault of all (L3, F15).

        Each group by itself, a group of several bodies body by body.
        """
        if len(groups) > 1:
            for group in groups:
                await self._write([group])
        elif len(groups[0].bodies) > 1:
            for body in groups[0].bodies:
                try:
                    await self._write([await self._prepare(groups[0].lane, [body])])
                except Exception as own:  # noqa: BLE001 - it is the answer of this body
                    _fail([body], own)
        else:
            _fail(groups[0].bodies, error)

    def _again(self, group: _Group, error: StorageError) -> None:
        """A table was dropped or changed between parse and write: back to the front of the lane.

        If the error names the tables that it failed for, the others' rows stand, and must not be written twice.
        """
        lane = group.lane
        lost = frozenset(batch.table.name for batch in group.batches if batch.table.id in error.tables)
        if error.tables and not lost:
            self._answer(group)
            return
        for body in reversed(group.bodies):
            body.attempts += 1
            body.only = lost if error.tables else body.only
            if body.attempts >= ATTEMPTS_MAX:
                _fail([body], error)
                continue
            lane.waiting.appendleft(body)
            lane.waiting_bytes += body.size
        if lane.waiting and lane.task is None:
            self._lanes.setdefault(lane.key, lane)
            lane.task = self._spawn(self._run_lane(lane))

    async def _prepare(self, lane: _Lane, bodies: list[_Body]) -> _Group:
        """Parse, and change the Catalog for the accepted rows; again when it changed meanwhile."""
        for body in bodies:  # L8: written again by itself, a line must get the time that it may stand at already
            body.now_ns = bodies[0].now_ns
        error: Exception = StaleTable("not tried")
        view = self._backend.catalog
        for _ in range(ATTEMPTS_MAX):
            parsed = await self._parse(lane, bodies, view)
            if bodies[0].key:
                require_times(parsed)
            try:
                refused, view = await self._alter(lane, bodies, parsed, view)
                batches = self._batches(lane.database, parsed, view, bodies[0].only)
            except (SchemaConflict, StaleTable) as changed:
                error, view = changed, await self._backend.refresh()
                continue
            self._groups.add()
            self._bodies.add(len(bodies))
            size = sum(body.size for body in bodies)
            return _Group(lane, bodies, size, batches, _reports(parsed, refused, len(bodies)))
        raise error

    async def _parse(self, lane: _Lane, bodies: list[_Body], view: CatalogView) -> Parsed:
        """On the event loop if that is cheap and the parser is free, else in its thread."""
        size = sum(body.size for body in bodies)
        if self._parser is not None and not self._parsing and size <= PARSE_HERE_BYTES:
            return self._parse_now(lane, bodies, view)
        self._parsing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._parse_now, lane, bodies, view)
        finally:
            self._parsing -= 1

    def _parse_now(self, lane: _Lane, bodies: list[_Body], view: CatalogView) -> Parsed:
        if self._parser is None:
            self._parser = self._make_parser()  # at first need: it loads the compiler's runtime
        database, shapes = lane.database, self._shapes

        def known(name: str) -> KnownTable | None:
            table = view.table(database, name)
            if table is None or table.view is not None:  # what is not known the Catalog is asked for: it refuses views
                return None
            return shapes.known(table)

        return self._parser.parse(
            [body.data for body in bodies],
            precision=lane.precision,
            now_ns=bodies[0].now_ns,
            known=known,
            all_or_nothing=[body.is_all_or_nothing for body in bodies],
        )

    async def _alter(
        self, lane: _Lane, bodies: list[_Body], parsed: Parsed, view: CatalogView
    ) -> tuple[Refused, CatalogView]:
        """Add tables and columns for accepted rows. A refusal costs the lines that need it, not the others."""
        only = bodies[0].only
        changes = {
            t.name: c
            for t in parsed.tables
            if t.rows and _is_wanted(t.name, only) and (c := ensure(lane.database, t)) is not None
        }
        if not changes:
            return Refused(), view
        try:
            return Refused(), await self._backend.alter(list(changes.values()), lane.principal)
        except SchemaConflict:
            raise
        except StorageError as error:
            if error.retriable or len(bodies) > 1:
                raise
            if bodies[0].is_all_or_nothing:
                texts = [whole(body.data) for body in bodies]
                return refuse_rows(parsed, dict.fromkeys(changes, error), texts, True), view
        return await self._alter_each(lane, bodies, parsed, changes)

    async def _alter_each(
        self, lane: _Lane, bodies: list[_Body], parsed: Parsed, changes: dict[str, EnsureTable]
    ) -> tuple[Refused, CatalogView]:
        errors: dict[str, StorageError] = {}
        view = self._backend.catalog
        for name, change in changes.items():
            try:
                view = await self._backend.alter([change], lane.principal)
            except SchemaConflict:
                raise
            except StorageError as error:
                if error.retriable:
                    raise
                errors[name] = error
        return refuse_rows(parsed, errors, [whole(body.data) for body in bodies], False), view

    def _batches(self, database: str, parsed: Parsed, view: CatalogView, only: frozenset[str] | None) -> list[Batch]:
        batches = []
        for part in parsed.tables:
            if not part.rows or not _is_wanted(part.name, only):
                continue
            table = view.table(database, part.name)
            if table is None:
                raise StaleTable(f"table {part.name!r} was dropped")
            batches.append(self._shapes.batch(table, part))
        return batches

    def _answer(self, group: _Group) -> None:
        rejected = 0
        for body, report in zip(group.bodies, group.reports, strict=True):
            rejected += report.rejected
            if not body.answer.done():
                body.answer.set_result(report)
        lines = sum(batch.rows.num_rows for batch in group.batches)
        database = group.lane.database
        self._lines.of(database).value += lines
        self._bytes.of(database).value += group.size
        if rejected:
            self._rejected.of(database).value += rejected


def _take(lane: _Lane, coalesce_bytes: int) -> list[_Body]:
    """The next bodies of a lane: always one, more up to ``coalesce_bytes`` together; those tried keep their time."""
    bodies = [lane.waiting.popleft()]
    size = bodies[0].size
    while lane.waiting and len(bodies) < GROUP_BODIES_MAX and size + lane.waiting[0].size <= coalesce_bytes:
        if not _goes_with(lane.waiting[0], bodies[0]):
            break
        bodies.append(lane.waiting.popleft())
        size += bodies[-1].size
    lane.waiting_bytes -= size
    return bodies


def _goes_with(body: _Body, first: _Body) -> bool:
    """May be parsed together with ``first``; one with a key goes alone."""
    is_retry = bool(body.attempts) and body.now_ns != first.now_ns
    return not body.key and not first.key and body.only == first.only and not is_retry


def require_times(parsed: Parsed) -> None:
    """BadRequest if a line has no time of its own. The least time that there is counts as none."""
    for part in parsed.tables:
        if part.rows and (part.time == NO_TIME).any():
            raise BadRequest(f"a line of table {part.name!r} has no time; under an idempotency key each line needs one")


def _is_wanted(table: str, only: frozenset[str] | None) -> bool:
    return only is None or table in only


def _reports(parsed: Parsed, refused: Refused, count: int) -> list[WriteReport]:
    """Each body's own report; one shared value for bodies without errors."""
    if not parsed.errors and not refused.errors:
        return [WRITTEN] * count
    errors: dict[int, list[LineError]] = {}
    for error in (*parsed.errors, *refused.errors):
        errors.setdefault(error.body, []).append(error)
    reports = [WRITTEN] * count
    for body, own in errors.items():
        own.sort(key=lambda error: error.line)
        rejected = int(parsed.lines[body] - parsed.rows[body]) + refused.rows.get(body, 0)
        reports[body] = WriteReport(tuple(own), rejected, bool(refused.is_over_limit))
    return reports


def _fail(bodies: Iterable[_Body], error: BaseException) -> None:
    """Answer what is not answered yet with an error; a cancelled lane cancels its clients' waits."""
    for body in bodies:
        if body.answer.done():
            continue
        if isinstance(error, Exception):
            body.answer.set_exception(error)
        else:
            body.answer.cancel()
