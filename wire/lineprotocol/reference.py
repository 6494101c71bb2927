"""The plain Python parser: the oracle that the kernel is tested against, and what runs where numba is missing.

Slow (0.02 to 0.06 million lines a second) and obvious: lines one by one, rows as dictionaries, columns at the end.
It shares the grammar and the words of errors with the kernel's parser, and nothing of its planning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from wire.lineprotocol import grammar, messages
from wire.lineprotocol.errors import BodyTooLarge, LineRefused
from wire.lineprotocol.messages import Kind
from wire.lineprotocol.model import (
    CALL_BYTES_MAX,
    RESERVED_PREFIX,
    TIME_COLUMN,
    FieldColumn,
    FieldType,
    KnownTable,
    LineError,
    Parsed,
    ParsedTable,
    ParserLimits,
    Precision,
    TagColumn,
    body_bytes,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from wire.lineprotocol.model import Body


_ARROW_TYPES: Final[dict[FieldType, pa.DataType]] = {
    FieldType.INT64: pa.int64(),
    FieldType.UINT64: pa.uint64(),
    FieldType.FLOAT64: pa.float64(),
    FieldType.BOOL: pa.bool_(),
    FieldType.STRING: pa.string(),
}


@dataclass(slots=True)
class _Line:
    """A line of good grammar."""

    table: str
    tags: list[tuple[str, str]]
    fields: list[tuple[str, int, grammar.Value]]
    timestamp: int | None


@dataclass(slots=True)
class _Table:
    """One table as this call sees it so far."""

    known: KnownTable | None
    kinds: dict[str, int] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    rows: list[tuple[int, int, int, _Line]] = field(default_factory=list)
    """(body, line, time in ns, line)"""

    def __post_init__(self) -> None:
        self.kinds[TIME_COLUMN] = Kind.TIME
        if self.known:
            self.kinds.update(dict.fromkeys(self.known.tags, Kind.TAG))
            self.kinds.update({name: int(kind) for name, kind in self.known.fields.items()})


@dataclass(slots=True)
class _Call:
    """The arguments and the growing answer of one `parse`."""

    precision: Precision
    now_ns: int
    known: Callable[[str], KnownTable | None]
    tables: dict[str, _Table] = field(default_factory=dict)
    errors: list[LineError] = field(default_factory=list)

    def table(self, name: str) -> _Table:
        found = self.tables.get(name)
        if found is None:
            found = self.tables[name] = _Table(self.known(name))
        return found


class ReferenceParser:
    """`model.LineParser` in plain Python. Keeps nothing between calls."""

    def __init__(self, limits: ParserLimits) -> None:
        self._limits = limits

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
        if total > CALL_BYTES_MAX:
            msg = f"{total} bytes of line protocol in one call, at most {CALL_BYTES_MAX} fit"
            raise BodyTooLarge(msg)
        refused: dict[int, LineError] = {}
        while True:
            call = _Call(precision, precision.now(now_ns), known)
            lines = np.zeros(len(bodies), np.int64)
            rows = np.zeros(len(bodies), np.int64)
            for number, body in enumerate(bodies):
                strict = bool(all_or_nothing and all_or_nothing[number])
                lines[number], rows[number] = self._parse_body(call, number, whole(body), strict, refused.get(number))
            sparse = self._too_sparse(call, len(bodies))
            if sparse is None:
                break
            refused[sparse.body] = sparse
        tables = [_build(name, table) for name, table in _by_first_row(call.tables)]
        return Parsed(tables, call.errors, lines, rows, total)

    def _parse_body(
        self, call: _Call, number: int, body: bytes, strict: bool, refused: LineError | None
    ) -> tuple[int, int]:
        """Plan one body; return how many lines it has and how many became rows."""
        errors_before = len(call.errors)
        marks = {name: (len(table.rows), len(table.new)) for name, table in call.tables.items()}
        lines = rows = 0
        failed = refused is not None
        if refused:
            call.errors.append(refused)
        for start, end, line_number, found in self._lines(body):
            lines += 1
            if failed:
                continue
            error = self._plan(call, number, line_number, body[start:end], found)
            if error is None:
                rows += 1
                continue
            if len(call.errors) - errors_before < self._limits.errors_max:
                original = messages.original(body[start:end])
                call.errors.append(LineError(number, line_number, error, original))
            if strict:
                failed = True
                rows = 0
                _roll_back(call.tables, marks)
        return lines, rows

    def _lines(self, body: bytes) -> Iterator[tuple[int, int, int, _Line | str]]:
        """(start, end, line number, line or what is wrong with its grammar) of each line."""
        at, number, counted, open_quote = 0, 1, 0, False
        while True:
            at = grammar.skip_blanks(body, at)
            if at >= len(body):
                return
            if body[at] == 0x23:
                at = grammar.newline_from(body, at)
                continue
            number += body.count(b"\n", counted, at)
            counted = at
            scanned = grammar.scan(body, at, self._limits.string_bytes_max)
            end = scanned.end
            if scanned.fault is not None:
                end = -1 if open_quote else grammar.split_end(body, at)
                open_quote = end < 0
                end = max(end, grammar.newline_from(body, scanned.fault))
            yield at, end, number, self._read(body, scanned, end)
            at = end + 1

    def _read(self, body: bytes, scanned: grammar.Scan, end: int) -> _Line | str:
        text = body[scanned.start : end]
        try:
            text.decode()
            table, tags = grammar.read_series_key(scanned.key, self._limits)
            names = [grammar.read_name(raw, self._limits) for raw, _, _ in scanned.fields]
        except UnicodeDecodeError:
            return messages.NOT_UTF8
        except LineRefused as refused:
            return grammar.explain(text, self._limits) or str(refused)
        if scanned.fault is not None:
            return grammar.explain(text, self._limits) or messages.trailing(text)
        values = [grammar.value_of(body, start, stop) for _, start, stop in scanned.fields]
        fields = [(name, kind, value) for name, (kind, value) in zip(names, values, strict=True)]
        return _Line(table, tags, fields, None if scanned.timestamp is None else int(scanned.timestamp))

    def _plan(self, call: _Call, body: int, number: int, text: bytes, found: _Line | str) -> str | None:
        """Make the line a row of its table, or say what is wrong with it and change nothing."""
        if isinstance(found, str):
            return found
        wrong = grammar.refused_series(found.table, found.tags)
        if wrong:
            return wrong
        table = call.table(found.table)
        kinds: dict[str, int] = {}
        wrong = self._wrong_columns(found, table, kinds)
        if wrong:
            return wrong
        time_ns = _to_ns(found.timestamp, call.precision, call.now_ns)
        if not grammar.INT64_MIN <= time_ns <= grammar.INT64_MAX:
            return messages.out_of_range(found.timestamp or 0, call.precision)
        table.kinds.update(kinds)
        table.new.extend(kinds)
        table.rows.append((body, number, time_ns, found))
        return None

    def _wrong_columns(self, line: _Line, table: _Table, kinds: dict[str, int]) -> str | None:
        """Check each column against the table; collect the new ones in ``kinds``."""
        seen: set[str] = set()
        wanted = [(name, int(Kind.TAG)) for name, _ in line.tags] + [(name, kind) for name, kind, _ in line.fields]
        for position, (name, kind) in enumerate(wanted):
            if name.startswith(RESERVED_PREFIX):
                return messages.reserved(name)
            if position >= len(line.tags):
                if name in seen:
                    return messages.duplicate_field(name)
                seen.add(name)
            have = table.kinds.get(name, kinds.get(name))
            if have is None:
                if len(table.kinds) + len(kinds) >= self._limits.columns_max:
                    return messages.too_many_columns(self._limits.columns_max)
                kinds[name] = kind
            elif have != kind:
                return messages.conflict(name, have, kind)
        return None

    def _too_sparse(self, call: _Call, bodies: int) -> LineError | None:
        """The error of the body that would need the most cells alone, None if there are not too many in all."""
        cells = 0
        alone = np.zeros(bodies, np.int64)
        for table in call.tables.values():
            names: list[set[str]] = [set() for _ in range(bodies)]
            rows = np.zeros(bodies, np.int64)
            for body, _, _, line in table.rows:
                rows[body] += 1
                names[body].update(name for name, _, _ in line.fields)
            cells += len(table.rows) * len(set().union(*names))
            alone += rows * np.array([len(own) for own in names], np.int64)
        if cells <= self._limits.cells_max:
            return None
        return LineError(int(alone.argmax()), 1, messages.too_sparse(cells, self._limits.cells_max), "")


def _to_ns(timestamp: int | None, precision: Precision, now_ns: int) -> int:
    if timestamp is None:
        return now_ns
    if precision is not Precision.AUTO:
        return timestamp * precision.multiplier
    seconds = abs(timestamp) // 1_000_000_000
    if seconds < 5:
        return timestamp * 1_000_000_000
    if seconds < 5_000:
        return timestamp * 1_000_000
    return timestamp * 1_000 if seconds < 5_000_000 else timestamp


def _roll_back(tables: dict[str, _Table], marks: dict[str, tuple[int, int]]) -> None:
    for name, table in tables.items():
        rows, new = marks.get(name, (0, 0))
        del table.rows[rows:]
        for column in table.new[new:]:
            del table.kinds[column]
        del table.new[new:]


def _by_first_row(tables: dict[str, _Table]) -> list[tuple[str, _Table]]:
    filled = [(name, table) for name, table in tables.items() if table.rows]
    return sorted(filled, key=lambda item: item[1].rows[0][:2])


def _build(name: str, table: _Table) -> ParsedTable:
    old = [*table.known.tags, *table.known.fields] if table.known else []
    names = old + [column for column in table.new if column not in old]
    rows = [(dict(line.tags), {key: value for key, _, value in line.fields}) for *_, line in table.rows]
    tags, fields = [], []
    for column in names:
        kind = table.kinds[column]
        values = [row[0 if kind == Kind.TAG else 1].get(column) for row in rows]
        if all(value is None for value in values):
            continue
        if kind == Kind.TAG:
            encoded = pa.array(values, pa.string()).dictionary_encode()
            tags.append(TagColumn(column, encoded, None in values))
        else:
            kind = FieldType(kind)
            fields.append(FieldColumn(column, kind, pa.array(values, _ARROW_TYPES[kind])))
    return ParsedTable(
        name=name,
        rows=len(rows),
        time=np.array([row[2] for row in table.rows], np.int64),
        tags=tags,
        fields=fields,
        new_tags=tuple(column for column in table.new if table.kinds[column] == Kind.TAG),
        new_fields=tuple(column for column in table.new if table.kinds[column] != Kind.TAG),
        body=np.array([row[0] for row in table.rows], np.int32),
        line=np.array([row[1] for row in table.rows], np.int32),
    )
