"""Results as InfluxDB 3's bytes: each text format against golden bytes, in pieces, for every type."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.formats
from engine.errors import NotSupported, QueryCancelled, QueryMemoryExhausted
from engine.formats import PIECE_ROWS, ResultFormat, encode
from tests.harness.queries import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from engine.engine import Engine


class Batches:
    """A stream of ready batches."""

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self.batches = list(batches)
        self.schema = self.batches[0].schema if self.batches else pa.schema([])
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        for batch in self.batches:
            yield batch

    async def aclose(self) -> None:
        self.closed = True


def pieces(format: ResultFormat, *batches: pa.RecordBatch) -> list[bytes]:
    async def collect() -> list[bytes]:
        stream = Batches(batches)
        found = [piece async for piece in encode(format, stream)]
        assert stream.closed
        return found

    return asyncio.run(collect())


def text(format: ResultFormat, *batches: pa.RecordBatch) -> str:
    return b"".join(pieces(format, *batches)).decode()


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


SMALL = batch(
    host=pa.array(["a", None, 'q"\n,'], pa.string_view()),
    time=pa.array([0, 1_500, 10**9], pa.timestamp("ns")),
    v=pa.array([1.0, None, -0.5]),
)
EMPTY = SMALL.slice(0, 0)
RULE = "+------+------+---+"


def test_json() -> None:
    assert text(ResultFormat.JSON, SMALL) == (
        '[{"host":"a","time":"1970-01-01T00:00:00","v":1.0},'
        '{"time":"1970-01-01T00:00:00.000001500"},'
        '{"host":"q\\"\\n,","time":"1970-01-01T00:00:01","v":-0.5}]'
    )


def test_jsonl() -> None:
    assert text(ResultFormat.JSONL, SMALL.slice(0, 2)) == (
        '{"host":"a","time":"1970-01-01T00:00:00","v":1.0}\n{"time":"1970-01-01T00:00:00.000001500"}\n'
    )


def test_csv() -> None:
    assert text(ResultFormat.CSV, SMALL) == (
        'host,time,v\na,1970-01-01T00:00:00,1.0\n,1970-01-01T00:00:00.000001500,\n"q""\n,",1970-01-01T00:00:01,-0.5\n'
    )


def test_pretty_has_no_line_break_at_its_end() -> None:
    assert text(ResultFormat.PRETTY, SMALL.slice(0, 2)) == "\n".join([
        "+------+-------------------------------+-----+",
        "| host | time                          | v   |",
        "+------+-------------------------------+-----+",
        "| a    | 1970-01-01T00:00:00           | 1.0 |",
        "|      | 1970-01-01T00:00:00.000001500 |     |",
        "+------+-------------------------------+-----+",
    ])  # fmt: skip


def test_parquet_has_plain_strings_and_all_rows() -> None:
    table = pq.read_table(io.BytesIO(b"".join(pieces(ResultFormat.PARQUET, SMALL, SMALL))))
    assert table.schema.types == [pa.string(), pa.timestamp("ns"), pa.float64()]
    assert table.column("host").to_pylist() == ["a", None, 'q"\n,'] * 2


@pytest.mark.parametrize(
    ("format", "without_batches", "without_rows"),
    [
        (ResultFormat.JSON, "[]", "[]"),
        (ResultFormat.JSONL, "", ""),
        (ResultFormat.CSV, "", "host,time,v\n"),
        (ResultFormat.PRETTY, "++\n++", f"{RULE}\n| host | time | v |\n{RULE}\n{RULE}"),
    ],
)  # fmt: skip
def test_nothing(format: ResultFormat, without_batches: str, without_rows: str) -> None:
    assert text(format) == without_batches
    assert text(format, EMPTY) == without_rows
    assert text(format, EMPTY, SMALL, EMPTY) == text(format, SMALL)


def test_an_empty_parquet_result_is_an_empty_body_without_batches() -> None:
    assert pieces(ResultFormat.PARQUET) == []
    assert pq.read_table(io.BytesIO(b"".join(pieces(ResultFormat.PARQUET, EMPTY)))).num_rows == 0


def test_one_column_of_nulls_has_csv_s_own_empty_row() -> None:
    assert text(ResultFormat.CSV, batch(a=pa.nulls(2, pa.int64()))) == 'a\n""\n""\n'
    assert text(ResultFormat.CSV, batch(a=pa.array([], pa.int64()))) == "a\n"
    assert text(ResultFormat.CSV, batch(**{'a"b': pa.array([], pa.int64()), "c,d": pa.array([], "i8")})) == (
        '"a""b","c,d"\n'
    )


FLOATS = [
    (0.0, "0.0", "0.0"),
    (-0.0, "-0.0", "-0.0"),
    (1e15, "1.0e15", "1000000000000000.0"),
    (1e16, "1.0e16", "1e16"),
    (1e-5, "0.00001", "0.00001"),
    (1e-6, "1.0e-6", "1e-6"),
    (9999999999.5, "9999999999.5", "9999999999.5"),
    (1e10, "1.0e10", "10000000000.0"),
    (5e-324, "5.0e-324", "5e-324"),
    (0.1 + 0.2, "0.30000000000000004", "0.30000000000000004"),
    (1.7976931348623157e308, "1.7976931348623157e308", "1.7976931348623157e308"),
    (math.inf, "null", "inf"),
    (-math.inf, "null", "-inf"),
    (math.nan, "null", "NaN"),
]


def test_floats_have_a_point_and_arrow_rs_s_exponents() -> None:
    floats = batch(f=pa.array([f for f, _, _ in FLOATS]))
    lines = text(ResultFormat.JSONL, floats).splitlines()
    assert [line[5:-1] for line in lines] == [j for _, j, _ in FLOATS]
    assert text(ResultFormat.CSV, floats).splitlines()[1:] == [c for _, _, c in FLOATS]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamps_have_0_3_6_or_9_digits(unit: str) -> None:
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    values = pa.array([0, scale + 1, 86_400 * scale], pa.int64()).cast(pa.timestamp(unit))
    fraction = {"s": "2", "ms": "1.001", "us": "1.000001", "ns": "1.000000001"}[unit]
    times = [json.loads(line)["t"] for line in text(ResultFormat.JSONL, batch(t=values)).splitlines()]
    assert times == ["1970-01-01T00:00:00", f"1970-01-01T00:00:0{fraction}", "1970-01-02T00:00:00"]


MIXED = batch(
    dictionary=pa.array(["a", None]).dictionary_encode(),
    decimal=pa.array([Decimal("1.50"), None]),
    list=pa.array([[1, None], None], pa.list_(pa.int64())),
    struct=pa.array([{"x": 1, "y": None}, None], pa.struct([("x", pa.int64()), ("y", pa.string())])),
    zoned=pa.array([0, None], pa.timestamp("ns", "UTC")),
    date=pa.array([1, None], pa.date32()),
    duration=pa.array([1, None], pa.duration("ns")),
    unsigned=pa.array([2**64 - 1, None], pa.uint64()),
    binary=pa.array([b"\x01", None]),
    nothing=pa.nulls(2),
    flag=pa.array([True, None]),
)


def test_every_type_has_json() -> None:
    assert text(ResultFormat.JSONL, MIXED) == (
        '{"dictionary":"a","decimal":1.50,"list":[1,null],"struct":{"x":1},"zoned":"1970-01-01T00:00:00Z",'
        '"date":"1970-01-02","duration":"PT0.000000001S","unsigned":18446744073709551615,"binary":"01","flag":true}\n'
        "{}\n"
    )


def test_every_type_has_a_table_and_parquet() -> None:
    assert "| a          | 1.50    | [1, ] | {x: 1, y: } |" in text(ResultFormat.PRETTY, MIXED)
    columns = [name for name in MIXED.schema.names if name not in ("duration", "nothing")]
    table = pq.read_table(io.BytesIO(b"".join(pieces(ResultFormat.PARQUET, MIXED.select(columns)))))
    assert table.num_rows == 2


def test_csv_has_no_nested_types_and_says_so() -> None:
    flat = MIXED.select([n for n in MIXED.schema.names if n not in ("list", "struct")])
    assert text(ResultFormat.CSV, flat).splitlines()[1] == (
        "a,1.50,1970-01-01T00:00:00Z,1970-01-02,PT0.000000001S,18446744073709551615,01,,true"
    )
    with pytest.raises(NotSupported, match="Nested type"):
        pieces(ResultFormat.CSV, MIXED)


@pytest.mark.parametrize("format", [ResultFormat.JSON, ResultFormat.JSONL, ResultFormat.CSV, ResultFormat.PARQUET])
def test_large_results_come_in_pieces_in_their_order(format: ResultFormat) -> None:
    rows = 40_000
    table = pa.table({"n": np.arange(rows), "s": [f"s{i}" for i in range(rows)]})
    cut = [b for i in range(0, rows, 3000) for b in table.slice(i, 3000).to_batches()]
    found = pieces(format, *cut)
    body = b"".join(found)
    if format is ResultFormat.JSON:
        numbers = [row["n"] for row in json.loads(body)]
    elif format is ResultFormat.JSONL:
        numbers = [json.loads(line)["n"] for line in body.splitlines()]
    elif format is ResultFormat.CSV:
        numbers = [int(row["n"]) for row in csv.DictReader(io.StringIO(body.decode()))]
    else:
        numbers = pq.read_table(io.BytesIO(body)).column("n").to_pylist()
    assert numbers == list(range(rows))
    if format is not ResultFormat.PARQUET:
        assert len(found) >= rows // (PIECE_ROWS + 3000)


def test_one_large_batch_is_cut() -> None:
    assert len(pieces(ResultFormat.JSONL, batch(n=np.arange(3 * PIECE_ROWS)))) == 3


STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ROWS = st.lists(st.tuples(STRINGS, st.floats(), st.integers(-(2**63), 2**63 - 1) | st.none()), min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_json_reads_back(rows: list[tuple[str, float, int | None]]) -> None:
    strings, floats, integers = zip(*rows, strict=True)
    source = batch(s=pa.array(strings), f=pa.array(floats, pa.float64()), i=pa.array(integers, pa.int64()))
    for row, (s, f, i) in zip(json.loads(text(ResultFormat.JSON, source)), rows, strict=True):
        assert row["s"] == s
        assert row["f"] == (f if math.isfinite(f) else None)
        assert row.get("i") == i


def test_a_table_over_its_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.formats, "PRETTY_BYTES_MAX", 1000)
    with pytest.raises(QueryMemoryExhausted, match="another format"):
        pieces(ResultFormat.PRETTY, batch(n=np.arange(1000)))


def test_content_types() -> None:
    assert {f.value: f.content_type for f in ResultFormat} == {
        "json": "application/json",
        "jsonl": "application/jsonl",
        "csv": "text/csv",
        "parquet": "application/vnd.apache.parquet",
        "pretty": "text/plain; charset=utf-8",
    }


def test_temporary_files_are_in_the_given_folder_and_go_away(tmp_path: Path) -> None:
    async def collect() -> bytes:
        return b"".join([piece async for piece in encode(ResultFormat.CSV, Batches([SMALL]), tmp_path)])

    assert asyncio.run(collect()).startswith(b"host,time,v\n")
    (folder,) = tmp_path.iterdir()
    assert list(folder.iterdir()) == []


def test_leaving_early_cancels_the_query(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, "SELECT value FROM generate_series(1, 1000000000000)")
        encoded = encode(ResultFormat.JSONL, stream)
        assert (await anext(encoded)).startswith(b'{"value":1}\n')
        await encoded.aclose()
        with pytest.raises(QueryCancelled):
            await anext(stream)

    world.run(ask)


@pytest.mark.parametrize("format", list(ResultFormat))
def test_a_query_s_own_types_can_be_written(tmp_path: Path, format: ResultFormat) -> None:
    world = World(tmp_path)
    world.add_file([{"time": 1, "host": "a", "usage": 1}])
    world.add_tail([{"time": 2, "usage": 2}])

    async def ask(engine: Engine) -> bytes:
        stream = await world.start(
            engine, "SELECT *, count(*) OVER () AS n, now() > time AS past FROM cpu ORDER BY time"
        )
        return b"".join([piece async for piece in encode(format, stream)])

    body = world.run(ask)
    if format is ResultFormat.CSV:
        assert body == (
            b"host,time,usage,n,past\na,1970-01-01T00:00:00.000000001,1,2,true\n,1970-01-01T00:00:00.000000002,2,2,true\n"
        )
    assert body
