"""A gateway's writes over gRPC while owners stop, fail and move, and tables go: scripted owners on real sockets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from grpc import aio

from cluster.placement import Placement, PlacementVersion
from nodes.backend import Batch, Principal
from nodes.gateway.remote import RemoteBackend
from nodes.placementview import PlacementView
from protos import internal_pb2 as pb
from protos.internal_pb2_grpc import PlacementStub
from storage.errors import NoSuchTable, OutcomeUnknown, StoreUnavailable
from tests.harness.gateway import on_loop
from tests.harness.grpcpeer import Peer, running
from tests.harness.tables import make_rows, make_table

if TYPE_CHECKING:
    from cluster.channels import PeerChannel
    from nodes.member import ClusterMember
    from storage.schema import Table

ANYBODY = Principal()


class Here:
    """What a `RemoteBackend` needs of its node: peers by name, the Placement, the Catalog."""

    def __init__(self, *tables: Table, **peers: Peer) -> None:
        self.placement = PlacementView()
        self.settings = SimpleNamespace(write=SimpleNamespace(timeout=20.0))
        self.catalog = self
        self.current = SimpleNamespace(revision=1, tables_by_id={table.id: table for table in tables})
        self.suspected: list[str] = []
        self._peers = peers

    def own(self, number: int, owner: str) -> None:
        """A newer Placement: ``owner`` has shard 1."""
        self.placement.offer(Placement(PlacementVersion(1, number), owner, {1: owner}))

    def channel(self, name: str) -> PeerChannel:
        return self._peers[name].channel

    def suspect(self, name: str) -> None:
        self.suspected.append(name)

    async def refresh(self) -> SimpleNamespace:
        return self.current

    def backend(self) -> RemoteBackend:
        return RemoteBackend(cast("ClusterMember", self))


def batches(*tables: Table) -> list[Batch]:
    return [Batch(table, make_rows([1, 2], ["a", "b"])) for table in tables]


@on_loop
async def test_an_owner_that_stops_is_no_error_of_a_client() -> None:
    table = make_table()
    async with running() as old, running() as new:
        here = Here(table, old=old, new=new)
        here.own(1, "old")
        backend = here.backend()
        old.ingest.gate = asyncio.Event()
        held = asyncio.ensure_future(backend.write(batches(table), ANYBODY))
        await old.ingest.began.wait()
        watch = old.channel.stub(PlacementStub).Watch(pb.WatchRequest(), timeout=10)
        await watch.read()
        stopping = asyncio.ensure_future(old.server.drain(10))
        with pytest.raises(aio.AioRpcError):  # from here on calls are refused
            await watch.read()
        writing = asyncio.ensure_future(backend.write(batches(table), ANYBODY))
        while not (writing.done() or here.suspected):  # the old one has refused it
            await asyncio.sleep(0.001)
        here.own(2, "new")  # the news of the hand-over comes late
        await writing
        sent = [append.parts[0].write_id.sequence for append in new.ingest.appends]
        assert sent.count(2) == 1, "the first write may have come here too: its try ends after some seconds"
        old.ingest.gate.set()
        await asyncio.gather(held, stopping)


@on_loop
async def test_what_may_stand_is_not_called_failed_by_whoever_refuses_the_next_try() -> None:
    """L6: the first try is cut off, then a node of another version has the owner's place."""
    table = make_table()
    async with running() as old, running(version="9.0.0") as new:
        here = Here(table, old=old, new=new)
        here.own(1, "old")
        old.ingest.gate = asyncio.Event()
        writing = asyncio.ensure_future(here.backend().write(batches(table), ANYBODY))
        await old.ingest.began.wait()
        here.own(2, "new")
        with pytest.raises(OutcomeUnknown):
            await writing


@on_loop
async def test_tables_that_go_one_after_another_are_all_named() -> None:
    """L8: the rows of each of them are a new write; whoever is not named counts as written."""
    one, two, three = (make_table(number) for number in (1, 2, 3))
    async with running() as owner:
        here = Here(one, two, three, owner=owner)
        here.own(1, "owner")
        for gone in (one, two):
            owner.ingest.errors.append(NoSuchTable(f"table {gone.name!r} was dropped"))
        refreshed = [{2: two, 3: three}, {3: three}]

        async def refresh() -> SimpleNamespace:
            if not refreshed:  # what stands must not be called failed because of this
                raise StoreUnavailable("the store does not answer")
            here.current.tables_by_id = refreshed.pop(0)
            return here.current

        here.refresh = refresh  # type: ignore[method-assign]
        with pytest.raises(NoSuchTable) as lost:
            await here.backend().write(batches(one, two, three), ANYBODY)
        assert lost.value.tables == {1, 2}
        assert [part.table_id for part in owner.ingest.appends[-1].parts] == [3]
