"""`runnel write`: files of line protocol over HTTP, with bounded parallel requests and a report of bad lines.

Reads and cuts in a thread, sends with asyncio. Goes on after bad lines; gives up when the server cannot be
reached or denies access.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from nodes.cli.client import BodyRefused, Client, LineError, ServerBusy, run
from nodes.exitcodes import ExitCode, ServerRefused, ServerUnreachable
from nodes.linebodies import Body, bodies, halves

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

RETRY_SECONDS_MAX: Final = 300.0
"""How long one body is tried again while the server is busy."""
BROKEN_SECONDS_MAX: Final = 30.0
"""How long one body is tried again after the connection broke, once the server has answered before."""
BROKEN_PAUSE_SECONDS: Final = 0.5
ERRORS_IN_ANSWER_MAX: Final = 1024
"""The server names this many bad lines of one request; with fewer the list is whole."""
ERRORS_KEPT_MAX: Final = 10_000
ERRORS_SHOWN_MAX: Final = 100
ORIGINAL_SHOWN_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """The flags of one run."""

    database: str
    precision: str
    batch_lines: int
    parallel: int
    is_json: bool = False


@dataclass(frozen=True, slots=True, order=True)
class Rejected:
    """Lines that were not written: ``lines`` numbers of ``file`` from ``line`` on, and why."""

    file: str
    line: int
    lines: int
    message: str
    original: str = ""


@dataclass(slots=True)
class Outcome:
    """What happened so far. ``lines`` counts those that should become rows: no comments, no blank lines."""

    lines: int = 0
    bytes: int = 0
    rejected_lines: int = 0
    retries: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    has_answered: bool = False
    seconds: float = 0.0

    def reject(self, rejected: Rejected, points: int = 1) -> None:
        """Count its ``points``, and keep it if there is room."""
        self.rejected_lines += points
        if len(self.rejected) < ERRORS_KEPT_MAX:
            self.rejected.append(rejected)

    @property
    def written(self) -> int:
        return self.lines - self.rejected_lines


def write(files: Sequence[str], options: WriteOptions, host: str | None) -> ExitCode:
    """Write all files; 1 if any line was rejected."""
    for name in files:
        if name != "-" and not Path(name).exists():
            raise FileNotFoundError(2, "there is no such file", name)
        if Path(name).is_dir():
            raise IsADirectoryError(21, "this is a folder; name its files", name)
    outcome: Outcome = run(_write(files, options, host))
    report(files, options, outcome)
    return ExitCode.FAILURE if outcome.rejected_lines else ExitCode.OK


async def _write(files: Sequence[str], options: WriteOptions, host: str | None) -> Outcome:
    outcome, started = Outcome(), time.monotonic()
    with Progress(files, enabled=sys.stderr.isatty() and not options.is_json) as progress:
        async with Client(host) as client:
            for file in files:
                await write_bodies(client, options, bodies(file, options.batch_lines), outcome, progress.show)
    outcome.seconds = time.monotonic() - started
    return outcome


async def write_bodies(
    client: Client,
    options: WriteOptions,
    source: Generator[Body, None, None],
    outcome: Outcome,
    on_written: Callable[[Body, Outcome], None],
) -> None:
    """Send every body, at most ``options.parallel`` at once; the first error that is not about lines ends it.

    Closes ``source``, and with it its file, whatever happens.
    """
    free = asyncio.Semaphore(options.parallel)
    reading: set[asyncio.Future[Body | None]] = set()

    async def send(body: Body) -> None:
        try:
            await _send(client, options, body, outcome)
            on_written(body, outcome)
        finally:
            free.release()

    try:
        async with asyncio.TaskGroup() as group:
            while True:
                await free.acquire()
                one = asyncio.ensure_future(asyncio.to_thread(next, source, None))
                reading = {one}
                body = await asyncio.shield(one)
                if body is None:
                    break
                group.create_task(send(body))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        await asyncio.gather(*reading, return_exceptions=True)  # a generator that runs cannot be closed
        source.close()


async def _send(client: Client, options: WriteOptions, body: Body, outcome: Outcome) -> None:
    """Write one body; in halves if it is too large for the server, or has more bad lines than an answer names.

    Lines that are sent again on the way are the same points, so they change nothing.
    """
    try:
        errors = await _try(client, options, body, outcome)
    except BodyRefused as error:
        errors, refusal = [], str(error)
    except ServerRefused as error:
        _reject_all(body, str(error), outcome)
        return
    else:
        refusal = ""
    if (refusal or len(errors) >= ERRORS_IN_ANSWER_MAX) and (parts := halves(body)) is not None:
        for part in parts:
            await _send(client, options, part, outcome)
        return
    if refusal:
        _reject_all(body, refusal, outcome)
        return
    _count(body, outcome)
    for item in errors:
        line = body.first_line + item.number - 1
        outcome.reject(Rejected(body.file, line, 1, item.message, item.original))


async def _try(client: Client, options: WriteOptions, body: Body, outcome: Outcome) -> list[LineError]:
    """Send until the server takes it or refuses it; busy and (later) broken connections are tried again."""
    busy_until = time.monotonic() + RETRY_SECONDS_MAX
    broken_until = time.monotonic() + BROKEN_SECONDS_MAX
    while True:
        try:
            errors = await client.write(options.database, options.precision, body.data)
        except ServerBusy as error:
            outcome.has_answered = True
            if time.monotonic() + error.retry_after_seconds > busy_until:
                raise
            pause = error.retry_after_seconds
        except ServerUnreachable:
            if not outcome.has_answered or time.monotonic() > broken_until:
                raise
            pause = BROKEN_PAUSE_SECONDS
        else:
            outcome.has_answered = True
            return errors
        outcome.retries += 1
        await asyncio.sleep(pause)


def _count(body: Body, outcome: Outcome) -> None:
    outcome.lines += body.points
    outcome.bytes += len(body.data)


def _reject_all(body: Body, message: str, outcome: Outcome) -> None:
    outcome.has_answered = True
    _count(body, outcome)
    outcome.reject(Rejected(body.file, body.first_line, body.lines, message), body.points)


def report(files: Sequence[str], options: WriteOptions, outcome: Outcome) -> None:
    """Print what was written and what was not, for people or as JSON."""
    outcome.rejected.sort()
    if options.is_json:
        sys.stdout.write(json.dumps(_as_json(files, outcome), indent=2) + "\n")
        return
    for item in outcome.rejected[:ERRORS_SHOWN_MAX]:
        sys.stderr.write(_sentence(item) + "\n")
    hidden = len(outcome.rejected) - ERRORS_SHOWN_MAX
    if hidden > 0:
        sys.stderr.write(f"... and {hidden:,} more; --json lists up to {ERRORS_KEPT_MAX:,}\n")
    rate = outcome.lines / outcome.seconds if outcome.seconds else 0.0
    rejected = f", {outcome.rejected_lines:,} rejected" if outcome.rejected_lines else ""
    sys.stdout.write(f"{outcome.written:,} lines written{rejected} in {outcome.seconds:.1f} s ({rate:,.0f} lines/s)\n")


def _sentence(item: Rejected) -> str:
    where = f"{item.file}:{item.line}" if item.lines == 1 else f"{item.file}:{item.line}-{item.line + item.lines - 1}"
    shown = item.original.strip()[:ORIGINAL_SHOWN_CHARACTERS]
    original = "".join(character if character.isprintable() else " " for character in shown)
    return f"{where}: {item.message}" + (f" in: {original}" if original else "")


def _as_json(files: Sequence[str], outcome: Outcome) -> dict[str, object]:
    return {
        "files": list(files),
        "lines": outcome.lines,
        "written": outcome.written,
        "rejected": outcome.rejected_lines,
        "retries": outcome.retries,
        "bytes": outcome.bytes,
        "seconds": round(outcome.seconds, 3),
        "errors": [
            {"file": e.file, "line": e.line, "lines": e.lines, "message": e.message, "original": e.original}
            for e in outcome.rejected
        ],
    }


class Progress:
    """A bar on standard error over the bytes of all files, with the rate in lines; nothing if not enabled."""

    def __init__(self, files: Sequence[str], *, enabled: bool) -> None:
        self._sizes = {name: Path(name).stat().st_size for name in files if name != "-"} if enabled else {}
        self._done: dict[str, int] = {}
        self._enabled = enabled
        self._is_sized = len(self._sizes) == len(files)

    def __enter__(self) -> Self:
        if self._enabled:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            remaining = [BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()]
            columns = [TextColumn("{task.description}"), *(remaining if self._is_sized else []), TimeElapsedColumn()]
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=sum(self._sizes.values()) if self._is_sized else None)
            self._started = time.monotonic()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            self._bar.stop()

    def show(self, body: Body, outcome: Outcome) -> None:
        """``body`` was written."""
        if not self._enabled:
            return
        self._done[body.file] = max(body.position, self._done.get(body.file, 0))
        rate = outcome.lines / max(time.monotonic() - self._started, 0.001)
        rejected = f", {outcome.rejected_lines:,} rejected" if outcome.rejected_lines else ""
        words = f"{outcome.lines:,} lines, {rate:,.0f}/s{rejected}"
        self._bar.update(self._task, completed=sum(self._done.values()), description=words)
