"""The gRPC service of a query node: statements in, record batches out (protos/internal.proto `Query`)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import msgspec
import pyarrow as pa

from cluster.errors import MalformedMessage
from engine.formats import ResultFormat, encode
from engine.running import Origin
from nodes.messages import change_to
from protos import internal_pb2, internal_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import grpc

    from engine.stream import QueryStream
    from nodes.query.node import QueryNode

TEXT_BYTES_MAX: Final = 1 << 20
"""Of a result's text in one message."""


class QueryService(internal_pb2_grpc.QueryServicer):
    """Serves `Query`; ``node`` has the engine."""

    def __init__(self, node: QueryNode) -> None:
        self._node = node
        self.running = 0
        """Statements under way: the load that is gossiped."""

    async def Execute(
        self,
        request: internal_pb2.ExecuteRequest,
        context: grpc.aio.ServicerContext[internal_pb2.ExecuteRequest, internal_pb2.ExecuteReply],
    ) -> AsyncIterator[internal_pb2.ExecuteReply]:
        """The schema, then the batches. Leaving it early (the client is gone) cancels the statement."""
        self.running += 1
        try:
            async for reply in self._execute(request):
                yield reply
        finally:
            self.running -= 1

    async def _execute(self, request: internal_pb2.ExecuteRequest) -> AsyncIterator[internal_pb2.ExecuteReply]:
        format = _format(request.format)
        stream = await self._node.execute(
            request.database,
            request.statement,
            _params(request.params),
            request.timeout_seconds or None,
            Origin(request.door, request.client, request.request_id),
            request.may_write,
        )
        made = _arrow(stream) if format is None or stream.change is not None else _text(format, stream)
        try:
            async with contextlib.aclosing(made) as replies:
                async for reply in replies:
                    yield reply
        finally:
            await stream.aclose()

    async def Queries(
        self,
        request: internal_pb2.QueriesRequest,
        context: grpc.aio.ServicerContext[internal_pb2.QueriesRequest, internal_pb2.QueriesReply],
    ) -> internal_pb2.QueriesReply:
        """What waits or runs here."""
        return internal_pb2.QueriesReply(json=msgspec.json.encode(self._node.local_queries.listed()))

    async def Kill(
        self,
        request: internal_pb2.KillRequest,
        context: grpc.aio.ServicerContext[internal_pb2.KillRequest, internal_pb2.KillReply],
    ) -> internal_pb2.KillReply:
        """End one of them."""
        return internal_pb2.KillReply(json=msgspec.json.encode(await self._node.local_queries.kill(request.id)))


def _params(data: bytes) -> dict[str, object]:
    if not data:
        return {}
    try:
        found = msgspec.msgpack.decode(data, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise MalformedMessage(f"parameters that are no map: {error}") from error
    return found


def _format(name: str) -> ResultFormat | None:
    try:
        return ResultFormat(name) if name else None
    except ValueError as error:
        raise MalformedMessage(f"a result in an unknown format: {error}") from error


async def _arrow(stream: QueryStream) -> AsyncGenerator[internal_pb2.ExecuteReply, None]:
    """The schema first: it says that the statement runs."""
    change = None if stream.change is None else change_to(stream.change)
    yield internal_pb2.ExecuteReply(ipc=stream.schema.serialize().to_pybytes(), change=change)
    async for batch in stream:
        yield internal_pb2.ExecuteReply(ipc=await asyncio.to_thread(encode_batch, batch))


async def _text(format: ResultFormat, stream: QueryStream) -> AsyncGenerator[internal_pb2.ExecuteReply, None]:
    """At least one message, also of a result without text: it says that the statement has run."""
    is_empty = True
    async with contextlib.aclosing(encode(format, stream)) as pieces:
        async for piece in pieces:
            for at in range(0, len(piece), TEXT_BYTES_MAX):
                is_empty = False
                yield internal_pb2.ExecuteReply(text=piece[at : at + TEXT_BYTES_MAX])
    if is_empty:
        yield internal_pb2.ExecuteReply()


def encode_batch(batch: pa.RecordBatch) -> bytes:
    """One batch as an Arrow IPC stream of its own."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data
