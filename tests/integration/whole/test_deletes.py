"""DELETE and UPDATE in SQL, in one process and in a cluster: durable, seen by the next read, and in the end gone."""

from __future__ import annotations

import json
import random
import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.harness.cluster import Cluster
from tests.integration.nodes.processes import run
from tests.integration.whole.probing import ask, checkpoint, clean_node, compact, goes_on, sql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.exchange import Reply
    from tests.harness.node import RunningNode

PATH = "/api/v3/query_sql"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    settings = {"LOG__SHARDS": "2", "COMPACTION__CPU_SHARE": "none"}
    with clean_node(tmp_path_factory.mktemp("deletes"), **settings) as node:
        goes_on(node)
        yield node


def changed(node: RunningNode, statement: str, **more: Any) -> int:
    """How many rows a statement says it has changed."""
    status, answer = sql(node, statement, **more)
    assert status == 200, answer
    ((_, count),) = json.loads(answer)[0].items()
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("in_files", [0, 1, 2])
def test_l26_a_value_that_was_written_over_does_not_come_back(node: RunningNode, in_files: int) -> None:
    name = f"l26_{in_files}"
    node.write(f"{name},host=a v=10,w=1i 1\n{name},host=b v=20 1")
    if in_files:
        checkpoint(node)
    node.write(f"{name},host=a v=95 1")
    if in_files > 1:
        checkpoint(node)
    assert changed(node, f"DELETE FROM {name} WHERE v > 90") == 1
    rest = [{"host": "b", "time": "1970-01-01T00:00:01", "v": 20.0}]
    assert node.query(f"SELECT * FROM {name}") == rest
    checkpoint(node)
    assert node.query(f"SELECT * FROM {name}") == rest
    assert changed(node, f"DELETE FROM {name} WHERE v > 90") == 0
    node.write(f"{name},host=a w=2i 1")  # a new row: nothing of the old one
    row = {"host": "a", "time": "1970-01-01T00:00:01", "w": 2}
    assert node.query(f"SELECT * FROM {name} ORDER BY host") == [row, *rest]
    node.kill()
    node.start()
    assert node.query(f"SELECT * FROM {name} ORDER BY host") == [row, *rest]


def test_deleted_rows_are_gone_from_the_disk_after_a_merge(node: RunningNode) -> None:
    node.write("\n".join(f'gone,host=h{n % 5} s="secret{n}" {n}' for n in range(500)))
    checkpoint(node)
    assert changed(node, "DELETE FROM gone WHERE host IN ('h0', 'h1') OR s = 'secret499'") == 201
    checkpoint(node)
    before = node.query("SELECT * FROM gone ORDER BY time")
    assert len(before) == 299
    assert pending(node) > 0
    assert "that a merge has still to carry out on the disk" in run("nodes", "status", "--host", node.url)[1]
    assert compact(node) > 0
    assert node.query("SELECT * FROM gone ORDER BY time") == before
    assert pending(node) == 0
    paths = node.query("SELECT path FROM system.parquet_files WHERE table_name = 'gone'")
    stored = pa.concat_tables([pq.read_table(node.data / "store" / row["path"]) for row in paths])
    assert stored.num_rows == 299
    assert "_runnel_op" not in stored.column_names
    assert not [s for s in stored.column("s").to_pylist() if s == "secret499"]
    assert changed(node, "DELETE FROM gone") == 299
    checkpoint(node)
    compact(node)
    assert node.query("SELECT path FROM system.parquet_files WHERE table_name = 'gone'") == []
    assert node.query("SELECT count(*) AS n FROM gone") == [{"n": 0}]


def pending(node: RunningNode) -> int:
    """Files whose deletes wait for a merge."""
    count: int = ask(node, "GET", "/api/runnel/status").json["compaction"]["files_with_deletes"]
    return count


