"""SQL over HTTP: parameters, formats, errors, streaming, hang-ups and readers that stop."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import urllib.parse
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from nodes.gateway.assembly import GatewayLimits
from nodes.gateway.http import Limits
from storage.errors import MemoryExhausted
from tests.harness.gateway import Answer, Client, Running, on_loop, running
from tests.harness.memory_backend import STORE_ID, Result, StatementRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nodes.backend import QueryRequest

PATH = "/api/v3/query_sql"
SCHEMA = pa.schema([("s", pa.string())])


async def fill(gateway: Running) -> None:
    answer = await gateway.call("POST", "/api/v3/write_lp?db=foo", b"cpu,host=a v=1.5 1\ncpu,host=b v=2 2")
    assert answer.status == 204


def sql(text: str, **more: str) -> str:
    return f"{PATH}?" + urllib.parse.urlencode({"db": "foo", "q": text, **more})


def special(gateway: Running, name: str, batches: AsyncIterator[pa.RecordBatch]) -> None:
    async def query(_request: QueryRequest) -> Result:
        return Result(SCHEMA, batches)

    gateway.backend.special_queries[name] = query


def block(size: int, letter: str = "x") -> pa.RecordBatch:
    return pa.record_batch([pa.array([letter * size])], schema=SCHEMA)


async def post(gateway: Running, body: object, headers: dict[str, str] | None = None) -> Answer:
    return await gateway.call("POST", PATH, json.dumps(body).encode(), headers)


@on_loop
async def test_get_and_post_answer_the_same() -> None:
    async with running() as gateway:
        await fill(gateway)
        text = "SELECT host, v FROM cpu WHERE v > $least ORDER BY host"
        got = await gateway.call("GET", sql(text, params='{"least": 1}'))
        assert got.status == 200
        assert got.json == [{"host": "a", "v": 1.5}, {"host": "b", "v": 2.0}]
        assert {k: v for k, v in got.headers.items() if k not in ("date", "x-request-id")} == {
            "content-type": "application/json",
            "access-control-allow-origin": "*",
            "cluster-uuid": STORE_ID,
            "content-length": str(len(got.body)),
        }
        posted = await post(gateway, {"db": "foo", "q": text, "params": {"least": 1}})
        assert (posted.status, posted.body) == (200, got.body)


@on_loop
async def test_formats_by_parameter_and_by_header() -> None:
    async with running() as gateway:
        await fill(gateway)
        answer = await gateway.call("GET", sql("SELECT host FROM cpu ORDER BY host", format="jsonl"))
        assert (answer.text, answer.headers["content-type"]) == ('{"host":"a"}\n{"host":"b"}\n', "application/jsonl")
        for accept, content_type in [
            ("text/csv", "text/csv"),
            ("text/plain", "text/plain; charset=utf-8"),
            ("application/vnd.apache.parquet", "application/vnd.apache.parquet"),
            ("text/html,*/*;q=0.8", "application/json"),
        ]:
            answer = await gateway.call("GET", sql("SELECT 1 AS one"), headers={"accept": accept})
            assert (answer.status, answer.headers["content-type"]) == (200, content_type)
        answer = await gateway.call("GET", sql("SELECT 1"), headers={"accept": "application/jsonl"})
        assert (answer.status, answer.text) == (400, "invalid mime type (application/jsonl)")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        (PATH, 400, "missing query parameters 'db' and 'q'"),
        (f"{PATH}?q=x", 400, "serde error: missing field `db`"),
        (f"{PATH}?db=foo", 400, "serde error: missing field `q`"),
        (f"{PATH}?db=foo&q=x&q=y", 400, "serde error: duplicate field `q`"),
        (f"{PATH}?db=nope&q=SELECT+1", 404, '{"error":"query error: database not found: nope"}'),
        (
            "/api/v3/query_influxql?db=foo&q=SHOW+TABLES",
            400,
            '{"error":"InfluxQL is not there yet; use /api/v3/query_sql"}',
        ),
    ],
)
def test_requests_that_are_wrong(path: str, status: int, text: str) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway:
            await fill(gateway)
            answer = await gateway.call("GET", path)
            assert (answer.status, answer.text) == (status, text)
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["cluster-uuid"] == STORE_ID

    check()


@on_loop
async def test_posted_json_that_is_wrong() -> None:
    async with running() as gateway:
        await fill(gateway)
        for body in (
            b"",
            b"{",
            b"[]",
            b'{"q":"SELECT 1"}',
            b'{"db":1,"q":"x"}',
            b"\xff\xfe",
            b'{"params":' + b"[" * 100_000,
        ):
            answer = await gateway.call("POST", PATH, body)
            assert answer.status == 400, body
            assert answer.text.startswith("serde json error: "), body
        assert (await gateway.call("POST", PATH, b'{"q":"x"}')).text == "serde json error: missing field `db`"
        answer = await gateway.call("GET", sql("SELECT 1", params="{"))
        assert answer.text.startswith("serde json error: ")


@on_loop
async def test_statement_errors_are_text_and_fail_before_the_status() -> None:
    async with running() as gateway:
        await fill(gateway)
        answer = await gateway.call("GET", sql("SELEC 1"))
        assert (answer.status, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")

        async def broken() -> AsyncIterator[pa.RecordBatch]:
            for size in (0, 1):
                if not size:
                    raise MemoryExhausted("the query wants more memory than there is")
                yield block(size)

        special(gateway, "broken", broken())
        answer = await gateway.call("GET", sql("broken"))
        assert (answer.status, answer.json["error"]) == (503, "the query wants more memory than there is")
        assert gateway.backend.results[-1].is_closed


@on_loop
async def test_the_request_id_goes_through() -> None:
    seen: list[str] = []

    async with running() as gateway:
        await fill(gateway)

        async def query(request: QueryRequest) -> Result:
            seen.append(request.request_id)
            raise StatementRefused("no")

        gateway.backend.special_queries["x"] = query
        await gateway.call("GET", sql("x"), headers={"x-request-id": "mine-7"})
        assert seen == ["mine-7"]
        answer = await gateway.call("GET", sql("SELECT 1"), headers={"x-request-id": "mine-8"})
        assert answer.headers["x-request-id"] == "mine-8"
        answer = await gateway.call("GET", sql("SELECT 1"), headers={"x-request-id": "y" * 200})
        assert len(answer.headers["x-request-id"]) == 36


@on_loop
async def test_a_big_result_is_streamed_and_compressed_if_wanted() -> None:
    async with running() as gateway:
        await fill(gateway)

        async def big() -> AsyncIterator[pa.RecordBatch]:
            for letter in "abc":
                yield block(400_000, letter)

        special(gateway, "big", big())
        plain = await gateway.call("GET", sql("big"))
        assert plain.headers["transfer-encoding"] == "chunked"
        assert plain.is_whole
        assert [row["s"][:1] for row in plain.json] == ["a", "b", "c"]
        special(gateway, "big", big())
        packed = await gateway.call("GET", sql("big"), headers={"accept-encoding": "gzip, br"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == "accept-encoding"
        assert packed.is_whole
        assert gzip.decompress(packed.body) == plain.body
        assert len(packed.body) < len(plain.body) // 50
        special(gateway, "big", big())
        parquet = await gateway.call("GET", sql("big", format="parquet"), headers={"accept-encoding": "gzip"})
        assert "content-encoding" not in parquet.headers
        small = await gateway.call("GET", sql("SELECT 1"), headers={"accept-encoding": "gzip"})
        assert "content-encoding" not in small.headers
        assert all(result.is_closed for result in gateway.backend.results)


@on_loop
async def test_an_error_in_mid_stream_breaks_the_body() -> None:
    async with running() as gateway, Client(gateway.port) as client:
        await fill(gateway)

        async def breaking() -> AsyncIterator[pa.RecordBatch]:
            yield block(5000)
            raise MemoryExhausted("gone")

        special(gateway, "breaking", breaking())
        answer = await client.call("GET", sql("breaking"))
        assert answer.status == 200
        assert not answer.is_whole
        assert len(answer.body) >= 5000
        assert await client.at_end()
        assert gateway.backend.results[-1].is_closed
        assert (await gateway.call("GET", sql("SELECT 1"))).status == 200


@on_loop
async def test_a_hang_up_cancels_a_query_that_plans() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def endless(_request: QueryRequest) -> Result:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with running() as gateway:
        await fill(gateway)
        gateway.backend.special_queries["endless"] = endless
        async with Client(gateway.port) as client:
            await client.send(f"GET {sql('endless')} HTTP/1.1\r\nhost: t\r\n\r\n".encode())
            await started.wait()
        await ended.wait()
        text = (await gateway.call("GET", "/metrics")).text
        assert 'path="/api/v3/query_sql",status="499"} 1.0' in text


@on_loop
async def test_a_hang_up_cancels_a_query_that_streams() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[pa.RecordBatch]:
        try:
            yield block(5000)
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with running() as gateway:
        await fill(gateway)
        special(gateway, "slow", slow())
        async with Client(gateway.port) as client:
            await client.send(f"GET {sql('slow')} HTTP/1.1\r\nhost: t\r\n\r\n".encode())
            await started.wait()
        await ended.wait()
        while not gateway.backend.results[-1].is_closed:
            await asyncio.sleep(0)


@on_loop
async def test_a_reader_that_stops_is_cut_off_and_costs_little() -> None:
    produced, ended = 0, asyncio.Event()

    async def endless() -> AsyncIterator[pa.RecordBatch]:
        nonlocal produced
        try:
            while True:
                produced += 1
                yield block(200_000)
        finally:
            ended.set()

    limits = GatewayLimits(request=Limits(send_stall_seconds=0.3))
    async with running(limits) as gateway:
        await fill(gateway)
        special(gateway, "endless", endless())
        with socket.create_connection(("127.0.0.1", gateway.port)) as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.sendall(f"GET {sql('endless')} HTTP/1.1\r\nhost: t\r\n\r\n".encode())
            await ended.wait()
        assert produced < 100  # the kernel's buffers, not the whole result
        assert gateway.backend.results[-1].is_closed
        while gateway.server.connections:
            await asyncio.sleep(0.01)


@on_loop
async def test_a_slow_reader_gets_everything() -> None:
    async def big() -> AsyncIterator[pa.RecordBatch]:
        for _ in range(40):
            yield block(200_000)

    limits = GatewayLimits(request=Limits(send_stall_seconds=5))
    async with running(limits) as gateway, Client(gateway.port) as client:
        await fill(gateway)
        special(gateway, "big", big())
        await client.send(f"GET {sql('big')} HTTP/1.1\r\nhost: t\r\n\r\n".encode())
        await asyncio.sleep(0.3)
        answer = await client.answer()
        assert answer.is_whole
        assert len(answer.body) > 8_000_000


@on_loop
async def test_head_says_what_get_would() -> None:
    async with running() as gateway:
        await fill(gateway)
        answer = await gateway.call("HEAD", sql("SELECT 1 AS one"))
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, "application/json", b"")
