"""The gRPC door on a real socket over the Backend in memory: every method, its limits, and its errors."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pyarrow as pa
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nodes.backend import CreateDatabase, Principal
from nodes.gateway.assembly import GatewayLimits, GrpcListen
from nodes.gateway.doors.grpc.service import FAULTS_MAX, STATEMENT_BYTES_MAX
from nodes.gateway.http import Limits
from nodes.health import Phase
from nodes.settings_cluster import TlsSettings
from protos import runnel_pb2 as pb
from protos.runnel_pb2_grpc import RunnelStub
from storage.errors import MemoryExhausted, StorageError
from tests.harness.gateway import on_loop, running
from tests.harness.memory_backend import MemoryBackend, Result, rows_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nodes.backend import QueryRequest
    from tests.harness.gateway import Running

HERE = GrpcListen("127.0.0.1", 0, TlsSettings())
SECONDS = 10.0
CODE = grpc.StatusCode


class Door:
    def __init__(self, gateway: Running, channel: aio.Channel) -> None:
        self.gateway, self.channel = gateway, channel
        self.stub: Any = RunnelStub(channel)
        self.backend = gateway.backend

    def rows(self, table: str, database: str = "db") -> list[dict[str, Any]]:
        return rows_of(self.backend.table(database, table))

    async def query(self, sql: str, **parameters: pb.Parameter) -> pa.Table:
        request = pb.QueryRequest(database="db", sql=sql, parameters=parameters)
        pieces = [reply.ipc async for reply in self.stub.Query(request, timeout=SECONDS)]
        with pa.ipc.open_stream(pa.py_buffer(b"".join(pieces))) as reader:
            table: pa.Table = reader.read_all()
        return table


@contextlib.asynccontextmanager
async def door(limits: GatewayLimits | None = None, **more: Any) -> AsyncIterator[Door]:
    async with running(limits, grpc=HERE, **more) as gateway:
        assert gateway.server.grpc is not None
        address = f"127.0.0.1:{gateway.server.grpc.address[1]}"
        async with aio.insecure_channel(address, [("grpc.max_send_message_length", 1 << 30)]) as channel:
            yield Door(gateway, channel)


def lines(text: str, **more: Any) -> pb.WriteRequest:
    key = more.pop("key", "")
    body = pb.LineProtocol(lines=text.encode(), precision=more.pop("precision", pb.PRECISION_NANOSECOND), **more)
    return pb.WriteRequest(database="db", lines=body, idempotency_key=key)


def arrow(table: str, rows: pa.Table, *tags: str) -> pb.WriteRequest:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return pb.WriteRequest(database="db", arrow=pb.ArrowRows(table=table, ipc=bytes(sink.getvalue()), tags=tags))


async def failing(call: Any) -> tuple[grpc.StatusCode, str, dict[str, Any]]:
    """Status, text and trailing metadata of a call that must fail."""
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or "", dict(caught.value.trailing_metadata() or ())


async def drained(call: Any) -> None:
    async for _ in call:
        pass


async def until(condition: Any) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@on_loop
async def test_lines_of_every_precision() -> None:
    async with door() as d:
        for number, precision in enumerate((pb.PRECISION_SECOND, pb.PRECISION_MILLISECOND, pb.PRECISION_MICROSECOND)):
            await d.stub.Write(lines(f"m v={number} 1", precision=precision), timeout=SECONDS)
        await d.stub.Write(lines("m v=3 1", precision=pb.PRECISION_NANOSECOND), timeout=SECONDS)
        await d.stub.Write(lines("m v=4 1700000000", precision=pb.PRECISION_UNSPECIFIED), timeout=SECONDS)
        assert [row["time"] for row in d.rows("m")] == [1, 1000, 10**6, 10**9, 17 * 10**17]


@on_loop
async def test_refused_lines_are_named_and_the_others_written() -> None:
    async with door() as d:
        reply = await d.stub.Write(lines("m v=1 1\nbroken\nm v=2 2"), timeout=SECONDS)
        assert reply.rejected == 1
        assert [(fault.line, fault.original) for fault in reply.faults] == [(2, "broken")]
        assert [row["v"] for row in d.rows("m")] == [1.0, 2.0]
        many = await d.stub.Write(lines("x\n" * 300), timeout=SECONDS)
        assert (many.rejected, len(many.faults)) == (300, FAULTS_MAX)
        code, text, _ = await failing(d.stub.Write(lines("m v=3 3\nbroken", all_or_nothing=True), timeout=SECONDS))
        assert code is CODE.INVALID_ARGUMENT
        assert "line 2" in text
        assert len(d.rows("m")) == 2


@on_loop
async def test_rows_as_arrow() -> None:
    async with door() as d:
        time = pa.array([1, 2], pa.timestamp("ns"))
        rows = pa.table({"time": time, "host": ["a", "b"], "v": [1.5, None], "n": pa.array([1, 2], pa.int16())})
        await d.stub.Write(arrow("m", rows, "host"), timeout=SECONDS)
        assert d.rows("m") == [{"time": 1, "host": "a", "v": 1.5, "n": 1}, {"time": 2, "host": "b", "n": 2}]
        reply = await d.stub.ListTables(pb.ListTablesRequest(database="db"), timeout=SECONDS)
        (table,) = reply.tables
        assert [(c.name, c.role, c.type) for c in table.columns] == [
            ("time", "time", "timestamp"),
            ("host", "tag", "string"),
            ("v", "field", "float64"),
            ("n", "field", "int64"),
        ]
        code, text, said = await failing(d.stub.Write(arrow("m", rows), timeout=SECONDS))
        assert (code, said["runnel-code"]) == (CODE.FAILED_PRECONDITION, "schema_conflict")
        assert "host" in text


@on_loop
async def test_the_same_key_writes_once() -> None:
    async with door() as d:
        for _ in range(3):
            await d.stub.Write(lines("m v=1 1", key="k"), timeout=SECONDS)
        assert len(d.rows("m")) == 1
        code, text, _ = await failing(d.stub.Write(lines("m v=1", key="other"), timeout=SECONDS))
        assert code is CODE.INVALID_ARGUMENT
        assert "has no time" in text


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.WriteRequest(database="db"), "no rows"),
        (pb.WriteRequest(lines=pb.LineProtocol(lines=b"m v=1")), "database is missing"),
        (lines(" \n"), "no lines"),
        (lines("m v=1 1", key="a\nb"), "idempotency key"),
        (lines("m v=1 1", key="k" * 1000), "idempotency key"),
        (pb.WriteRequest(database="db", lines=pb.LineProtocol(lines=b"m v=1 1", precision=77)), "77"),  # type: ignore[arg-type]
        (pb.WriteRequest(database="db", arrow=pb.ArrowRows(ipc=b"x")), "name of their table"),
        (pb.WriteRequest(database="db", arrow=pb.ArrowRows(table="m", ipc=b"x")), "no Arrow IPC stream"),
    ],
)
@on_loop
async def test_writes_that_are_none(request_: pb.WriteRequest, words: str) -> None:
    async with door() as d:
        code, text, said = await failing(d.stub.Write(request_, timeout=SECONDS))
        assert code is CODE.INVALID_ARGUMENT
        assert words in text
        assert said["runnel-code"] == "bad_request"
        assert said["runnel-retriable"] == "0"
        assert "runnel-retry-ms" not in said
        assert d.backend.alters == []


@on_loop
async def test_an_error_says_when_to_come_back_and_which_request_it_was() -> None:
    async with door() as d:
        d.backend.fail_writes = [MemoryExhausted("no room")]
        asked = (("runnel-request-id", "my-7"),)
        code, text, said = await failing(d.stub.Write(lines("m v=1 1"), timeout=SECONDS, metadata=asked))
        assert (code, text) == (CODE.RESOURCE_EXHAUSTED, "no room")
        assert said["runnel-code"] == "memory_exhausted"
        assert said["runnel-retriable"] == "1"
        assert said["runnel-retry-ms"] == "1000"
        assert said["runnel-request-id"] == "my-7"
        *_, other = await failing(
            d.stub.Write(lines(""), timeout=SECONDS, metadata=(("runnel-request-id", "x" * 999),))
        )
        assert len(other["runnel-request-id"]) == 36


@on_loop
async def test_a_stream_of_writes() -> None:
    async with door() as d:
        first = lines("m v=0 0")
        rest = [pb.WriteRequest(lines=pb.LineProtocol(lines=b"m v=%d %d\nx" % (n, n))) for n in range(1, 5)]
        for request in rest:
            request.lines.precision = pb.PRECISION_NANOSECOND
        reply = await d.stub.WriteStream(iter([first, *rest]), timeout=SECONDS)
        assert (reply.messages, reply.rejected, len(reply.faults)) == (5, 4, 4)
        assert [row["v"] for row in d.rows("m")] == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert (await d.stub.WriteStream(iter([]), timeout=SECONDS)).messages == 0


@on_loop
async def test_a_stream_that_fails_says_how_far_it_came() -> None:
    async with door() as d:
        requests = [lines("m v=1 1"), lines("m v=2 2"), pb.WriteRequest(), lines("m v=4 4")]
        code, _, said = await failing(d.stub.WriteStream(iter(requests), timeout=SECONDS))
        assert code is CODE.INVALID_ARGUMENT
        assert said["runnel-messages-written"] == "2"
        assert said["runnel-code"] == "bad_request"
        assert len(d.rows("m")) == 2


@on_loop
async def test_a_stream_that_stands_still_is_ended() -> None:
    limits = GatewayLimits(Limits(body_seconds=0.2))
    async with door(limits) as d:

        async def requests() -> AsyncIterator[pb.WriteRequest]:
            yield lines("m v=1 1")
            await asyncio.sleep(SECONDS)

        code, _, said = await failing(d.stub.WriteStream(requests(), timeout=SECONDS))
        assert (code, said["runnel-code"]) == (CODE.DEADLINE_EXCEEDED, "body_slow")
        assert said["runnel-messages-written"] == "1"


@on_loop
async def test_requests_over_the_limit_are_refused() -> None:
    limits = GatewayLimits(Limits(request_bytes_max=100_000))
    async with door(limits) as d:
        code, _, said = await failing(d.stub.Write(lines("m v=1 1\n" * 12_600), timeout=SECONDS))
        assert (code, said["runnel-code"]) == (CODE.INVALID_ARGUMENT, "body_too_large")
        code, text, _ = await failing(d.stub.Write(lines("m v=1 1\n" * 100_000), timeout=SECONDS))
        assert code is CODE.RESOURCE_EXHAUSTED
        assert "larger than max" in text
        assert d.backend.writes == []
        await d.stub.Write(lines("m v=1 1"), timeout=SECONDS)


@on_loop
async def test_waiting_bytes_count_for_all_doors() -> None:
    limits = GatewayLimits(waiting_bytes_max=1000)
    async with door(limits) as d:
        d.backend.write_gate = asyncio.Event()
        held = asyncio.ensure_future(d.stub.Write(lines("m v=1 1\n" * 90), timeout=SECONDS))
        await until(lambda: d.backend.alters)
        code, _, said = await failing(d.stub.Write(lines("m v=1 1\n" * 90), timeout=SECONDS))
        assert (code, said["runnel-code"]) == (CODE.RESOURCE_EXHAUSTED, "overloaded")
        over_http = await d.gateway.call("POST", "/api/v3/write_lp?db=db", b"m v=1 1\n" * 90)
        assert over_http.status == 503
        d.backend.write_gate.set()
        await held
        await d.stub.Write(lines("m v=1 1\n" * 90), timeout=SECONDS)


@on_loop
async def test_calls_that_never_send_their_message_hold_nobody_up() -> None:
    limits = GatewayLimits(Limits(request_bytes_max=10 << 20, body_seconds=0.5), waiting_bytes_max=1)
    async with door(limits) as d:
        write: Any = d.channel.stream_unary("/runnel.v1.Runnel/Write")
        silent = [asyncio.ensure_future(failing(write(hang(), timeout=SECONDS))) for _ in range(16)]
        await asyncio.sleep(0.2)
        code, text, _ = await failing(d.stub.Write(lines(""), timeout=SECONDS))
        assert "no lines" in text, code
        for code, _, said in await asyncio.gather(*silent):
            assert (code, said["runnel-code"]) == (CODE.DEADLINE_EXCEEDED, "body_slow")
        code, text, _ = await failing(write(iter([]), timeout=SECONDS))
        assert "without its message" in text


async def hang() -> AsyncIterator[bytes]:
    await asyncio.sleep(SECONDS)
    yield b""


@on_loop
async def test_streams_over_the_limit_are_refused_at_once() -> None:
    limits = GatewayLimits(waiting_bytes_max=1)
    async with door(limits) as d:
        gate = asyncio.Event()

        async def requests() -> AsyncIterator[pb.WriteRequest]:
            await gate.wait()
            for request in list[pb.WriteRequest]():
                yield request

        open_ones = [d.stub.WriteStream(requests(), timeout=SECONDS) for _ in range(16)]
        assert d.gateway.server.grpc is not None
        server = d.gateway.server.grpc
        await until(lambda: server.in_flight == 16)
        code, text, _ = await failing(d.stub.WriteStream(iter([]), timeout=SECONDS))
        assert code is CODE.RESOURCE_EXHAUSTED
        assert "streams" in text
        gate.set()
        assert [(await call).messages for call in open_ones] == [0] * 16
        await d.stub.WriteStream(iter([]), timeout=SECONDS)


@on_loop
async def test_a_query_is_one_arrow_stream() -> None:
    async with door() as d:
        await d.stub.Write(lines("\n".join(f"m,t=a v={n}i {n}" for n in range(1000))), timeout=SECONDS)
        found = await d.query("SELECT v FROM m WHERE v >= $low ORDER BY v", low=pb.Parameter(integer=990))
        assert found.column("v").to_pylist() == list(range(990, 1000))
        calls = d.stub.Query(pb.QueryRequest(database="db", sql="SELECT v FROM m"), timeout=SECONDS)
        first = await calls.read()
        assert pa.ipc.read_schema(pa.py_buffer(first.ipc)).names == ["v"]


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        (pb.Parameter(is_true=True), True),
        (pb.Parameter(integer=-7), -7),
        (pb.Parameter(number=1.5), 1.5),
        (pb.Parameter(text="x"), "x"),
        (pb.Parameter(), None),
    ],
)
@on_loop
async def test_parameters(parameter: pb.Parameter, value: object) -> None:
    async with door() as d:
        seen: list[QueryRequest] = []
        d.backend.special_queries["Q"] = recording(seen)
        await drained(
            d.stub.Query(pb.QueryRequest(database="db", sql="Q", parameters={"p": parameter}), timeout=SECONDS)
        )
        assert seen[0].params == {"p": value}
        assert 0 < (seen[0].timeout_seconds or 0) < SECONDS + 1  # gRPC sends it in three digits, rounded up
        assert seen[0].request_id


def recording(seen: list[QueryRequest]) -> Any:
    async def query(request: QueryRequest) -> Result:
        seen.append(request)
        return Result(pa.schema([]), no_batches())

    return query


async def no_batches() -> AsyncIterator[pa.RecordBatch]:
    for batch in list[pa.RecordBatch]():
        yield batch


@on_loop
async def test_large_results_come_in_pieces_that_any_client_takes() -> None:
    async with door() as d:
        batch = pa.record_batch({"s": pa.array(["x" * 1000] * 10_000, pa.string_view())})

        async def query(_: QueryRequest) -> Result:
            async def batches() -> AsyncIterator[pa.RecordBatch]:
                for _ in range(3):
                    yield batch

            return Result(batch.schema, batches())

        d.backend.special_queries["Q"] = query
        request = pb.QueryRequest(database="db", sql="Q")
        pieces = [reply.ipc async for reply in d.stub.Query(request, timeout=SECONDS)]
        assert max(map(len, pieces)) <= 1 << 20
        with pa.ipc.open_stream(pa.py_buffer(b"".join(pieces))) as reader:
            table = reader.read_all()
        assert table.num_rows == 30_000
        assert table.schema.field("s").type == pa.string()


@on_loop
async def test_an_error_in_the_middle_of_a_result() -> None:
    async with door() as d:
        batch = pa.record_batch({"v": [1]})

        async def query(_: QueryRequest) -> Result:
            async def batches() -> AsyncIterator[pa.RecordBatch]:
                yield batch
                raise StorageError("a disk is gone")

            return Result(batch.schema, batches())

        d.backend.special_queries["Q"] = query
        code, text, said = await failing(
            drained(d.stub.Query(pb.QueryRequest(database="db", sql="Q"), timeout=SECONDS))
        )
        assert (code, text, said["runnel-code"]) == (CODE.INTERNAL, "a disk is gone", "storage")
        assert d.backend.results[0].is_closed


@pytest.mark.parametrize("ends_by", ["cancel", "deadline", "stall"])
@on_loop
async def test_a_query_ends_with_its_client(ends_by: str) -> None:
    limits = GatewayLimits(Limits(send_stall_seconds=0.5))
    async with door(limits) as d:
        batch = pa.record_batch({"s": ["x" * 1000] * 1000})

        async def query(_: QueryRequest) -> Result:
            async def batches() -> AsyncIterator[pa.RecordBatch]:
                while True:
                    await asyncio.sleep(0)
                    yield batch

            return Result(batch.schema, batches())

        d.backend.special_queries["Q"] = query
        call = d.stub.Query(pb.QueryRequest(database="db", sql="Q"), timeout=0.5 if ends_by == "deadline" else SECONDS)
        await call.read()
        if ends_by == "cancel":
            call.cancel()
        await until(lambda: d.backend.results and d.backend.results[0].is_closed)
        call.cancel()


@pytest.mark.parametrize(
    ("request_", "code", "name"),
    [
        (pb.QueryRequest(database="db", sql="SELEKT"), CODE.INVALID_ARGUMENT, "invalid_statement"),
        (pb.QueryRequest(sql="SELECT 1"), CODE.INVALID_ARGUMENT, "bad_request"),
        (pb.QueryRequest(database="db", sql="x" * (STATEMENT_BYTES_MAX + 1)), CODE.INVALID_ARGUMENT, "bad_request"),
    ],
)
@on_loop
async def test_queries_that_fail(request_: pb.QueryRequest, code: grpc.StatusCode, name: str) -> None:
    async with door() as d:
        found, _, said = await failing(drained(d.stub.Query(request_, timeout=SECONDS)))
        assert (found, said["runnel-code"]) == (code, name)


@on_loop
async def test_tables_of_no_database() -> None:
    async with door() as d:
        code, text, said = await failing(d.stub.ListTables(pb.ListTablesRequest(database="nope"), timeout=SECONDS))
        assert (code, said["runnel-code"]) == (CODE.NOT_FOUND, "no_such_database")
        assert "nope" in text
        await d.backend.alter([CreateDatabase("empty")], Principal())
        assert not (await d.stub.ListTables(pb.ListTablesRequest(database="empty"), timeout=SECONDS)).tables


@on_loop
async def test_a_node_that_starts_says_so() -> None:
    async with door(phase=Phase.REPLAYING) as d:
        for call in (
            d.stub.Write(lines("m v=1 1"), timeout=SECONDS),
            d.stub.WriteStream(iter([]), timeout=SECONDS),
            d.stub.ListTables(pb.ListTablesRequest(database="db"), timeout=SECONDS),
            drained(d.stub.Query(pb.QueryRequest(database="db", sql="SELECT 1"), timeout=SECONDS)),
        ):
            code, text, said = await failing(call)
            assert (code, said["runnel-code"], said["runnel-retriable"]) == (CODE.UNAVAILABLE, "not_ready", "1")
            assert "replaying" in text
        status = await d.stub.ClusterStatus(pb.ClusterStatusRequest(), timeout=SECONDS)
        assert (status.phase, status.is_ready, status.store_id) == ("replaying", False, MemoryBackend.store_id)


@on_loop
async def test_the_health_service_follows_the_node() -> None:
    async with door(phase=Phase.REPLAYING) as d:
        health: Any = health_pb2_grpc.HealthStub(d.channel)
        values: Any = health_pb2.HealthCheckResponse
        request = health_pb2.HealthCheckRequest(service="runnel.v1.Runnel")
        assert (await health.Check(request, timeout=SECONDS)).status == values.NOT_SERVING
        d.gateway.health.move(Phase.READY)
        watch = health.Watch(request, timeout=SECONDS)
        async for answer in watch:
            if answer.status == values.SERVING:
                break
        await d.gateway.server.drain(2.0)


@on_loop
async def test_a_stream_ends_when_the_node_drains() -> None:
    async with door() as d:
        drains = asyncio.Event()

        async def requests() -> AsyncIterator[pb.WriteRequest]:
            """One more while it drains, and no other: grpc.aio makes INTERNAL of a status that meets a message."""
            for number in range(3):
                yield lines(f"m v={number} {number}")
            await drains.wait()
            yield lines("m v=3 3")
            await asyncio.Event().wait()

        call = d.stub.WriteStream(requests(), timeout=SECONDS)
        await until(lambda: len(d.backend.writes) > 0 and len(d.rows("m")) == 3)
        d.gateway.health.move(Phase.DRAINING)
        drains.set()
        async with asyncio.timeout(5):
            await d.gateway.server.drain(5.0)
        code, _, said = await failing(call)
        assert (code, said.get("runnel-code")) == (CODE.UNAVAILABLE, "not_ready")
        assert int(said["runnel-messages-written"]) == len(d.rows("m")) == 4


@on_loop
async def test_calls_are_counted_by_method_and_status() -> None:
    async with door() as d:
        for number in range(3):
            await d.stub.Write(lines(f"m v={number} {number}"), timeout=SECONDS)
        await failing(d.stub.Write(pb.WriteRequest(database="db"), timeout=SECONDS))
        await failing(drained(d.stub.Query(pb.QueryRequest(database="db", sql="SELEKT"), timeout=SECONDS)))
        text = d.gateway.metrics.text().decode()
        for method, status, count in (
            ("Write", "OK", 3),
            ("Write", "INVALID_ARGUMENT", 1),
            ("Query", "INVALID_ARGUMENT", 1),
        ):
            labels = f'grpc_code="{status}",grpc_method="{method}",grpc_service="runnel.v1.Runnel"'
            assert f"grpc_server_handled_total{{{labels}}} {count}.0" in text
        assert 'grpc_server_handling_seconds_count{grpc_method="Write",grpc_service="runnel.v1.Runnel"} 4.0' in text
