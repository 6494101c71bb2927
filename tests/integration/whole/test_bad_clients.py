"""Clients that lie, crawl, stop or come in crowds, against a whole node: clear answers, and memory stays bounded."""

from __future__ import annotations

import gzip
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.harness.waiting import eventually
from tests.integration.whole.probing import (
    MIB,
    Peak,
    Wire,
    ask,
    becomes_idle,
    clean_node,
    goes_on,
    head,
    post_lines,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import RunningNode

ENDLESS_ROWS = "SELECT value, value * 3 AS b, 'some text to send' AS c FROM generate_series(1, 1000000000000)"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    settings = {"HTTP__BODY_SECONDS": "1s", "HTTP__SEND_STALL_SECONDS": "2s", "MEMORY__BUDGET": "400 MiB"}
    with clean_node(tmp_path_factory.mktemp("clients"), **settings) as node:
        goes_on(node)
        yield node


def metric(node: RunningNode, name: str) -> float:
    """The value of a metric without labels."""
    text = ask(node, "GET", "/metrics").text
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def test_a_length_that_promises_more(node: RunningNode) -> None:
    """The client closes its side, or just waits: nothing of the torn body is written."""
    with Wire(node) as wire:
        wire.send(head(1000, "torn") + b"m v=1 1\nm v=2 2\n")
        wire.socket.shutdown(1)
        assert wire.is_ended()
    with Wire(node) as wire:
        wire.send(head(1000, "torn") + b"m v=1 1\nm v=2 2\n")
        reply = wire.reply()
        assert (reply.status, reply.text) == (408, "the request body did not arrive in time")
        assert wire.is_ended()
    assert ask(node, "GET", "/api/v3/query_sql?db=torn&q=SELECT+1").status == 404, "not even a database was made"
    goes_on(node)


def test_a_length_that_promises_less(node: RunningNode) -> None:
    """What is promised is a request; what follows is none, and the connection ends."""
    with Wire(node) as wire:
        wire.send(head(7, "less") + b"m v=1 1\nm v=2 2\nm v=3 3\n")
        assert wire.reply().status == 204
        assert wire.is_ended() or wire.reply().status == 400
    assert rows_of(node, "m", "less") == 1
    goes_on(node)


@pytest.mark.parametrize("length", ["-1", "abc", "1, 2", "9" * 30, "0x10", ""])
def test_lengths_that_are_none(node: RunningNode, length: str) -> None:
    with Wire(node) as wire:
        wire.send(head(length, "none") + b"m v=1 1")
        reply = wire.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert reply.text
    assert ask(node, "GET", "/api/v3/query_sql?db=none&q=SELECT+1").status == 404
    goes_on(node)


def test_a_length_over_the_limit(node: RunningNode) -> None:
    with Wire(node) as wire:
        wire.send(head(10_485_761, "over"))
        reply = wire.reply()
        assert (reply.status, reply.text) == (413, "max request size (10485760 bytes) exceeded")
    goes_on(node)


def test_a_slow_client(node: RunningNode) -> None:
    """One byte at a time: 408 in the end, and nobody else waits for it."""
    with Wire(node) as wire:
        wire.send(head(100, "slow"))
        begun = time.monotonic()
        while time.monotonic() - begun < 1.5:
            wire.send(b"m")
            asked = time.monotonic()
            post_lines(node, "m v=1 1", "fast")
            assert time.monotonic() - asked < 1.0
            time.sleep(0.1)
        assert wire.reply().status == 408
        assert wire.is_ended()
    assert ask(node, "GET", "/api/v3/query_sql?db=slow&q=SELECT+1").status == 404
    goes_on(node)


def test_a_client_that_stops_reading_its_result(node: RunningNode) -> None:
    """An endless result, not taken: memory stays where it is, the query ends, its place is free."""
    with Peak(node) as peak:
        stuck = [Wire(node, receive_bytes=4096) for _ in range(4)]
        for wire in stuck:
            query = ENDLESS_ROWS.replace(" ", "+")
            wire.send(f"GET /api/v3/query_sql?db=alive&q={query} HTTP/1.1\r\nhost: t\r\n\r\n".encode())
            assert wire.socket.recv(15) == b"HTTP/1.1 200 OK"
        eventually(lambda: metric(node, "http_requests_in_flight") == 1, "all but the question itself have ended")
    assert peak.grown_bytes < 100 * MIB
    assert becomes_idle(node), "an abandoned query must not go on"
    stalled = [line for line in node.lines() if line["event"] == "a client stopped taking its result"]
    assert len(stalled) == 4
    for wire in stuck:
        wire.socket.close()
    goes_on(node)


def test_clients_that_hang_up_in_mid_result(node: RunningNode) -> None:
    for _ in range(10):
        with Wire(node) as wire:
            query = ENDLESS_ROWS.replace(" ", "+")
            wire.send(f"GET /api/v3/query_sql?db=alive&q={query} HTTP/1.1\r\nhost: t\r\n\r\n".encode())
            assert wire.socket.recv(15) == b"HTTP/1.1 200 OK"
            wire.reset()
    eventually(lambda: metric(node, "http_requests_in_flight") == 1, "their requests have ended")
    assert becomes_idle(node)
    goes_on(node)


def test_two_hundred_connections_at_once(node: RunningNode) -> None:
    """Open all at the same time; each writes and reads three times."""
    wires = [Wire(node) for _ in range(200)]
    barrier = threading.Barrier(20)

    def work(part: int) -> list[int]:
        mine = wires[part::20]
        statuses = []
        barrier.wait(30)
        for turn in range(3):
            for number, wire in enumerate(mine):
                body = f"m,part=p{part},client=c{number} v={turn}i {turn + 1}".encode()
                wire.send(head(len(body), "crowd") + body)
            statuses += [wire.reply().status for wire in mine]
        return statuses

    with ThreadPoolExecutor(20) as pool:
        statuses = [status for part in pool.map(work, range(20)) for status in part]
    assert statuses == [204] * 600
    assert metric(node, "http_connections") >= 200
    for wire in wires:
        wire.socket.close()
    assert rows_of(node, "m", "crowd") == 600
    eventually(lambda: metric(node, "http_connections") == 1, "connections are forgotten")
    goes_on(node)


def test_a_gzip_bomb(node: RunningNode) -> None:
    bomb = gzip.compress(bytes(300 * MIB), 6)
    assert len(bomb) < MIB
    with Peak(node) as peak, ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(
                lambda _: ask(node, "POST", "/api/v3/write_lp?db=bomb", bomb, {"Content-Encoding": "gzip"}), range(8)
            )
        )
    assert {(reply.status, reply.text) for reply in replies} <= {(413, "max request size (10485760 bytes) exceeded")}
    assert peak.grown_bytes < 150 * MIB, f"{peak.grown_bytes >> 20} MiB"
    assert metric(node, "runnel_waiting_bytes") == 0
    goes_on(node)


def test_gzip_that_is_none(node: RunningNode) -> None:
    whole = gzip.compress(b"m v=1 1\n" * 100)
    for body in (b"m v=1 1", whole[:-9], whole[:20], b""):
        reply = ask(node, "POST", "/api/v3/write_lp?db=zip", body, {"Content-Encoding": "gzip"})
        assert reply.status == 400
        assert reply.text
    reply = ask(node, "POST", "/api/v3/write_lp?db=zip", whole, {"Content-Encoding": "br"})
    assert (reply.status, reply.text) == (400, "unacceptable content-encoding: br")
    assert ask(node, "GET", "/api/v3/query_sql?db=zip&q=SELECT+1").status == 404
    assert ask(node, "POST", "/api/v3/write_lp?db=zip", whole, {"Content-Encoding": "gzip"}).status == 204
    goes_on(node)
