"""What an operator asks of the cluster, answered by any node: it passes drains and rebalances on to the controller.

Filled by a kind's backend once the node has joined (`nodes.member`); until then the cluster is only this node's name.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import grpc

from cluster.errors import PeerUnavailable
from nodes.rpcerrors import read_error
from nodes.status import ClusterStatus
from protos import internal_pb2, internal_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nodes.member import ClusterMember

CALL_SECONDS_MAX: Final = 5.0
DRAIN_SECONDS_MAX: Final = 30.0
"""How long an operator waits until the shards have other owners."""
POLL_SECONDS: Final = 0.1


class MemberControl:
    """`nodes.status.ClusterControl` over this process's `ClusterMember`."""

    def __init__(self) -> None:
        self._member: ClusterMember | None = None
        self._own: Callable[[], dict[str, float]] = dict

    def fill(self, member: ClusterMember, own: Callable[[], dict[str, float]] = dict) -> None:
        """The node has joined. ``own`` gives the numbers of its kind."""
        self._member, self._own = member, own

    def cluster_status(self) -> ClusterStatus:
        """Everything `runnel cluster status` shows."""
        return ClusterStatus(name="") if self._member is None else self._member.cluster_status()

    def numbers(self) -> dict[str, float]:
        """What this node counts: gossip, and what its kind adds."""
        if self._member is None:
            return {}
        return {**self._member.numbers(), **self._own()}

    async def drain(self, node: str) -> int:
        """Give the shards of ``node`` to others; return how many moved."""
        member = self._joined()
        before = len(member.placement.current.shards_of(node))
        request = internal_pb2.HandoverRequest(node=node)
        for peer in (node, member.placement.current.controller):  # the node's own word is what lasts
            await self._call(peer, lambda stub: stub.Handover(request, timeout=CALL_SECONDS_MAX))
        await self._until(lambda: not member.placement.current.shards_of(node))
        return before - len(member.placement.current.shards_of(node))

    async def rebalance(self) -> int:
        """Spread the shards evenly; return how many moved."""
        member = self._joined()
        before = dict(member.placement.current.owners)
        controller = member.placement.current.controller
        request = internal_pb2.RebalanceRequest()
        await self._call(controller, lambda stub: stub.Rebalance(request, timeout=CALL_SECONDS_MAX))
        await member.placement.newer(member.placement.current.version, CALL_SECONDS_MAX / 5)
        after = member.placement.current.owners
        return sum(1 for shard, owner in before.items() if after.get(shard) != owner)

    async def _call(self, peer: str, call: Callable[[internal_pb2_grpc.IngestAsyncStub], Awaitable[object]]) -> None:
        if not peer:
            raise PeerUnavailable("there is no controller now: try again")
        try:
            await call(self._joined().channel(peer).stub(internal_pb2_grpc.IngestStub))
        except grpc.aio.AioRpcError as failure:
            raise read_error(failure, peer) from failure

    async def _until(self, done: Callable[[], bool]) -> None:
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS_MAX
        while not done() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    def _joined(self) -> ClusterMember:
        if self._member is None:
            raise PeerUnavailable("this node has not joined its cluster yet: try again")
        return self._member
