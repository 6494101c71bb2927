"""`runnel demo`: a node with the flights sample loaded through its own HTTP endpoint, and a live stream of metrics."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from nodes import logs
from nodes.assembly import embedded_parts
from nodes.cli.client import Client
from nodes.cli.start import command, end_for_sure
from nodes.cli.write import Outcome, WriteOptions, write_bodies
from nodes.demo import lines, paste, sample
from nodes.demo.hostmetrics import HostMetrics
from nodes.exitcodes import CommandFailed, ExitCode, NodeError, ServerRefused
from nodes.linebodies import Body
from nodes.node import run_node
from nodes.settings import load

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from nodes.node import Ready

LINES_IN_BODY: Final = 20_000
REQUESTS_AT_ONCE: Final = 2
LIVE_SECONDS: Final = 1.0
OPTIONS: Final = WriteOptions(paste.DATABASE, "s", LINES_IN_BODY, REQUESTS_AT_ONCE)


def demo(flags: Mapping[str, object], *, live: bool, once: bool) -> ExitCode:
    """Run the demo until Ctrl-C; with ``once`` it stops when the sample is loaded. Needs the `demo` extra."""
    data = sample.folder()
    settings = load(None, {"logs.level": "warning", **flags}).settings
    logs.configure(settings.logs, settings.node_name)
    console = Console(highlight=False)

    async def beside(ready: Ready) -> None:
        async with Client(ready.url) as client:
            await load_sample(client, data, console)
            show_paste(ready.url, console)
            if once:
                ready.stop()
            elif live:
                await write_live(client, str(settings.data_dir))

    return end_for_sure(run_node(settings, embedded_parts(), [beside]))


def demo_into(host: str, *, live: bool, once: bool) -> ExitCode:
    """Load the sample into a server that runs already, and write live metrics to it until Ctrl-C. Needs the extra."""
    data = sample.folder()
    console = Console(highlight=False)

    async def work() -> None:
        async with Client(host) as client:
            await load_sample(client, data, console)
            if once:
                return
            show_paste(client.url, console)
            if live:
                await write_live(client, ".")

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(work())
    return ExitCode.OK


async def load_sample(client: Client, data: Path, console: Console) -> None:
    """Write every table that does not hold the sample yet, and count it. Raises CommandFailed if a count differs."""
    progress = Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True)
    with progress:
        for shape in sample.SHAPES:
            table = await asyncio.to_thread(sample.read, shape, data)
            rows = table.rows.num_rows
            if await _count_before(client, shape.name) != rows:
                await _load_table(client, table, progress)
            found = await count(client, shape.name)
            if found != rows:
                raise CommandFailed(f"{shape.name} holds {found:,} rows after loading {rows:,}; use an empty --data")
            console.print(f"  {shape.name:<9} {rows:>8,} rows")


async def _load_table(client: Client, table: sample.Sample, progress: Progress) -> None:
    task = progress.add_task(table.shape.name, total=table.rows.num_rows)
    encoded = await asyncio.to_thread(lines.encode, table)
    outcome, started = Outcome(), time.monotonic()

    def show(body: Body, so_far: Outcome) -> None:
        rate = so_far.lines / max(time.monotonic() - started, 0.001)
        progress.update(task, completed=so_far.lines, description=f"{body.file} {rate:,.0f} lines/s")

    await write_bodies(client, OPTIONS, _bodies(table.shape.name, encoded), outcome, show)
    progress.remove_task(task)
    if outcome.rejected:
        first = outcome.rejected[0]
        raise CommandFailed(f"{outcome.rejected_lines:,} lines of {first.file} were rejected: {first.message}")


def _bodies(name: str, encoded: Any) -> Generator[Body, None, None]:
    for first, count_lines, data in lines.bodies(encoded, LINES_IN_BODY):
        yield Body(name, first, count_lines, data, 0)


async def count(client: Client, table: str) -> int:
    """Rows of a table. Raises ServerRefused if it, or the database, is not there."""
    rows = await client.rows(paste.DATABASE, f"SELECT count(*) AS n FROM {table}")  # noqa: S608 - our own names
    return int(rows[0]["n"])


async def _count_before(client: Client, table: str) -> int:
    try:
        return await count(client, table)
    except ServerRefused:
        return 0


async def write_live(client: Client, path: str) -> None:
    """This machine's metrics, every second, until cancelled. A write that fails is left out: the next one follows."""
    metrics = HostMetrics(path)
    complained = False
    while True:
        await asyncio.sleep(LIVE_SECONDS)
        try:
            await client.write(paste.DATABASE, "ns", await asyncio.to_thread(metrics.lines))
            complained = False
        except NodeError as error:
            if not complained:
                sys.stderr.write(f"runnel: a live point was not written: {error}\n")
            complained = True


def show_paste(url: str, console: Console) -> None:
    """The queries with the columns of their results, and other clients."""
    console.print(f"\nRunnel listens on [bold]{url}[/bold]. In another terminal:\n")
    console.print(f"{command()} sql --db {paste.DATABASE} --host {url}\n", markup=False, soft_wrap=True)
    for query in (*paste.QUERIES, paste.LIVE_QUERY):
        rows = "" if query.rows is None else f", {query.rows} rows"
        console.print(f"-- {query.title} ({', '.join(query.columns)}{rows})", style="dim", markup=False, soft_wrap=True)
        console.print(f"{query.text};\n", markup=False, soft_wrap=True)
    console.print(paste.other_clients(url), markup=False, soft_wrap=True)
    console.print("This machine's metrics keep coming in as cpu, mem, disk, net and system. Stop with Ctrl-C.")
