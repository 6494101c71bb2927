"""Lines that are hard, through the door and the real parser: each gets a clear answer, and the good ones are kept."""

from __future__ import annotations

import pytest

from tests.harness.gateway import Answer, on_loop, running
from tests.harness.memory_backend import rows_of
from wire.lineprotocol import create_parser

V3 = "/api/v3/write_lp?db=foo&precision=ns"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b'm v="text" 1', "invalid column type for column 'v'"),
        (b"m 1", "No fields were provided"),
        (b"m v=1 tomorrow", "Could not parse entire line"),
        (b"m v=1 99999999999999999999", "timestamp"),
        (b"m v=1,i=9223372036854775808i 1", "Unable to parse integer value"),
        (b"m v=1,u=18446744073709551616u 1", "Unable to parse unsigned integer value"),
        (b"m,t=\xff\xfe v=1 1", "UTF-8"),
        (b'm v=1,s="open 1', "error"),
        (b"m,t=a,t=b v=1 1", "Must not contain duplicate tags, but 't' was repeated"),
        (b"m v=1,v=2 1", "multiple instances of 'v' field found"),
        (b"_runnel_x v=1 1", "reserved"),
        (b",t=a v=1 1", "Invalid measurement was provided"),
        (b"m,t=" + b"x" * (2 << 20) + b" v=1 1", "String is greater than"),
    ],
    ids=[
        "type",
        "fields",
        "time",
        "time-range",
        "int",
        "uint",
        "utf8",
        "quote",
        "tags",
        "twice",
        "reserved",
        "name",
        "long",
    ],
)
def test_a_bad_line_is_reported_and_its_neighbours_are_written(line: bytes, part: str) -> None:
    @on_loop
    async def check() -> None:
        async with running(make_parser=create_parser) as gateway:
            assert (await gateway.call("POST", V3, b"m v=0 0")).status == 204
            answer = await gateway.call("POST", V3, b"m v=1 10\n" + line)
            assert answer.status == 400
            [error] = answer.json["data"]
            assert error["line_number"] == 2
            assert part == "error" or part in error["error_message"]
            assert len(error["original_line"].encode()) <= 20
            assert [row["time"] for row in rows_of(gateway.backend.table("foo", "m"))] == [0, 10]

    check()


@on_loop
async def test_line_numbers_survive_newlines_in_strings() -> None:
    async with running(make_parser=create_parser) as gateway:
        answer: Answer = await gateway.call("POST", V3, b'm s="a\nb\nc" 1\n# comment\n\nbad\nm s="x" 2')
        assert [error["line_number"] for error in answer.json["data"]] == [6]
        assert [row["s"] for row in rows_of(gateway.backend.table("foo", "m"))] == ["a\nb\nc", "x"]


@on_loop
async def test_ten_thousand_columns_and_a_megabyte_of_tag() -> None:
    async with running(make_parser=create_parser) as gateway:
        wide = "wide " + ",".join(f"f{n}={n}i" for n in range(10_000)) + " 1"
        assert (await gateway.call("POST", V3, wide.encode())).status == 204
        table = gateway.backend.catalog.table("foo", "wide")
        assert table is not None
        assert len(table.columns) == 10_001
        big = b"big,t=" + b"x" * 1_000_000 + b" v=1 1"
        assert (await gateway.call("POST", V3, big)).status == 204
        assert len(rows_of(gateway.backend.table("foo", "big"))[0]["t"]) == 1_000_000


@on_loop
async def test_names_of_tables_and_columns_are_data() -> None:
    """Slashes, dots, spaces and quotes are names like others: they never become paths."""
    async with running(make_parser=create_parser) as gateway:
        body = b'../../etc/passwd,a\\ b="q" x/y=1,..=2 1'
        assert (await gateway.call("POST", V3, body)).status == 204
        assert rows_of(gateway.backend.table("foo", "../../etc/passwd")) == [
            {"time": 1, "a b": '"q"', "x/y": 1.0, "..": 2.0}
        ]


@on_loop
async def test_a_thousand_errors_are_counted_and_bounded() -> None:
    async with running(make_parser=create_parser) as gateway:
        answer = await gateway.call("POST", V3, b"bad\n" * 5000 + b"m v=1 1\n")
        assert answer.status == 400
        assert len(answer.json["data"]) <= 1024
        assert 'lines_rejected_total{db="foo"} 5000.0' in (await gateway.call("GET", "/metrics")).text
        assert len(rows_of(gateway.backend.table("foo", "m"))) == 1
