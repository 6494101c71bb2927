"""Nodes that do not belong, and garbage on every port: refused with a reason, and the cluster goes on unharmed."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from cluster.secret import make_secret
from tests.harness.cluster import Cluster
from tests.harness.logscan import ALARMING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.clusternode import ClusterNode

pytestmark = pytest.mark.timeout(180)

REFUSED_SECONDS_MAX: Final = 40.0
DOORS: Final = {
    "ingest": ("http", "grpc", "gossip", "raft"),
    "query": ("http", "grpc", "gossip"),
    "gateway": ("http", "gossip"),
}
CLEAR_CODES: Final = frozenset({69, 74, 75, 77, 78})
"""Exit codes that say what kind of thing is wrong; 70 would be a fault of ours."""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("strange"), 3, 1, 1, secure=True, fast=True) as made:
        yield made


@pytest.fixture
def cluster(started: Cluster) -> Iterator[Cluster]:
    """Unharmed before and after each test: every node of it runs as before, and it serves."""
    starts = {name: node.pid for name, node in started.nodes.items()}
    unharmed(started)
    try:
        yield started
        for node in started.outsiders:
            node.kill()
        unharmed(started)
    except BaseException as error:
        error.add_note("\n".join([started.tails(), *(f"--- outsider\n{node.tail()}" for node in started.outsiders)]))
        raise
    finally:
        for node in started.outsiders:
            node.kill()
        started.outsiders.clear()
    assert {name: node.pid for name, node in started.nodes.items()} == starts


def unharmed(cluster: Cluster) -> None:
    cluster.wait_settled()
    stamp = time.time_ns()
    assert cluster.write("g1", f"alive,a=b n={stamp}i {stamp}\n").status == 204
    assert cluster.query("g1", "SELECT max(n) AS n FROM alive") == [{"n": stamp}]


def refused(cluster: Cluster, node: ClusterNode) -> tuple[int | None, list[dict[str, Any]]]:
    """Start it: the exit code if it ended by itself, and what it complained of. It must have done one of both."""
    node.launch()

    def complaints() -> list[dict[str, Any]]:
        return [line for line in node.lines() if line.get("level") in ALARMING]

    cluster.wait(
        lambda: "" if complaints() or not node.is_running else "it runs and says nothing: " + node.tail(),
        f"{node.name} is refused",
        REFUSED_SECONDS_MAX,
    )
    deadline = time.monotonic() + 10
    while node.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert node.process is not None
    code = node.process.poll()
    assert code is None or code in CLEAR_CODES, (code, node.tail())
    found = complaints()
    assert found, f"it ended with {code} and said nothing"
    assert not any("Traceback" in str(line) for line in found), found
    return code, found


def words(lines: list[dict[str, Any]]) -> str:
    return " ".join(str(line) for line in lines).lower()


def is_member(cluster: Cluster, name: str) -> bool:
    view = cluster.view("i1")
    assert view is not None
    return view.states.get(name) == "alive"


@pytest.mark.parametrize("name", ["g9", "q9", "i9"])
def test_a_wrong_secret(cluster: Cluster, tmp_path: Path, name: str) -> None:
    make_secret(tmp_path / "other")
    _, found = refused(cluster, cluster.outsider(name, secret_file=tmp_path / "other"))
    assert "secret" in words(found) or "key" in words(found) or "decrypt" in words(found), found
    assert not is_member(cluster, name)


@pytest.mark.parametrize("name", ["g9", "i9"])
def test_another_clusters_name(cluster: Cluster, name: str) -> None:
    model = cluster.nodes[f"{name[0]}1"].blueprint
    environment = {**model.environment, "RUNNEL_CLUSTER__NAME": "elsewhere"}
    _, found = refused(cluster, cluster.outsider(name, environment=environment))
    assert "cluster" in words(found), found
    assert not is_member(cluster, name)


@pytest.mark.parametrize("name", ["g1", "i1"])
def test_a_name_that_is_taken(cluster: Cluster, name: str) -> None:
    """The first of that name stays a member at its address and goes on serving."""
    _, found = refused(cluster, cluster.outsider(name))
    assert name in words(found), found
    assert cluster.nodes[name].ask("GET", "/health/ready").status == 200


def test_a_data_folder_of_another_store(cluster: Cluster, tmp_path: Path) -> None:
    with Cluster(tmp_path / "other", 1, 1, 1, fast=True) as other:
        unharmed(other)
        assert set(other.stop().values()) == {0}
        folder = other.nodes["i1"].blueprint.folder
    code, found = refused(cluster, cluster.outsider("i9", folder=folder))
    assert code in CLEAR_CODES
    assert "store" in words(found), found
    assert not is_member(cluster, "i9")


def test_another_list_of_voters(cluster: Cluster) -> None:
    """Two lists of voters could elect two controllers."""
    first = cluster.nodes["i1"].blueprint
    outsider = cluster.outsider("i9")
    places = outsider.blueprint.address("raft")
    voters = ",".join([*first.voters.split(",")[:2], f"i9={places}"])
    cluster.outsiders.remove(outsider)
    outsider = cluster.outsider("i9", addresses=outsider.blueprint.addresses, voters=voters)
    _, found = refused(cluster, outsider)
    assert "voter" in words(found), found


def garbage(seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    yield b""
    yield b"\x00" * 4096
    yield b"\xff" * 70_000
    yield b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(100)
    yield (2**31 - 1).to_bytes(4, "big") + b"x"
    yield (2**31 - 1).to_bytes(4, "little") + b"x"
    for _ in range(30):
        yield draw.randbytes(draw.choice((1, 3, 20, 500, 9000)))


def test_garbage_on_every_port(cluster: Cluster) -> None:
    held: list[socket.socket] = []
    for node in cluster.nodes.values():
        for door, address in node.blueprint.addresses.items():
            if door not in DOORS[node.kind]:
                continue
            for piece in garbage(len(door)):
                link = socket.create_connection(address, timeout=10)
                with contextlib.suppress(ConnectionError):
                    link.sendall(piece)
                if len(held) < 200:
                    held.append(link)  # half of a conversation, left open
                else:
                    link.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            for piece in garbage(7):
                datagrams.sendto(piece[:60_000], node.blueprint.addresses["gossip"])
    unharmed(cluster)
    for link in held:
        link.close()
    assert not any("Traceback" in node.text() for node in cluster.nodes.values())
