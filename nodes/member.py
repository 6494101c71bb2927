"""This process as a member of the cluster: gossip, channels to the others, the Placement, the followed Catalog.

Every kind of node enters one `ClusterMember` and leaves it last. It knows who is here, where they listen, and
which node owns which shard; what a kind does with that is in `nodes.ingest`, `nodes.query` and `nodes.gateway`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import structlog

from cluster.channels import Channels
from cluster.errors import ClusterError, PeerUnavailable
from cluster.gossip import Gossip, GossipConfig
from cluster.members import Kind, MemberMeta
from cluster.secret import read_secret
from cluster.swimconfig import SwimConfig
from cluster.tlsfiles import TlsFiles, TlsSource
from nodes.gateway.faults import BadRequest
from nodes.node import version
from nodes.placementview import PlacementView, PlacementWatch
from nodes.status import ClusterStatus, MemberStatus, ShardOwner
from nodes.storeoptions import s3_options
from storage.catalogfollower import CatalogFollower
from storage.objects import open_store, prove_store
from storage.store import StoreIdentity, open_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cluster.channels import PeerChannel
    from cluster.members import Member
    from nodes.settings_model import Settings
    from storage.objects import ObjectStore

IO_THREADS: Final = 16
"""Threads for the object store."""
META_SECONDS: Final = 1.0
"""How often load and Revision are gossiped anew, if they changed."""
NODE_NAMESPACE: Final = uuid.UUID("7f3d2f7e-6f0e-4c47-9f0e-2a8f2b6f5c11")
"""Names become the 16 bytes that stand in the headers of objects."""

log = structlog.get_logger(__name__)


def node_id(name: str) -> bytes:
    """The 16 bytes that stand for a node's name in the header of an object (FORMAT F4)."""
    return uuid.uuid5(NODE_NAMESPACE, name).bytes


