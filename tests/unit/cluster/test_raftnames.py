"""A look-up that fails or hangs keeps nobody waiting, and an address that changed is found."""

from __future__ import annotations

import importlib
import socket
import threading

import pytest

from cluster.errors import ClusterMisconfigured
from cluster.raftnames import Resolver, literal, refuses


def test_addresses_need_no_look_up() -> None:
    resolver = Resolver(["127.0.0.1:1", "[::1]:2"])
    assert resolver.find("127.0.0.1") == "127.0.0.1"
    assert resolver.find("[::1]") == "::1"
    assert resolver.find("elsewhere") is None
    resolver.start()
    resolver.stop()


def test_a_name_is_found_again_when_it_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["10.0.0.1", OSError("no such name"), "10.0.0.2"])
    found: list[str | None] = []
    done = threading.Event()

    def answer(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        found.append(resolver.find(host))
        if len(found) == 4:
            done.set()
        value = next(answers, "10.0.0.2")
        if isinstance(value, OSError):
            raise value
        return [(socket.AF_INET6, 0, 0, "", ("::1", 0)), (socket.AF_INET, 0, 0, "", (value, 0))]

    monkeypatch.setattr("cluster.raftnames.KNOWN_SECONDS", 0.001)
    monkeypatch.setattr(socket, "getaddrinfo", answer)
    resolver = Resolver(["host:1", "127.0.0.1:1"])
    resolver.start()
    assert done.wait(10.0)
    resolver.stop()
    assert found[:4] == [None, "10.0.0.1", "10.0.0.1", "10.0.0.2"]


def test_an_address_to_listen_on_must_be_one() -> None:
    assert literal("localhost") == "127.0.0.1"
    assert literal("0.0.0.0") == "0.0.0.0"
    with pytest.raises(ClusterMisconfigured):
        literal("not a host")


def test_only_a_refusal_is_a_refusal() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert refuses("127.0.0.1", port, 1.0)
        bound.listen()
        assert not refuses("127.0.0.1", port, 1.0)
    assert not refuses(None, port, 1.0), "not known where: not refused"


def test_the_process_keeps_its_own_inet_ntop() -> None:
    """pysyncobj replaces it by one for Windows, whatever the system is."""
    importlib.import_module("cluster.raft")
    assert socket.inet_ntop(socket.AF_INET, bytes([127, 0, 0, 1])) == "127.0.0.1"
