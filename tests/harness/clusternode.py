"""One node of a cluster under test: a real process in a session of its own, on ports that stay its own.

Driven by `tests.harness.cluster`. A node can be killed, stopped, paused and started again on the same data folder;
all it ever logged is kept, with marks where each start began.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.harness.exchange import Reply, ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT: Final = Path(__file__).resolve().parents[2]
READY_SECONDS_MAX: Final = 90.0
STOP_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.02
TAIL_LINES: Final = 14
LINE_CHARS: Final = 400
NOT_TOLD: Final = frozenset({"timestamp", "level", "event", "logger", "node", "kind"})


class NodeDied(RuntimeError):
    """A process ended, or was not ready in time; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What a node is started with. ``addresses`` maps a door to (host, port)."""

    name: str
    kind: str
    folder: Path
    store: str
    addresses: Mapping[str, tuple[str, int]]
    voters: str
    join: str
    secret_file: Path | None = None
    shards: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    module: str = "nodes"
    flags: Sequence[str] = ()

    def address(self, door: str) -> str:
        """HOST:PORT of a door."""
        host, port = self.addresses[door]
        return f"{host}:{port}"

    def command(self) -> list[str]:
        """The whole command line."""
        found = [*self.prefix, sys.executable, "-m", self.module, self.kind]
        found += ["--name", self.name, "--data", str(self.folder / "data"), "--store", self.store]
        for door in ("http", "grpc", "gossip"):
            found += [f"--{door}", self.address(door)]
        if self.kind == "ingest":
            found += ["--raft", self.address("raft"), "--voters", self.voters]
        found += ["--join", self.join]
        if self.secret_file is not None:
            found += ["--secret-file", str(self.secret_file)]
        if self.shards is not None and self.kind == "ingest":
            found += ["--shards", str(self.shards)]
        return [*found, *self.flags]


class ClusterNode:
    """A process that can be started many times. ``is_expected_up``: nobody has killed, stopped or paused it."""

    def __init__(self, blueprint: Blueprint) -> None:
        self.blueprint = blueprint
        self.name, self.kind = blueprint.name, blueprint.kind
        self.log_path = blueprint.folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.is_paused = False
        self.starts = 0
        self._log_start = 0
        self._reading = 0
        self._ready = False

    # -- its life ---------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the process and do not wait."""
        assert not self.is_running, f"{self.name} runs already"
        self.blueprint.folder.mkdir(parents=True, exist_ok=True)
        self._log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
        self._reading, self._ready = self._log_start, False
        environment = {**os.environ, "RUNNEL_LOGS__FORMAT": "json", **self.blueprint.environment}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.blueprint.command(), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self.starts += 1
        self.is_paused = False

    def start(self, seconds: float = READY_SECONDS_MAX) -> None:
        """Start, and wait until it says that it is ready."""
        self.launch()
        self.wait_ready(seconds)

    def wait_ready(self, seconds: float = READY_SECONDS_MAX) -> None:
        """Wait for the "ready" line of this start."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while not self._saw_ready():
            code = self.process.poll()
            if code is not None and not self._saw_ready():
                raise NodeDied(f"{self.name} ended with {code} before it was ready: {self.tail()}")
            if time.monotonic() > deadline:
                raise NodeDied(f"{self.name} is not ready after {seconds:.0f} s: {self.tail()}")
            time.sleep(POLL_SECONDS)

    def _saw_ready(self) -> bool:
        """Look for the line in what is new in the log since the last look."""
        if self._ready:
            return True
        with self.log_path.open("rb") as log:
            log.seek(self._reading)
            new = log.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._reading += len(whole)
        self._ready = any(line.get("event") == "ready" and "http" in line for line in _json_lines(whole.decode()))
        return self._ready

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def is_expected_up(self) -> bool:
        return self.is_running and not self.is_paused

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, and wait for the process to be gone; nothing if it does not run."""
        if self.process is None:
            return
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS_MAX)
        self.is_paused = False

    def stop(self, seconds: float = STOP_SECONDS_MAX) -> int:
        """SIGTERM; the exit code. A node that does not end in time is an AssertionError."""
        self.terminate()
        return self.wait_ended(seconds)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def wait_ended(self, seconds: float = STOP_SECONDS_MAX) -> int:
        """Wait for the end of the process; its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} has not ended after {seconds:.0f} s: {self.tail()}") from None

    def pause(self) -> None:
        """SIGSTOP, and wait until the kernel says that it stands."""
        os.killpg(self.pid, signal.SIGSTOP)
        self.is_paused = True
        deadline = time.monotonic() + 5
        while self.state() not in ("T", "t"):
            assert time.monotonic() < deadline, f"{self.name} cannot be paused"
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT; nothing if it is not paused."""
        if self.is_paused and self.is_running:
            os.killpg(self.pid, signal.SIGCONT)
        self.is_paused = False

    def state(self) -> str:
        """The kernel's letter for the process: R, S, D, T, Z; empty when it is gone."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return ""

    # -- what it says -----------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Where it serves HTTP."""
        return self.blueprint.addresses["http"]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 30.0,
    ) -> Reply:
        """One HTTP exchange on a connection of its own; never raises for what a network can do."""
        return ask(*self.address, method, path, body, headers, seconds)

    def text(self, *, whole: bool = False) -> str:
        """What it wrote since its last start, or ever."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(0 if whole else self._log_start)
            return log.read().decode(errors="replace")

    def tail(self) -> str:
        """The end of its log in short, for a failure's message."""
        told = [_short(line) for line in self.text().splitlines()[-TAIL_LINES:]]
        return "\n".join(told) or "(it said nothing)"

    def lines(self, *, whole: bool = False) -> list[dict[str, Any]]:
        """Its log lines as JSON, each with ``node``; lines that are no JSON become alarms of their own."""
        return [{"node": self.name, **line} for line in _json_lines(self.text(whole=whole), keep=True)]


def _json_lines(text: str, *, keep: bool = False) -> Iterator[dict[str, Any]]:
    """JSON objects, one a line. ``keep``: a line that is none comes as an error (a traceback must not be missed)."""
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if isinstance(value, dict):
            yield value
        elif keep and line.strip():
            yield {"level": "error", "event": "not a log line", "error": line}


def _short(line: str) -> str:
    """A log line as people read it, at most `LINE_CHARS`; of a traceback its end."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return line[-LINE_CHARS:]
    if not isinstance(value, dict):
        return line[-LINE_CHARS:]
    more = " ".join(f"{name}={str(value[name])[-LINE_CHARS:]}" for name in value.keys() - NOT_TOLD)
    return f"{str(value.get('timestamp', ''))[11:23]} {value.get('level', '')} {value.get('event', '')} {more}"
