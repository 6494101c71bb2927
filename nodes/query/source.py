"""Snapshots for the engine: of each shard from its owner, or from the store when the owner is silent (LOG L13-L15).

What owners answered is kept, so that the next query is sent only what is new. `nodes.query.node` hands it to the
engine as its SnapshotSource.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from cluster.errors import ClusterError, MalformedMessage, PeerUnavailable
from nodes.rpcerrors import read_error
from nodes.tailmessages import answer_from, wanted_to
from protos import internal_pb2, internal_pb2_grpc
from storage.cutoffs import table_snapshot
from storage.errors import CatalogBehind, CorruptObject, Fenced, OutcomeUnknown, ShardClosed, StoreUnavailable
from storage.kepttail import KeptTails, whole_snapshot
from storage.storereader import StoreReader

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from nodes.member import ClusterMember
    from storage.catalogstate import CatalogSnapshot
    from storage.kepttail import TailAsk
    from storage.schema import Table, TableSnapshot
    from storage.tailanswer import ShardSnapshot

    _Together = dict[int, ShardSnapshot]

TAIL_SECONDS_MAX: Final = 30.0
"""One answer of an owner, however large."""
PATIENCE_SECONDS: Final = 0.75
"""An owner silent for so long may be paused: the store is read beside it, and the first answer counts."""
REVISION_SECONDS_MAX: Final = 10.0
SMALL_BYTES: Final = 1 << 16
"""An answer below it is asked for together with others again."""
_SILENT: Final = (ClusterError, ShardClosed, Fenced, OutcomeUnknown, StoreUnavailable, CatalogBehind)
"""What an owner, or the way to it, may answer when the store has to be read instead (L15)."""

log = structlog.get_logger(__name__)


class ShardSource:
    """Reads shards for queries. Lives on the node's event loop."""

    def __init__(self, member: ClusterMember, kept_bytes_max: int) -> None:
        self.tails = 0
        self.store_reads = 0
        self._member = member
        self._kept = KeptTails(kept_bytes_max)
        self._large: set[int] = set()
        """Shards whose answer did not fit beside others' the last time: they are asked alone."""
        self._reader = StoreReader(
            member.store, member.identity.id.bytes, member.executor, member.catalog.table_by_id,
            revision=lambda: member.catalog.current.revision, catch_up=member.catalog.refresh,
        )  # fmt: skip

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        """One snapshot per table, each shard proved current. The tables in it may be newer than those asked for."""
        catalog = self._member.catalog.current
        wanted = _by_shard(tables)
        together = self._together(wanted, catalog)
        reads = [
            asyncio.create_task(self._shard(log_id, ids, catalog, together.get(log_id)))
            for log_id, ids in wanted.items()
        ]
        try:
            found = await asyncio.gather(*reads)
        finally:  # one that failed is answered at once: what the others would still bring is wanted by nobody
            tasks = {*reads, *together.values()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        shards = {shard.log_id: shard for shard in found}
        newest = max((shard.revision for shard in found), default=0)
        if newest > catalog.revision:  # L14: rows of a newer schema: plan with that
            catalog = await self._member.catalog.wait_revision(newest, REVISION_SECONDS_MAX)
        return [_table_snapshot(table, shards, catalog) for table in tables]

    def _together(
        self, wanted: Mapping[int, Collection[int]], catalog: CatalogSnapshot
    ) -> dict[int, asyncio.Task[_Together]]:
        """For each shard that was small before the one call that asks its owner for all of them."""
        owned: dict[str, dict[int, Collection[int]]] = {}
        for log_id, table_ids in wanted.items():
            owner = self._member.placement.current.owners.get(log_id)
            if owner is not None and log_id not in self._large:
                owned.setdefault(owner, {})[log_id] = table_ids
        calls: dict[int, asyncio.Task[_Together]] = {}
        for owner, shards in owned.items():
            calls |= dict.fromkeys(shards, asyncio.create_task(self._ask_together(owner, shards, catalog)))
        return calls

    async def _shard(
        self,
        log_id: int,
        table_ids: Collection[int],
        catalog: CatalogSnapshot,
        together: asyncio.Task[_Together] | None,
    ) -> ShardSnapshot:
        """The owner's answer, or the store's when the owner is silent or gone."""
        asking = asyncio.create_task(self._ask(log_id, table_ids, catalog, together))
        try:
            done, _ = await asyncio.wait({asking}, timeout=PATIENCE_SECONDS)
            if done:
                return asking.result()
        except _SILENT as error:
            log.debug("a shard is read from the store", shard=log_id, reason=str(error))
            return await self._read(log_id, table_ids)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        return await self._first(asking, asyncio.create_task(self._read(log_id, table_ids)))

    async def _first(self, asking: asyncio.Task[ShardSnapshot], reading: asyncio.Task[ShardSnapshot]) -> ShardSnapshot:
        """Whichever is a whole answer first; never one of both mixed (L15). One that fails leaves it to the other."""
        tasks = waiting = {asking, reading}
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None:
                        return task.result()
            return reading.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, log_id: int, table_ids: Collection[int]) -> ShardSnapshot:
        self.store_reads += 1
        return whole_snapshot(await self._reader.read_shard(log_id, table_ids), table_ids)

    async def _ask(
        self,
        log_id: int,
        table_ids: Collection[int],
        catalog: CatalogSnapshot,
        together: asyncio.Task[_Together] | None,
    ) -> ShardSnapshot:
        """What came of the call for several shards; by itself what is not in it."""
        found = None if together is None else (await asyncio.shield(together)).get(log_id)
        return await self._ask_alone(log_id, table_ids, catalog) if found is None else found

    async def _ask_together(
        self, owner: str, shards: Mapping[int, Collection[int]], catalog: CatalogSnapshot
    ) -> _Together:
        asks = {log_id: self._kept.ask(log_id, table_ids) for log_id, table_ids in shards.items()}
        request = internal_pb2.TailsRequest(
            shards=[wanted_to(log_id, catalog.revision, ask.wanted) for log_id, ask in asks.items()]
        )
        stub = self._member.channel(owner).stub(internal_pb2_grpc.IngestStub)
        try:
            reply = await stub.Tails(request, timeout=TAIL_SECONDS_MAX)
        except grpc.aio.AioRpcError as failure:
            raise self._failed(failure, owner) from failure
        found: _Together = {}
        for shard in reply.shards:
            if shard.shard not in asks:
                raise MalformedMessage(f"{owner} answered about shard {shard.shard}, which nobody asked for")
            found[shard.shard] = self._merged(asks[shard.shard], shard.whole.head, shard.whole.rows)
        self.tails += len(found)
        self._large |= shards.keys() - found.keys()
        return found

    async def _ask_alone(self, log_id: int, table_ids: Collection[int], catalog: CatalogSnapshot) -> ShardSnapshot:
        owner = self._member.placement.current.owners.get(log_id)
        if owner is None:
            raise PeerUnavailable(f"shard {log_id} has no owner now")
        ask = self._kept.ask(log_id, table_ids)
        request = wanted_to(log_id, catalog.revision, ask.wanted)
        call = self._member.channel(owner).stub(internal_pb2_grpc.IngestStub).Tail(request, timeout=TAIL_SECONDS_MAX)
        head: internal_pb2.TailHead | None = None
        rows: list[internal_pb2.TailRows] = []
        try:
            async for reply in call:
                head = reply.head if head is None else head
                rows.extend(reply.rows)
        except grpc.aio.AioRpcError as failure:
            raise self._failed(failure, owner) from failure
        finally:
            call.cancel()
        if head is None:
            raise MalformedMessage(f"{owner} answered nothing about shard {log_id}")
        self.tails += 1
        if head.ByteSize() + sum(len(one.rows) for one in rows) <= SMALL_BYTES:
            self._large.discard(log_id)
        return self._merged(ask, head, rows)

    def _failed(self, failure: grpc.aio.AioRpcError, owner: str) -> Exception:
        error = read_error(failure, owner)
        if isinstance(error, PeerUnavailable):
            self._member.suspect(owner)
        return error

    def _merged(
        self, ask: TailAsk, head: internal_pb2.TailHead, rows: Sequence[internal_pb2.TailRows]
    ) -> ShardSnapshot:
        try:
            return self._kept.merge(ask, answer_from(ask.log_id, head, rows))
        except CorruptObject as error:
            self._kept.forget(ask.log_id)  # what does not fit now does not fit the next time either
            raise MalformedMessage(str(error)) from error


def _by_shard(tables: Sequence[Table]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for table in tables:
        for log_id in dict.fromkeys(partition.log_id for partition in table.partitions):
            found.setdefault(log_id, []).append(table.id)
    return found


def _table_snapshot(table: Table, shards: Mapping[int, ShardSnapshot], catalog: CatalogSnapshot) -> TableSnapshot:
    newest = catalog.tables_by_id.get(table.id, table)
    found = [shards[log_id] for log_id in sorted({partition.log_id for partition in newest.partitions})]
    return table_snapshot(newest, catalog, [(shard.tables.get(table.id, ()), shard.cutoffs) for shard in found])
