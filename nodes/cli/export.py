"""`runnel export`: a table, or a statement's rows, into a file on this machine: Parquet, CSV, JSON or line protocol.

The rows go through a file beside the target, which gets its name when they are all there. Driven by `nodes.cli.app`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from nodes.cli.client import Client, run
from nodes.cli.imports import columns, tags_of
from nodes.cli.sql import choose_database
from nodes.exitcodes import CommandFailed, ExitCode
from nodes.units import show_size_rounded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

FORMATS: Final = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".lp": "lp"}
LINES_ROWS: Final = 10_000
TIME: Final = "time"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What goes where: ``table`` or ``statement``; ``target`` "-" is standard output, ``format`` None its end's."""

    target: str
    database: str | None
    table: str | None
    statement: str | None
    format: str | None
    may_replace: bool


def export(options: ExportOptions, host: str | None) -> ExitCode:
    """Write the file. Raises CommandFailed before anything is asked if that cannot be meant."""
    if (options.table is None) == (options.statement is None):
        raise CommandFailed("say what to export: either --table NAME or --query SQL")
    format = options.format or FORMATS.get(Path(options.target).suffix)
    if format is None:
        raise CommandFailed(f"{options.target}: end its name with {', '.join(FORMATS)}, or say --format")
    if format == "lp" and options.table is None:
        raise CommandFailed("line protocol has tags and fields, which only a table has: give --table, not --query")
    if options.target != "-" and os.path.lexists(options.target) and not options.may_replace:
        raise CommandFailed(f"{options.target} is there already; --force replaces it")
    size: int = run(_export(options, format, host))
    if options.target != "-":
        sys.stdout.write(f"{options.target}: {show_size_rounded(size)}\n")
    return ExitCode.OK


async def _export(options: ExportOptions, format: str, host: str | None) -> int:
    async with Client(host) as client:
        database = await choose_database(client, options.database)
        with _target(options.target) as output:
            return sum([output.write(piece) async for piece in _pieces(client, database, options, format)])


async def _pieces(client: Client, database: str, options: ExportOptions, format: str) -> AsyncIterator[bytes]:
    statement = options.statement or f'SELECT * FROM "{str(options.table).replace(chr(34), 2 * chr(34))}"'  # noqa: S608
    if format != "lp":
        async for piece in client.query(database, statement, format):
            yield piece
        return
    assert options.table is not None
    async for piece in _lines(client, database, options.table, statement):
        yield piece


async def _lines(client: Client, database: str, table: str, statement: str) -> AsyncIterator[bytes]:
    """By way of a Parquet file, which says types exactly; it has no name."""
    import tempfile

    import pyarrow.parquet as pq

    from nodes.rowlines import joined, to_lines

    tags = tags_of(await columns(client, database, table))
    with tempfile.TemporaryFile() as held:
        async for piece in client.query(database, statement, "parquet"):
            held.write(piece)
        held.seek(0)
        for rows in pq.ParquetFile(held).iter_batches(LINES_ROWS):
            yield joined(to_lines(table, rows, tags, TIME))


@contextlib.contextmanager
def _target(name: str) -> Iterator[IO[bytes]]:
    """Standard output, or a file that appears when all is well."""
    if name == "-":
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    target = Path(name)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as output:
            yield output
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
