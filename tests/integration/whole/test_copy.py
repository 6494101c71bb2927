"""COPY in SQL: off unless an operator names a folder; then files of that folder alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from tests.harness.node import RunningNode
from tests.integration.whole.probing import end_clean

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SQL = "/api/v3/query_sql"


def post(node: RunningNode, statement: str, status: int = 200) -> Any:
    """The rows, or the error's text if it is to be one."""
    body = json.dumps({"db": "d", "q": statement, "format": "json"}).encode()
    found, answer = node.request("POST", SQL, body, {"content-type": "application/json"})
    assert found == status, answer[:500]
    return json.loads(answer) if status == 200 else answer.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copy")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[RunningNode]:
    settings = {"RUNNEL_LOG__SHARDS": "2", "RUNNEL_QUERY__COPY_DIR": str(folder)}
    with RunningNode(tmp_path_factory.mktemp("node") / "data", environment=settings) as running:
        running.write("".join(f'm,k=k{i % 5} v={i}i,f={i / 4},s="x {i}" {i + 1}\n' for i in range(200)), "d")
        yield running
        end_clean(running)


@pytest.mark.parametrize("end", ["parquet", "csv", "lp"])
def test_rows_go_out_and_come_back(node: RunningNode, folder: Path, end: str) -> None:
    (answer,) = post(node, f"COPY m TO 'm.{end}'")
    assert answer["bytes"] == (folder / f"m.{end}").stat().st_size > 0
    if end == "lp":  # a line says which table it is for
        lines = (folder / "m.lp").read_text().splitlines(keepends=True)
        (folder / "m.lp").write_text("".join(f"back{line.removeprefix('m')}" for line in lines))
    node.write('back,k=z v=0i,f=0,s="" 999', "d")
    assert post(node, f"COPY back FROM 'm.{end}'") == [{"count": 200}]
    assert post(node, "SELECT k, v, f, s, time FROM back WHERE k != 'z' ORDER BY v") == post(
        node, "SELECT k, v, f, s, time FROM m ORDER BY v"
    )


def test_a_text_that_csv_leaves_out_is_not_written(node: RunningNode, folder: Path) -> None:
    """It came back as an empty one, over what was there."""
    node.write('texts,k=a s="kept",v=1i 1\ntexts,k=b s="",v=1i 1', "d", precision="ns")
    (folder / "texts.csv").write_text('k,s,v,time\na,,2,1970-01-01T00:00:00.000000001\nNULL,"",3,1970-01-01T00:00:00\n')
    assert post(node, "COPY texts FROM 'texts.csv'") == [{"count": 2}]
    assert post(node, "SELECT k, s, v FROM texts ORDER BY k") == [
        {"k": "NULL", "s": "", "v": 3}, {"k": "a", "s": "kept", "v": 2}, {"k": "b", "s": "", "v": 1},
    ]  # fmt: skip


def test_a_querys_rows_go_out(node: RunningNode, folder: Path) -> None:
    post(node, "COPY (SELECT k, count(*) AS n FROM m GROUP BY k) TO 'n.parquet'")
    assert sorted(pq.read_table(folder / "n.parquet").to_pydict()["n"]) == [40] * 5
    post(node, "COPY (SELECT 1 AS a) TO 'one.jsonl'")
    assert (folder / "one.jsonl").read_text() == '{"a":1}\n'


@pytest.mark.parametrize(
    ("statement", "status", "message"),
    [
        ("COPY m TO '../m.csv'", 400, "cannot be the name"),
        ("COPY m TO '/tmp/m.csv'", 400, "cannot be the name"),
        ("COPY m TO 'm.txt'", 400, "end its name"),
        ("COPY m FROM 'm.json'", 400, "end its name"),
        ("COPY m FROM 'none.csv'", 400, "No such file"),
        ("COPY nothing TO 'x.csv'", 400, "not found"),
        ("COPY (DELETE FROM m) TO 'x.csv'", 400, "DELETE"),
        ("COPY (SELECT * FROM m) TO 'x.lp'", 400, "only a table has"),
        ("COPY (COPY m TO 'y.csv') TO 'x.csv'", 400, "COPY"),
        ("COPY nothing FROM 'x.csv'", 404, "no table"),
        ("COPY m", 400, "write COPY"),
    ],
)
def test_what_is_refused(node: RunningNode, folder: Path, statement: str, status: int, message: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert message in post(node, statement, status)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("k,w\nz,1\n", "a column 'w'"), ("k,v\nz,much\n", "much"), ("", "Empty CSV"), ("k\nz\n", "value in one field")],
)
def test_files_that_do_not_fit(node: RunningNode, folder: Path, text: str, message: str) -> None:
    (folder / "bad.csv").write_text(text)
    assert message in post(node, "COPY m FROM 'bad.csv'", 400)
    assert post(node, "SELECT count(*) AS n FROM m") == [{"n": 200}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m,k=a v=1i 1\n\nm,k=a v=much 2\n", "line 3"),
        ("m,k=a v=1i 1\nother,k=a v=1i 2\n", "a line of 'other'"),
        ("m,k=a w=1i 1\n", "a column 'w'"),
        ("m,k=a v=1 1\n", "line 1"),
    ],
)
def test_lines_that_do_not_fit(node: RunningNode, folder: Path, text: str, message: str) -> None:
    (folder / "bad.lp").write_text(text)
    assert message in post(node, "COPY m FROM 'bad.lp'", 400)
    assert post(node, "SELECT count(*) AS n FROM m") == [{"n": 200}]


def test_a_get_must_not_copy(node: RunningNode, folder: Path) -> None:
    status, answer = node.request("GET", f"{SQL}?db=d&q=COPY%20m%20TO%20%27get.csv%27")
    assert status == 400
    assert b"POST" in answer
    assert not (folder / "get.csv").exists()


def test_without_a_folder_it_is_off(tmp_path: Path) -> None:
    with RunningNode(tmp_path / "data", environment={"RUNNEL_LOG__SHARDS": "2"}) as plain:
        plain.write("m v=1 1", "d")
        assert "query.copy_dir" in post(plain, "COPY m TO 'm.csv'", 405)
        assert "query.copy_dir" in post(plain, "COPY m FROM '/etc/passwd'", 405)
        end_clean(plain)
