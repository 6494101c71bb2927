"""What the tests of a whole node share: clean nodes, raw answers with their headers, and what a process uses."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import psutil

from tests.harness.node import RunningNode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MIB: Final = 2**20
QUIET_CPU: Final = 0.1
"""Of one core: what a process that has nothing to do may use."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextlib.contextmanager
def clean_node(folder: Path, *flags: str, **settings: str) -> Iterator[RunningNode]:
    """A node with these settings (``LOG__SHARDS="2"``) that must end with 0 and log no warning and no error."""
    environment = {f"RUNNEL_{name}": value for name, value in settings.items()}
    with RunningNode(folder / "data", *flags, environment=environment) as node:
        yield node
        end_clean(node)


def end_clean(node: RunningNode) -> None:
    """Stop the node; it must have nothing to complain of."""
    assert node.stop() == 0, node.text()[-2000:]
    assert node.alarms() == []


def ask(
    node: RunningNode, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def post_lines(node: RunningNode, lines: str | bytes, database: str = "db", **parameters: str) -> Reply:
    """POST /api/v3/write_lp and whatever it answers."""
    query = urllib.parse.urlencode({"db": database, **parameters})
    return ask(node, "POST", f"/api/v3/write_lp?{query}", lines.encode() if isinstance(lines, str) else lines)


def ask_sql(node: RunningNode, statement: str, database: str = "db", **parameters: str) -> Reply:
    """GET /api/v3/query_sql and whatever it answers."""
    return ask(
        node, "GET", f"/api/v3/query_sql?{urllib.parse.urlencode({'db': database, 'q': statement, **parameters})}"
    )


def configure(node: RunningNode, method: str, what: str, **document: object) -> Reply:
    """One of the /api/v3/configure endpoints with a JSON body."""
    body = json.dumps(document).encode()
    return ask(node, method, f"/api/v3/configure/{what}", body, {"Content-Type": "application/json"})


def goes_on(node: RunningNode) -> None:
    """The server serves: a good write is acknowledged and read back at once."""
    stamp = time.time_ns()
    node.write(f"alive,probe=p v={stamp}i {stamp}", "alive", precision="ns")
    rows = node.query("SELECT max(v) AS v FROM alive", "alive")
    assert rows == [{"v": stamp}]


def checkpoint(node: RunningNode) -> None:
    """Everything in files, now."""
    reply = ask(node, "POST", "/api/runnel/checkpoint")
    assert reply.status == 204, reply.text


def rows_of(node: RunningNode, table: str, database: str = "db") -> int:
    """How many rows a table shows."""
    (row,) = node.query(f'SELECT count(*) AS n FROM "{table}"', database)
    count: int = row["n"]
    return count


def status_of(node: RunningNode) -> Any:
    """What `runnel status` shows."""
    return ask(node, "GET", "/api/runnel/status").json


def process_of(node: RunningNode) -> psutil.Process:
    """The node's process."""
    assert node.process is not None
    return psutil.Process(node.process.pid)


def cpu_seconds(node: RunningNode) -> float:
    """User and system time since the process began."""
    used = process_of(node).cpu_times()
    return float(used.user + used.system)


def becomes_idle(node: RunningNode, seconds: float = 15.0) -> bool:
    """Whether the process stops using its cores in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        before = cpu_seconds(node)
        time.sleep(0.3)
        if cpu_seconds(node) - before <= 0.3 * QUIET_CPU:
            return True
    return False


class Peak:
    """The most resident memory that a process had while this was entered, in bytes."""

    def __init__(self, node: RunningNode) -> None:
        self._process = process_of(node)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.start_bytes = self.bytes = int(self._process.memory_info().rss)

    def _watch(self) -> None:
        while not self._ending.wait(0.005):
            with contextlib.suppress(psutil.NoSuchProcess):
                self.bytes = max(self.bytes, int(self._process.memory_info().rss))

    @property
    def grown_bytes(self) -> int:
        return self.bytes - self.start_bytes

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()


class Wire:
    """A TCP connection that sends what it is told and reads what comes."""

    def __init__(self, node: RunningNode, *, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", node.port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it; a server that has closed its side is no error here."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def reply(self) -> Reply:
        """The next answer, whole."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def is_ended(self) -> bool:
        """The server has closed its side."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def reset(self) -> None:
        """Hang up rudely."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def head(length: int | str, database: str = "db", *more: str) -> bytes:
    """The head of a POST of line protocol."""
    lines = [f"POST /api/v3/write_lp?db={database} HTTP/1.1", "host: t", f"content-length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


def sql(node: RunningNode, statement: str, **more: Any) -> tuple[int, str]:
    """A statement by POST, so that it may change rows: status and text. ``more`` are members of the request."""
    body = json.dumps({"db": "db", "q": statement} | more).encode()
    reply = ask(node, "POST", "/api/v3/query_sql", body, {"Content-Type": "application/json"})
    return reply.status, reply.text


def compact(node: RunningNode) -> int:
    """Merge whatever is worth it, now; how many merges that took."""
    reply = ask(node, "POST", "/api/runnel/compact")
    assert reply.status == 200, reply.text
    merges: int = reply.json["merges"]
    return merges
