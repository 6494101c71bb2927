"""The gateway's parts: the doors over a `RemoteBackend`; and its life within `nodes.node`.

A gateway owns nothing durable: it decodes, routes, retries, and loads no DataFusion.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Self

import msgspec

from cluster.errors import PeerUnavailable
from cluster.members import Kind
from nodes.clustercontrol import MemberControl
from nodes.gateway.assembly import open_gateway
from nodes.gateway.remote import RemoteBackend
from nodes.member import ClusterMember
from nodes.node import NodeParts
from nodes.viewkeeper import ViewKeeper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nodes.node import NodeContext
    from nodes.status import BackendStatus

OWNERS_SECONDS_MAX: Final = 600.0
"""How long a gateway waits at its start for a cluster whose shards have owners."""
POLL_SECONDS: Final = 0.2


class GatewayNode(RemoteBackend):
    """Enter it to join; it serves when the cluster has a controller and every shard an owner."""

    def __init__(self, context: NodeContext, control: MemberControl) -> None:
        self._context = context
        self._control = control
        self._here = ClusterMember(context.settings, Kind.GATEWAY, context.fail, lambda: 0.0)
        super().__init__(self._here)
        self._views = ViewKeeper(self, 0)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._here)
            settings = self._context.settings
            await self._here.join(
                {
                    "http": str(settings.cluster.reached_at(settings.http.listen)),
                    "grpc": str(settings.cluster.reached_at(settings.grpc.address)),
                }
            )
            self._control.fill(self._here, self.numbers)
            await self._wait_for_owners()
            self._views = ViewKeeper(self, settings.views.refresh_every, self._is_first)
            stack.push_async_callback(_cancel, asyncio.create_task(self._views.run()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _wait_for_owners(self) -> None:
        """A write before that could only wait; health says so meanwhile (503)."""
        try:
            async with asyncio.timeout(OWNERS_SECONDS_MAX):
                while not (self._has_owners() and self.catalog.revision):
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise PeerUnavailable(
                f"no cluster with an owner for every shard appeared in {OWNERS_SECONDS_MAX:.0f} s; is --join right?"
            ) from None

    def _is_first(self) -> bool:
        """Whether it is for this gateway to keep materialized views: for the first of those that are here."""
        return self._here.name == min((member.name for member in self._here.usable(Kind.GATEWAY)), default="")

    def _has_owners(self) -> bool:
        owners = self._here.placement.current.owners
        return bool(owners) and all(owners.values())

    def status(self) -> BackendStatus:
        """What it knows without asking anybody."""
        return msgspec.structs.replace(super().status(), views=self._views.counters)

    @property
    def listen(self) -> Mapping[str, str]:
        """Where it listens beside HTTP."""
        return {"gossip": self._here.addresses["gossip"]}  # what serves clients tells of itself

    async def checkpoint(self) -> None:
        """Nothing is held here that a checkpoint could write."""

    async def compact(self) -> int:
        """No shard is owned here: to say that nothing is worth a merge would be misleading."""
        raise self._here.owns_no_shards()

    async def drain(self) -> None:
        """Requests are answered; tell the others."""
        await self._here.leave()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def parts() -> NodeParts:
    """What `nodes.node` needs for `runnel gateway`."""
    control = MemberControl()
    return NodeParts(open_gateway, lambda context: GatewayNode(context, control), control)
