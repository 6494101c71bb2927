"""`runnel import`: Parquet and CSV files into a table, over the server's HTTP, as lines; memory stays small.

The files are read on this machine, so the server never opens a path that a client names. Columns that the table has
keep its types; of a new table the file's types, and ``--tag``, say what they are. Driven by `nodes.cli.app`.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from nodes.cli.client import Client, run
from nodes.cli.statements import quote_string
from nodes.cli.write import Outcome, Progress, Rejected, WriteOptions, report, write_bodies
from nodes.exitcodes import CommandFailed, ExitCode
from nodes.linebodies import Body, halves
from nodes.rowlines import REFUSED, joined, to_lines

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

BODY_BYTES_MAX: Final = 4 << 20
"""Below the server's default of 10 MiB."""
CSV_BLOCK_BYTES: Final = 4 << 20
ENDS: Final = (".parquet", ".csv", ".csv.gz")
_TYPES: Final[dict[str, pa.DataType]] = {
    "Int64": pa.int64(),
    "UInt64": pa.uint64(),
    "Float64": pa.float64(),
    "Boolean": pa.bool_(),
    "Utf8": pa.string(),
}


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Where rows go: ``tags`` are columns of files, beside those that are tags of the table already."""

    table: str
    tags: tuple[str, ...]
    time: str
    write: WriteOptions


def imports(files: Sequence[str], options: ImportOptions, host: str | None) -> ExitCode:
    """Import all files; 1 if any row was rejected. Raises CommandFailed for files that cannot be."""
    for name in files:
        if not name.endswith(ENDS):
            raise CommandFailed(f"{name}: give files that end with {', '.join(ENDS)}; `runnel write` takes lines")
        if not Path(name).is_file():
            raise FileNotFoundError(2, "there is no such file", name)
    outcome: Outcome = run(_import(files, options, host))
    report(files, options.write, outcome)
    return ExitCode.FAILURE if outcome.rejected_lines else ExitCode.OK


async def _import(files: Sequence[str], options: ImportOptions, host: str | None) -> Outcome:
    outcome, started = Outcome(), time.monotonic()
    async with Client(host) as client:
        known = await columns(client, options.write.database, options.table)
        with Progress(files, enabled=sys.stderr.isatty() and not options.write.is_json) as progress:
            for file in files:
                try:
                    write = replace(options.write, precision=precision(file, options, known))
                    await write_bodies(client, write, bodies(file, options, known, outcome), outcome, progress.show)
                except pa.ArrowException as error:
                    raise CommandFailed(f"{file}: {error}") from error
    outcome.seconds = time.monotonic() - started
    return outcome


async def columns(client: Client, database: str, table: str) -> dict[str, str]:
    """The table's columns and their types as ``information_schema`` names them; none if there is no such table."""
    if database not in await client.databases():
        return {}
    wanted = f"table_schema = 'iox' AND table_name = {quote_string(table)}"
    text = f"SELECT column_name, data_type FROM information_schema.columns WHERE {wanted}"  # noqa: S608
    return {str(row["column_name"]): str(row["data_type"]) for row in await client.rows(database, text)}


def tags_of(known: Mapping[str, str]) -> set[str]:
    """Those of a table's columns that are tags."""
    return {name for name, kind in known.items() if kind.startswith("Dictionary(")}


def precision(file: str, options: ImportOptions, known: Mapping[str, str]) -> str:
    """The unit of the file's times: timestamps know theirs, of integers the options say it."""
    for rows, _ in _batches(file, options, known):
        return options.write.precision if pa.types.is_integer(rows.column(options.time).type) else "ns"
    return "ns"


def bodies(
    file: str, options: ImportOptions, known: Mapping[str, str], outcome: Outcome
) -> Generator[Body, None, None]:
    """The file's rows as lines, in bodies; a body's lines are numbered as the file's rows, from 1."""
    tags = tags_of(known) | set(options.tags)
    first = 1
    for rows, position in _batches(file, options, known):
        present = [name for name in rows.schema.names if name in tags]
        lines = to_lines(options.table, _typed(rows, known, options.time), present, options.time)
        yield from _cut(file, first, lines, position, outcome)
        first += rows.num_rows


def _cut(file: str, first: int, lines: Any, position: int, outcome: Outcome) -> Generator[Body, None, None]:
    """The good lines; a refused row is counted and leaves a comment, so that numbers stay those of rows."""
    for number in pc.indices_nonzero(lines.is_null()).to_pylist():
        outcome.lines += 1
        outcome.reject(Rejected(file, first + number, 1, REFUSED))
    data = joined(pc.fill_null(lines, "#"))
    waiting = [Body(file, first, data.count(b"\n"), data, position)] if data else []
    while waiting:
        body = waiting.pop()
        parts = halves(body) if len(body.data) > BODY_BYTES_MAX else None
        if parts is None:
            yield body
        else:
            waiting += reversed(parts)


def _batches(file: str, options: ImportOptions, known: Mapping[str, str]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Batches and how far the file had been read. Raises CommandFailed if it has no column for the time."""
    found = _parquet(file, options) if file.endswith(".parquet") else _csv(file, options, known)
    for rows, position in found:
        missing = sorted({options.time, *options.tags} - set(rows.schema.names))
        if missing:
            raise CommandFailed(f"{file} has no column {missing[0]!r}; it has {', '.join(rows.schema.names)}")
        for at in range(0, rows.num_rows, options.write.batch_lines):
            yield rows.slice(at, options.write.batch_lines), position


def _parquet(file: str, options: ImportOptions) -> Iterator[tuple[pa.RecordBatch, int]]:
    import pyarrow.parquet as pq

    size = Path(file).stat().st_size
    with pq.ParquetFile(file) as opened:
        total, done = max(1, opened.metadata.num_rows), 0
        for rows in opened.iter_batches(batch_size=options.write.batch_lines):
            done += rows.num_rows
            yield rows, size * done // total


def _csv(file: str, options: ImportOptions, known: Mapping[str, str]) -> Iterator[tuple[pa.RecordBatch, int]]:
    from pyarrow import csv

    types = {name: kind for name in known if (kind := _type_of(known[name])) is not None}
    types |= dict.fromkeys(options.tags, pa.string())
    convert = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
    done = 0
    with csv.open_csv(file, csv.ReadOptions(block_size=CSV_BLOCK_BYTES), convert_options=convert) as opened:
        for rows in opened:
            done += rows.nbytes
            yield rows, done


def _type_of(kind: str) -> pa.DataType | None:
    return pa.string() if kind.startswith("Dictionary(") else _TYPES.get(kind)


def _typed(rows: pa.RecordBatch, known: Mapping[str, str], time_column: str) -> pa.RecordBatch:
    """With the types that the table has: a column of whole numbers may be one of floats there."""
    for place, name in enumerate(rows.schema.names):
        wanted = _type_of(known.get(name, ""))
        if wanted is not None and name != time_column and rows.column(place).type != wanted:
            rows = rows.set_column(place, name, rows.column(place).cast(wanted))
    return rows
