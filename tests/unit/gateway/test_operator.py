"""The operator's door: what it shows, whom it drains, and what one process answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from nodes.gateway.assembly import GatewayParts, open_application
from nodes.health import Health, Phase
from nodes.metrics import Metrics
from nodes.status import (
    CLUSTER_PATH,
    DRAIN_PATH,
    KILL_PATH,
    QUERIES_PATH,
    REBALANCE_PATH,
    ClusterStatus,
    MemberStatus,
    QueryStatus,
    ShardOwner,
)
from storage.errors import ShardClosed
from tests.harness.gateway import reference_parser
from tests.harness.memory_backend import MemoryBackend, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

STATUS = ClusterStatus(
    name="c", controller="i1", placement_epoch=7, placement_number=3,
    members=[
        MemberStatus(name="i1", kind="ingest", state="alive"),
        MemberStatus(name="g1", kind="gateway", state="alive"),
    ],
    shards=[ShardOwner(shard=1, owner="i1"), ShardOwner(shard=2)],
)  # fmt: skip


class Control:
    """A cluster that remembers what it was asked; ``error`` is raised instead."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.error = error

    def cluster_status(self) -> ClusterStatus:
        return STATUS

    def numbers(self) -> dict[str, float]:
        return {"runnel_appends_total": 3}

    async def drain(self, node: str) -> int:
        return self._ask(f"drain {node}")

    async def rebalance(self) -> int:
        return self._ask("rebalance")

    def _ask(self, what: str) -> int:
        self.asked.append(what)
        if self.error is not None:
            raise self.error
        return 4


def call(control: Control | None, method: str, target: str, phase: Phase = Phase.READY) -> tuple[int, Any]:
    """One request through the whole application, without a socket."""
    return asyncio.run(_call(control, method, target, phase))


async def _call(
    control: Control | None, method: str, target: str, phase: Phase, running: Sequence[QueryStatus] = ()
) -> tuple[int, Any]:
    health = Health()
    health.move(phase)
    backend = MemoryBackend()
    backend.running = list(running)
    parts = GatewayParts(backend, health, Metrics(process=False), reference_parser, encode, cluster=control)
    path, _, query = target.partition("?")
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": []}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async with open_application(parts) as app:
        await app(scope, receive, send)
    body: bytes = sent[1]["body"]
    return sent[0]["status"], msgspec.json.decode(body) if body[:1] in (b"{", b"[") else body.decode()


def test_the_cluster_is_shown_even_while_the_node_starts() -> None:
    for phase in (Phase.READY, Phase.REPLAYING):
        status, document = call(Control(), "GET", CLUSTER_PATH, phase)
        assert status == 200
        assert msgspec.convert(document, ClusterStatus) == STATUS
    assert document["placement_epoch"] == 7
    assert document["members"][0]["name"] == "i1"
    assert document["shards"][1] == {"shard": 2, "owner": ""}


def test_drain_and_rebalance() -> None:
    control = Control()
    assert call(control, "POST", f"{DRAIN_PATH}?node=i1") == (200, {"moved": 4})
    assert call(control, "POST", REBALANCE_PATH) == (200, {"moved": 4})
    assert control.asked == ["drain i1", "rebalance"]


def test_who_cannot_be_drained() -> None:
    control = Control()
    assert call(control, "POST", DRAIN_PATH)[0] == 400
    status, document = call(control, "POST", f"{DRAIN_PATH}?node=i9")
    assert (status, document["error"]) == (404, "no node of this cluster is called 'i9'; there are g1, i1")
    status, document = call(control, "POST", f"{DRAIN_PATH}?node=g1")
    assert status == 409
    assert "only ingest nodes own shards" in document["error"]
    assert control.asked == []


@pytest.mark.parametrize(
    ("method", "target"), [("GET", CLUSTER_PATH), ("POST", f"{DRAIN_PATH}?node=i1"), ("POST", REBALANCE_PATH)]
)
def test_one_process_has_no_cluster(method: str, target: str) -> None:
    status, document = call(None, method, target)
    assert status == 404
    assert "`runnel start`" in document["error"]


def test_errors_and_methods() -> None:
    status, document = call(Control(ShardClosed("no controller; try again")), "POST", REBALANCE_PATH)
    assert (status, document) == (503, {"error": "no controller; try again"})
    assert call(Control(), "POST", REBALANCE_PATH, Phase.REPLAYING)[0] == 503
    assert call(Control(), "GET", DRAIN_PATH)[0] == 405


QUERY = QueryStatus(node="n", id="a b", phase="running", query_text="SELECT 1", rows=7)


def call_queries(method: str, target: str, phase: Phase = Phase.READY) -> tuple[int, Any]:
    """With one query that runs; a process by itself."""
    return asyncio.run(_call(None, method, target, phase, [QUERY]))


def test_queries_are_listed_and_killed() -> None:
    status, listed = call_queries("GET", QUERIES_PATH)
    assert (status, msgspec.convert(listed, list[QueryStatus])) == (200, [QUERY])
    status, killed = call_queries("POST", f"{KILL_PATH}?id=a+b")
    assert (status, msgspec.convert(killed, QueryStatus)) == (200, QUERY)


def test_which_queries_cannot_be_killed() -> None:
    assert call_queries("POST", KILL_PATH)[0] == 400
    status, text = call_queries("POST", f"{KILL_PATH}?id=other")
    assert (status, "'other'" in text) == (404, True)
    assert call_queries("GET", KILL_PATH)[0] == 405
    assert call_queries("GET", QUERIES_PATH, Phase.REPLAYING)[0] == 503
