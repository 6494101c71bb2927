"""A statement on a query node, seen from its gateway, when the way to that node is taken away."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from cluster import channels
from cluster.channels import Channels
from engine.errors import QueryFailed
from nodes.gateway import remotequery
from nodes.gateway.remotequery import Answering, RemoteResult
from nodes.grpcserver import GrpcServer
from protos import internal_pb2 as pb
from protos.internal_pb2_grpc import QueryServicer, QueryStub, add_QueryServicer_to_server
from tests.harness.gateway import on_loop
from tests.harness.grpcpeer import CLUSTER, VERSION, service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Endless(QueryServicer):
    """Says what columns there will be, and nothing more."""

    async def Execute(self, request: pb.ExecuteRequest, context: Any) -> AsyncIterator[pb.ExecuteReply]:
        yield pb.ExecuteReply(ipc=pa.schema([("n", pa.int64())]).serialize().to_pybytes())
        await asyncio.Event().wait()


@dataclass
class Opened:
    """A statement that an endless query node has begun to answer."""

    call: Any
    result: RemoteResult
    take_away: Callable[[], object]
    ended: list[bool]


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Opened]:
    servicer = Endless()  # type: ignore[abstract]
    served = [service("Query", servicer, add_QueryServicer_to_server)]
    made = Channels(CLUSTER, VERSION)
    async with GrpcServer("127.0.0.1", 0, served, cluster=CLUSTER, version=VERSION) as server:
        address = f"127.0.0.1:{server.address[1]}"
        call = made.channel(address).stub(QueryStub).Execute(pb.ExecuteRequest(), timeout=30)
        ended: list[bool] = []
        answering = Answering("q1", call, lambda: ended.append(True))
        await answering.open()
        yield Opened(call, RemoteResult(answering), lambda: made.forget(address), ended)
        await made.aclose()


async def drained(result: RemoteResult) -> None:
    async for _ in result:
        pass


def test_a_statement_whose_channel_is_closed_fails_and_does_not_cancel_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A certificate was renewed, and the statement outlived the old channel's time."""
    monkeypatch.setattr(channels, "CLOSE_SECONDS", 0.05)

    @on_loop
    async def run() -> None:
        async with opened() as statement:
            statement.take_away()
            with pytest.raises(QueryFailed, match="try again"):
                await drained(statement.result)
            assert statement.ended == [True]

    run()


@on_loop
async def test_a_client_that_goes_cancels_its_statement() -> None:
    async with opened() as statement:
        reading = asyncio.create_task(drained(statement.result))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert statement.call.cancelled()


def test_text_that_is_closed_before_its_first_byte_is_read_ends_the_statement() -> None:
    @on_loop
    async def run() -> None:
        async with opened() as statement:
            text = await remotequery._text(statement.result._answering)
            await text.aclose()
            assert statement.ended == [True]

    run()
