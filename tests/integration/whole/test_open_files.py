"""Data at rest belongs to its owner: DuckDB and Arrow read the live DataFiles and find what Runnel finds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.integration.whole.probing import checkpoint, clean_node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.node import RunningNode

KEY = ("host", "region", "time")
FIELDS = ("f", "i", "u", "s", "b")
TYPES = {
    "time": "TIMESTAMP_NS", "host": "VARCHAR", "region": "VARCHAR", "f": "DOUBLE", "i": "BIGINT", "u": "UBIGINT",
    "s": "VARCHAR", "b": "BOOLEAN", "_runnel_offset": "BIGINT",
}  # fmt: skip
NEWEST = (
    "SELECT host, region, epoch_ns(time) AS time, "
    + ", ".join(f"arg_max({f}, _runnel_offset) FILTER (WHERE {f} IS NOT NULL) AS {f}" for f in FIELDS)
    + " FROM read_parquet($files, union_by_name = true) GROUP BY host, region, time"
)


def line(chooser: random.Random, number: int) -> str:
    """A point that is often one that stood before; some tags and fields are missing."""
    tags = f",host=h{chooser.randrange(5)}" + (f",region=r{chooser.randrange(2)}" if chooser.random() < 0.7 else "")
    values = {
        "f": f"{chooser.uniform(-1e9, 1e9)!r}", "i": f"{chooser.randrange(-(2**63), 2**63)}i",
        "u": f"{chooser.randrange(2**64)}u", "s": f'"text {number} ü"', "b": chooser.choice("tf"),
    }  # fmt: skip
    fields = [f"{name}={value}" for name, value in values.items() if chooser.random() < 0.5] or ["i=1i"]
    return f"points{tags} {','.join(fields)} {1_700_000_000_000_000_000 + chooser.randrange(200)}"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with clean_node(tmp_path_factory.mktemp("files"), LOG__SHARDS="2") as node:
        chooser = random.Random(20)
        for part in range(5):
            node.write("\n".join(line(chooser, part * 300 + i) for i in range(300)))
            node.write("".join(f"plain,k=k{i % 7} v={part * 1000 + i}i {part * 1000 + i + 1}\n" for i in range(1000)))
            checkpoint(node)
        yield node


def live_files(node: RunningNode, table: str) -> list[str]:
    rows = node.query(f"SELECT path FROM system.parquet_files WHERE table_name = '{table}'")
    assert len(rows) == 5
    return [str(node.data / "store" / row["path"]) for row in rows]


def ours(node: RunningNode) -> list[tuple[Any, ...]]:
    """The table as Runnel shows it, times as ns."""
    rows = node.query("SELECT host, region, CAST(time AS BIGINT) AS time, f, i, u, s, b FROM points")
    return sorted((tuple(row.get(name) for name in (*KEY, *FIELDS)) for row in rows), key=repr)


def test_duckdb_counts_what_runnel_counts(node: RunningNode) -> None:
    (row,) = node.query(
        "SELECT count(*) AS n, sum(v) AS s, min(v) AS a, max(v) AS b, count(DISTINCT k) AS k FROM plain"
    )
    with duckdb.connect() as duck:
        found = duck.execute(
            "SELECT count(*), sum(v), min(v), max(v), count(DISTINCT k) FROM read_parquet($files)",
            {"files": live_files(node, "plain")},
        ).fetchall()
    assert found == [tuple(row.values())] == [(5000, sum(range(5000)), 0, 4999, 7)]


def test_duckdb_folds_rewritten_points_to_what_runnel_shows(node: RunningNode) -> None:
    """Per key (tags and time), each field's newest value that is not NULL, newest by `_runnel_offset`."""
    files = live_files(node, "points")
    with duckdb.connect() as duck:
        raw = duck.execute(
            "SELECT count(*) FROM read_parquet($files, union_by_name = true)", {"files": files}
        ).fetchone()
        found = duck.execute(NEWEST, {"files": files}).fetchall()
        keys = duck.execute(
            "SELECT count(*) FROM (SELECT DISTINCT host, region, time FROM read_parquet($files, union_by_name = true))",
            {"files": files},
        ).fetchone()
    assert raw is not None
    assert keys is not None
    assert raw[0] > keys[0], "nothing was rewritten: this test shows nothing"
    assert keys[0] == len(ours(node))
    assert sorted(found, key=repr) == ours(node)
    assert any(value is None for row in found for value in row), "no NULL: this test shows too little"


def test_types_and_layout_are_plain(node: RunningNode) -> None:
    with duckdb.connect() as duck:
        described = duck.execute(
            "DESCRIBE SELECT * FROM read_parquet($files, union_by_name = true)", {"files": live_files(node, "points")}
        ).fetchall()
    assert {row[0]: row[1] for row in described} == TYPES
    for path in live_files(node, "points"):
        file = pq.ParquetFile(path)
        assert set(file.schema_arrow.names) <= set(TYPES)
        offsets = pq.read_table(path, columns=["_runnel_offset"]).column(0).to_pylist()
        assert len(set(offsets)) == len(offsets)


def test_arrow_s_dataset_reads_them_as_one_table(node: RunningNode) -> None:
    """As Polars and pandas do: one schema over all files, files without a column give NULL."""
    files = live_files(node, "points")
    schema = pa.unify_schemas([pq.read_schema(path) for path in files])
    table = ds.dataset(files, schema=schema, format="parquet").to_table()
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    times = table.column("time").cast(pa.int64()).to_pylist()
    columns = {name: table.column(name).to_pylist() for name in ("host", "region", "_runnel_offset", *FIELDS)}
    for at in sorted(range(table.num_rows), key=lambda i: columns["_runnel_offset"][i]):
        row = newest.setdefault((columns["host"][at], columns["region"][at], times[at]), dict.fromkeys(FIELDS))
        row.update({name: columns[name][at] for name in FIELDS if columns[name][at] is not None})
    assert sorted(((*key, *row.values()) for key, row in newest.items()), key=repr) == ours(node)


def test_the_files_that_are_named_are_the_files_that_lie_there(node: RunningNode) -> None:
    """Nothing was compacted or dropped: no file lies in the store that no table names."""
    named = {row["path"] for row in node.query("SELECT path FROM system.parquet_files")}
    store = node.data / "store"
    lying = {str(path.relative_to(store)) for path in store.rglob("*.parquet")}
    assert lying == named