class ClusterMember:
    """Enter it to open the store, follow the Catalog and join; leave it to leave.

    ``load`` is asked now and then, and gossiped. ``fail`` ends the node.
    """

    def __init__(
        self, settings: Settings, kind: Kind, fail: Callable[[BaseException], None], load: Callable[[], float]
    ) -> None:
        self.settings = settings
        self.kind = kind
        self.name = settings.node_name
        self.id = node_id(self.name)
        self.placement = PlacementView()
        self.fail = fail
        self.executor = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="store")
        self.store: ObjectStore
        self.identity: StoreIdentity
        self.catalog: CatalogFollower
        self.secrets: Sequence[bytes] = ()
        self.channels: Channels
        self.tls: TlsSource | None = None
        self.addresses: dict[str, str] = {}
        self._load = load
        self._gossip: Gossip
        self._stack = contextlib.AsyncExitStack()
        self._listeners: list[Callable[[], None]] = []
        self._meta = MemberMeta(kind)

    # -- life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._open_store(stack)
            self._open_channels(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _open_store(self, stack: contextlib.AsyncExitStack) -> None:
        settings, loop = self.settings, asyncio.get_running_loop()
        stack.callback(self.executor.shutdown, wait=True, cancel_futures=True)
        self.store = await loop.run_in_executor(self.executor, open_store, settings.store_url, s3_options(settings))
        stack.callback(self.store.close)
        await loop.run_in_executor(self.executor, prove_store, self.store)  # L33
        self.identity = await loop.run_in_executor(self.executor, open_identity, self.store)
        check_same_store(settings.data_dir, self.identity)
        self.catalog = CatalogFollower(self.store, self.identity.id.bytes, self.executor)
        await stack.enter_async_context(self.catalog)

    def _open_channels(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        if settings.cluster.secret_file:
            self.secrets = read_secret(Path(settings.cluster.secret_file)).keys
        if settings.tls.is_on:
            files = TlsFiles(Path(settings.tls.ca), Path(settings.tls.cert), Path(settings.tls.key))
            self.tls = TlsSource(files, on_refused=_report_refused)
        self.channels = Channels(settings.cluster.name, version(), self.tls)
        stack.push_async_callback(self.channels.aclose)

    async def join(self, addresses: Mapping[str, str]) -> None:
        """Tell the others that this node serves at ``addresses`` (door -> HOST:PORT), and listen to them.

        Raises OSError for a taken port, ClusterDenied if another node has this name.
        """
        settings = self.settings
        self._meta = MemberMeta(self.kind, dict(addresses), settings.cluster.zone, version())
        loop = asyncio.get_running_loop()
        config = GossipConfig(
            name=self.name,
            cluster=settings.cluster.name,
            listen=(settings.gossip.listen.host, settings.gossip.listen.port),
            advertise=settings.cluster.advertise or None,
            join=[str(address) for address in settings.cluster.join],
            secrets=self.secrets,
            peers_file=settings.data_dir / "peers.json",
            swim=swim_config(settings),
        )
        self._gossip = Gossip(config, self._meta, lambda _: self._hop(loop), on_denied=self.fail)
        await self._gossip.start()
        self._stack.push_async_callback(self._gossip.stop)
        self.addresses = {**addresses, "gossip": self._gossip.address}
        watch = PlacementWatch(self.name, self.placement, self.members, self.channel_to, self.catalog.hint)
        for work in (watch.run(), self._gossip_meta()):
            task = asyncio.create_task(work)
            self._stack.push_async_callback(_cancel, task)

    async def leave(self) -> None:
        """Tell the others that this node goes, so that nobody has to find out."""
        await self._gossip.leave()

    # -- who is here -------------------------------------------------------------------------------------

    def members(self) -> Mapping[str, Member]:
        """Everybody known, this node too."""
        return self._gossip.members()

    def usable(self, kind: Kind) -> list[Member]:
        """Members of a kind that may be sent work."""
        return [member for member in self.members().values() if member.meta.kind is kind and member.is_usable]

    def address(self, name: str) -> str:
        """Where a member's gRPC listens. Raises PeerUnavailable."""
        member = self.members().get(name)
        if member is None or not member.is_usable:
            raise PeerUnavailable(f"node {name!r} is not here: try again")
        return member.meta.addresses["grpc"]

    def channel_to(self, address: str) -> PeerChannel:
        """The channel to HOST:PORT."""
        return self.channels.channel(address)

    def channel(self, name: str) -> PeerChannel:
        """The channel to a member. Raises PeerUnavailable."""
        return self.channel_to(self.address(name))

    def owns_no_shards(self) -> BadRequest:
        """What a node answers that is asked for work on shards and, as others of its kind, never has any."""
        owners = ", ".join(sorted(member.name for member in self.usable(Kind.INGEST))) or "there is none now"
        return BadRequest(f"{self.name} is a {self.kind.value} node and has no shards: ask each ingest node ({owners})")

    def suspect(self, name: str) -> None:
        """A call to this member failed: have gossip look at once."""
        self._gossip.suspect_now(name)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when the members changed."""
        self._listeners.append(listener)

    def _hop(self, loop: asyncio.AbstractEventLoop) -> None:
        """From gossip's thread to the node's event loop; nothing if that has ended."""
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._changed)

    def _changed(self) -> None:
        newest = max((member.meta.revision for member in self.members().values()), default=0)
        self.catalog.hint(newest)
        for listener in self._listeners:
            listener()

    async def _gossip_meta(self) -> None:
        while True:
            meta = dataclasses.replace(self._meta, load=self._load(), revision=self.catalog.current.revision)
            if meta != self._meta:
                self._meta = meta
                self._gossip.set_meta(meta)
            await asyncio.sleep(META_SECONDS * random.uniform(0.8, 1.2))

    # -- for operators -----------------------------------------------------------------------------------

    def numbers(self) -> dict[str, float]:
        """What gossip counts, by the names of `nodes.gateway.clustermetrics`."""
        counters = self._gossip.counters
        return {
            "runnel_gossip_packets_in_total": counters.packets_in,
            "runnel_gossip_packets_out_total": counters.packets_out,
            "runnel_gossip_packets_refused_total": counters.refused,
            "runnel_gossip_probes_failed_total": counters.probes_failed,
            "runnel_gossip_refutations_total": counters.refutations,
        }

    def cluster_status(self) -> ClusterStatus:
        """Members, owners, versions as this node sees them."""
        placement = self.placement.current
        return ClusterStatus(
            name=self.settings.cluster.name,
            controller=placement.controller,
            placement_epoch=placement.version.catalog_epoch,
            placement_number=placement.version.number,
            members=[_member_status(member) for _, member in sorted(self.members().items())],
            shards=[ShardOwner(shard=shard, owner=owner) for shard, owner in sorted(placement.owners.items())],
        )


def _member_status(member: Member) -> MemberStatus:
    meta = member.meta
    return MemberStatus(
        name=member.name, kind=meta.kind.value, state=member.state.value, version=meta.version, zone=meta.zone,
        addresses={**meta.addresses, "gossip": member.address}, load=meta.load, revision=meta.revision,
    )  # fmt: skip


def swim_config(settings: Settings) -> SwimConfig:
    """Gossip's settings as its machine wants them."""
    given = settings.gossip
    return SwimConfig(
        probe_interval=given.probe_interval,
        probe_timeout=given.probe_timeout,
        indirect_checks=given.indirect_checks,
        suspicion_mult=given.suspicion_mult,
        retransmit_mult=given.retransmit_mult,
        gossip_interval=given.gossip_interval,
        gossip_nodes=given.gossip_nodes,
        push_pull_interval=given.push_pull_interval,
    )


def check_same_store(folder: Path, identity: StoreIdentity) -> None:
    """A node's folder belongs to one store for ever: refuse another one's (exit 78)."""
    from nodes.settings import SettingsError

    mark = folder / "store-id"
    own = str(identity.id)
    if not mark.exists():
        mark.write_text(own + "\n")
        return
    if (found := mark.read_text().strip()) != own:
        raise SettingsError(f"{folder} belongs to the store {found}, and the store here is {own}: use another folder")


def _report_refused(error: ClusterError) -> None:
    log.warning("changed TLS files are not used", reason=str(error))


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