def test_updates_see_one_snapshot_and_set_null(node: RunningNode) -> None:
    node.write("\n".join(f"up,host=h{n} a={n}i,b={n} {n}" for n in range(100)))
    checkpoint(node)
    assert changed(node, "UPDATE up SET a = a + 1000, b = NULL WHERE a >= 50") == 50
    assert node.query("SELECT count(*) AS n, sum(a) AS a, count(b) AS b FROM up") == [
        {"n": 100, "a": sum(range(100)) + 50_000, "b": 50}
    ]
    node.write("up,host=h99 b=7 99")
    assert node.query("SELECT a, b FROM up WHERE host = 'h99'") == [{"a": 1099, "b": 7.0}]
    assert changed(node, "UPDATE up SET a = $v WHERE host = $h", params={"v": 5, "h": "h99"}) == 1
    checkpoint(node)
    compact(node)
    assert node.query("SELECT a, b FROM up WHERE host = 'h99'") == [{"a": 5, "b": 7.0}]


@pytest.mark.parametrize(
    ("statement", "status", "text"),
    [
        ("UPDATE t SET host = 'y'", 405, "a part of the rows' key"),
        ("UPDATE t SET time = now()", 405, "a part of the rows' key"),
        ("UPDATE t SET v = 'text'", 400, "Cannot cast string 'text'"),
        ("UPDATE t SET nope = 1", 400, "nope"),
        ("UPDATE t SET v = u.v FROM u", 405, "FROM is not supported"),
        ("DELETE FROM t WHERE nope = 1", 400, "nope"),
        ("DELETE FROM nowhere", 400, "'nowhere' not found"),
        ("DELETE FROM system.queries", 405, "not a table that can be written"),
        ("DELETE FROM t RETURNING v", 400, "returning"),
        ("TRUNCATE TABLE t", 405, "INSERT INTO, UPDATE and DELETE"),
        ("EXPLAIN DELETE FROM t", 400, "Delete"),
    ],
)
def test_what_cannot_be_changed(node: RunningNode, statement: str, status: int, text: str) -> None:
    node.write("t,host=x v=0i 1")
    got, answer = sql(node, statement)
    assert (got, text in answer) == (status, True), answer
    assert node.query("SELECT v FROM t") == [{"v": 0}]


def test_a_model_of_random_changes(node: RunningNode) -> None:
    """Writes, deletes, updates, checkpoints and merges in any order, against a dictionary."""
    chooser = random.Random(11)
    rows: dict[tuple[str, int], dict[str, int]] = {}
    for _ in range(120):
        step = chooser.choice(["write", "write", "write", "delete", "range", "update", "checkpoint", "compact"])
        low = chooser.randrange(20)
        if step == "write":
            host, at, name = chooser.choice("abc"), chooser.randrange(20), chooser.choice("xy")
            node.write(f"model,host={host} {name}={low}i {at}")
            rows.setdefault((host, at), {})[name] = low
        elif step == "delete" and rows:
            wanted = {key for key, row in rows.items() if row.get("x", -1) >= low}
            assert changed(node, f"DELETE FROM model WHERE x >= {low}") == len(wanted)
            rows = {key: row for key, row in rows.items() if key not in wanted}
        elif step == "range" and rows:
            wanted = {key for key in rows if low <= key[1] <= low + 3 and key[0] in ("a", "c")}
            where = f"time >= to_timestamp_seconds({low}) AND time <= to_timestamp_seconds({low + 3})"
            assert changed(node, f"DELETE FROM model WHERE {where} AND host IN ('a', 'c')") == len(wanted)
            rows = {key: row for key, row in rows.items() if key not in wanted}
        elif step == "update" and rows and any("y" in row for row in rows.values()):
            found = {key for key in rows if key[1] < low}
            update = f"UPDATE model SET x = y, y = NULL WHERE time < to_timestamp_seconds({low})"
            status, answer = sql(node, update)
            assert status == 200, answer
            for key in found:
                value = rows[key].get("y")
                rows[key] = {} if value is None else {"x": value}
        elif step == "checkpoint":
            checkpoint(node)
        elif step == "compact":
            compact(node)
        if rows:
            got = {
                (r["host"], int(r["t"])): {k: r[k] for k in "xy" if k in r}
                for r in node.query("SELECT *, date_part('epoch', time) AS t FROM model")
            }
            assert got == rows, step


