"""The Backend of a gateway: rows go to the owners of shards, statements to query nodes, changes to the controller.

`nodes.gateway.node` enters it; doors see only `nodes.backend.Backend`. While ownership moves, a part of a write is
sent again, with the same write id and `born`, inside one deadline (LOG L6, L7): the client sees an error only if no
owner appears in time.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from cluster.errors import ClusterError, PeerUnavailable
from nodes.batchparts import parts_of
from nodes.clusterqueries import ClusterQueries
from nodes.gateway.movedcalls import MovedCalls
from nodes.gateway.remotequery import RemoteQueries, RemoteResult
from nodes.idempotency import KeyedIds
from nodes.messages import changes_to, write_id_to
from nodes.outcomes import all_or_worst
from nodes.ownstatements import done_here
from nodes.resulttext import result_text
from nodes.rowchanges import carry_out
from nodes.rpcerrors import write_error
from nodes.status import BackendStatus, DatabaseStatus, TableStatus
from protos import internal_pb2, internal_pb2_grpc
from storage.appends import encode_append
from storage.errors import (
    CatalogBehind,
    Fenced,
    NoSuchTable,
    OutcomeUnknown,
    ShardClosed,
    StorageError,
    StoreUnavailable,
    TableDropping,
)
from storage.frames import WriteId

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from nodes.backend import Batch, Change, Principal, QueryRequest, QueryResult
    from nodes.member import ClusterMember
    from nodes.resulttext import ReadyResult
    from nodes.status import QueryStatus
    from storage.appends import EncodedAppend
    from storage.catalogstate import CatalogSnapshot
    from storage.schema import Partition, Table

WRITE_ID_KIND: Final = 1
"""Ids of a gateway's writes: remembered down to the horizon (FORMAT F14)."""
PROPOSAL_KIND: Final = 3
"""Ids of changes to the Catalog."""
DROP_SECONDS_MAX: Final = 20.0
"""How long a write to a table that is being dropped waits for the end of that."""
TRY_SECONDS_MAX: Final = 10.0
"""One try of an append; a paused owner has been replaced by then."""
PAUSE_SECONDS_FIRST: Final = 0.02
PAUSE_SECONDS_MAX: Final = 0.25
"""Between two tries, unless a newer Placement comes first."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Part:
    """What one write has for one shard. ``sent``: a try may have arrived, so that its outcome is not known."""

    shard: int
    revision: int
    appends: list[EncodedAppend]
    sent: bool = False
    born: int = 0
    pause: float = PAUSE_SECONDS_FIRST


@dataclass(slots=True)
class RemoteCounters:
    """What happened since the start, for metrics."""

    appends: int = 0
    append_retries: int = 0
    proposals: int = 0
    proposal_retries: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)

    def retry(self, error: Exception) -> None:
        """Count a try that has to be repeated."""
        self.append_retries += 1
        code = getattr(error, "code", type(error).__name__)
        self.by_reason[code] = self.by_reason.get(code, 0) + 1


class RemoteBackend:
    """A Backend over the cluster that ``member`` belongs to."""

    def __init__(self, member: ClusterMember) -> None:
        self.counters = RemoteCounters()
        self.statements = RemoteQueries(member)
        self.cluster_queries = ClusterQueries(member)
        self._member = member
        self._calls = MovedCalls(member.placement)
        self._writer = uuid.uuid4().bytes
        self._sequence = 0
        self._born: dict[int, int] = {}
        self._catalog_born = 0
        self._seconds = member.settings.write.timeout

    # -- Backend -----------------------------------------------------------------------------------------

    @property
    def catalog(self) -> CatalogSnapshot:
        return self._member.catalog.current

    @property
    def store_id(self) -> str:
        return str(self._member.identity.id)

    async def refresh(self) -> CatalogSnapshot:
        """The Catalog, proved to be the newest (L29)."""
        return await self._member.catalog.refresh()

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        """Split by shard and append at each owner; atomic per shard (L8, L17)."""
        parts = self._split(batches, KeyedIds(idempotency_key) if idempotency_key else None)
        deadline = asyncio.get_running_loop().time() + self._seconds
        await all_or_worst([self._append(part, deadline) for part in parts])

    async def query(self, request: QueryRequest, principal: Principal) -> QueryResult:
        """Run one statement on a query node, on another if that one fails before the first byte; or KILL QUERY."""
        done = await self._done(request, principal)
        if done is not None:
            return done
        result = await self._run(request)
        return result if result.change is None else await self._carry_out(request, result, principal)

    async def _run(self, request: QueryRequest) -> RemoteResult:
        return await self.statements.run(request, self.catalog.revision)

    async def queries(self) -> Sequence[QueryStatus]:
        """Of every query node."""
        return await self.cluster_queries.queries()

    async def kill(self, query_id: str) -> QueryStatus:
        """Wherever it runs."""
        return await self.cluster_queries.kill(query_id)

    async def query_text(self, request: QueryRequest, format: str, principal: Principal) -> AsyncGenerator[bytes, None]:
        """The same, written down by the query node: a gateway loads nothing that writes results."""
        done = await self._done(request, principal)
        if done is not None:
            return result_text(format, done)
        answer = await self.statements.text(request, format, self.catalog.revision)
        if not isinstance(answer, RemoteResult):
            return answer
        return result_text(format, await self._carry_out(request, answer, principal))

    async def _done(self, request: QueryRequest, principal: Principal) -> ReadyResult | None:
        """The answer to a statement that no query node sees as it is."""
        return await done_here(request, self, self.cluster_queries, principal, self._member.settings.copy_dir)

    async def _carry_out(self, request: QueryRequest, rows: RemoteResult, principal: Principal) -> QueryResult:
        return await carry_out(self, request, rows, self._run, principal)

    async def alter(self, changes: Sequence[Change], principal: Principal) -> CatalogSnapshot:
        """Have the controller apply the changes; return the Catalog after them, as this node follows it."""
        revision = await self._propose(changes)
        return await self._member.catalog.wait_revision(revision, self._seconds)

    # -- appends -----------------------------------------------------------------------------------------

    def _split(self, batches: Sequence[Batch], keyed: KeyedIds | None) -> list[_Part]:
        """L8: table, partition, Log and id of every row are fixed here, before the first try."""
        parts: dict[int, list[EncodedAppend]] = {}
        for batch in batches:
            name = partial(self._write_id, batch.table, keyed)
            for log_id, part in parts_of(batch, name, lambda log_id: self._born.get(log_id, 0), share=True):
                parts.setdefault(log_id, []).append(encode_append(part))
        revision = self.catalog.revision
        return [_Part(shard, revision, appends, born=self._born.get(shard, 0)) for shard, appends in parts.items()]

    def _write_id(self, table: Table, keyed: KeyedIds | None, partition: Partition) -> WriteId:
        return self._next_id(WRITE_ID_KIND) if keyed is None else keyed.of(table.id, partition.id)

    def _next_id(self, kind: int) -> WriteId:
        self._sequence += 1
        return WriteId(kind, self._writer, 0, self._sequence, 1)

    async def _append(self, part: _Part, deadline: float) -> None:
        """Send one part until an owner has answered it, or the time is over."""
        loop = asyncio.get_running_loop()
        self.counters.appends += 1
        lost: NoSuchTable | None = None
        while True:
            seen = self._member.placement.current.version
            try:
                if not await self._try(part, min(deadline, loop.time() + TRY_SECONDS_MAX)):
                    continue
                break
            except (CatalogBehind, Fenced, ShardClosed, PeerUnavailable, StoreUnavailable, OutcomeUnknown) as error:
                part.sent = part.sent or isinstance(error, OutcomeUnknown)
                self.counters.retry(error)
                if loop.time() + part.pause >= deadline:
                    raise self._given_up(part, error) from error
            except NoSuchTable as error:
                before: frozenset[int] = frozenset() if lost is None else lost.tables
                lost = await self._without_gone(part, error)
                lost.tables |= before
                if not part.appends:
                    break
                continue
            except (StorageError, ClusterError) as error:
                if part.sent and not isinstance(error, WriteUnknown):  # L6: who refuses now knows of no earlier try
                    raise self._given_up(part, error) from error
                raise
            await self._member.placement.newer(seen, part.pause * random.uniform(0.7, 1.3))
            part.pause = min(2 * part.pause, PAUSE_SECONDS_MAX)
        if lost is not None:
            raise lost

    async def _try(self, part: _Part, deadline: float) -> bool:
        """One transmission (L7). False: refused on a first try, and to be sent again with a newer ``born``."""
        owner = self._member.placement.current.owners.get(part.shard)
        if owner is None:
            raise ShardClosed(f"shard {part.shard} has no owner now: try again")
        stub = self._member.channel(owner).stub(internal_pb2_grpc.IngestStub)
        timeout = max(0.05, deadline - asyncio.get_running_loop().time())
        try:
            call = stub.Append(_append_request(part), timeout=timeout)
            reply = await self._calls.run(call, owner, lambda placement: placement.owners.get(part.shard))
        except grpc.aio.AioRpcError as failure:
            error = write_error(failure, owner)
            if isinstance(error, PeerUnavailable | OutcomeUnknown):
                self._member.suspect(owner)
            raise error from failure
        self._born[part.shard] = max(self._born.get(part.shard, 0), reply.position)
        if not reply.refused:
            return True
        if part.sent:  # L7: on a later try "refused" means "unknown"
            raise WriteUnknown(f"shard {part.shard}: a write was refused after an earlier try; it may stand")
        part.born = reply.position
        return False

    async def _without_gone(self, part: _Part, error: NoSuchTable) -> NoSuchTable:
        """Leave out what was for tables that are gone: nothing of this part was written, and the rest still can be.

        The error names those tables, so that only their rows are written again, as a new write (L8).
        """
        await self._when_dropped({a.table_id for a in part.appends})
        tables = self.catalog.tables_by_id
        live = [a for a in part.appends if (table := tables.get(a.table_id)) is not None and not table.deleted]
        if len(live) == len(part.appends):
            raise error
        error.tables = error.tables | {a.table_id for a in part.appends if a not in live}
        part.appends = live
        return error

    async def _when_dropped(self, table_ids: Collection[int]) -> None:
        """L31: until a drop is finished the name is bound; after it the rows can be written anew, to a new table."""
        deadline = asyncio.get_running_loop().time() + DROP_SECONDS_MAX
        while True:
            tables = (await self.refresh()).tables_by_id
            under_way = [t.name for i in table_ids if (t := tables.get(i)) is not None and t.dropping and not t.deleted]
            if not under_way:
                return
            if asyncio.get_running_loop().time() >= deadline:
                raise TableDropping(f"table {under_way[0]!r} is still being dropped: try again")
            await asyncio.sleep(PAUSE_SECONDS_MAX)

    def _given_up(self, part: _Part, error: Exception) -> Exception:
        if part.sent:
            return OutcomeUnknown(f"shard {part.shard}: no owner confirmed a write in time ({error}); it may stand")
        if isinstance(error, ShardClosed | Fenced):  # other parts may have been written: not a shard that is damaged
            return PeerUnavailable(f"shard {part.shard}: no owner took a write in time ({error}); try again")
        return error

    # -- changes -----------------------------------------------------------------------------------------

    async def _propose(self, changes: Sequence[Change]) -> int:
        """Send a proposal until the controller has answered it: with one write id, so that it counts once (L28)."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        write_id = self._next_id(PROPOSAL_KIND)
        request = internal_pb2.ProposeRequest(
            write_id=write_id_to(write_id), born=self._catalog_born, changes=changes_to(changes)
        )
        self.counters.proposals += 1
        pause, sent = PAUSE_SECONDS_FIRST, False
        while True:
            seen = self._member.placement.current.version
            try:
                return await self._try_propose(request, min(deadline, loop.time() + TRY_SECONDS_MAX), first=not sent)
            except (Fenced, ShardClosed, ClusterError, StoreUnavailable, OutcomeUnknown, TableDropping) as error:
                sent = sent or isinstance(error, OutcomeUnknown)
                self.counters.proposal_retries += 1
                if loop.time() + pause >= deadline:
                    if sent:
                        raise OutcomeUnknown(
                            f"the controller did not confirm a change ({error}); it may stand"
                        ) from error
                    raise
            await self._member.placement.newer(seen, pause * random.uniform(0.7, 1.3))
            pause = min(2 * pause, PAUSE_SECONDS_MAX)

    async def _try_propose(self, request: internal_pb2.ProposeRequest, deadline: float, *, first: bool) -> int:
        controller = self._member.placement.current.controller
        if not controller:
            raise PeerUnavailable("there is no controller now: try again")
        stub = self._member.channel(controller).stub(internal_pb2_grpc.CatalogStub)
        try:
            call = stub.Propose(request, timeout=max(0.05, deadline - asyncio.get_running_loop().time()))
            reply = await self._calls.run(call, controller, lambda placement: placement.controller)
        except grpc.aio.AioRpcError as failure:
            error = write_error(failure, controller)
            if isinstance(error, PeerUnavailable | OutcomeUnknown):
                self._member.suspect(controller)
            raise error from failure
        self._catalog_born = max(self._catalog_born, reply.position)
        if reply.refused:
            if not first:
                raise WriteUnknown("a change was refused after an earlier try; it may stand")
            request.born = reply.position
            raise ShardClosed("a change was born too early: it is sent again")
        return reply.revision

    def numbers(self) -> dict[str, float]:
        """For metrics, by the names of `nodes.gateway.clustermetrics`."""
        return {
            "runnel_appends_total": self.counters.appends,
            "runnel_append_retries_total": self.counters.append_retries,
            "runnel_proposals_total": self.counters.proposals,
            "runnel_proposal_retries_total": self.counters.proposal_retries,
            "runnel_query_retries_total": self.statements.retries,
        }

    # -- for the node ------------------------------------------------------------------------------------

    def status(self) -> BackendStatus:
        """What a gateway knows without asking anybody."""
        catalog = self.catalog
        return BackendStatus(
            store_id=self.store_id,
            catalog_revision=catalog.revision,
            databases=[
                DatabaseStatus(
                    name=database.name,
                    retention_ns=database.retention_ns,
                    retention_bytes=database.retention_bytes,
                    tables=[
                        TableStatus(
                            name=t.name,
                            columns=len(t.columns),
                            partitions=len(t.partitions),
                            retention_ns=t.retention_ns,
                            retention_bytes=t.retention_bytes,
                        )
                        for t in catalog.tables(database.name)
                    ],
                )
                for database in catalog.databases()
            ],
        )


class WriteUnknown(StorageError):
    """Sent once and refused later: nobody knows, and it must not be sent again (L7)."""

    code = "outcome_unknown"
    retriable = True


def _unconfirmed(error: Exception) -> OutcomeUnknown:
    return OutcomeUnknown(f"the controller did not confirm a change in time ({error}); it may stand")


def _append_request(part: _Part) -> internal_pb2.AppendRequest:
    return internal_pb2.AppendRequest(
        shard=part.shard,
        revision=part.revision,
        parts=[
            internal_pb2.AppendPart(
                table_id=one.table_id,
                partition=one.partition,
                schema_version=one.schema_version,
                write_id=write_id_to(one.write_id),
                born=part.born,
                frame_type=one.frame_type,
                frame=one.frame,
                row_count=one.row_count,
                time_low=one.time_low,
                time_high=one.time_high,
                unchanged_since=one.unchanged_since,
            )
            for one in part.appends
        ],
    )
