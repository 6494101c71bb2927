"""A cluster of processes on one machine: starts them, knows them again, asks how they are, stops them.

Each node is a process in a session of its own, so it lives on when the command that started it ends. cluster.json
says which they are. Driven by `nodes.cli.cluster`; what runs where is planned in `nodes.cli.localplan`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from nodes import machine
from nodes.cli.localplan import HOST, PREFERENCES, STATE_VERSION, Folder, LocalNode, LocalState, settings_of, toml
from nodes.exitcodes import CommandFailed
from nodes.lockfile import DataFolderLocked, LockFile
from nodes.settings import Settings, environment_without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from nodes.cli.localplan import Shape, Tls

MODULE: Final = "nodes"
"""``python -m nodes KIND`` starts a node."""
POLL_SECONDS: Final = 0.1
AFTER_FAILURE_SECONDS: Final = 30.0
"""How much longer the others are awaited once a node has ended: without it they may never be ready."""
HEALTH_SECONDS_MAX: Final = 2.0
HEALTH_CHARACTERS_MAX: Final = 200
LOG_BYTES_MAX: Final = 64 * 2**20
"""A log that is longer is put aside (NAME.log.1) when its node is started."""
TAIL_BLOCK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Sight:
    """How one node is: ``reason`` says why it is not ready; ``uptime_seconds`` is None while it is down."""

    node: LocalNode
    is_up: bool
    reason: str
    uptime_seconds: float | None

    @property
    def is_ready(self) -> bool:
        return self.is_up and not self.reason


class LocalCluster:
    """The cluster in one folder. Enter it to change anything: one command at a time does."""

    def __init__(self, root: Path, module: str = MODULE) -> None:
        self.folder = Folder(root.expanduser().absolute())
        self._module = module
        self._lock = LockFile(self.folder.root)
        self._state = _read(self.folder.state)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._log_starts: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            self._lock.__enter__()
        except DataFolderLocked as error:
            raise CommandFailed(
                f"process {error.pid} is at work on the cluster in {self.folder.root}; wait until it has ended"
            ) from None
        self._state = _read(self.folder.state)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)

    @property
    def shape(self) -> Shape | None:
        """As it was last started; None if it never was."""
        return self._state.shape if self._state is not None else None

    @property
    def nodes(self) -> list[LocalNode]:
        """All that were planned, ingest first; empty if there is no cluster here."""
        return self._state.nodes if self._state is not None else []

    def node(self, name: str) -> LocalNode:
        """One by its name. Raises CommandFailed with the names there are."""
        found = next((node for node in self.nodes if node.name == name), None)
        if found is None:
            names = ", ".join(node.name for node in self.nodes)
            raise CommandFailed(f"no node is called {name!r}; " + (f"there are {names}" if names else self.missing))
        return found

    @property
    def missing(self) -> str:
        """What to say when there is no cluster here."""
        return f"there is no cluster in {self.folder.root}; `runnel cluster up` starts one"

    def running(self) -> list[LocalNode]:
        """Those whose process is there."""
        return [node for node in self.nodes if is_running(node)]

    def adopt(self, shape: Shape, nodes: list[LocalNode]) -> None:
        """Take a new plan. Nothing may run."""
        self._write(LocalState(shape=shape, nodes=nodes))

    def start(self, name: str, tls: Tls | None) -> None:
        """Start one node that is down, and do not wait; its pid is in the state before this returns."""
        node, log = self.node(name), self.folder.log(name)
        for folder in (self.folder.data(name), self.folder.store, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        settings = settings_of(node, self.nodes, self.folder, self._budget_bytes(), tls)
        self.folder.config(name).write_text(toml(settings), encoding="utf-8")
        _set_aside(log)
        command = [sys.executable, "-P", "-m", self._module, node.kind, "--config", str(self.folder.config(name))]
        environment = environment_without(settings.keys() - PREFERENCES)
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        with log.open("ab") as output:
            self._log_starts[name] = output.tell()
            child = subprocess.Popen(  # noqa: S603 - ourselves
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._children[name] = child
        self._note(msgspec.structs.replace(node, pid=child.pid, ticks=start_ticks(child.pid) or 0))

    def wait_ready(
        self, names: Sequence[str], seconds: float, on_look: Callable[[dict[str, str]], None]
    ) -> dict[str, str]:
        """Until all are ready or time is up. Returns what is wrong with those that are not ready.

        ``on_look`` gets the same for those that are still awaited, at every look.
        """
        started = time.monotonic()
        deadline = started + seconds
        waiting = dict.fromkeys(names, "starting")
        failed: dict[str, str] = {}
        while waiting:
            for name in tuple(waiting):
                reason = self._ended(name)
                if reason:
                    failed[name] = reason
                    deadline = min(deadline, time.monotonic() + AFTER_FAILURE_SECONDS)
                waiting[name] = reason or ready_reason(self.node(name))
                if reason or not waiting[name]:
                    del waiting[name]
            on_look(waiting)
            if time.monotonic() > deadline:
                waited = time.monotonic() - started
                return failed | {name: f"not ready after {waited:.0f} s: {why}" for name, why in waiting.items()}
            if waiting:
                time.sleep(POLL_SECONDS)
        return failed

    def stop(self, nodes: Iterable[LocalNode], seconds: float) -> list[str]:
        """SIGTERM all of these and wait; after ``seconds`` kill those that are left, and return their names."""
        going = [node for node in nodes if is_running(node)]
        for node in going:
            _signal(node, signal.SIGTERM)
        left = _wait_gone(going, seconds)
        for node in left:
            _signal(node, signal.SIGKILL)
        _wait_gone(left, seconds)
        for node in going:
            self._forget(node.name)
        return [node.name for node in left]

    def look(self) -> list[Sight]:
        """How every node is, in the order of the plan. Asks all at once: a frozen one answers late."""
        with ThreadPoolExecutor(max(len(self.nodes), 1)) as executor:
            return list(executor.map(look, self.nodes))

    def log_end(self, name: str, lines: int) -> str:
        """The last lines that a node wrote since this object started it."""
        path, start = self.folder.log(name), self._log_starts.get(name, 0)
        return tail(path, lines, start)[0].decode("utf-8", "replace").rstrip()

    def _ended(self, name: str) -> str:
        """Why it is not running any more; empty while it runs."""
        if is_running(self.node(name)):
            return ""
        child = self._children.get(name)
        if child is None:
            return "it has ended"
        code = child.wait(HEALTH_SECONDS_MAX)  # it is gone, or waits for us to ask
        return f"it ended with exit code {code}" if code >= 0 else f"it was ended by signal {-code}"

    def _budget_bytes(self) -> int:
        """Each takes an equal part of the machine, as if the others were not Runnel's."""
        return Settings().budgets(machine.memory_limit_bytes() // max(len(self.nodes), 1)).total_bytes

    def _note(self, changed: LocalNode) -> None:
        assert self._state is not None
        nodes = [changed if node.name == changed.name else node for node in self._state.nodes]
        self._write(msgspec.structs.replace(self._state, nodes=nodes))

    def _forget(self, name: str) -> None:
        child = self._children.pop(name, None)
        if child is not None:
            child.wait(HEALTH_SECONDS_MAX)
        self._note(msgspec.structs.replace(self.node(name), pid=0, ticks=0))

    def _write(self, state: LocalState) -> None:
        """Whole or not at all: it is all that knows the processes."""
        draft = self.folder.state.with_suffix(".json.new")
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
        draft.replace(self.folder.state)
        self._state = state


def is_running(node: LocalNode) -> bool:
    """Its process is there, and is the one that was started."""
    return node.pid > 0 and start_ticks(node.pid) == node.ticks


def look(node: LocalNode) -> Sight:
    """How it is at this moment."""
    if not is_running(node):
        return Sight(node, is_up=False, reason="down", uptime_seconds=None)
    uptime = float(Path("/proc/uptime").read_text().split()[0]) - node.ticks / os.sysconf("SC_CLK_TCK")
    return Sight(node, is_up=True, reason=ready_reason(node), uptime_seconds=round(max(uptime, 0.0), 1))


def ready_reason(node: LocalNode) -> str:
    """What its /health/ready says while it is not ready; empty when it is."""
    connection = http.client.HTTPConnection(HOST, node.http, timeout=HEALTH_SECONDS_MAX)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        text = answer.read(HEALTH_CHARACTERS_MAX).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException):
        return "it does not answer"
    finally:
        connection.close()
    return "" if answer.status == http.HTTPStatus.OK else text or f"status {answer.status}"


