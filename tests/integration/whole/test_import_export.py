"""`runnel import` and `runnel export` against a real node: what goes out comes back the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nodes.cli.export import ExportOptions, export
from nodes.cli.imports import ImportOptions, imports
from nodes.cli.write import WriteOptions, write
from nodes.exitcodes import CommandFailed, ExitCode
from tests.harness.node import RunningNode
from tests.integration.whole.probing import end_clean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START = 1_700_000_000_000_000_000
LINES = "".join(
    f'm,host=h{i % 7},kind=a\\ b f={i / 8},i={-i}i,u={i}u,s="x, \\"y\\" {i}",b={i % 2 == 0} {START + i}\n'
    for i in range(500)
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with RunningNode(tmp_path_factory.mktemp("node") / "data", environment={"RUNNEL_LOG__SHARDS": "2"}) as running:
        running.write(LINES, "d")
        yield running
        end_clean(running)


def out(node: RunningNode, target: Path | str, **changes: Any) -> ExitCode:
    chosen: dict[str, Any] = {"database": "d", "table": "m", "statement": None, "format": None, "may_replace": False}
    return export(ExportOptions(str(target), **{**chosen, **changes}), node.url)


def back(node: RunningNode, *files: Path, table: str = "m", database: str = "d", **changes: Any) -> ExitCode:
    chosen: dict[str, Any] = {"precision": "auto", "batch_lines": 100, "parallel": 2, "is_json": True}
    tags, time = changes.pop("tags", ()), changes.pop("time", "time")
    options = ImportOptions(table, tags, time, WriteOptions(database, **{**chosen, **changes}))
    return imports([str(file) for file in files], options, node.url)


def rows(node: RunningNode, database: str = "d", table: str = "m") -> list[dict[str, Any]]:
    return node.query(f"SELECT * FROM {table} ORDER BY time, host", database)


@pytest.mark.parametrize("end", ["parquet", "csv", "lp"])
def test_what_goes_out_comes_back(node: RunningNode, tmp_path: Path, end: str) -> None:
    target = tmp_path / f"m.{end}"
    assert out(node, target) is ExitCode.OK
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    node.write('m,host=z,kind=z f=0,i=0i,u=0u,s="",b=t 1\n', f"back_{end}")  # the table, with its types and tags
    if end == "lp":
        assert write([str(target)], WriteOptions("back_lp", "ns", 100, 2), node.url) is ExitCode.OK
    else:
        assert back(node, target, database=f"back_{end}") is ExitCode.OK
    found = [row for row in rows(node, f"back_{end}") if row["host"] != "z"]
    assert found == rows(node)
    assert len(found) == 500


def test_a_new_table_takes_its_types_from_the_file(
    node: RunningNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new.parquet"
    when = pa.array([1, 2, 3], pa.timestamp("ms"))
    pq.write_table(
        pa.table({"at": when, "host": ["a", "b", "c\n"], "v": pa.array([1.5, None, 2]), "n": [1, 2, 3]}), file
    )
    assert back(node, file, table="fresh", tags=("host",), time="at") is ExitCode.FAILURE
    report = json.loads(capsys.readouterr().out)
    assert (report["written"], report["rejected"]) == (2, 1)
    assert (report["errors"][0]["line"], report["errors"][0]["file"]) == (3, str(file))
    assert node.query("SELECT host, v, n FROM fresh ORDER BY time", "d") == [
        {"host": "a", "v": 1.5, "n": 1},
        {"host": "b", "n": 2},
    ]


def test_csv_with_times_that_are_numbers(node: RunningNode, tmp_path: Path) -> None:
    file = tmp_path / "plain.csv"
    file.write_text("time,host,v\n1700000000,a,1\n1700000001,b,2.5\n")
    assert back(node, file, table="plain", tags=("host",), precision="s") is ExitCode.OK
    assert [row["time"] for row in rows(node, table="plain")] == ["2023-11-14T22:13:20", "2023-11-14T22:13:21"]


def test_a_statements_rows(node: RunningNode, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    statement = "SELECT host, count(*) AS n FROM m GROUP BY host ORDER BY host"
    assert out(node, "-", table=None, statement=statement, format="csv") is ExitCode.OK
    assert capsysbinary.readouterr().out.splitlines()[:2] == [b"host,n", b"h0,72"]
    assert out(node, tmp_path / "n.parquet", table=None, statement=statement) is ExitCode.OK
    assert pq.read_table(tmp_path / "n.parquet").num_rows == 7


def test_a_file_that_is_there_stays_unless_forced_and_a_failure_leaves_none(node: RunningNode, tmp_path: Path) -> None:
    target = tmp_path / "m.csv"
    target.write_text("mine")
    with pytest.raises(CommandFailed, match="--force"):
        out(node, target)
    assert target.read_text() == "mine"
    assert out(node, target, may_replace=True) is ExitCode.OK
    assert target.read_text() != "mine"
    with pytest.raises(Exception, match="nothing"):
        out(node, tmp_path / "no.csv", table="nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["m.csv"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": None}, "either --table"),
        ({"statement": "SELECT 1"}, "either --table"),
        ({"format": "lp", "table": None, "statement": "SELECT 1"}, "only a table has"),
    ],
)
def test_what_cannot_be_meant(node: RunningNode, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandFailed, match=message):
        out(node, tmp_path / "x.csv", **changes)
    with pytest.raises(CommandFailed, match=r"end its name with \.parquet"):
        out(node, tmp_path / "x.txt")


def test_files_that_cannot_be_imported(node: RunningNode, tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 but no Parquet")
    with pytest.raises(CommandFailed, match=r"bad\.parquet"):
        back(node, bad)
    lacks = tmp_path / "lacks.csv"
    lacks.write_text("a,b\n1,2\n")
    with pytest.raises(CommandFailed, match="no column 'time'; it has a, b"):
        back(node, lacks, table="other")
    with pytest.raises(CommandFailed, match="runnel write"):
        back(node, tmp_path / "x.lp")
    with pytest.raises(FileNotFoundError):
        back(node, tmp_path / "x.csv")
