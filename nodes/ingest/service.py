"""The gRPC services of an ingest node: Append, Tail and the rest of `Ingest`, `Catalog`, `Placement`.

Thin: each method finds its shard or the controller and translates messages (protos/internal.proto).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.placement import encode_placement
from nodes.messages import changes_from, write_id_from
from nodes.placementview import REPEAT_SECONDS
from nodes.tailmessages import chunks, head_to, rows_to, small, wanted_from
from protos import internal_pb2, internal_pb2_grpc
from storage.appends import EncodedAppend
from storage.errors import WriteRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from nodes.ingest.node import IngestNode
    from storage.tailanswer import TailAnswer

REVISION_SECONDS_MAX: Final = 5.0
"""How long a request waits until this node's Catalog is as new as the asker's (L30)."""
SMALL_BYTES_MAX: Final = 1 << 18
"""Of all answers that `Tails` puts into one message; they are encoded on the event loop."""
SMALL_SECONDS_MAX: Final = 0.3
"""How long `Tails` waits for its slowest shard: less than the askers' patience (`nodes.query.source`)."""


class IngestService(internal_pb2_grpc.IngestServicer):
    """Serves `Ingest` over ``node``'s shards."""

    def __init__(self, node: IngestNode) -> None:
        self._node = node

    async def Append(
        self,
        request: internal_pb2.AppendRequest,
        context: grpc.aio.ServicerContext[internal_pb2.AppendRequest, internal_pb2.AppendReply],
    ) -> internal_pb2.AppendReply:
        """Durable when it answers (L4). A caller that goes away changes nothing: the parts go on (L7)."""
        shard = self._node.keeper.shard(request.shard)
        await self._node.member.catalog.wait_revision(request.revision, REVISION_SECONDS_MAX)
        parts = [_append(part) for part in request.parts]
        incoming = sum(len(part.frame) for part in parts)
        try:
            offsets = await self._node.appender.append(shard, incoming, lambda: shard.append_encoded(parts))
        except WriteRefused:
            return internal_pb2.AppendReply(position=shard.state.position, refused=True)
        self._node.appender.relieve()
        return internal_pb2.AppendReply(first_offsets=offsets, position=shard.state.position, epoch=shard.state.epoch)

    async def Tail(
        self,
        request: internal_pb2.TailRequest,
        context: grpc.aio.ServicerContext[internal_pb2.TailRequest, internal_pb2.TailReply],
    ) -> AsyncIterator[internal_pb2.TailReply]:
        """One snapshot, proved after the request arrived (L13, L14)."""
        answer = await self._answer(request)
        yield internal_pb2.TailReply(head=head_to(answer))
        for rows in chunks(answer.rows):
            yield internal_pb2.TailReply(rows=await asyncio.to_thread(rows_to, rows))

    async def Tails(
        self,
        request: internal_pb2.TailsRequest,
        context: grpc.aio.ServicerContext[internal_pb2.TailsRequest, internal_pb2.TailsReply],
    ) -> internal_pb2.TailsReply:
        """Small answers of several shards, in one message of at most about `SMALL_BYTES_MAX`."""
        asking = {asyncio.create_task(self._answer(one)): one.shard for one in request.shards}
        if not asking:
            return internal_pb2.TailsReply()
        try:
            done, _ = await asyncio.wait(asking, timeout=SMALL_SECONDS_MAX)
        finally:
            for task in asking:
                task.cancel()
        answers = [task.result() for task in done if task.exception() is None]
        return internal_pb2.TailsReply(shards=small(answers, SMALL_BYTES_MAX))

    async def _answer(self, request: internal_pb2.TailRequest) -> TailAnswer:
        """One snapshot, proved after the request arrived (L13, L14)."""
        shard = self._node.keeper.shard(request.shard)
        await self._node.member.catalog.wait_revision(request.revision, REVISION_SECONDS_MAX)
        wanted = wanted_from(request)
        catalog = self._node.catalog  # at least as new as the reader's (L36)
        tables = [catalog.tables_by_id[i] for i in wanted.tables if i in catalog.tables_by_id]
        await shard.cutoffs.record(catalog, tables)
        await shard.prove()
        return shard.tail(wanted)

    async def Checkpoint(
        self,
        request: internal_pb2.CheckpointRequest,
        context: grpc.aio.ServicerContext[internal_pb2.CheckpointRequest, internal_pb2.CheckpointReply],
    ) -> internal_pb2.CheckpointReply:
        """Shard 0 means all of this node's."""
        if request.shard:
            await self._node.keeper.shard(request.shard).checkpoint()
        else:
            await self._node.checkpoint()
        return internal_pb2.CheckpointReply()

    async def Drop(
        self,
        request: internal_pb2.DropRequest,
        context: grpc.aio.ServicerContext[internal_pb2.DropRequest, internal_pb2.DropReply],
    ) -> internal_pb2.DropReply:
        """L31: a drop record in the shard's Log; idempotent by table id."""
        shard = self._node.keeper.shard(request.shard)
        await self._node.member.catalog.wait_revision(request.revision, REVISION_SECONDS_MAX)
        await shard.drop(request.table_id, request.revision)
        return internal_pb2.DropReply()

    async def Announce(
        self,
        request: internal_pb2.AnnounceRequest,
        context: grpc.aio.ServicerContext[internal_pb2.AnnounceRequest, internal_pb2.AnnounceReply],
    ) -> internal_pb2.AnnounceReply:
        """L32: remember the controller's epoch, say what is owned here."""
        self._node.keeper.announced(request.catalog_epoch)
        return internal_pb2.AnnounceReply(
            catalog_epoch=self._node.keeper.newest_epoch,
            owned=[shard.log_id for shard in self._node.keeper.open_shards()],
            draining=self._node.draining,
        )

    async def Handover(
        self,
        request: internal_pb2.HandoverRequest,
        context: grpc.aio.ServicerContext[internal_pb2.HandoverRequest, internal_pb2.HandoverReply],
    ) -> internal_pb2.HandoverReply:
        """To the node itself: it is drained, and says so from now on. To the controller: give its shards to others."""
        controller, name = self._node.controller, self._node.member.name
        if request.node == name and not request.leaving:
            self._node.draining = True
            if not controller.is_controller:
                return internal_pb2.HandoverReply(shards_left=len(self._node.keeper.open_shards()))
        return internal_pb2.HandoverReply(shards_left=controller.handover(request.node, request.leaving))

    async def Rebalance(
        self,
        request: internal_pb2.RebalanceRequest,
        context: grpc.aio.ServicerContext[internal_pb2.RebalanceRequest, internal_pb2.RebalanceReply],
    ) -> internal_pb2.RebalanceReply:
        """To the controller: spread the shards evenly."""
        return internal_pb2.RebalanceReply(moves=self._node.controller.rebalance())

    async def Status(
        self,
        request: internal_pb2.StatusRequest,
        context: grpc.aio.ServicerContext[internal_pb2.StatusRequest, internal_pb2.StatusReply],
    ) -> internal_pb2.StatusReply:
        """What `runnel status` would show of this node."""
        return internal_pb2.StatusReply(json=msgspec.json.encode(self._node.status()))


