"""INSERT in SQL, in one process and in a cluster: as durable and as soon to be seen as any write."""

from __future__ import annotations

import json
import urllib.parse
from typing import TYPE_CHECKING, Any

import grpc
import pyarrow as pa
import pytest

from protos import runnel_pb2 as pb
from protos.runnel_pb2_grpc import RunnelStub
from tests.harness.cluster import Cluster
from tests.integration.whole.probing import clean_node, goes_on, sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.exchange import Reply
    from tests.harness.node import RunningNode

PATH = "/api/v3/query_sql"
JSON = {"Content-Type": "application/json"}
BIG = 200_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with clean_node(tmp_path_factory.mktemp("insert"), GRPC__LISTEN="127.0.0.1:0") as node:
        goes_on(node)
        yield node


def test_values_are_rows_at_once_and_later_ones_patch_them(node: RunningNode) -> None:
    node.write("room,name=a celsius=20,open=true 1")
    insert = "INSERT INTO room (time, name, celsius) VALUES ('2026-01-01T00:00:00Z', 'b', 21), (NULL, '', 22.5)"
    assert sql(node, insert) == (200, '[{"count":2}]')
    assert sql(node, "INSERT INTO room (time, name, open) VALUES ('2026-01-01', 'b', false)") == (200, '[{"count":1}]')
    rows = node.query("SELECT name, celsius, open FROM room ORDER BY celsius")
    assert rows == [
        {"name": "a", "celsius": 20.0, "open": True},
        {"name": "b", "celsius": 21.0, "open": False},
        {"celsius": 22.5},
    ]
    (row,) = node.query("SELECT count(*) AS n FROM room WHERE name IS NULL AND time > now() - INTERVAL '1 hour'")
    assert row == {"n": 1}, "no time: the time of the statement"


def test_the_least_and_greatest_values_and_a_name_in_another_case(node: RunningNode) -> None:
    node.write('most,host=x i=0i,u=0u,f=0,s="" 1', precision="ns")
    times = [f"arrow_cast({time}, 'Timestamp(ns)')" for time in (-(2**63), 2**63 - 1)]
    values = (f"{-(2**63)}, {2**64 - 1}, -1.7976931348623157e308", f"{2**63 - 1}, 0, 5e-324")
    rows = ", ".join(f"({time}, '\n', {value}, 'a\nb')" for time, value in zip(times, values, strict=True))
    assert sql(node, f"INSERT INTO MOST (time, host, i, u, f, s) VALUES {rows}") == (200, '[{"count":2}]')
    assert node.query("SELECT i, u, f, s, CAST(time AS BIGINT) AS t FROM most WHERE host = '\n' ORDER BY i") == [
        {"i": -(2**63), "u": 2**64 - 1, "f": -1.7976931348623157e308, "s": "a\nb", "t": -(2**63)},
        {"i": 2**63 - 1, "u": 0, "f": 5e-324, "s": "a\nb", "t": 2**63 - 1},
    ]


def test_of_tables_that_are_spelt_alike_the_one_that_is_meant_is_written(node: RunningNode) -> None:
    node.write('t1 v=0i 1\niox.t1 v=0i 1\nsystem.queries v=0i,id="a" 1', precision="ns")
    for number, name in enumerate(('"iox.t1"', "iox.t1", "t1", '"system.queries"'), 1):
        assert sql(node, f"INSERT INTO {name} (time, v) VALUES ({number}, {number})") == (200, '[{"count":1}]'), name
    status, answer = sql(node, "INSERT INTO system.queries (id) VALUES ('b')")
    assert (status, "not a table that can be written" in answer) == (405, True)
    found = [node.query(f"SELECT v FROM {name} ORDER BY time") for name in ("t1", '"iox.t1"', '"system.queries"')]
    assert found == [[{"v": 0}, {"v": 2}, {"v": 3}], [{"v": 1}], [{"v": 0}, {"v": 4}]]


def test_the_rows_of_a_query(node: RunningNode) -> None:
    node.write("\n".join(f"source,host=h{n % 7} v={n}i {n}" for n in range(1000)), precision="ns")
    node.write("copy,host=x v=0i 1", precision="ns")
    statement = "INSERT INTO copy SELECT * FROM source WHERE v >= $least"
    assert sql(node, statement, params={"least": 400}, format="csv") == (200, "count\n600\n")
    difference = "SELECT host, v, time FROM source WHERE v >= 400 EXCEPT SELECT host, v, time FROM copy"
    assert node.query(difference) == []
    assert node.query("SELECT count(*) AS n FROM copy") == [{"n": 601}]


