"""Writes over HTTP: every status, header and body that the three write endpoints answer."""

from __future__ import annotations

import gzip

import pytest

from nodes.gateway.assembly import GatewayLimits
from nodes.gateway.http import Limits
from nodes.health import Phase
from storage.errors import LogBacklogFull, MemoryExhausted, RequestTooLarge, ShardClosed, StoreFull
from tests.harness.gateway import Answer, Client, on_loop, running
from tests.harness.memory_backend import STORE_ID, MemoryBackend, rows_of

GOOD = b"cpu,host=a usage=1.5 1700000000"
V3 = "/api/v3/write_lp?db=foo"
V2 = "/api/v2/write?org=default&bucket=foo"
V1 = "/write?db=foo"


def headers_of(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name != "date"}


@on_loop
async def test_a_write_is_answered_204_with_its_headers() -> None:
    async with running() as gateway:
        for path in (V3, V2, V1):
            answer = await gateway.call("POST", path, GOOD)
            assert (answer.status, answer.body) == (204, b"")
            assert headers_of(answer) == {"access-control-allow-origin": "*", "cluster-uuid": STORE_ID}
            assert "date" in answer.headers
        assert [row["usage"] for row in rows_of(gateway.backend.table("foo", "cpu"))] == [1.5] * 3


@on_loop
async def test_each_endpoint_has_its_default_precision() -> None:
    async with running() as gateway:
        for table, path in (("v3", V3), ("v2", V2), ("v1", V1)):
            await gateway.call("POST", path, f"{table} v=1 1700000000".encode())
        times = {name: rows_of(gateway.backend.table("foo", name))[0]["time"] for name in ("v3", "v2", "v1")}
        assert times == {"v3": 1_700_000_000 * 10**9, "v2": 1_700_000_000, "v1": 1_700_000_000}
        await gateway.call("POST", f"{V1}&precision=ms", b"ms v=1 5")
        assert rows_of(gateway.backend.table("foo", "ms"))[0]["time"] == 5_000_000


@on_loop
async def test_v3_writes_the_good_lines_and_reports_the_bad() -> None:
    async with running() as gateway:
        body = b"cpu,host=a val=1 1\ncpu,host=a val= 123\ncpu,host=b val=2 2\ncpu,host=abcdefghijklmnop val=1i 3"
        answer = await gateway.call("POST", V3, body)
        assert answer.status == 400
        assert answer.json == {
            "error": "partial write of line protocol occurred",
            "data": [
                {"error_message": "No fields were provided", "line_number": 2, "original_line": "cpu,host=a val= 123"},
                {
                    "error_message": "invalid column type for column 'val', expected iox::column_type::field::float, "
                    "got iox::column_type::field::integer",
                    "line_number": 4,
                    "original_line": "cpu,host=abcdefghijk",
                },
            ],
        }
        assert answer.text.startswith('{"error":"partial write of line protocol occurred","data":[{"error_message":')
        assert headers_of(answer) == {
            "content-type": "application/json",
            "cluster-uuid": STORE_ID,
            "content-length": str(len(answer.body)),
        }
        assert [row["val"] for row in rows_of(gateway.backend.table("foo", "cpu"))] == [1.0, 2.0]


@on_loop
async def test_all_or_nothing_writes_nothing() -> None:
    body = b"cpu v=1 1\ncpu v= 2"
    line = {"error_message": "No fields were provided", "line_number": 2, "original_line": "cpu v= 2"}
    async with running() as gateway:
        for path in (f"{V3}&accept_partial=false", V1):
            answer = await gateway.call("POST", path, body)
            assert (answer.status, answer.json) == (400, {"error": "line protocol parsing error", "data": line})
        answer = await gateway.call("POST", V2, body)
        assert (answer.status, answer.json) == (
            400,
            {"code": "invalid", "message": "line protocol parsing error: No fields were provided (line 2)"},
        )
        assert gateway.backend.catalog.database("foo") is None


