"""Databases, retention periods and tables over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

from storage.schema import Role, TypeKind
from tests.harness.gateway import Answer, Running, on_loop, running

DATABASE = "/api/v3/configure/database"
RETENTION = f"{DATABASE}/retention_period"
TABLE = "/api/v3/configure/table"
JSON = {"content-type": "application/json"}
DAY_NS = 86_400 * 10**9


async def send(gateway: Running, method: str, path: str, body: Any) -> Answer:
    return await gateway.call(method, path, json.dumps(body).encode(), JSON)


async def listed(gateway: Running, more: str = "") -> list[dict[str, Any]]:
    answer = await gateway.call("GET", f"{DATABASE}?format=json{more}")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    rows: list[dict[str, Any]] = answer.json
    return rows


@on_loop
async def test_a_databases_life() -> None:
    async with running() as gateway:
        assert await listed(gateway) == []
        answer = await send(gateway, "POST", DATABASE, {"db": "foo"})
        assert (answer.status, answer.body, answer.headers["access-control-allow-origin"]) == (200, b"", "*")
        answer = await send(gateway, "POST", DATABASE, {"db": "foo"})
        assert (answer.status, answer.text) == (409, "database 'foo' exists")
        assert (await send(gateway, "POST", DATABASE, {"db": "bar", "retention_period": "30d"})).status == 200
        assert await listed(gateway) == [
            {"iox::database": "bar", "deleted": False},
            {"iox::database": "foo", "deleted": False},
        ]
        assert (await gateway.call("DELETE", f"{DATABASE}?db=foo")).status == 200
        assert (await gateway.call("DELETE", f"{DATABASE}?db=foo")).status == 404
        assert [row["iox::database"] for row in await listed(gateway)] == ["bar"]
        assert [row["deleted"] for row in await listed(gateway, "&show_deleted=true")] == [False, True]
        assert (await send(gateway, "POST", DATABASE, {"db": "foo"})).status == 200


@on_loop
async def test_retention_periods() -> None:
    async with running() as gateway:

        def retention() -> int | None:
            found = gateway.backend.catalog.database("foo")
            assert found is not None
            return found.retention_ns

        await send(gateway, "POST", DATABASE, {"db": "foo", "retention_period": "1d"})
        assert retention() == DAY_NS
        assert (await send(gateway, "PUT", DATABASE, {"db": "foo", "retention_period": "2d"})).status == 200
        assert retention() == 2 * DAY_NS
        assert (await send(gateway, "PUT", DATABASE, {"db": "foo", "retention_period": None})).status == 200
        assert retention() is None
        answer = await gateway.call("POST", f"{RETENTION}?db=foo&duration=3d")
        assert (answer.status, retention()) == (204, 3 * DAY_NS)
        answer = await gateway.call("DELETE", f"{RETENTION}?db=foo")
        assert (answer.status, retention()) == (204, None)
        answer = await gateway.call("POST", f"{RETENTION}?db=foo&duration=x")
        assert (answer.status, answer.text) == (400, "Cannot parse the given human time: expected number at 0")
        assert (await send(gateway, "PUT", DATABASE, {"db": "nope", "retention_period": "2d"})).status == 404
        assert (await gateway.call("POST", f"{RETENTION}?db=nope&duration=3d")).status == 404
        answer = await gateway.call("POST", f"{RETENTION}?db=foo")
        assert (answer.status, answer.text) == (400, "serde error: missing field `duration`")


@on_loop
async def test_tables() -> None:
    async with running() as gateway:
        asked = {
            "db": "foo",
            "table": "t",
            "tags": ["host"],
            "fields": [{"name": n, "type": n} for n in ("utf8", "int64", "uint64", "float64", "bool")],
        }
        assert (await send(gateway, "POST", TABLE, asked)).status == 404
        await send(gateway, "POST", DATABASE, {"db": "foo"})
        assert (await send(gateway, "POST", TABLE, asked)).status == 200
        table = gateway.backend.catalog.table("foo", "t")
        assert table is not None
        assert [(c.name, c.role, c.kind) for c in table.columns] == [
            ("time", Role.TIME, TypeKind.TIMESTAMP),
            ("host", Role.TAG, TypeKind.STRING),
            ("utf8", Role.FIELD, TypeKind.STRING),
            ("int64", Role.FIELD, TypeKind.INT64),
            ("uint64", Role.FIELD, TypeKind.UINT64),
            ("float64", Role.FIELD, TypeKind.FLOAT64),
            ("bool", Role.FIELD, TypeKind.BOOL),
        ]
        assert (await send(gateway, "POST", TABLE, asked)).status == 409
        assert (await send(gateway, "POST", TABLE, {**asked, "table": "u", "fields": []})).status == 200
        assert (await gateway.call("DELETE", f"{TABLE}?db=foo&table=t&hard_delete_at=never")).status == 200
        assert (await gateway.call("DELETE", f"{TABLE}?db=foo&table=t")).status == 404
        assert (await gateway.call("DELETE", f"{TABLE}?db=nope&table=t")).status == 404
        for bad in ({**asked, "table": "v", "tags": ["a", "a"]}, {**asked, "table": "v", "tags": ["time"]}):
            assert (await send(gateway, "POST", TABLE, bad)).status == 400
        answer = await send(gateway, "POST", TABLE, {**asked, "fields": [{"name": "x", "type": "date"}]})
        assert (answer.status, answer.text[:17]) == (400, "serde json error:")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "text"),
    [
        ("GET", DATABASE, b"", {}, 400, "serde error: missing field `format`"),
        (
            "GET",
            f"{DATABASE}?format=json&show_deleted=1",
            b"",
            {},
            400,
            "serde error: provided string was not `true` or `false`",
        ),
        ("DELETE", DATABASE, b"", {}, 400, "serde error: missing field `db`"),
        ("DELETE", TABLE, b"", {}, 400, "serde error: missing field `db`"),
        ("DELETE", f"{TABLE}?db=x", b"", {}, 400, "serde error: missing field `table`"),
        (
            "DELETE",
            f"{DATABASE}?db=x&hard_delete_at=soon",
            b"",
            {},
            400,
            "Cannot parse the timestamp: input contains invalid characters",
        ),
        ("POST", DATABASE, b"{}", {}, 415, "unacceptable content-type, expected: application/json"),
        (
            "POST",
            DATABASE,
            b"{}",
            {"content-type": "text/json"},
            415,
            "unacceptable content-type, expected: application/json",
        ),
        ("POST", DATABASE, b"{}", JSON, 400, "serde json error: missing field `db`"),
        ("POST", DATABASE, b'{"db":"_x"}', JSON, 400, '{"error":"db name did not start with a number or letter"}'),
        ("POST", DATABASE, b'{"db":""}', JSON, 400, '{"error":"db name cannot be empty"}'),
        (
            "POST",
            DATABASE,
            b'{"db":"a","retention_period":"x"}',
            JSON,
            400,
            'serde json error: invalid value: string "x", expected a duration (expected number at 0)',
        ),
    ],
)
def test_requests_that_are_wrong(
    method: str, path: str, body: bytes, headers: dict[str, str], status: int, text: str
) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway:
            answer = await gateway.call(method, path, body, headers)
            assert (answer.status, answer.text) == (status, text)

    check()


@on_loop
async def test_json_types_that_are_taken() -> None:
    async with running() as gateway:
        for n, content_type in enumerate(
            ["application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"]
        ):
            body = json.dumps({"db": f"d{n}"}).encode()
            answer = await gateway.call("POST", DATABASE, body, {"content-type": content_type})
            assert answer.status == 200, content_type


@on_loop
async def test_a_hard_delete_time_is_taken() -> None:
    async with running() as gateway:
        for word in ("now", "default", "never", "2030-01-01T00:00:00Z"):
            await send(gateway, "POST", DATABASE, {"db": "foo"})
            assert (await gateway.call("DELETE", f"{DATABASE}?db=foo&hard_delete_at={word}")).status == 200


@on_loop
async def test_a_tables_own_retention() -> None:
    async with running() as gateway:

        def kept() -> tuple[int | None, int | None]:
            found = gateway.backend.catalog.table("foo", "t")
            assert found is not None
            return found.retention_ns, found.retention_bytes

        await send(gateway, "POST", DATABASE, {"db": "foo", "retention_bytes": 5})
        fields = [{"name": "v", "type": "int64"}]
        table = {"db": "foo", "table": "t", "tags": ["a"], "fields": fields}
        assert (await send(gateway, "POST", TABLE, {**table, "retention_period": "1d"})).status == 200
        assert kept() == (DAY_NS, None)
        for update, expected in (
            ({"retention_bytes": "2 KiB"}, (DAY_NS, 2048)),
            ({"retention_period": None}, (None, 2048)),
            ({"retention_period": "none", "retention_bytes": 7}, (0, 7)),
            ({"retention_bytes": "none"}, (0, 0)),
            ({"retention_bytes": None}, (0, None)),
            ({}, (0, None)),
        ):
            answer = await send(gateway, "PUT", TABLE, {"db": "foo", "table": "t", **update})
            assert (answer.status, kept()) == (200, expected), update
        for bad in ({"retention_period": "0s"}, {"retention_bytes": 0}, {"retention_bytes": "x"}):
            answer = await send(gateway, "PUT", TABLE, {"db": "foo", "table": "t", **bad})
            assert (answer.status, kept()) == (400, (0, None)), bad
        database = gateway.backend.catalog.database("foo")
        assert database is not None
        assert database.retention_bytes == 5