def is_free(port: int) -> bool:
    """Nobody listens there, by TCP or UDP."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            if kind is socket.SOCK_STREAM:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                return False
    return True


def tail(path: Path, lines: int, start: int = 0) -> tuple[bytes, int]:
    """The last lines of a file after byte ``start``, and where the file ended then."""
    with path.open("rb") as file:
        end = at = file.seek(0, os.SEEK_END)
        found = b""
        while at > start and found.count(b"\n") <= lines:
            step = min(TAIL_BLOCK_BYTES, at - start)
            at -= step
            file.seek(at)
            found = file.read(step) + found
    return b"".join(found.splitlines(keepends=True)[-lines:] if lines else []), end


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine did; None if it is gone (or waits to be reaped)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _signal(node: LocalNode, number: signal.Signals) -> None:
    if is_running(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(node.pid, number)


def _wait_gone(nodes: Sequence[LocalNode], seconds: float) -> list[LocalNode]:
    """Those that are still there when time is up."""
    deadline = time.monotonic() + seconds
    while (left := [node for node in nodes if is_running(node)]) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return left


def _set_aside(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".1"))


def _read(path: Path) -> LocalState | None:
    try:
        state = msgspec.json.decode(path.read_bytes(), type=LocalState)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise CommandFailed(f"{path} cannot be read ({error}); if nothing runs there, remove it") from error
    if state.version != STATE_VERSION:
        raise CommandFailed(f"{path} was written by another version of Runnel; stop its nodes with that one")
    return state
