"""`runnel status`: one server's health, databases, tables, memory and Logs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from nodes.cli.client import Client, raise_for_status, run
from nodes.cli.compact import counted
from nodes.exitcodes import ExitCode, ServerRefused
from nodes.status import STATUS_PATH, NodeStatus
from nodes.units import show_duration, show_size_rounded

if TYPE_CHECKING:
    from rich.table import Table

    from nodes.status import DatabaseStatus, FileCacheStatus, TableStatus


def status(host: str | None, *, is_json: bool) -> ExitCode:
    """0 if the server is ready, 1 if it answers that it is not."""
    raw, node = run(_ask(host))
    if is_json:
        sys.stdout.write(msgspec.json.format(raw, indent=2).decode() + "\n")
    else:
        _print(node)
    return ExitCode.OK if node.ready else ExitCode.FAILURE


async def _ask(host: str | None) -> tuple[bytes, NodeStatus]:
    async with Client(host) as client, client.request("GET", STATUS_PATH) as answer:
        raw = await answer.read()
        if answer.status != 503:
            await raise_for_status(answer)
        try:
            return raw, msgspec.json.decode(raw, type=NodeStatus)
        except msgspec.DecodeError as error:
            await raise_for_status(answer)
            raise ServerRefused(f"{client.url} is not a Runnel server that this command understands") from error


def _print(node: NodeStatus) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    colour = "green" if node.ready else "yellow"
    up = show_duration(round(node.uptime_seconds))
    console.print(f"[bold]{node.name}[/bold]  [{colour}]{node.phase}[/{colour}]  runnel {node.version}, up {up}")
    for part, reason in node.reasons.items():
        console.print(f"  {part}: {reason}", style="yellow", markup=False)
    memory = node.memory
    facts = {
        "listens": ", ".join(f"{name} {address}" for name, address in node.listen.items()),
        "data": node.data_dir,
        "store": f"{node.store_url} ({node.store_id})",
        "memory": f"{show_size_rounded(memory.resident_bytes)} resident; rows not yet in files "
        f"{show_size_rounded(memory.memtable_bytes)} of {show_size_rounded(memory.memtable_bytes_max)}",
        "cache": _cache(node.file_cache),
        "queries": f"{node.queries_running} running, {node.queries_waiting} waiting",
    }
    for name, value in facts.items():
        if value:
            console.print(f"  {name:<8} {value}", markup=False, soft_wrap=True)
    console.print(_tables(node) if node.databases else "\nno databases yet")
    if node.logs:
        console.print(_logs(node))
    done = node.compaction
    if done.merges or done.failed or done.waiting:
        merges = counted(done.merges, "merge") + (f", {done.failed:,} failed" if done.failed else "")
        console.print(
            f"compaction: {done.files_in:,} files became {done.files_out:,} in {merges}, "
            f"{done.cpu_seconds:.1f} s of CPU; {done.waiting:,} waiting"
        )
    if done.files_with_deletes:
        files = counted(done.files_with_deletes, "file")
        console.print(f"deletes: {files} with deletes that a merge has still to carry out on the disk (runnel compact)")


def _cache(cache: FileCacheStatus) -> str:
    """Nothing of a node that keeps no files of a remote store."""
    wanted = cache.hits + cache.misses
    found = f", {cache.hits / wanted:.0%} of what statements read found there" if wanted else ""
    return f"{counted(cache.files, 'file')}, {show_size_rounded(cache.bytes)}{found}" if cache.files or wanted else ""


def _tables(node: NodeStatus) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for name in ("database", "table"):
        table.add_column(name, overflow="fold")
    for name in ("columns", "rows", "files", "size"):
        table.add_column(name, justify="right")
    for database in node.databases:
        kept = _kept(database)
        if not database.tables:
            table.add_row(database.name + kept, "(empty)")
        for item in database.tables:
            rows = "" if item.rows is None else f"{item.rows:,}"
            size = show_size_rounded(item.file_bytes)
            table.add_row(database.name + kept, item.name + _kept(item), str(item.columns), rows, str(item.files), size)
    return table


def _kept(what: DatabaseStatus | TableStatus) -> str:
    """What it says itself: of a table 0 is for ever, whatever its database says."""
    said = []
    if what.retention_ns is not None:
        said.append(show_duration(what.retention_ns / 1e9) if what.retention_ns else "for ever")
    if what.retention_bytes is not None:
        said.append(show_size_rounded(what.retention_bytes) if what.retention_bytes else "all bytes")
    return f" (keeps {', '.join(said)})" if said else ""


def _logs(node: NodeStatus) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("log")
    table.add_column("state")
    for name in ("epoch", "at", "covered to", "above it", "objects"):
        table.add_column(name, justify="right")
    for item in node.logs:
        above = show_size_rounded(item.bytes_above_checkpoint)
        numbers = (str(item.epoch), str(item.sequence), str(item.covered), above, str(item.objects_above_checkpoint))
        table.add_row(item.name, item.state, *numbers)
    return table
