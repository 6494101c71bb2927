"""`runnel sql`: one statement from the command line or standard input, or the prompt.

Rows go to standard output as the server sends them; everything else goes to standard error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from nodes.cli.client import Client, run
from nodes.cli.statements import split
from nodes.exitcodes import CommandFailed, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence


def sql(query: str | None, database: str | None, format: str, host: str | None) -> ExitCode:
    """Run the statements in ``query`` ("-" or a pipe: standard input), or open the prompt on a terminal."""
    if query is None and sys.stdin.isatty():
        from nodes.cli.prompt import prompt

        run(prompt(host, database, format))
        return ExitCode.OK
    text = sys.stdin.read() if query in (None, "-") else str(query)
    statements, rest = split(text)
    statements += [rest] if rest else []
    if not statements:
        raise CommandFailed("there is no statement to run")
    run(_run_all(statements, database, format, host))
    return ExitCode.OK


async def _run_all(statements: Sequence[str], database: str | None, format: str, host: str | None) -> None:
    async with Client(host) as client:
        name = await choose_database(client, database)
        for statement in statements:
            await show(client, name, statement, format)


async def choose_database(client: Client, wanted: str | None) -> str:
    """``wanted``, or the only database there is. Raises CommandFailed with the names if there are several."""
    if wanted is not None:
        return wanted
    names = await client.databases()
    if len(names) == 1:
        return names[0]
    if not names:
        raise CommandFailed(f"there is no database at {client.url} yet; the first write makes one (`runnel write`)")
    raise CommandFailed(f"say which database with --db: {', '.join(sorted(names))}")


async def show(client: Client, database: str, statement: str, format: str) -> int:
    """Print one result as it comes; returns how many line ends it had."""
    newlines, last = 0, b"\n"
    async for piece in client.query(database, statement, format):
        sys.stdout.buffer.write(piece)
        newlines += piece.count(b"\n")
        last = piece[-1:] or last
    if last != b"\n":
        sys.stdout.buffer.write(b"\n")
        newlines += 1
    sys.stdout.flush()
    return newlines
