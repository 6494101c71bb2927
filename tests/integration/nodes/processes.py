"""Start a process of ours, read its lines with a deadline, signal it, and end it whatever happens."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    import signal

ROOT = Path(__file__).parents[3]
WAIT_SECONDS = 30.0


class Process:
    """``python -m MODULE ARGS``; standard output line by line, standard error whole."""

    def __init__(self, module: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNNEL_")}
        self._popen = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=kept | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read_lines, args=(self._popen.stdout,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._popen.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return "".join(self._errors)

    def line(self, begins: str, seconds: float = WAIT_SECONDS) -> str:
        """The next line of standard output that begins so; AssertionError with standard error if none comes."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line {begins!r} within {seconds} s; stderr: {self.errors}") from None
            if line is None:
                raise AssertionError(f"it ended without {begins!r}; stderr: {self.errors}")
            if line.startswith(begins):
                return line

    def rest(self) -> list[str]:
        """The lines that have not been read, once it has ended."""
        lines = []
        while (line := self._lines.get(timeout=WAIT_SECONDS)) is not None:
            lines.append(line)
        return lines

    def error_line(self, holds: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until standard error holds this text."""
        deadline = time.monotonic() + seconds
        while holds not in self.errors:
            assert time.monotonic() < deadline, f"{holds!r} is not in stderr: {self.errors}"
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def exit_code(self, seconds: float = WAIT_SECONDS) -> int:
        code = self._popen.wait(seconds)
        for thread in self._threads:
            thread.join(seconds)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
        self._popen.wait(WAIT_SECONDS)
        for thread in self._threads:
            thread.join(WAIT_SECONDS)
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()

    def _read_lines(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self, stream: IO[str]) -> None:
        for line in stream:
            self._errors.append(line)


def run(module: str, *arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run to the end: exit code, standard output, standard error."""
    with Process(module, *arguments, environment=environment) as process:
        code = process.exit_code()
        return code, "\n".join(process.rest()), process.errors
