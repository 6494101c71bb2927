"""`runnel files TABLE`: the live Parquet files of a table, from ``system.parquet_files``."""

from __future__ import annotations

import json
import sys
from typing import Any

from nodes.cli.client import Client, run
from nodes.exitcodes import ExitCode
from nodes.units import show_size_rounded
from storage.schema import BUNDLE


def files(table: str, database: str, host: str | None, *, is_json: bool) -> ExitCode:
    """List them, oldest rows first."""
    rows: list[dict[str, Any]] = run(_ask(table, database, host))
    if is_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return ExitCode.OK
    from rich.console import Console

    Console(highlight=False).print(_table(rows))
    total_bytes = sum(int(row.get("size_bytes", 0)) for row in rows)
    total_rows = sum(int(row.get("row_count", 0)) for row in rows)
    sys.stdout.write(f"{len(rows):,} files, {total_rows:,} rows, {show_size_rounded(total_bytes)}\n")
    if slices := [row for row in rows if str(row.get("kind", "")).startswith(BUNDLE)]:
        which = f"_runnel_table = {slices[0]['table_id']} and the _runnel_partition that is listed"
        sys.stdout.write(f"{len(slices):,} of them are slices of bundles, with other tables' rows: read {which}\n")
    if not rows:
        sys.stdout.write("no files yet: the rows are in the Log until the next checkpoint\n")
    return ExitCode.OK


async def _ask(table: str, database: str, host: str | None) -> list[dict[str, Any]]:
    quoted = table.replace("'", "''")
    text = f"SELECT * FROM system.parquet_files WHERE table_name = '{quoted}' ORDER BY min_time, path"  # noqa: S608
    async with Client(host) as client:
        return await client.rows(database, text)


def _table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("path", overflow="fold")
    has_slices = any(str(row.get("kind", "")).startswith(BUNDLE) for row in rows)
    for name in ("size", "rows", *(["partition"] if has_slices else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("from", "to"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        size, count = show_size_rounded(int(row.get("size_bytes", 0))), f"{int(row.get('row_count', 0)):,}"
        which = [str(row.get("partition", ""))] if has_slices else []
        times = str(row.get("min_time", "")), str(row.get("max_time", ""))
        table.add_row(str(row.get("path")), size, count, *which, *times)
    return table
