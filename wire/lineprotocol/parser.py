"""The parser over the kernel: bodies into one buffer, scan, plan, Arrow columns.

The doors get it from `wire.lineprotocol.create_parser`. All that is done here in Python is done once a
call, a table, a column or a new series; never once a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from wire.lineprotocol import grammar, kernel, messages, planner
from wire.lineprotocol.columns import build_tables
from wire.lineprotocol.errors import BodyTooLarge
from wire.lineprotocol.machine import PADDING, Bytes, Int32s, Int64s
from wire.lineprotocol.memory import Memory
from wire.lineprotocol.messages import Kind
from wire.lineprotocol.model import (
    CALL_BYTES_MAX,
    KnownTable,
    LineError,
    Parsed,
    ParserLimits,
    Precision,
    body_bytes,
    whole,
)
from wire.lineprotocol.numbers import FLOAT64, FLOAT_TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from wire.lineprotocol.model import Body

SCRATCH_BYTES_FIRST: Final = 1 << 16
BYTES_PER_LINE_GUESS: Final = 32
BYTES_PER_EVENT_GUESS: Final = 8


class _Found(NamedTuple):
    """What the scan left: the arrays of this call, and how many of the lines are used."""

    lines: kernel.Lines
    events: kernel.Events
    bodies: kernel.Bodies
    used: int


class Scratch:
    """The arrays of a call, kept for the next one. They grow and never shrink; untouched pages cost nothing."""

    def __init__(self) -> None:
        self.buffer: Bytes = np.zeros(0, np.uint8)
        self.lines = _create_lines(SCRATCH_BYTES_FIRST // BYTES_PER_LINE_GUESS)
        self.events = _create_events(SCRATCH_BYTES_FIRST // BYTES_PER_EVENT_GUESS)

    def load(self, bodies: Sequence[Body], total: int) -> kernel.Bodies:
        """Lay the bodies, of ``total`` bytes, out in the buffer as the kernel wants them: the one copy of them."""
        size = total + len(bodies) - 1
        self.reserve(size + PADDING)
        buffer = self.buffer.data
        count = len(bodies)
        starts, ends = np.empty(count, np.int64), np.empty(count, np.int64)
        suspect = np.zeros(count, np.uint8)
        at = 0
        for number, body in enumerate(bodies):
            starts[number] = at
            pieces = (body,) if isinstance(body, bytes) else body
            for piece in pieces:
                buffer[at : at + len(piece)] = piece
                at += len(piece)
            ends[number] = at
            buffer[at] = 10
            at += 1
            suspect[number] = not (all(map(bytes.isascii, pieces)) or _is_utf8(whole(body)))
        self.buffer[size : size + PADDING] = 10
        return kernel.Bodies(starts, ends, suspect, np.zeros(count, np.int64), np.zeros(count, np.int64))

    def reserve(self, size: int) -> None:
        """Let the buffer have at least ``size`` bytes."""
        if self.buffer.size < size:
            self.buffer = np.empty(max(size, 2 * self.buffer.size, SCRATCH_BYTES_FIRST), np.uint8)

    def grow_lines(self, used: int) -> None:
        """Double the lines, keeping the first ``used``."""
        old = self.lines
        self.lines = _create_lines(2 * old.series.size)
        _copy_first(used + 1, old, self.lines)

    def grow_events(self, used: int) -> None:
        """Double the events, keeping the first ``used``."""
        old = self.events
        self.events = _create_events(2 * old.name.size)
        _copy_first(used, old, self.events)


class KernelParser:
    """`model.LineParser` at full speed."""

    def __init__(self, limits: ParserLimits) -> None:
        self._limits = limits
        self._memory = Memory(limits)
        self._scratch = Scratch()
        self._meta = np.zeros(5, np.int64)
        """Of `planner.Plan`; kept, since its token and stamp are never used twice."""

    @property
    def memory_bytes(self) -> int:
        """An estimate of what is kept between calls."""
        return self._memory.bytes

    def parse(
        self,
        bodies: Sequence[Body],
        *,
        precision: Precision,
        now_ns: int,
        known: Callable[[str], KnownTable | None],
        all_or_nothing: Sequence[bool] | None = None,
    ) -> Parsed:
        """See `model.LineParser.parse`."""
        total = sum(map(body_bytes, bodies))
        if total + len(bodies) > CALL_BYTES_MAX:
            msg = f"{total} bytes of line protocol in one call, at most {CALL_BYTES_MAX} fit"
            raise BodyTooLarge(msg)
        if not bodies:
            return Parsed([], [], np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
        if self._memory.bytes > self._limits.series_bytes_max:
            self._forget()
        try:
            return self._parse(bodies, precision, now_ns, known, all_or_nothing, total)
        except BaseException:
            # The arrays may be half way between two calls; what they hold can be learnt again.
            self._forget()
            raise

    def _forget(self) -> None:
        self._memory = Memory(self._limits)
        self._meta[:] = 0

    def _parse(
        self,
        bodies: Sequence[Body],
        precision: Precision,
        now_ns: int,
        known: Callable[[str], KnownTable | None],
        all_or_nothing: Sequence[bool] | None,
        total: int,
    ) -> Parsed:
        found = self._scan(self._scratch.load(bodies, total), precision, now_ns)
        memory = self._memory
        memory.learn_series()
        touched = self._resolve(found)
        for table in touched:
            memory.tell(memory.tables[table], known(memory.tables[table].name))
        plan = self._create_plan(found, all_or_nothing)
        errors = self._plan(found, plan, precision)
        tables = build_tables(memory, self._scratch.buffer, found.lines, found.events, found.used, plan)
        self._end_call(touched, plan)
        return Parsed(tables, errors, found.bodies.lines, plan.rows, total)

    def _scan(self, bodies: kernel.Bodies, precision: Precision, now_ns: int) -> _Found:
        memory, scratch = self._memory, self._scratch
        limits = self._limits
        settings = np.array(
            [precision.multiplier, precision.now(now_ns), limits.string_bytes_max, limits.errors_max], np.int64
        )
        state = np.zeros(kernel.STATE_SIZE, np.int64)
        state[kernel.AT] = -1
        scratch.lines.event[0] = 0
        while True:
            kernel.scan(
                scratch.buffer, bodies, memory.series_map, memory.names_map, memory.successor,
                scratch.lines, scratch.events, settings, state,
            )  # fmt: skip
            status = int(state[kernel.STATUS])
            if status == kernel.DONE:
                break
            self._make_room(status, state)
        self._read_slow_floats(int(state[kernel.EVENTS]))
        return _Found(scratch.lines, scratch.events, bodies, int(state[kernel.LINES]))

    def _make_room(self, status: int, state: Int64s) -> None:
        if status == kernel.SERIES_FULL:
            self._memory.grow_series(int(state[kernel.WANTED]))
        elif status == kernel.NAMES_FULL:
            self._memory.grow_names(int(state[kernel.WANTED]))
        elif status == kernel.EVENTS_FULL:
            # The line at hand may have filled it: its events are scanned again, all before it are kept.
            self._scratch.grow_events(int(state[kernel.EVENTS]))
        else:
            self._scratch.grow_lines(int(state[kernel.LINES]))

    def _read_slow_floats(self, count: int) -> None:
        """Let Python read the doubles that the kernel could not decide."""
        kinds = self._scratch.events.kind[:count]
        slow = np.flatnonzero(kinds == FLOAT_TEXT)
        if not slow.size:
            return
        values = self._scratch.events.value
        buffer = self._scratch.buffer
        texts = values[slow]
        starts = (texts >> 32).tolist()
        ends = ((texts >> 32) + ((texts & 0xFFFFFFFF) >> 1)).tolist()
        read = [float(buffer[start:end].tobytes()) for start, end in zip(starts, ends, strict=True)]
        values[slow] = np.array(read, np.float64).view(np.int64)
        kinds[slow] = FLOAT64

    def _resolve(self, found: _Found) -> list[int]:
        """Give each event its column; return the tables that have a line."""
        memory = self._memory
        line = 0
        while True:
            line = planner.resolve(
                found.lines, line, found.used, found.events, memory.series, memory.columns, memory.pairs,
                memory.table_arrays,
            )  # fmt: skip
            if line == found.used:
                break
            memory.grow_columns(int(found.lines.event[line + 1] - found.lines.event[line]))
        memory.learn_columns()
        series = found.lines.series[: found.used]
        tables = memory.series.table[series]
        # A good line's series is never -1, and of bad ones the last table may be asked for in vain.
        tables[(series < 0) | (found.lines.code[: found.used] > kernel.OUT_OF_RANGE)] = -1
        return [int(table) for table in _distinct(tables) if table >= 0]

    def _create_plan(self, found: _Found, all_or_nothing: Sequence[bool] | None) -> planner.Plan:
        bodies = found.bodies.start.size
        wish = np.zeros(bodies, np.uint8)
        if all_or_nothing is not None:
            wish[:] = all_or_nothing
        return planner.Plan(
            np.empty(found.used, np.int32),
            self._memory.defined,
            np.empty((found.used, 5), np.int32),
            wish,
            np.zeros(bodies, np.int64),
            self._meta,
        )

    def _plan(self, found: _Found, plan: planner.Plan, precision: Precision) -> list[LineError]:
        """Judge the lines and count the rows; return the errors, in order."""
        memory, limits = self._memory, self._limits
        sparse: list[LineError] = []
        while True:
            plan.meta[planner.ERRORS] = plan.meta[planner.ORDERED] = plan.meta[planner.DEFINED] = 0
            plan.meta[planner.STAMP] += 1
            planner.plan_lines(
                found.used, found.lines, found.events, memory.series, memory.tagsets, memory.columns,
                memory.table_arrays, plan, limits.columns_max, limits.errors_max,
            )  # fmt: skip
            planner.count_rows(
                found.used, found.lines, found.events, memory.series, memory.columns, memory.table_arrays, plan
            )
            error = self._too_sparse(found, plan)
            if error is None:
                break
            sparse.append(error)
            self._undo_plan(plan, error.body)
        errors = [self._line_error(found, row, precision) for row in plan.errors[: plan.meta[planner.ERRORS]].tolist()]
        return sorted(errors + sparse, key=lambda error: (error.body, error.line)) if sparse else errors

    def _too_sparse(self, found: _Found, plan: planner.Plan) -> LineError | None:
        """The error of one body if there are too many cells, None if there are not."""
        memory = self._memory
        order = memory.table_arrays.order[: plan.meta[planner.ORDERED]]
        used = np.flatnonzero(memory.columns.values[: memory.pairs.used[0]])
        if int(plan.rows.sum()) * used.size <= self._limits.cells_max:
            return None
        widths = np.bincount(memory.columns.table[used], minlength=len(memory.tables))
        cells = int((memory.table_arrays.rows[order] * widths[order]).sum())
        if cells <= self._limits.cells_max:
            return None
        return LineError(self._sparsest(found, plan), 1, messages.too_sparse(cells, self._limits.cells_max), "")

    def _sparsest(self, found: _Found, plan: planner.Plan) -> int:
        """The body that would need the most cells alone. Sorts all events: for bodies that are refused only."""
        tables, columns = len(self._memory.tables), int(self._memory.pairs.used[0])
        lines = np.repeat(np.arange(found.used), np.diff(found.lines.event[: found.used + 1]))
        used = found.events.name[: lines.size].astype(np.int64)
        accepted = plan.row[: found.used] != planner.REFUSED
        used, lines = used[accepted[lines]], lines[accepted[lines]]
        bodies = found.lines.body[: found.used].astype(np.int64)
        table_of = self._memory.series.table[found.lines.series[: found.used][accepted]]
        places, rows = np.unique(bodies[accepted] * tables + table_of, return_counts=True)
        pairs = np.unique(bodies[lines] * columns + used)
        # Each accepted line has a field, so these are the same places.
        widths = np.unique(pairs // columns * tables + self._memory.columns.table[pairs % columns], return_counts=True)[
            1
        ]
        return int(np.bincount(places // tables, rows * widths).argmax())

    def _undo_plan(self, plan: planner.Plan, body: int) -> None:
        """As if nothing had been planned, and the body were not there."""
        memory = self._memory
        planner.undo(0, memory.columns, memory.table_arrays, plan)
        memory.columns.values[:] = 0
        memory.table_arrays.rows[:] = 0
        plan.rows[:] = 0
        plan.wish[body] = planner.EXCLUDED

    def _end_call(self, touched: list[int], plan: planner.Plan) -> None:
        """Forget what only this call knew: the next one asks the catalog again."""
        memory = self._memory
        planner.undo(0, memory.columns, memory.table_arrays, plan)
        memory.table_arrays.rows[touched] = 0

    def _line_error(self, found: _Found, row: list[int], precision: Precision) -> LineError:
        line, wrong, column, expected, got = row
        lines = found.lines
        text = self._scratch.buffer[lines.start[line] : lines.end[line]].tobytes()
        if lines.code[line] == kernel.NOT_UTF8:
            message = messages.NOT_UTF8
        elif self._breaks_grammar(found, line):
            message = grammar.explain(text, self._limits) or messages.trailing(text)
        elif wrong == planner.BAD_LINE:
            refusal = self._memory.refusals.get(int(lines.series[line]))
            message = refusal or messages.out_of_range(int(lines.time[line]), precision)
        else:
            message = self._say_column(wrong, column, expected, got)
        return LineError(int(lines.body[line]), int(lines.number[line]), message, messages.original(text))

    def _breaks_grammar(self, found: _Found, line: int) -> bool:
        """Whether a refused line is bad whatever the schema says of it."""
        memory, lines = self._memory, found.lines
        series = int(lines.series[line])
        if series < 0 or memory.refusals.get(series, "") is None:
            return True
        used = found.events.name[lines.event[line] : lines.event[line + 1]]
        if memory.series.table[series] < 0:
            return any(memory.field_name(name) is None for name in np.unique(used).tolist())
        return bool((memory.columns.kind[used] == Kind.BROKEN).any())

    def _say_column(self, wrong: int, column: int, expected: int, got: int) -> str:
        name = self._memory.column_names[column]
        if wrong == planner.DUPLICATE:
            return messages.duplicate_field(name)
        if wrong == planner.RESERVED_NAME:
            return messages.reserved(name)
        if wrong == planner.TOO_MANY_COLUMNS:
            return messages.too_many_columns(self._limits.columns_max)
        return messages.conflict(name, Kind(expected), Kind(got))


def _distinct(tables: Int32s) -> list[int]:
    """The distinct values; most calls have one."""
    if not tables.size:
        return []
    low = int(tables.min())
    return [low] if low == int(tables.max()) else np.unique(tables).tolist()


def _copy_first(count: int, sources: Iterable[Any], targets: Iterable[Any]) -> None:
    for source, target in zip(sources, targets, strict=True):
        kept = source[:count]
        target[: kept.size] = kept


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _create_lines(size: int) -> kernel.Lines:
    int32s = [np.empty(size + 1, np.int32) for _ in range(5)]
    event, start, end, number, body = int32s
    return kernel.Lines(
        np.empty(size, np.int32), np.empty(size, np.int64), event, start, end, number, body, np.empty(size, np.uint8)
    )


def _create_events(size: int) -> kernel.Events:
    return kernel.Events(np.empty(size, np.int32), np.empty(size, np.uint8), np.empty(size, np.int64))
