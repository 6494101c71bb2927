"""Queries of several query nodes put together, while some of them are silent, older, or talk nonsense."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from cluster.channels import Channels
from cluster.errors import PeerUnavailable
from cluster.members import Kind
from engine.errors import NoSuchQuery, QueryFailed
from engine.running import RunningQueries
from nodes import clusterqueries
from nodes.clusterqueries import ClusterQueries
from nodes.grpcserver import GrpcServer
from nodes.localqueries import LocalQueries
from nodes.status import PHASE_UNKNOWN, QueryStatus
from protos import internal_pb2 as pb
from protos.internal_pb2_grpc import QueryServicer, add_QueryServicer_to_server
from tests.harness.gateway import on_loop
from tests.harness.grpcpeer import CLUSTER, VERSION, service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nodes.member import ClusterMember


class Listing(QueryServicer):
    """No statement comes here."""

    def Execute(self, request: pb.ExecuteRequest, context: Any) -> AsyncIterator[pb.ExecuteReply]:
        raise NotImplementedError


class Answering(Listing):
    """A query node with these queries; ``error`` is raised instead of the answer to Kill."""

    def __init__(self, *running: QueryStatus, error: Exception | None = None) -> None:
        self.running = running
        self.error = error

    async def Queries(self, request: pb.QueriesRequest, context: Any) -> pb.QueriesReply:
        return pb.QueriesReply(json=msgspec.json.encode(self.running))

    async def Kill(self, request: pb.KillRequest, context: Any) -> pb.KillReply:
        if self.error is not None:
            raise self.error
        for query in self.running:
            if query.id == request.id:
                return pb.KillReply(json=msgspec.json.encode(query))
        raise NoSuchQuery("not here")


class Garbled(Listing):
    async def Queries(self, request: pb.QueriesRequest, context: Any) -> pb.QueriesReply:
        return pb.QueriesReply(json=b'[{"node": 7}]')

    async def Kill(self, request: pb.KillRequest, context: Any) -> pb.KillReply:
        return pb.KillReply(json=b"{")


class Silent(Listing):
    async def Queries(self, request: pb.QueriesRequest, context: Any) -> pb.QueriesReply:
        await asyncio.Event().wait()
        raise AssertionError

    async def Kill(self, request: pb.KillRequest, context: Any) -> pb.KillReply:
        await asyncio.Event().wait()
        raise AssertionError


class Older(QueryServicer):
    """It knows neither call."""


@contextlib.asynccontextmanager
async def cluster(**nodes: Any) -> AsyncIterator[ClusterQueries]:
    """Query nodes of these names, seen from the node q0; None is one that has just gone."""
    made = Channels(CLUSTER, VERSION)
    async with contextlib.AsyncExitStack() as stack:
        addresses = {}
        for name, servicer in nodes.items():
            if servicer is not None:
                served = [service("Query", servicer, add_QueryServicer_to_server)]
                server = GrpcServer("127.0.0.1", 0, served, cluster=CLUSTER, version=VERSION)
                addresses[name] = f"127.0.0.1:{(await stack.enter_async_context(server)).address[1]}"

        def channel(name: str) -> Any:
            if name not in addresses:
                raise PeerUnavailable(f"node {name!r} is not here: try again")
            return made.channel(addresses[name])

        def usable(kind: Kind) -> list[Any]:
            assert kind is Kind.QUERY
            return [SimpleNamespace(name=name) for name in nodes]

        yield ClusterQueries(cast("ClusterMember", SimpleNamespace(name="q0", channel=channel, usable=usable)))
        await made.aclose()


ONE, TWO = QueryStatus(node="q1", id="one", phase="running"), QueryStatus(node="q2", id="two", phase="waiting")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusterqueries, "ASK_SECONDS_MAX", 0.5)


@on_loop
async def test_all_are_listed_and_each_can_be_killed() -> None:
    async with cluster(q1=Answering(ONE), q2=Answering(TWO)) as queries:
        assert await queries.queries() == [ONE, TWO]
        assert await queries.kill("two") == TWO
        with pytest.raises(NoSuchQuery, match="three"):
            await queries.kill("three")


@pytest.mark.parametrize("other", [Silent, Older, Garbled, type(None)])
def test_a_node_that_does_not_answer_is_shown_and_leaves_no_doubt_unsaid(other: type) -> None:
    @on_loop
    async def run() -> None:
        async with cluster(q1=Answering(ONE), q2=other()) as queries:
            assert await queries.queries() == [ONE, QueryStatus(node="q2", phase=PHASE_UNKNOWN)]
            assert await queries.kill("one") == ONE
            with pytest.raises(PeerUnavailable, match="q2 did not answer"):
                await queries.kill("two")

    run()


@on_loop
async def test_an_answer_of_another_kind_is_passed_on() -> None:
    async with cluster(q1=Answering(error=QueryFailed("broken"))) as queries:
        with pytest.raises(QueryFailed, match="broken"):
            await queries.kill("one")


@on_loop
async def test_a_query_node_does_not_ask_itself() -> None:
    async with cluster(q0=Silent(), q1=Answering(ONE)) as queries:
        running = RunningQueries()
        queries.own = LocalQueries(running, "q0")
        mine = running.add("db", "SELECT 1")
        mine.stop_by(lambda: mine.end("query_killed"))
        assert [(query.node, query.id) for query in await queries.queries()] == [("q0", mine.id), ("q1", "one")]
        assert (await queries.kill(mine.id)).node == "q0"
        assert [query.node for query in await queries.queries()] == ["q1"]


@on_loop
async def test_without_query_nodes_nothing_runs() -> None:
    async with cluster() as queries:
        assert await queries.queries() == []
        with pytest.raises(NoSuchQuery):
            await queries.kill("one")
