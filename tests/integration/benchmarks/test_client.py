"""The benchmark's client over real sockets, and a server's life cycle with a real process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

import pytest

from benchmarks import client
from benchmarks.servers import Server, ServerFailed, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Counts what it gets; the path says how it answers."""

    protocol_version = "HTTP/1.1"
    bodies: ClassVar[list[bytes]] = []
    peers: ClassVar[set[tuple[str, int]]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).bodies.append(body)
        type(self).peers.add(self.client_address)
        if self.path == "/refuse":
            self._answer(422, b"field type conflict")
        elif self.path == "/hang-up":
            self.close_connection = True
        else:
            self.send_response(204)
            self.end_headers()

    def do_GET(self) -> None:
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in (b"a" * 70_000, b"b", b"c" * 3):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
        else:
            self._answer(200, b"plain")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    Handler.bodies, Handler.peers = [], set()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_every_body_arrives_once_over_the_connections_asked_for(port: int) -> None:
    bodies = [b"line %d\n" % number for number in range(200)]
    driven = client.drive(port, [client.build("POST", "/write", body) for body in bodies], 8)
    assert sorted(Handler.bodies) == sorted(bodies)
    assert len(Handler.peers) == 8
    assert len(driven.latency_seconds) == 200
    assert 0 < max(driven.latency_seconds) <= driven.wall_seconds


def test_a_body_larger_than_a_socket_buffer_arrives_whole(port: int) -> None:
    bodies = [bytes([number]) * 8_000_000 for number in range(3)]
    client.drive(port, [client.build("POST", "/write", body) for body in bodies], 2)
    assert sorted(Handler.bodies) == bodies


def test_more_connections_than_requests(port: int) -> None:
    driven = client.drive(port, [client.build("POST", "/write", b"x")], 4)
    assert len(driven.latency_seconds) == 1


def test_a_refusal_ends_the_load_with_the_servers_words(port: int) -> None:
    with pytest.raises(client.RequestFailed, match="status 422: field type conflict"):
        client.drive(port, [client.build("POST", "/refuse", b"x")], 1)


def test_a_connection_that_closes_early_is_a_failure(port: int) -> None:
    with pytest.raises(client.RequestFailed, match="closed the connection"):
        client.drive(port, [client.build("POST", "/hang-up", b"x")], 1)


def test_chunked_and_plain_answers_on_one_connection(port: int) -> None:
    with client.Connection(port) as connection:
        for _ in range(2):
            assert connection.ask(client.build("GET", "/chunked")).body == b"a" * 70_000 + b"bccc"
            assert connection.ask(client.build("GET", "/")).body == b"plain"


class PythonServer(Server):
    """A server process that is there everywhere: Python's own file server, which leaves children behind."""

    name = "python"
    ready_path = "/"
    script: ClassVar[str] = """
import http.server, subprocess, sys
burn = "import time\\nwhile time.process_time() < 0.2: pass"
subprocess.run([sys.executable, "-c", burn], check=True)
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", self.script, str(self.port)]


class BrokenServer(PythonServer):
    script = "raise SystemExit('no such setting')"


def test_a_server_starts_is_accounted_with_its_dead_children_and_stops(tmp_path: Path) -> None:
    server = PythonServer(tmp_path / "one")
    took = server.start()
    try:
        assert took >= 0.2
        assert server.cpu_seconds() >= 0.2
        assert server.memory().now_bytes > 1 << 20
        assert client.ask(server.port, "GET", "/").status == 200
    finally:
        server.stop()
    with pytest.raises(ServerFailed, match="is not running"):
        server.cpu_seconds()
    server.stop()
    with pytest.raises(OSError, match="refused"):
        client.ask(server.port, "GET", "/")


def test_a_killed_server_is_gone_at_once(tmp_path: Path) -> None:
    with PythonServer(tmp_path / "one") as server:
        begun = time.monotonic()
        server.kill()
        assert time.monotonic() - begun < 5


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="no such setting"):
        BrokenServer(tmp_path / "one").start()


def test_a_free_port_is_free() -> None:
    assert 1024 < free_port() < 65536


def test_an_error_says_that_the_server_had_died(tmp_path: Path) -> None:
    def ask_the_dead() -> None:
        with PythonServer(tmp_path / "one") as server:
            os.kill(server.pid, signal.SIGKILL)
            os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
            client.ask(server.port, "GET", "/")

    with pytest.raises(OSError, match="refused") as caught:
        ask_the_dead()
    assert "python had ended with -9" in caught.value.__notes__[0]


def test_a_crashing_server_is_gone_also_after_an_error(tmp_path: Path) -> None:
    server = PythonServer(tmp_path / "one")

    def fail_beside_it() -> None:
        with server.crashing():
            assert client.ask(server.port, "GET", "/").status == 200
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_beside_it()
    with pytest.raises(ServerFailed, match="is not running"):
        server.cpu_seconds()