@pytest.mark.parametrize("path", [V3, f"{V3}&accept_partial=false", V1, V2])
def test_a_limit_of_the_catalog_is_422(path: str) -> None:
    @on_loop
    async def check() -> None:
        backend = MemoryBackend()
        backend.columns_max = 2
        async with running(backend=backend) as gateway:
            answer = await gateway.call("POST", path, b"wide a=1,b=2,c=3 1")
            assert answer.status == 422
            assert "Update to schema would exceed number of columns per table limit of 2 columns" in answer.text

    check()


@pytest.mark.parametrize("body", [b"", b"\n", b"  \n\t\n"])
def test_an_empty_body(body: bytes) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway:
            answer = await gateway.call("POST", V3, body)
            assert (answer.status, answer.text) == (400, "incoming write was empty")
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            answer = await gateway.call("POST", V1, body)
            assert (answer.status, answer.json) == (400, {"error": "incoming write was empty"})
            answer = await gateway.call("POST", V2, body)
            assert (answer.status, answer.json) == (400, {"code": "invalid", "message": "incoming write was empty"})

    check()


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/api/v3/write_lp", 400, "missing query parameter 'db'"),
        ("/api/v3/write_lp?x=1", 400, "serde error: missing field `db`"),
        ("/api/v3/write_lp?db=_x", 400, '{"error":"db name did not start with a number or letter"}'),
        ("/api/v3/write_lp?db=", 400, '{"error":"db name cannot be empty"}'),
        ("/write", 400, '{"error":"no db destination provided"}'),
        (
            "/write?rp=x",
            400,
            '{"error":"failed to deserialize db/rp/precision in request: missing field `db`"}',
        ),
        ("/api/v2/write", 400, '{"code":"invalid","message":"no org/bucket destination provided"}'),
        ("/api/v2/write?org=x", 400, '{"code":"invalid","message":"missing bucket value"}'),
        (
            "/api/v2/write?bucket=-x",
            400,
            '{"code":"invalid","message":"db name did not start with a number or letter"}',
        ),
    ],
)
def test_parameters_that_are_wrong(path: str, status: int, text: str) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway:
            answer = await gateway.call("POST", path, GOOD)
            assert (answer.status, answer.text) == (status, text)

    check()


@pytest.mark.parametrize("name", ["a%2F..%2Fb", "..", "a%00b", "%22a%22", "a%20b", "a'b", "%C3%A4", "a%0d%0aX:1"])
def test_names_that_could_be_dangerous_are_refused(name: str) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway:
            answer = await gateway.call("POST", f"/api/v3/write_lp?db={name}", GOOD)
            assert answer.status == 400
            assert set(answer.json) == {"error"}
            assert gateway.backend.catalog.databases() == []

    check()


@on_loop
async def test_gzip_bodies() -> None:
    async with running() as gateway:
        body = gzip.compress(b"m v=1 1\n") + gzip.compress(b"m v=2 2\n")
        for n, headers in enumerate([{"content-encoding": "gzip"}, {"content-encoding": "identity"}]):
            sent = body if n == 0 else b"m v=3 3"
            assert (await gateway.call("POST", V3, sent, headers)).status == 204
        assert [row["v"] for row in rows_of(gateway.backend.table("foo", "m"))] == [1.0, 2.0, 3.0]
        answer = await gateway.call("POST", V3, b"no gzip", {"content-encoding": "gzip"})
        assert answer.status == 400
        assert answer.text.startswith("error decoding gzip stream: ")
        answer = await gateway.call("POST", V3, GOOD, {"content-encoding": "br"})
        assert (answer.status, answer.text) == (400, "unacceptable content-encoding: br")
        answer = await gateway.call("POST", V2, b"no gzip", {"content-encoding": "gzip"})
        assert answer.json["code"] == "invalid"


@on_loop
async def test_bodies_over_the_limit() -> None:
    limits = GatewayLimits(request=Limits(request_bytes_max=2000))
    async with running(limits) as gateway:
        message = "max request size (2000 bytes) exceeded"
        answer = await gateway.call("POST", V3, b"x" * 2001)
        assert (answer.status, answer.text, answer.headers["connection"]) == (413, message, "close")
        answer = await gateway.call("POST", V3, gzip.compress(b"x" * 2001), {"content-encoding": "gzip"})
        assert (answer.status, answer.text) == (413, message)
        answer = await gateway.call("POST", V2, b"x" * 2001)
        assert (answer.status, answer.json) == (413, {"code": "request too large", "message": message})
        answer = await gateway.call("POST", V1, b"x" * 2001)
        assert (answer.status, answer.json) == (413, {"error": message})
        just = b"m v=1 1\n" * 250
        assert len(just) == 2000
        assert (await gateway.call("POST", V3, just)).status == 204


