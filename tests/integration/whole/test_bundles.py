"""A thousand tables of a row each are one object, and nobody who asks sees that (FORMAT F18, promises 1, 2, 5): killed,
changed, dropped, merged, and read as the files lie."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from tests.harness.waiting import eventually
from tests.integration.nodes.processes import run
from tests.integration.whole.probing import ask, checkpoint, clean_node, compact, sql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import RunningNode

TABLES = 1_200
OBJECTS_MAX = 64


class Wanted:
    """A node, and of each table what must be read: by time, ``v`` and ``w``."""

    def __init__(self, node: RunningNode) -> None:
        self.node = node
        self.rows: dict[str, dict[int, tuple[float | None, float | None]]] = {}

    def write(self, time: int, tables: range = range(TABLES), field: str = "v") -> None:
        lines = []
        for number in tables:
            name, value = f"t{number}", float(number * 100 + time)
            lines.append(f"{name},host=h{number % 7} {field}={value} {time}")
            v, w = self.rows.setdefault(name, {}).get(time, (None, None))
            self.rows[name][time] = (value, w) if field == "v" else (v, value)
        self.node.write("\n".join(lines), precision="ns")

    def check(self, share: int = 4) -> None:
        """Tables by SQL: those that a test changes, and of the others one of ``share``."""
        names = [name for at, name in enumerate(self.rows) if at < 40 or at % share == 0]
        for at in range(0, len(names), 60):
            some = names[at : at + 60]
            parts = [f"SELECT '{name}' AS name, time, v, {self._w(name)} AS w FROM {name}" for name in some]
            found: dict[str, dict[int, tuple[Any, Any]]] = {name: {} for name in some}
            for row in self.node.query(" UNION ALL ".join(parts)):
                time = int(row["time"].partition(".")[2].ljust(9, "0") or 0)
                found[row["name"]][time] = row.get("v"), row.get("w")
            assert found == {name: self.rows[name] for name in some}

    def _w(self, name: str) -> str:
        has_w = any(w is not None for _, w in self.rows[name].values())
        return "w" if has_w else "CAST(NULL AS DOUBLE)"


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wanted]:
    settings = {"LOG__SHARDS": "1", "COMPACTION__CPU_SHARE": "none"}
    with clean_node(tmp_path_factory.mktemp("bundles"), **settings) as node:
        yield Wanted(node)


def objects(node: RunningNode) -> set[Path]:
    return set((node.data / "store" / "data").glob("**/*.parquet"))


def named(node: RunningNode) -> set[Path]:
    rows = node.query("SELECT DISTINCT path FROM system.parquet_files")
    return {node.data / "store" / row["path"] for row in rows}


def changed(node: RunningNode, statement: str) -> int:
    status, answer = sql(node, statement)
    assert status == 200, answer
    ((_, count),) = json.loads(answer)[0].items()
    return int(count)


def test_a_thousand_tables_of_a_row_are_one_object_and_survive_a_kill(wanted: Wanted) -> None:
    node = wanted.node
    wanted.write(1)
    checkpoint(node)
    assert len(objects(node)) == 1
    wanted.check()
    wanted.write(2)
    node.kill()
    node.start()
    wanted.check()
    checkpoint(node)
    node.kill()
    node.start()
    assert len(objects(node)) == 2
    wanted.check(share=1)


def test_duckdb_reads_one_of_them_as_the_bundle_lies(wanted: Wanted) -> None:
    node = wanted.node
    (row,) = node.query("SELECT DISTINCT table_id FROM system.parquet_files WHERE table_name = 't77'")
    query = "SELECT epoch_ns(time), v FROM read_parquet(?, union_by_name = true) WHERE _runnel_table = ? ORDER BY ALL"
    found = duckdb.execute(query, [[str(path) for path in named(node)], row["table_id"]]).fetchall()
    assert found == [(1, 7701.0), (2, 7702.0)]
    code, out, _ = run("nodes", "files", "t77", "--db", "db", "--host", node.url)
    assert code == 0
    assert f"2 of them are slices of bundles, with other tables' rows: read _runnel_table = {row['table_id']}" in out


def test_changes_of_rows_that_lie_in_bundles(wanted: Wanted) -> None:
    """UPDATE, DELETE by a field (rows that delete others), DELETE by time (in no row at all), and new fields."""
    node = wanted.node
    for name, place in (("t10", 1), ("t11", 2)):
        assert changed(node, f"UPDATE {name} SET v = 0.5 WHERE v = {wanted.rows[name][place][0]}") == 1
        wanted.rows[name][place] = (0.5, None)
        assert changed(node, f"DELETE FROM {name} WHERE v > 1") == 1
        del wanted.rows[name][3 - place]
    for name in ("t12", "t13"):
        assert changed(node, f"DELETE FROM {name} WHERE time < '1970-01-01T00:00:00.000000002'") == 1
        del wanted.rows[name][1]
    wanted.write(2, range(20, 40), "w")
    wanted.check()
    checkpoint(node)
    wanted.check()
    node.kill()
    node.start()
    wanted.check()


def test_a_dropped_one_is_gone_and_the_others_of_its_object_are_not(wanted: Wanted) -> None:
    node = wanted.node
    assert ask(node, "DELETE", "/api/v3/configure/table?db=db&table=t5").status == 200
    del wanted.rows["t5"]
    wanted.check()
    node.write("t5,host=new v=7 5", precision="ns")
    wanted.rows["t5"] = {5: (7.0, None)}
    wanted.check()
    checkpoint(node)
    wanted.check()


def test_merging_changes_no_answer_and_leaves_few_objects(wanted: Wanted) -> None:
    node = wanted.node
    for time in range(10, 15):
        wanted.write(time, range(0, TABLES, 5))
        checkpoint(node)
    assert len(named(node)) > 6
    assert compact(node) > 0
    wanted.check(share=1)
    assert len(named(node)) <= 4, "a bundle, perhaps rows of a dropped table, perhaps files of one table"
    assert compact(node) == 0, "nothing is left that is worth it"
    status = ask(node, "GET", "/api/runnel/status").json["compaction"]
    assert (status["failed"], status["void"], status["files_with_deletes"]) == (0, 0, 0)
    node.kill()
    node.start()
    wanted.check()


def test_in_the_background_tiny_checkpoints_leave_few_objects(tmp_path: Path) -> None:
    settings = {"LOG__SHARDS": "1", "COMPACTION__CPU_SHARE": "0.9"}
    with clean_node(tmp_path, **settings) as node:
        wanted = Wanted(node)
        for time in range(1, 9):
            wanted.write(time, range(30))
            checkpoint(node)
        eventually(lambda: len(named(node)) <= 4, "bundles are merged", seconds=60)
        wanted.check()
        assert {row["kind"] for row in node.query("SELECT DISTINCT kind FROM system.parquet_files")} == {"bundle"}