def test_more_rows_than_one_write_takes(node: RunningNode) -> None:
    node.write("big,host=x v=0i 1", precision="ns")
    statement = (
        "INSERT INTO big (time, host, v) SELECT arrow_cast(value, 'Timestamp(Nanosecond, None)'), 'h', value"
        f" FROM generate_series(1, {BIG})"
    )
    assert sql(node, statement) == (200, f'[{{"count":{BIG}}}]')
    (row,) = node.query("SELECT count(*) AS n, sum(v) AS s FROM big WHERE host = 'h'")
    assert row == {"n": BIG, "s": BIG * (BIG + 1) // 2}


@pytest.mark.parametrize(
    ("statement", "status", "text"),
    [
        ("INSERT INTO nowhere (v) VALUES (1)", 400, "'nowhere' not found"),
        ("INSERT INTO t (nope) VALUES (1)", 400, "nope"),
        ("INSERT INTO t (host) VALUES ('a')", 400, "one field at least"),
        ("INSERT INTO t (v) VALUES ('text')", 400, "Cannot cast string 'text'"),
        ("INSERT INTO system.queries (id) VALUES ('a')", 405, "not a table that can be written"),
        ("INSERT OVERWRITE t (v) VALUES (1)", 405, "INSERT INTO, UPDATE and DELETE"),
        ("INSERT INTO t (v) VALUES (1); INSERT INTO t (v) VALUES (2)", 405, ""),
        ("EXPLAIN INSERT INTO t (v) VALUES (1)", 400, "Insert Into"),
    ],
)
def test_what_cannot_be_inserted(node: RunningNode, statement: str, status: int, text: str) -> None:
    node.write("t,host=x v=0i 1")
    got, answer = sql(node, statement)
    assert (got, text in answer) == (status, True), answer
    assert node.query("SELECT v FROM t") == [{"v": 0}]


def test_a_get_changes_nothing(node: RunningNode) -> None:
    node.write("safe v=0i 1")
    for word in ("INSERT", "/* a word */ insert"):
        asked = urllib.parse.urlencode({"db": "db", "q": f"{word} INTO safe (v) VALUES (1)"})
        status, answer = node.request("GET", f"{PATH}?{asked}")
        assert (status, b"send it by POST" in answer) == (400, True)
    assert node.query("SELECT v FROM safe") == [{"v": 0}]


def test_through_grpc(node: RunningNode) -> None:
    node.write("rpc,host=x v=0i 1")
    with grpc.insecure_channel(node.grpc_address) as channel:
        request = pb.QueryRequest(database="db", sql="INSERT INTO rpc (host, v) VALUES ('y', 5), ('z', 6)")
        pieces = [reply.ipc for reply in RunnelStub(channel).Query(request, timeout=30)]
    with pa.ipc.open_stream(b"".join(pieces)) as reader:
        assert reader.read_all().to_pylist() == [{"count": 2}]
    assert node.query("SELECT host, v FROM rpc WHERE v > 0 ORDER BY v") == [
        {"host": "y", "v": 5},
        {"host": "z", "v": 6},
    ]


def test_in_a_cluster(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Cluster(tmp_path_factory.mktemp("cluster"), ingest=2, gateways=2, queries=1) as cluster:
        cluster.write("g1", "t,host=x v=0i 1").ok()

        def ask(gateway: str, statement: str, **more: Any) -> Reply:
            body = json.dumps({"db": "db", "q": statement} | more).encode()
            return cluster.nodes[gateway].ask("POST", PATH, body, JSON)

        insert = "INSERT INTO t (host, v) SELECT 'h' || value, value FROM generate_series(1, 50000)"
        assert ask("g1", insert).ok().json == [{"count": 50_000}]
        assert ask("g2", insert, format="csv").ok().text == "count\n50000\n"
        (row,) = cluster.query("g2", "SELECT count(*) AS n, count(DISTINCT host) AS d FROM t")
        assert row == {"n": 100_001, "d": 50_001}
        for number in range(4):  # L29: whichever gateway has heard of the column, or of the table that was made again
            cluster.write("g1", f"t,host=x c{number}=1i 1\nagain,host=x v={number}i {number}").ok()
            assert ask("g2", f"INSERT INTO t (host, c{number}) VALUES ('c', 1)").ok().json == [{"count": 1}]
            assert ask("g2", "INSERT INTO again (host, v) VALUES ('y', 1)").ok().json == [{"count": 1}]
            dropped = cluster.nodes["g1"].ask("DELETE", "/api/v3/configure/table?db=db&table=again", b"", JSON)
            assert dropped.status == 200
        refused = ask("g1", "INSERT INTO nowhere (v) VALUES (1)")
        assert (refused.status, "'nowhere' not found" in refused.text) == (400, True)
        assert set(cluster.stop().values()) == {0}
        assert cluster.alarms() == []