class CatalogService(internal_pb2_grpc.CatalogServicer):
    """Serves `Catalog`: proposals where the controller is, waiting everywhere."""

    def __init__(self, node: IngestNode) -> None:
        self._node = node

    async def Propose(
        self,
        request: internal_pb2.ProposeRequest,
        context: grpc.aio.ServicerContext[internal_pb2.ProposeRequest, internal_pb2.ProposeReply],
    ) -> internal_pb2.ProposeReply:
        """L28: durable when it answers; a repeated proposal counts once."""
        controller = self._node.controller
        try:
            revision, position = await controller.propose(
                changes_from(request.changes), write_id_from(request.write_id), request.born
            )
        except WriteRefused:
            return internal_pb2.ProposeReply(position=controller.position, refused=True)
        return internal_pb2.ProposeReply(revision=revision, position=position)

    async def WaitRevision(
        self,
        request: internal_pb2.WaitRevisionRequest,
        context: grpc.aio.ServicerContext[internal_pb2.WaitRevisionRequest, internal_pb2.WaitRevisionReply],
    ) -> internal_pb2.WaitRevisionReply:
        """Answer when this node's Catalog is at least there."""
        await self._node.member.catalog.wait_revision(request.revision, REVISION_SECONDS_MAX)
        return internal_pb2.WaitRevisionReply(revision=self._node.catalog.revision)


class PlacementService(internal_pb2_grpc.PlacementServicer):
    """Serves `Placement`: the newest that this node knows."""

    def __init__(self, node: IngestNode) -> None:
        self._node = node

    async def Watch(
        self,
        request: internal_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[internal_pb2.WatchRequest, internal_pb2.WatchReply],
    ) -> AsyncIterator[internal_pb2.WatchReply]:
        """At once, at each change, and again every `REPEAT_SECONDS` (L32)."""
        view = self._node.member.placement
        while True:
            placement = view.current
            data = encode_placement(placement) if placement.version.catalog_epoch else b""
            yield internal_pb2.WatchReply(placement=data, revision=self._node.catalog.revision)
            await view.newer(placement.version, REPEAT_SECONDS)


def _append(part: internal_pb2.AppendPart) -> EncodedAppend:
    return EncodedAppend(
        part.table_id, part.partition, part.schema_version, write_id_from(part.write_id), part.born, part.frame_type,
        part.frame, part.row_count, part.time_low, part.time_high,
        part.unchanged_since if part.HasField("unchanged_since") else None,
    )  # fmt: skip