@pytest.mark.parametrize("condition", ["host = 'h1'", "time < '1970-01-01T00:00:30Z'", "host = 'h2' OR host = 'h3'"])
def test_l26_a_range_is_gone_at_once_and_from_the_disk_after_a_merge(node: RunningNode, condition: str) -> None:
    name = f"range{abs(hash(condition))}"
    lines = [f'{name},host=h{n % 5} s="text{n}" {n}' for n in range(100)]
    node.write("\n".join(lines[:50]))
    checkpoint(node)
    node.write("\n".join(lines[50:]))
    (before,) = node.query(f"SELECT count(*) AS n FROM {name} WHERE {condition}")
    rest = node.query(f"SELECT * FROM {name} WHERE NOT ({condition}) ORDER BY time")
    assert changed(node, f"DELETE FROM {name} WHERE {condition}") == before["n"] > 0
    node.write(f'{name},host=h1 s="new" 7')  # written after it
    (new,) = node.query(f"SELECT * FROM {name} WHERE s = 'new'")
    for step in ("", "checkpoint", "restart", "compact"):
        if step == "checkpoint":
            checkpoint(node)
            assert pending(node) > 0
        elif step == "restart":
            node.kill()
            node.start()
        elif step == "compact":
            assert compact(node) > 0
            assert pending(node) == 0
        assert node.query(f"SELECT * FROM {name} WHERE s <> 'new' ORDER BY time") == rest, step
        assert node.query(f"SELECT * FROM {name} WHERE s = 'new'") == [new], step
    paths = node.query(f"SELECT path FROM system.parquet_files WHERE table_name = '{name}'")
    stored = sum(pq.read_metadata(node.data / "store" / row["path"]).num_rows for row in paths)
    assert stored == len(rest) + 1


V2 = "/api/v2/delete"


def test_through_the_api_of_influxdb_2(node: RunningNode) -> None:
    def delete(body: Any, query: str = "org=o&bucket=v2") -> tuple[int, str]:
        status, answer = node.request("POST", f"{V2}?{query}", json.dumps(body).encode(), JSON)
        return status, answer.decode()

    def count(table: str) -> int:
        ((_, n),) = node.query(f"SELECT count(*) AS n FROM {table}", "v2")[0].items()
        assert isinstance(n, int)
        return n

    lines = "\n".join(f"{m},host=h{n % 2} v={n}i {n}" for n in range(20) for m in ("cpu", "mem"))
    node.write(lines, "v2", precision="s")
    times = {"start": "1970-01-01T00:00:00Z", "stop": "1970-01-01T00:00:09Z"}
    both = '_measurement="cpu" AND host="h1"'
    assert delete(times | {"predicate": both}) == (204, "")
    assert (count("cpu"), count("mem")) == (15, 20)
    assert node.query("SELECT count(*) AS n FROM cpu WHERE host = 'h1'", "v2") == [{"n": 5}]
    assert delete(times | {"predicate": "host='h0' and \"_measurement\"='mem'"}) == (204, "")
    assert (count("cpu"), count("mem")) == (15, 15)
    assert delete({"start": "1970-01-01T01:00:19.000000000+01:00", "stop": "1970-01-01T00:00:19Z"}) == (204, "")
    assert (count("cpu"), count("mem")) == (14, 14)
    assert delete(times | {"predicate": 'rack="x"'}) == (204, "")
    assert delete(times | {"predicate": '_measurement="nowhere"'}) == (204, "")
    assert (count("cpu"), count("mem")) == (14, 14)
    node.kill()
    node.start()
    assert (count("cpu"), count("mem")) == (14, 14)
    for body, query, status, text in (
        (times, "bucket=nowhere", 404, "nowhere"),
        (times, "org=o", 400, "bucket"),
        ({"stop": "1970-01-01T00:00:09Z"}, "bucket=v2", 400, "start"),
        (times | {"start": "yesterday"}, "bucket=v2", 400, "start is not a time"),
        (times | {"start": "1971-01-01T00:00:00Z"}, "bucket=v2", 400, "start is after stop"),
        (times | {"predicate": 'host!="a"'}, "bucket=v2", 400, "cannot be understood"),
        (times | {"predicate": 'host="a" OR host="b"'}, "bucket=v2", 400, "join conditions by AND"),
        (times | {"predicate": 'v="1"'}, "bucket=v2", 400, "no tag"),
        (times | {"predicate": '_field="v"'}, "bucket=v2", 400, "no tag"),
        (times | {"predicate": 'host="C:\\temp"'}, "bucket=v2", 400, "no escape"),
    ):
        got, answer = delete(body, query)
        assert (got, text in answer) == (status, True), (body, query, got, answer)
        assert json.loads(answer)["code"]
    assert (count("cpu"), count("mem")) == (14, 14)