@pytest.mark.parametrize("error", [MemoryExhausted, LogBacklogFull, ShardClosed, StoreFull])
def test_back_pressure_is_503_with_retry_after(error: type[Exception]) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway:
            gateway.backend.fail_writes = [error("not now") for _ in range(3)]
            for path, body in (
                (V3, {"error": "not now"}),
                (V1, {"error": "not now"}),
                (V2, {"code": "unavailable", "message": "not now"}),
            ):
                answer = await gateway.call("POST", path, GOOD)
                assert (answer.status, answer.json, answer.headers["retry-after"]) == (503, body, "1")
            assert (await gateway.call("POST", V3, GOOD)).status == 204

    check()


@on_loop
async def test_what_fits_into_no_object_is_413() -> None:
    async with running() as gateway:
        gateway.backend.fail_writes = [RequestTooLarge("too large for one object")]
        assert (await gateway.call("POST", V3, GOOD)).status == 413


@on_loop
async def test_a_fault_is_500_and_tells_nothing() -> None:
    async with running() as gateway:
        gateway.backend.fail_writes = [ZeroDivisionError("secret detail")]
        answer = await gateway.call("POST", V3, GOOD, {"x-request-id": "abc"})
        assert (answer.status, answer.text) == (500, "internal error; the server's log has it under request abc")


@on_loop
async def test_waiting_bodies_are_bounded() -> None:
    limits = GatewayLimits(waiting_bytes_max=3000)
    backend = MemoryBackend()
    async with running(limits, backend=backend) as gateway, Client(gateway.port) as one:
        assert (await one.call("POST", V3, GOOD)).status == 204
        backend.write_seconds = 0.3
        body = b"m v=1 1\n" * 250
        head = f"POST {V3} HTTP/1.1\r\nhost: t\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        await one.send(head + body)
        while not gateway.metrics.text().count(b"runnel_waiting_bytes 2000.0"):
            await Client.__aenter__(probe := Client(gateway.port))
            await probe.__aexit__()
        refused = await gateway.call("POST", V3, body)
        assert refused.status == 503
        assert refused.json["error"].startswith("too many request bodies wait (2000 of 3000 bytes)")
        assert refused.headers["retry-after"] == "1"
        assert (await one.answer()).status == 204
        assert (await gateway.call("POST", V3, body)).status == 204


@on_loop
async def test_an_authorization_header_in_any_form_is_accepted() -> None:
    async with running() as gateway:
        for value in ("Token x", "Bearer x", "Basic dTpw", "nonsense", ""):
            assert (await gateway.call("POST", V3, GOOD, {"authorization": value})).status == 204
        assert (await gateway.call("POST", f"{V1}&u=me&p=secret", GOOD)).status == 204


@on_loop
async def test_before_it_is_ready_it_refuses_writes() -> None:
    async with running(phase=Phase.REPLAYING) as gateway:
        answer = await gateway.call("POST", V3, GOOD)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "replaying" in answer.json["error"]
        gateway.health.move(Phase.READY)
        assert (await gateway.call("POST", V3, GOOD)).status == 204
        gateway.health.move(Phase.DRAINING)
        assert (await gateway.call("POST", V3, GOOD)).status == 204


@on_loop
async def test_metrics_count_lines_bytes_and_requests() -> None:
    async with running() as gateway:
        await gateway.call("POST", V3, b"m v=1 1\nm v=2 2\nm v=")
        text = (await gateway.call("GET", "/metrics")).text
        assert 'influxdb3_write_lines_total{db="foo"} 2.0' in text
        assert 'influxdb3_write_lines_rejected_total{db="foo"} 1.0' in text
        assert 'influxdb3_write_bytes_total{db="foo"} 20.0' in text
        assert 'http_requests_total{method="POST",path="/api/v3/write_lp",status="400"} 1.0' in text
