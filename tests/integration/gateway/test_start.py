"""What clients, balancers and browsers ask first: /query of 1.x, /ping, /health, /metrics, OPTIONS, wrong paths."""

from __future__ import annotations

import re
import urllib.parse

import pytest

from nodes.health import Phase
from tests.harness.gateway import on_loop, running
from tests.harness.memory_backend import STORE_ID


def query(text: str, **more: str) -> str:
    return "/query?" + urllib.parse.urlencode({"q": text, **more})


FORM = {"content-type": "application/x-www-form-urlencoded"}


@on_loop
async def test_telegraf_creates_its_database() -> None:
    async with running() as gateway:
        body = urllib.parse.urlencode({"q": 'CREATE DATABASE "telegraf"'}).encode()
        for _ in range(2):
            answer = await gateway.call("POST", "/query", body, FORM)
            assert (answer.status, answer.text) == (200, '{"results":[{"statement_id":0}]}\n')
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["x-influxdb-version"]
        assert gateway.backend.catalog.database("telegraf") is not None


@pytest.mark.parametrize(
    ("text", "results"),
    [
        (
            "SHOW DATABASES",
            [{"statement_id": 0, "series": [{"name": "databases", "columns": ["name"], "values": [["one"]]}]}],
        ),
        (
            "show databases;",
            [{"statement_id": 0, "series": [{"name": "databases", "columns": ["name"], "values": [["one"]]}]}],
        ),
        ("CREATE DATABASE two", [{"statement_id": 0}]),
        ('create database "two" ; CREATE DATABASE three', [{"statement_id": 0}, {"statement_id": 1}]),
        ('CREATE DATABASE "t" WITH DURATION 7d REPLICATION 1 SHARD DURATION 1h NAME "week"', [{"statement_id": 0}]),
        (
            'CREATE DATABASE "a b"',
            [
                {
                    "statement_id": 0,
                    "error": "invalid character in database or rp name: must be ASCII, containing only letters, "
                    "numbers, underscores, or hyphens",
                }
            ],
        ),
    ],
)
def test_statements_that_are_there(text: str, results: object) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway:
            await gateway.call("POST", query("CREATE DATABASE one"))
            for method in ("GET", "POST"):
                answer = await gateway.call(method, query(text))
                assert (answer.status, answer.json) == (200, {"results": results})

    check()


@on_loop
async def test_what_with_duration_means() -> None:
    async with running() as gateway:
        await gateway.call("POST", query("CREATE DATABASE a WITH DURATION 7d; CREATE DATABASE b WITH DURATION INF"))
        a, b = gateway.backend.catalog.database("a"), gateway.backend.catalog.database("b")
        assert a is not None
        assert b is not None
        assert (a.retention_ns, b.retention_ns) == (7 * 86400 * 10**9, None)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM cpu",
        "SHOW MEASUREMENTS",
        "CREATE DATABASE",
        "CREATE DATABASE a WITH",
        "CREATE DATABASE a b",
        "CREATE DATABASE 'a'",
        "SHOW DATABASES x",
        ";",
        "DROP DATABASE a; SHOW DATABASES",
        'CREATE DATABASE "a',
    ],
)
def test_statements_that_come_later(text: str) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway:
            answer = await gateway.call("POST", query(text))
            assert (answer.status, answer.text) == (400, '{"error":"InfluxQL is not there yet"}')
            assert gateway.backend.catalog.databases() == []

    check()


@on_loop
async def test_a_query_that_is_missing() -> None:
    async with running() as gateway:
        for path in ("/query", "/query?db=x", "/query?q="):
            answer = await gateway.call("GET", path)
            assert (answer.status, answer.text) == (400, '{"error":"missing required parameter \\"q\\""}')


@on_loop
async def test_pretty_and_raw_queries() -> None:
    async with running() as gateway:
        answer = await gateway.call("GET", query("SHOW DATABASES", pretty="true"))
        assert answer.text.startswith('{\n    "results": [')
        raw = {"content-type": "application/vnd.influxql"}
        assert (await gateway.call("POST", "/query", b"CREATE DATABASE raw", raw)).status == 200
        assert gateway.backend.catalog.database("raw") is not None


@on_loop
async def test_ping() -> None:
    async with running(phase=Phase.STARTING) as gateway:
        for method in ("GET", "POST"):
            answer = await gateway.call(method, "/ping")
            assert answer.status == 200
            assert set(answer.json) == {"product_name", "version", "revision", "process_id"}
            assert answer.json["version"].startswith("3.")
            assert answer.headers["x-influxdb-version"] == answer.json["version"]
            assert answer.headers["x-influxdb-build"] == "Core"
            assert answer.headers["request-id"] == answer.headers["x-request-id"]
            assert re.fullmatch(
                r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", answer.headers["request-id"]
            )
        assert (await gateway.call("HEAD", "/ping")).status == 200


@on_loop
async def test_health_follows_the_phase() -> None:
    paths = ("/health", "/health/ready", "/health/startup", "/health/live", "/api/v1/health")
    async with running(phase=Phase.STARTING) as gateway:

        async def look() -> list[int]:
            return [(await gateway.call("GET", path)).status for path in paths]

        assert await look() == [503, 503, 503, 200, 503]
        answer = await gateway.call("GET", "/health")
        assert (answer.text, answer.headers["retry-after"]) == ("starting", "1")
        gateway.health.move(Phase.READY)
        assert await look() == [200] * 5
        assert (await gateway.call("GET", "/health")).text == "OK"
        gateway.health.hold("shards", "3 of 8 are open")
        assert await look() == [503, 503, 200, 200, 503]
        gateway.health.release("shards")
        gateway.health.fail("fenced")
        assert await look() == [503, 503, 200, 503, 503]


@on_loop
async def test_metrics_are_prometheus_text() -> None:
    async with running() as gateway:
        answer = await gateway.call("GET", "/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.text.endswith("# EOF\n")
        assert "http_connections 1.0" in answer.text
        assert "http_requests_in_flight 1.0" in answer.text


@on_loop
async def test_browsers_may_ask_from_anywhere() -> None:
    async with running() as gateway:
        for path in ("/api/v3/query_sql", "/nowhere"):
            answer = await gateway.call("OPTIONS", path)
            assert answer.status == 204
            assert {k: v for k, v in answer.headers.items() if k.startswith("access-control")} == {
                "access-control-allow-origin": "*",
                "access-control-allow-methods": "*",
                "access-control-allow-headers": "*",
                "access-control-max-age": "86400",
            }


@on_loop
async def test_wrong_paths_and_methods() -> None:
    async with running() as gateway:
        for path in ("/", "/nope", "/api/v3/write_lp/", "/api/v3/../../etc/passwd", "/%2e%2e/x", "/api/v3/write_lp%00"):
            answer = await gateway.call("GET", path)
            assert (answer.status, answer.text) == (404, "Not found"), path
            assert answer.headers["cluster-uuid"] == STORE_ID
        answer = await gateway.call("DELETE", "/api/v3/write_lp")
        assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS, POST")
        answer = await gateway.call("POST", "/nope", b"body")
        assert answer.status == 404
