"""`runnel queries`, `runnel queries kill`: what waits or runs on a server or in its whole cluster, and end one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

from nodes.cli.client import ask, run
from nodes.exitcodes import ExitCode
from nodes.status import KILL_PATH, PHASE_UNKNOWN, QUERIES_PATH, QueryStatus
from nodes.units import show_size_rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

STATEMENT_CHARACTERS_MAX = 500
"""Of a statement in the table; --json has what the server keeps."""


def queries(host: str | None, *, is_json: bool) -> ExitCode:
    """List them, the longest first; 1 if a query node did not answer."""
    raw, found = run(ask(host, "GET", QUERIES_PATH, list[QueryStatus]))
    silent = [query.node for query in found if query.phase == PHASE_UNKNOWN]
    if is_json:
        sys.stdout.write(msgspec.json.format(raw, indent=2).decode() + "\n")
    else:
        _print([query for query in found if query.phase != PHASE_UNKNOWN], silent)
    return ExitCode.FAILURE if silent else ExitCode.OK


def kill(query_id: str, host: str | None) -> ExitCode:
    """End one, wherever it runs."""
    _, killed = run(ask(host, "POST", KILL_PATH, QueryStatus, {"id": query_id}))
    sys.stdout.write(
        f"query {killed.id} on {killed.node} is killed; it was {killed.phase} after {killed.total_seconds or 0:.1f} s\n"
    )
    return ExitCode.OK


def _print(found: Sequence[QueryStatus], silent: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if found:
        console.print(_table(found))
    else:
        console.print("no query waits or runs")
    for node in silent:
        console.print(f"{node} did not say what runs there", style="yellow", markup=False)


def _table(found: Sequence[QueryStatus]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("id", "node", "phase", "rung"):
        table.add_column(name, no_wrap=True)
    for name in ("seconds", "rows", "sent"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    table.add_column("db", overflow="fold")
    table.add_column("statement", overflow="fold", ratio=1)
    for query in sorted(found, key=lambda one: -(one.total_seconds or 0)):
        text = " ".join((query.query_text or "").split())[:STATEMENT_CHARACTERS_MAX]
        table.add_row(
            query.id, query.node, query.phase, _rung(query), f"{query.total_seconds or 0:.1f}", f"{query.rows or 0:,}",
            show_size_rounded(query.bytes or 0), Text(f"{query.door} {query.client}".strip()),
            Text(query.database or ""), Text(text),
        )  # fmt: skip
    return table


def _rung(query: QueryStatus) -> str:
    """Where it runs; nothing while it waits or is planned."""
    return f"{query.rung or ''} on {query.workers}" if query.workers else query.rung or ""
