"""Statements from a gateway to query nodes: the least loaded first, another one if it fails before the first byte.

Driven by `nodes.gateway.remote`. A result arrives as messages: as Arrow IPC, which a `RemoteResult` decodes, or as the
text that was asked for, which goes to the client as it is.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import grpc
import msgspec
import pyarrow as pa

from cluster.errors import MalformedMessage, PeerUnavailable
from cluster.members import Kind, MemberState
from engine.errors import QueryFailed
from nodes.messages import change_from
from nodes.rpcerrors import read_error
from protos import internal_pb2, internal_pb2_grpc
from storage.errors import OutcomeUnknown, ShardClosed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from cluster.members import Member
    from nodes.backend import QueryRequest
    from nodes.member import ClusterMember

    ExecuteCall = grpc.aio.UnaryStreamCall[internal_pb2.ExecuteRequest, internal_pb2.ExecuteReply]

PAUSE_SECONDS: Final = 0.1
"""Before the query nodes are tried again, when none could take the statement."""
NO_NODE_SECONDS_MAX: Final = 10.0
"""How long a statement waits for a query node to appear."""
LOOK_SECONDS: Final = 0.5
"""How often gossip is asked about a query node that has not begun to answer."""
DEADLINE_SPARE_SECONDS: Final = 5.0
"""The call's own deadline is later than the statement's, so that the query node says what happened."""


class RemoteQueries:
    """Chooses query nodes and counts what runs on each."""

    def __init__(self, member: ClusterMember) -> None:
        self.retries = 0
        self.running: dict[str, int] = {}
        self._member = member

    async def run(self, request: QueryRequest, revision: int) -> RemoteResult:
        """Start a statement on a query node. Raises what the node raised, or PeerUnavailable when none is here."""
        return RemoteResult(await self._begin(request, "", revision))

    async def text(
        self, request: QueryRequest, format: str, revision: int
    ) -> AsyncGenerator[bytes, None] | RemoteResult:
        """As `run`; the result in one of `engine.formats.ResultFormat`, as the query node writes it.

        Of a statement that writes what is to be written, as `run` has it.
        """
        answering = await self._begin(request, format, revision)
        return RemoteResult(answering) if answering.first.HasField("change") else await _text(answering)

    async def _begin(self, request: QueryRequest, format: str, revision: int) -> Answering:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + NO_NODE_SECONDS_MAX
        tried: set[str] = set()
        while True:
            member = self._least_loaded(tried)
            if member is None:
                if loop.time() >= deadline:
                    raise PeerUnavailable("no query node could take the statement: try again")
                tried.clear()
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            try:
                return await self._start(member, request, format, revision)
            except (PeerUnavailable, OutcomeUnknown, ShardClosed):  # a statement only reads: another node may run it
                tried.add(member.name)
                self.retries += 1
                self._member.suspect(member.name)

    def _least_loaded(self, tried: set[str]) -> Member | None:
        nodes = [member for member in self._member.usable(Kind.QUERY) if member.name not in tried]
        random.shuffle(nodes)  # so that gateways do not all choose the same one of equals
        return min(nodes, key=self._load, default=None)

    def _load(self, member: Member) -> float:
        """What gossip says, which is a second old, or what this gateway alone has running there."""
        return max(member.meta.load, float(self.running.get(member.name, 0)))

    async def _start(self, member: Member, request: QueryRequest, format: str, revision: int) -> Answering:
        limit = request.timeout_seconds or self._member.settings.query.timeout
        stub = self._member.channel(member.name).stub(internal_pb2_grpc.QueryStub)
        call = stub.Execute(
            internal_pb2.ExecuteRequest(
                database=request.database,
                statement=request.text,
                params=msgspec.msgpack.encode(dict(request.params)),
                timeout_seconds=request.timeout_seconds or 0.0,
                request_id=request.request_id,
                revision=revision,
                format=format,
                door=request.door,
                client=request.client,
                may_write=request.may_write,
            ),
            timeout=limit + DEADLINE_SPARE_SECONDS,
        )
        self.running[member.name] = self.running.get(member.name, 0) + 1
        answering = Answering(member.name, call, lambda: self._ended(member.name))
        try:
            await self._open(member.name, answering)
        except BaseException:
            answering.close()
            raise
        return answering

    async def _open(self, name: str, answering: Answering) -> None:
        """Wait for the first message, as long as gossip has no doubt of the node: a paused one says nothing."""
        opening = asyncio.ensure_future(answering.open())
        try:
            while not (await asyncio.wait({opening}, timeout=LOOK_SECONDS))[0]:
                member = self._member.members().get(name)
                if member is None or member.state is not MemberState.ALIVE:
                    raise PeerUnavailable(f"query node {name} does not answer: another one is asked")
            await opening
        finally:
            opening.cancel()

    def _ended(self, name: str) -> None:
        self.running[name] -= 1
        if not self.running[name]:
            del self.running[name]


class Answering:
    """The messages of a statement that runs on a query node. Read them once; close it early to cancel it."""

    def __init__(
        self,
        peer: str,
        call: grpc.aio.UnaryStreamCall[internal_pb2.ExecuteRequest, internal_pb2.ExecuteReply],
        ended: Callable[[], None],
    ) -> None:
        self._peer = peer
        self._call = call
        self._ended: Callable[[], None] | None = ended
        self.first = internal_pb2.ExecuteReply()

    async def open(self) -> None:
        """Wait for the first message: from then on the statement runs there, and nowhere else."""
        first = await self._read()
        if first is None:
            raise PeerUnavailable("a query node ended a statement before it began: try again")
        self.first = first

    async def rest(self) -> AsyncIterator[internal_pb2.ExecuteReply]:
        """The messages after the first. QueryFailed if the node, or the way to it, fails."""
        try:
            while (reply := await self._read()) is not None:
                yield reply
        except (PeerUnavailable, OutcomeUnknown) as error:
            raise QueryFailed(f"the query node failed while it answered ({error}); try again") from error
        finally:
            self.close()

    async def _read(self) -> internal_pb2.ExecuteReply | None:
        try:
            reply = await self._call.read()
        except grpc.aio.AioRpcError as failure:
            raise read_error(failure, self._peer) from failure
        except asyncio.CancelledError:
            self._call.cancel()
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # nobody wants this task to end: the channel was closed
                raise PeerUnavailable(f"the connection to {self._peer} was closed") from None
            raise
        return reply if isinstance(reply, internal_pb2.ExecuteReply) else None  # None: EOF

    def close(self) -> None:
        """Cancel what still runs. Idempotent."""
        ended, self._ended = self._ended, None
        if ended is not None:
            self._call.cancel()
            ended()


class RemoteResult:
    """The batches of a statement that runs on a query node. Iterate it once; close it early to cancel it.

    ``change``: what they are for, if the statement is one that writes.
    """

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        try:
            self.change = change_from(answering.first.change) if answering.first.HasField("change") else None
            self.schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(answering.first.ipc))
        except (pa.ArrowException, OSError) as error:
            answering.close()
            raise MalformedMessage(f"a query node sent no schema: {error}") from error
        except MalformedMessage:
            answering.close()
            raise

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        async for reply in self._answering.rest():
            yield pa.ipc.open_stream(pa.py_buffer(reply.ipc)).read_next_batch()

    async def aclose(self) -> None:
        """Cancel what still runs. Idempotent."""
        self._answering.close()


async def _text(answering: Answering) -> AsyncGenerator[bytes, None]:
    """Begun already: closing a generator that has not begun would leave the statement running."""
    pieces = _pieces(answering)
    await anext(pieces)
    return pieces


async def _pieces(answering: Answering) -> AsyncGenerator[bytes, None]:
    try:
        yield b""
        yield answering.first.text
        async for reply in answering.rest():
            yield reply.text
    finally:
        answering.close()
