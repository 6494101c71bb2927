"""The interactive SQL prompt: history, completion of names and keywords, statements over several lines.

Driven by `nodes.cli.sql` on a terminal. Errors are shown and the prompt goes on; Ctrl-C gives up the query that
runs (the server cancels it), Ctrl-D leaves.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings

from nodes.cli.client import Client
from nodes.cli.sql import choose_database, show
from nodes.cli.statements import KEYWORDS, is_complete, quote_name, quote_string, split
from nodes.exitcodes import CommandFailed, NodeError, ServerUnreachable
from nodes.settings import history_path

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyPressEvent

FORMATS: Final = ("pretty", "json", "jsonl", "csv")
PRETTY_FRAME_LINES: Final = 4
NAMES_AGE_SECONDS: Final = 60.0
WORD: Final = re.compile(r"\\?\w*$")
HELP: Final = r"""\dt         tables            \d TABLE    columns of a table
\l          databases         \c NAME     use another database
\timing     times on or off   \f FORMAT   pretty, json, jsonl, csv
\?          this help         \q          quit (or Ctrl-D)
A statement runs when it ends with a semicolon. Ctrl-C gives up the query that runs.
"""


@dataclass
class Names:
    """What completion knows of the database."""

    tables: dict[str, list[str]] = field(default_factory=dict)
    read_at: float = 0.0


@dataclass
class Session:
    """The state of one prompt."""

    client: Client
    database: str
    format: str
    is_timing: bool = True
    names: Names = field(default_factory=Names)


class NameCompleter(Completer):
    """Tables and columns first, then keywords; a keyword follows the case in which it was begun."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Candidates for the word before the cursor."""
        match = WORD.search(document.text_before_cursor)
        word = match[0] if match else ""
        if not word or word.startswith("\\"):
            return
        tables = self._session.names.tables
        columns = sorted({name for names in tables.values() for name in names})
        for name, meta in [*((name, "table") for name in tables), *((name, "column") for name in columns)]:
            if name.lower().startswith(word.lower()):
                yield Completion(quote_name(name), -len(word), display=name, display_meta=meta)
        for keyword in KEYWORDS:
            if keyword.lower().startswith(word.lower()):
                yield Completion(keyword.lower() if word.islower() else keyword.upper(), -len(word), display=keyword)


async def prompt(host: str | None, database: str | None, format: str) -> None:
    """Read and run statements until the user leaves. Raises ServerUnreachable if there is no server at the start."""
    async with Client(host) as client:
        await client.health()
        session = Session(client, await _first_database(client, database), format)
        await _read_names(session)
        sys.stdout.write(f"Runnel at {client.url}, database {session.database}. \\? for help, \\q to quit.\n")
        lines: PromptSession[str] = PromptSession(
            history=_history(),
            completer=NameCompleter(session),
            complete_while_typing=False,
            multiline=True,
            prompt_continuation=lambda width, *_: ">".rjust(width - 1) + " ",
            key_bindings=_keys(),
        )
        while await _turn(session, lines):
            pass


async def _turn(session: Session, lines: PromptSession[str]) -> bool:
    """One statement or command; False to leave."""
    try:
        text = await lines.prompt_async(f"{session.database}> ")
    except KeyboardInterrupt:
        return True
    except EOFError:
        return False
    try:
        if text.strip().startswith("\\"):
            return await command(session, text.strip())
        for statement in split(text)[0]:
            await _interruptible(run_statement(session, statement))
    except NodeError as error:
        sys.stderr.write(f"{error}\n")
    return True


async def command(session: Session, text: str) -> bool:
    """One of the prompt's own commands; False to leave. Raises CommandFailed for an unknown one."""
    word, _, argument = text.rstrip(";").partition(" ")
    argument = argument.strip()
    match word:
        case "\\q":
            return False
        case "\\?" | "\\h":
            sys.stdout.write(HELP)
        case "\\timing":
            session.is_timing = not session.is_timing
            sys.stdout.write(f"timing is {'on' if session.is_timing else 'off'}\n")
        case "\\f" if argument in FORMATS:
            session.format = argument
        case "\\c" if argument:
            session.database = argument
            await _read_names(session)
        case "\\l":
            sys.stdout.write("".join(f"{name}\n" for name in sorted(await session.client.databases())))
        case "\\dt" | "\\d" if word == "\\dt" or not argument:
            await run_statement(session, TABLES)
        case "\\d":
            await run_statement(session, COLUMNS.format(quote_string(argument.strip('"'))))
        case _:
            raise CommandFailed(f"unknown command {text}; \\? lists them")
    return True


TABLES: Final = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'iox' ORDER BY table_name"
COLUMNS: Final = (
    "SELECT column_name, data_type FROM information_schema.columns "
    "WHERE table_schema = 'iox' AND table_name = {} ORDER BY ordinal_position"
)
NAMES: Final = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'iox'"


async def run_statement(session: Session, statement: str) -> None:
    """Run one statement, print its rows, then their number and the time it took."""
    started = time.monotonic()
    newlines = await show(session.client, session.database, statement, session.format)
    seconds = time.monotonic() - started
    if session.format == "pretty":
        rows = max(0, newlines - PRETTY_FRAME_LINES)
        sys.stdout.write(f"{rows:,} row{'' if rows == 1 else 's'}{_took(session, seconds, ', ')}\n")
    elif session.is_timing:
        sys.stderr.write(_took(session, seconds) + "\n")
    if time.monotonic() - session.names.read_at > NAMES_AGE_SECONDS:
        await _read_names(session)


def _took(session: Session, seconds: float, before: str = "") -> str:
    if not session.is_timing:
        return ""
    return before + (f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s")


async def _first_database(client: Client, wanted: str | None) -> str:
    """At a prompt any database will do to begin with: \\c changes it."""
    try:
        return await choose_database(client, wanted)
    except CommandFailed:
        names = await client.databases()
        if not names:
            raise
        return min(names)


async def _read_names(session: Session) -> None:
    """Read names for completion; a prompt without them is still a prompt."""
    session.names = Names(read_at=time.monotonic())
    try:
        rows = await session.client.rows(session.database, NAMES)
    except ServerUnreachable:
        raise
    except NodeError as error:
        sys.stderr.write(f"no completion of names: {error}\n")
        return
    for row in rows:
        session.names.tables.setdefault(str(row["table_name"]), []).append(str(row["column_name"]))


async def _interruptible(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run it so that Ctrl-C cancels it and nothing else."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(coroutine)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
        sys.stderr.write("cancelled\n")
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _history() -> History:
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _keys() -> KeyBindings:
    """Enter runs a complete statement and otherwise begins a new line."""
    keys = KeyBindings()

    def complete() -> bool:
        from prompt_toolkit.application import get_app

        return is_complete(get_app().current_buffer.text)

    add: Callable[..., Callable[[Callable[[KeyPressEvent], None]], Callable[[KeyPressEvent], None]]] = keys.add

    @add("enter", filter=Condition(complete))
    def _run(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    return keys
