"""Materialized views, in one process and in a cluster: right at once, kept by whoever lives, and gone when dropped."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.cluster import Cluster
from tests.harness.logscan import UNDER_FAULTS, summary
from tests.harness.waiting import eventually
from tests.integration.whole.probing import ask, checkpoint, clean_node, compact, goes_on, post_lines, sql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.node import RunningNode

PATH = "/api/v3/query_sql"
JSON = {"Content-Type": "application/json"}
COMPUTED = (
    "SELECT date_bin(INTERVAL '1 minute', time) AS time, host, sum(v) AS total, count(*) AS n FROM {} GROUP BY 1, host"
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    settings = {"LOG__SHARDS": "2", "COMPACTION__CPU_SHARE": "none", "VIEWS__REFRESH_EVERY": "0"}
    with clean_node(tmp_path_factory.mktemp("views"), **settings) as node:
        goes_on(node)
        yield node


def done(node: RunningNode, statement: str) -> int:
    """What a statement counts."""
    status, answer = sql(node, statement)
    assert status == 200, answer
    count: int = json.loads(answer)[0]["count"]
    return count


def both(node: RunningNode, name: str, table: str) -> tuple[Any, Any]:
    """What the view says, and what its SELECT says."""
    order = "ORDER BY time, host"
    return node.query(f"SELECT * FROM {name} {order}"), node.query(
        f"SELECT host, n, time, total FROM ({COMPUTED.format(table)}) AS computed {order}"
    )


def lines(table: str, first: int, count: int) -> str:
    return "\n".join(f"{table},host=h{n % 7} v={n}i {n}" for n in range(first, first + count))


def test_a_view_is_right_whatever_happens_to_its_table(node: RunningNode) -> None:
    node.write(lines("t1", 0, 1000))
    assert done(node, f"CREATE MATERIALIZED VIEW v1 AS {COMPUTED.format('t1')}") == 0

    def agrees() -> None:
        found, wanted = both(node, "v1", "t1")
        assert found == wanted
        assert found

    agrees()
    assert done(node, "REFRESH MATERIALIZED VIEW v1") == 119
    agrees()
    assert done(node, "REFRESH MATERIALIZED VIEW v1") == 0
    node.write(lines("t1", 990, 300))
    node.write("t1,host=late v=5i 61")
    agrees()
    checkpoint(node)
    agrees()
    assert done(node, "DELETE FROM t1 WHERE v % 10 = 3 AND time < '1970-01-01T00:05:00Z'") == 30
    agrees()
    assert done(node, "DELETE FROM t1 WHERE host = 'h1'") > 0
    agrees()
    assert done(node, "REFRESH MATERIALIZED VIEW v1") > 0
    agrees()
    checkpoint(node)
    compact(node)
    agrees()
    assert done(node, "UPDATE t1 SET v = v + 1 WHERE host = 'h2'") > 0
    agrees()
    done(node, "REFRESH MATERIALIZED VIEW v1")
    node.kill()
    node.start()
    agrees()
    assert done(node, "REFRESH MATERIALIZED VIEW v1") == 0


def test_it_is_listed_and_dropped_and_nobody_writes_into_it(node: RunningNode) -> None:
    node.write(lines("t2", 0, 100))
    done(node, f"CREATE MATERIALIZED VIEW v2 AS {COMPUTED.format('t2')}")
    assert done(node, f"CREATE MATERIALIZED VIEW IF NOT EXISTS v2 AS {COMPUTED.format('t2')}") == 0
    assert sql(node, f"CREATE MATERIALIZED VIEW v2 AS {COMPUTED.format('t2')}")[0] == 409
    listed = [row for row in node.query("SHOW MATERIALIZED VIEWS") if row["name"] == "v2"]
    assert listed == [{"name": "v2", "table_name": "t2", "bucket": "1 min", "definition": COMPUTED.format("t2")}]
    done(node, "REFRESH MATERIALIZED VIEW v2")
    for reply in (
        post_lines(node, "v2,host=x total=1i 5\nt2,host=x v=1i 5"),
        post_lines(node, "v2,host=x another=1i 5\nt2,host=x v=1i 6"),
    ):
        assert reply.status == 400
        assert "is a materialized view" in reply.text
    assert node.query("SELECT count(*) AS n FROM t2 WHERE host = 'x'") == [{"n": 2}]
    for statement in (
        "INSERT INTO v2 (time, host, n) VALUES ('2020-01-01', 'a', 1)",
        "DELETE FROM v2",
        "UPDATE v2 SET n = 1",
    ):
        status, answer = sql(node, statement)
        assert (status, "is a materialized view" in answer) == (405, True)
    delete = {"start": "1970-01-01T00:00:00Z", "stop": "2100-01-01T00:00:00Z"}
    assert ask(node, "POST", "/api/v2/delete?bucket=db", json.dumps(delete).encode(), JSON).status == 204
    found, wanted = both(node, "v2", "t2")
    assert found == wanted == []
    refused = ask(node, "DELETE", "/api/v3/configure/table?db=db&table=t2")
    assert (refused.status, "drop it first" in refused.text) == (409, True)
    assert [r for r in node.query("SHOW TABLES") if "_runnel" in str(r)] == []
    assert done(node, "DROP MATERIALIZED VIEW v2") == 1
    assert done(node, "DROP MATERIALIZED VIEW IF EXISTS v2") == 0
    assert sql(node, "DROP MATERIALIZED VIEW v2")[0] == 404
    assert sql(node, "SELECT * FROM v2")[0] == 400
    assert ask(node, "DELETE", "/api/v3/configure/table?db=db&table=t2").status == 200


def test_retention_of_the_table_leaves_the_view_and_its_own_hides_its_rows(node: RunningNode) -> None:
    node.write(lines("t4", 0, 200))
    done(node, f"CREATE MATERIALIZED VIEW v4 AS {COMPUTED.format('t4')}")
    assert done(node, "REFRESH MATERIALIZED VIEW v4") == 28
    before, _ = both(node, "v4", "t4")
    assert sql(node, "ALTER TABLE t4 SET (retention = '30d')")[0] == 200
    assert node.query("SELECT count(*) AS n FROM t4") == [{"n": 0}]
    node.write("t4,host=late v=1i 5")
    done(node, "REFRESH MATERIALIZED VIEW v4")
    assert both(node, "v4", "t4") == (before, [])
    assert sql(node, "ALTER TABLE v4 SET (retention = '30d')")[0] == 200
    assert both(node, "v4", "t4") == ([], [])


def test_many_refresh_at_once_while_rows_come(node: RunningNode) -> None:
    """L26: the state that a refresh rests on has not changed when its rows are written, or none of them is."""
    node.write(lines("t3", 0, 10))
    done(node, f"CREATE MATERIALIZED VIEW v3 AS {COMPUTED.format('t3')}")
    answers: list[tuple[int, str]] = []
    wrong: list[Any] = []
    writing = threading.Event()

    def refresh() -> None:
        while not writing.is_set():
            answers.append(sql(node, "REFRESH MATERIALIZED VIEW v3"))

    def read() -> None:
        while not writing.is_set():
            before = node.query("SELECT count(*) AS n FROM t3")[0]["n"]
            found = node.query("SELECT sum(n) AS n FROM v3")[0]["n"]
            after = node.query("SELECT count(*) AS n FROM t3")[0]["n"]
            if not before <= found <= after:
                wrong.append((before, found, after))

    workers = [threading.Thread(target=work) for work in (refresh, refresh, refresh, read)]
    for worker in workers:
        worker.start()
    for n in range(60):
        node.write(lines("t3", 20 * n, 20))
        if n % 20 == 10:
            checkpoint(node)
    writing.set()
    for worker in workers:
        worker.join(60)
    assert wrong == []
    assert {status for status, _ in answers} <= {200, 503}
    assert any(status == 200 for status, _ in answers)
    found, wanted = both(node, "v3", "t3")
    assert found == wanted
    done(node, "REFRESH MATERIALIZED VIEW v3")
    assert done(node, "REFRESH MATERIALIZED VIEW v3") == 0
    assert both(node, "v3", "t3") == (wanted, wanted)


def test_a_view_is_kept_by_itself(tmp_path: Path) -> None:
    with clean_node(tmp_path, VIEWS__REFRESH_EVERY="0.2s") as node:
        node.write(lines("t", 0, 500))
        done(node, f"CREATE MATERIALIZED VIEW v AS {COMPUTED.format('t')}")

        def is_folded() -> bool:
            return done(node, "REFRESH MATERIALIZED VIEW v") == 0

        eventually(is_folded, "the view is folded")
        plan = str(node.query("EXPLAIN SELECT * FROM v"))
        assert "Aggregate" not in plan, "nothing is left to be computed"
        node.write(lines("t", 500, 10))
        assert both(node, "v", "t")[0] == both(node, "v", "t")[1]


def test_in_a_cluster_another_gateway_goes_on(tmp_path: Path) -> None:
    environment = {"RUNNEL_VIEWS__REFRESH_EVERY": "0.5s", "RUNNEL_LOG__CHECKPOINT_OBJECTS": "40"}
    with Cluster(tmp_path, ingest=3, gateways=2, queries=2, fast=True, environment=environment) as cluster:
        cluster.write("g1", lines("t", 0, 2000)).ok()

        def post(gateway: str, statement: str) -> Any:
            body = json.dumps({"db": "db", "q": statement}).encode()
            return cluster.nodes[gateway].ask("POST", PATH, body, JSON).ok().json

        def agrees(gateway: str) -> None:
            order = "ORDER BY time, host"
            wanted = cluster.query(gateway, f"SELECT host, n, time, total FROM ({COMPUTED.format('t')}) AS c {order}")
            assert cluster.query(gateway, f"SELECT * FROM v {order}") == wanted
            assert wanted

        assert post("g1", f"CREATE MATERIALIZED VIEW v AS {COMPUTED.format('t')}") == [{"count": 0}]
        agrees("g2")
        assert post("g2", "REFRESH MATERIALIZED VIEW v")[0]["count"] >= 0
        agrees("g1")
        cluster.write("g1", lines("t", 1900, 500)).ok()
        agrees("g2")
        cluster.nodes["g1"].kill()
        cluster.nodes[cluster.owner()].kill()
        agrees("g2")
        cluster.write("g2", lines("t", 100, 500)).ok()
        agrees("g2")

        def is_kept() -> bool:
            return "Aggregate" not in str(cluster.query("g2", "EXPLAIN SELECT * FROM v"))

        eventually(is_kept, "the other gateway folds the view")
        agrees("g2")
        assert [row["name"] for row in cluster.query("g2", "SHOW MATERIALIZED VIEWS")] == ["v"]
        cluster.start()
        cluster.wait_settled()
        agrees("g1")
        assert post("g1", "DROP MATERIALIZED VIEW v") == [{"count": 1}]
        assert cluster.query("g2", "SHOW MATERIALIZED VIEWS") == []
        assert set(cluster.stop().values()) == {0}
        assert summary(cluster.alarms(UNDER_FAULTS)) == []
