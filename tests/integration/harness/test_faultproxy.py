"""The proxy does what it is told: passes, delays, cuts one way or both, leaves half open, resets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness.faultproxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def echo_server() -> Iterator[tuple[str, int]]:
    """Answers each piece it gets with the same piece."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            while data := link.recv(1000):
                link.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextlib.contextmanager
def udp_echo_server() -> Iterator[tuple[str, int]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.05)
        ending = threading.Event()

        def serve() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    data, client = server.recvfrom(1000)
                    server.sendto(data, client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()
        finally:
            ending.set()
            thread.join()


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with echo_server() as (host, port), FaultProxy(host, port) as made:
        yield made


def connect(proxy: FaultProxy, seconds: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=seconds)


def is_silent(link: socket.socket, seconds: float = 0.2) -> bool:
    link.settimeout(seconds)
    try:
        link.recv(100)
    except TimeoutError:
        return True
    finally:
        link.settimeout(5)
    return False


def test_it_passes_both_ways_and_ends_with_its_client(proxy: FaultProxy) -> None:
    with connect(proxy) as link:
        link.sendall(b"hello")
        assert link.recv(100) == b"hello"
        link.shutdown(socket.SHUT_WR)
        assert link.recv(100) == b""
    assert proxy.counts["bytes up"] == proxy.counts["bytes down"] == 5


def test_it_delays_each_way(proxy: FaultProxy) -> None:
    proxy.latency_seconds = 0.05
    with connect(proxy) as link:
        begun = time.monotonic()
        link.sendall(b"hello")
        assert link.recv(100) == b"hello"
        assert time.monotonic() - begun >= 0.1
    assert proxy.counts["delayed"] == 2


@pytest.mark.parametrize("way", ["up", "down"])
def test_one_way_is_cut_and_passes_later(proxy: FaultProxy, way: str) -> None:
    with connect(proxy) as link:
        link.sendall(b"a")
        assert link.recv(100) == b"a"
        setattr(proxy, f"cut_{way}", True)
        link.sendall(b"b")
        assert is_silent(link)
        assert proxy.counts["bytes up"] == (1 if way == "up" else 2)
        proxy.heal()
        assert link.recv(100) == b"b"
    assert proxy.counts[f"held {way}"] == 1


def test_a_cut_lets_nobody_in_and_leaves_connections_open(proxy: FaultProxy) -> None:
    with connect(proxy) as open_before:
        open_before.sendall(b"a")
        assert open_before.recv(100) == b"a"
        proxy.cut()
        with connect(proxy) as new:
            new.sendall(b"n")
            assert is_silent(new)
            assert is_silent(open_before)
            proxy.heal()
            assert new.recv(100) == b"n"


def test_it_resets_and_refuses(proxy: FaultProxy) -> None:
    with connect(proxy) as link:
        link.sendall(b"a")
        assert link.recv(100) == b"a"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            link.recv(100)
    proxy.refuse = True
    with connect(proxy) as link, contextlib.suppress(ConnectionResetError):
        assert link.recv(100) == b""
    assert proxy.counts["reset"] == 2
    assert proxy.counts["refused"] == 1


def test_datagrams_pass_and_are_lost() -> None:
    with (
        udp_echo_server() as (host, port),
        FaultProxy(host, port, udp=True) as proxy,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link,
    ):
        link.settimeout(5)
        link.sendto(b"a", ("127.0.0.1", proxy.port))
        assert link.recv(100) == b"a"
        for way in ("up", "down"):
            setattr(proxy, f"cut_{way}", True)
            link.sendto(b"b", ("127.0.0.1", proxy.port))
            assert is_silent(link)
            assert proxy.counts[f"lost {way}"] == 1
            proxy.heal()
        proxy.latency_seconds = 0.05
        begun = time.monotonic()
        link.sendto(b"c", ("127.0.0.1", proxy.port))
        assert link.recv(100) == b"c"
        assert time.monotonic() - begun >= 0.1