def test_counters_that_two_change_at_once_lose_nothing(node: RunningNode) -> None:
    """L26: an UPDATE whose row was written since its snapshot reads it again, or says that it did not happen."""
    node.write("counter,host=a v=0i 1\ncounter,host=b v=0i 1\ncounter,host=c v=0i 1")
    done: list[int] = []
    refused: list[str] = []

    def work() -> None:
        for _ in range(15):
            status, answer = sql(node, "UPDATE counter SET v = v + 1 WHERE host = 'a'")
            if status == 200:
                done.append(1)
            else:
                assert status == 503, answer
                assert "written again" in answer
                refused.append(answer)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert len(done) + len(refused) == 60
    assert node.query("SELECT v FROM counter WHERE host = 'a'") == [{"v": len(done)}]
    assert len(done) > 15, "most of them come through"


def test_in_a_cluster(tmp_path: Path) -> None:
    with Cluster(tmp_path, ingest=2, gateways=2, queries=2) as cluster:
        lines = "\n".join(f"t,host=h{n % 50} v={n}i {n}" for n in range(5000))
        cluster.write("g1", lines).ok()

        def change(gateway: str, statement: str, **more: Any) -> Reply:
            body = json.dumps({"db": "db", "q": statement} | more).encode()
            return cluster.nodes[gateway].ask("POST", PATH, body, JSON)

        assert change("g1", "DELETE FROM t WHERE v % 2 = 0").ok().json == [{"count": 2500}]
        assert cluster.query("g2", "SELECT count(*) AS n, min(v) AS v FROM t") == [{"n": 2500, "v": 1}]
        assert change("g2", "UPDATE t SET v = v * 10 WHERE v < 100", format="csv").ok().text == "count\n50\n"
        assert cluster.query("g1", "SELECT sum(v) AS s FROM t WHERE v < 1000 AND v % 10 = 0") == [{"s": 25_000}]
        assert change("g2", "DELETE FROM t WHERE host IN ('h1', 'h3')").ok().json == [{"count": 200}]
        for gateway in ("g1", "g2"):
            assert cluster.query(gateway, "SELECT count(*) AS n FROM t") == [{"n": 2300}]
        refused = change("g1", "UPDATE t SET host = 'x'")
        assert (refused.status, "part of the rows' key" in refused.text) == (405, True)
        assert set(cluster.stop().values()) == {0}
        cluster.start()
        cluster.wait_settled()
        assert cluster.query("g1", "SELECT count(*) AS n FROM t") == [{"n": 2300}]
        assert change("g1", "DELETE FROM t WHERE time >= '1970-01-01T00:00:00.000001Z'").ok().json[0]["count"] > 0
        assert cluster.query("g2", "SELECT max(time) < '1970-01-01T00:00:00.000001Z' AS b FROM t") == [{"b": True}]
        assert set(cluster.stop().values()) == {0}
        assert cluster.alarms() == []
