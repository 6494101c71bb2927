"""What runs is seen and killed through every door, in one process and in a cluster; slow queries are logged."""

from __future__ import annotations

import functools
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
import pytest

from examples.runnel_client import RunnelClient, RunnelError
from nodes.cli.queries import kill, queries
from nodes.exitcodes import ExitCode, ServerRefused
from nodes.status import KILL_PATH, QUERIES_PATH
from protos import runnel_pb2 as pb
from protos.runnel_pb2_grpc import RunnelStub
from tests.harness.cluster import Cluster
from tests.harness.exchange import Reply, ask, query_path
from tests.harness.logscan import UNDER_FAULTS, summary
from tests.harness.node import RunningNode
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(240)

ENDLESS: Final = "SELECT sum(value) AS s FROM generate_series(1, 1000000000000) WHERE value % 7 = 3"
ROWS: Final = "SELECT value FROM generate_series(1, 1000000000000)"
SHOWN: Final = "SELECT * FROM system.queries WHERE query_text LIKE 'SELECT sum(value)%'"
SECONDS: Final = 60.0
ASKED_MAX: Final = 10


class Asked:
    """A statement that somebody waits for, in a thread of its own."""

    def __init__(self, host: str, port: int, statement: str = ENDLESS, **headers: str) -> None:
        self.reply: Reply | None = None
        self._thread = threading.Thread(target=self._run, args=(host, port, statement, headers), daemon=True)
        self._thread.start()

    def _run(self, host: str, port: int, statement: str, headers: dict[str, str]) -> None:
        self.reply = ask(host, port, "GET", query_path(statement, "db"), seconds=SECONDS, headers=headers)

    def answer(self) -> Reply:
        """What it got."""
        self._thread.join(SECONDS)
        assert self.reply is not None, "it still waits"
        return self.reply

    @classmethod
    def at(cls, node: RunningNode, statement: str = ENDLESS, **headers: str) -> Self:
        return cls("127.0.0.1", node.port, statement, **headers)


def running(node: RunningNode) -> dict[str, Any]:
    """The one endless query, as SQL shows it, when it runs."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = [row for row in node.query(SHOWN) if row["phase"] == "running"]
        return bool(found)

    eventually(is_there, "the query runs")
    (row,) = found
    return row


def is_killed(reply: Reply, id: str) -> bool:
    return (reply.status, id in reply.text, "KILL QUERY" in reply.text) == (409, True, True)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("node")
    environment = {"RUNNEL_QUERY__SLOW_LOG_SECONDS": "0.2"}
    with RunningNode(folder / "data", "--grpc", "127.0.0.1:0", environment=environment) as started:
        started.write("m v=1 1")
        yield started
        assert started.stop() == 0
        assert started.alarms() == []


def grpc_address(node: RunningNode) -> str:
    return str(next(line["grpc"] for line in node.lines() if line.get("event") == "ready"))


def test_a_running_query_is_shown_whole(node: RunningNode) -> None:
    before = datetime.now(UTC)
    asked = Asked.at(node, **{"X-Request-Id": "mine"})
    row = running(node)
    issued = datetime.fromisoformat(row["issue_time"]).replace(tzinfo=UTC)
    assert abs((issued - before).total_seconds()) < SECONDS
    assert (row["database"], row["query_text"], row["door"], row["request_id"]) == ("db", ENDLESS, "http", "mine")
    assert row["client"].startswith("127.0.0.1:")
    assert row["node"]
    assert (row["rows"], row["bytes"], row["sending_seconds"]) == (0, 0, 0)
    assert row["total_seconds"] >= row["running_seconds"] > 0
    again = running(node)
    assert again["id"] == row["id"]
    assert again["running_seconds"] > row["running_seconds"]
    node.query(f"KILL QUERY '{row['id']}'")
    assert is_killed(asked.answer(), row["id"])


def test_a_statement_sees_itself_being_planned(node: RunningNode) -> None:
    (row,) = node.query("SELECT phase, door FROM system.queries WHERE query_text LIKE '%itself%'")
    assert row == {"phase": "planning", "door": "http"}


def test_the_files_that_a_query_may_read_are_counted(node: RunningNode) -> None:
    statement = "SELECT count(*) FROM m, generate_series(1, 1000000000000) AS s WHERE s.value % 7 = 3"
    node.write("m v=2 2")
    assert node.request("POST", "/api/runnel/checkpoint")[0] == 204
    asked = Asked.at(node, statement)
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = node.query("SELECT * FROM system.queries WHERE query_text LIKE '%FROM m,%' AND phase = 'running'")
        return bool(found)

    eventually(is_there, "the query runs")
    node.query(f"KILL QUERY '{found[0]['id']}'")
    assert is_killed(asked.answer(), found[0]["id"])
    files = node.query("SELECT count(*) AS files, sum(size_bytes) AS bytes FROM system.parquet_files")[0]
    assert (found[0]["rung"], found[0]["workers"]) == ("local stream", 0)
    assert (found[0]["parquet_files"], found[0]["parquet_bytes"]) == (files["files"], files["bytes"])


def test_kill_answers_with_what_the_query_was(node: RunningNode) -> None:
    asked = Asked.at(node)
    row = running(node)
    (killed,) = node.query(f"-- that one\nkill query '{row['id']}';")
    assert (killed["id"], killed["query_text"], killed["phase"]) == (row["id"], ENDLESS, "running")
    assert is_killed(asked.answer(), row["id"])
    status, body = node.request("GET", query_path(f"KILL QUERY '{row['id']}'", "db"))
    assert status == 404
    assert row["id"] in body.decode()
    status, body = node.request("GET", query_path("KILL QUERY", "db"))
    assert (status, b"write KILL QUERY 'id'" in body) == (400, True)


def test_over_grpc(node: RunningNode) -> None:
    codes: list[RunnelError] = []

    def ask_grpc() -> None:
        with RunnelClient(grpc_address(node), seconds=SECONDS) as client:
            try:
                client.query("db", ENDLESS)
            except RunnelError as error:
                codes.append(error)

    thread = threading.Thread(target=ask_grpc, daemon=True)
    thread.start()
    row = running(node)
    assert row["door"] == "grpc"
    assert row["client"].startswith("127.0.0.1:")
    with RunnelClient(grpc_address(node), seconds=SECONDS) as client:
        assert client.query("db", f"KILL QUERY '{row['id']}'").to_pylist()[0]["id"] == row["id"]
        thread.join(SECONDS)
        assert [(error.code, error.retry_seconds) for error in codes] == [("query_killed", None)]
        with pytest.raises(RunnelError) as caught:
            client.query("db", f"KILL QUERY '{row['id']}'")
        assert caught.value.code == "no_such_query"


def read_on(host: str, port: int) -> tuple[int, int]:
    """Take all rows of a result without an end; how many bytes came of it until it broke off."""
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    try:
        taken: list[int] = []
        connection.request("GET", query_path(ROWS, "db"))
        response = connection.getresponse()
        with pytest.raises(http.client.IncompleteRead):
            taken.extend(iter(lambda: len(response.read(1 << 20)), 0))
        return response.status, sum(taken)
    finally:
        connection.close()


def kill_when_it_sends(rows: Callable[[str], list[dict[str, Any]]]) -> None:
    """Wait until a part of the result without an end is out, then end it."""
    found: list[dict[str, Any]] = []

    def sends() -> bool:
        found[:] = rows(f"SELECT id FROM system.queries WHERE query_text = '{ROWS}' AND rows > 1000000")
        return bool(found)

    eventually(sends, "rows are sent")
    rows(f"KILL QUERY '{found[0]['id']}'")


def test_one_whose_result_is_on_its_way_breaks_off(node: RunningNode) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_on, "127.0.0.1", node.port)
        kill_when_it_sends(node.query)
        status, taken = reading.result(SECONDS)
    assert status == 200
    assert taken > 1_000_000
    assert [line["event"] for line in node.lines()].count("a result was ended by an operator") == 1


def test_one_whose_result_is_on_its_way_says_so_over_grpc(node: RunningNode) -> None:
    def read() -> grpc.RpcError:
        with grpc.insecure_channel(grpc_address(node)) as channel:
            stub: Any = RunnelStub(channel)
            with pytest.raises(grpc.RpcError) as caught:
                for _ in stub.Query(pb.QueryRequest(database="db", sql=ROWS), timeout=SECONDS):
                    pass
            return caught.value

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        kill_when_it_sends(node.query)
        error: Any = reading.result(SECONDS)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    said = dict(error.trailing_metadata())
    assert (said["runnel-code"], said["runnel-retriable"]) == ("query_killed", "0")


def test_the_command(node: RunningNode, capfd: pytest.CaptureFixture[str]) -> None:
    assert queries(node.url, is_json=False) is ExitCode.OK
    assert capfd.readouterr().out == "no query waits or runs\n"
    asked = Asked.at(node)
    row = running(node)
    assert queries(node.url, is_json=True) is ExitCode.OK
    (shown,) = json.loads(capfd.readouterr().out)
    assert (shown["id"], shown["query_text"], shown["phase"]) == (row["id"], ENDLESS, "running")
    assert queries(node.url, is_json=False) is ExitCode.OK
    table = capfd.readouterr().out
    assert row["id"] in table
    assert kill(row["id"], node.url) is ExitCode.OK
    assert f"query {row['id']} on {row['node']} is killed; it was running after" in capfd.readouterr().out
    assert is_killed(asked.answer(), row["id"])
    with pytest.raises(ServerRefused, match=row["id"]):
        kill(row["id"], node.url)


def test_the_paths_that_the_command_asks(node: RunningNode) -> None:
    assert node.request("GET", QUERIES_PATH) == (200, b"[]")
    assert node.request("POST", KILL_PATH)[0] == 400
    assert node.request("POST", f"{KILL_PATH}?id=nope")[0] == 404


def test_a_slow_query_is_logged_with_what_it_was(node: RunningNode) -> None:
    asked = Asked.at(node)
    row = running(node)
    time.sleep(max(0.0, 0.3 - row["total_seconds"]))  # so that it is slow for certain: the limit is 0.2 s
    node.query(f"KILL QUERY '{row['id']}'")
    assert is_killed(asked.answer(), row["id"])
    lines = [line for line in node.lines() if line.get("event") == "a slow query" and line["id"] == row["id"]]
    assert [(line["level"], line["outcome"], line["query_text"]) for line in lines] == [
        ("info", "query_killed", ENDLESS)
    ]
    assert lines[0]["total_seconds"] >= 0.2
    assert (lines[0]["door"], lines[0]["database"], lines[0]["phase"]) == ("http", "db", "running")


def test_one_that_waits_is_killed_and_one_too_many_is_refused(tmp_path: Path) -> None:
    environment = {
        "RUNNEL_QUERY__QUERIES_MAX": "1", "RUNNEL_QUERY__WAITING_MAX": "1", "RUNNEL_QUERY__WAIT_SECONDS": "60s",
    }  # fmt: skip
    with RunningNode(tmp_path / "data", environment=environment) as node:
        node.write("m v=1 1")

        def shown() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = json.loads(node.request("GET", QUERIES_PATH)[1])
            return found

        def phases() -> list[str]:
            return sorted(query["phase"] for query in shown())

        first = Asked.at(node)
        eventually(lambda: phases() == ["running"], "the first runs")
        second = Asked.at(node, "SELECT 2 AS x")
        eventually(lambda: phases() == ["running", "waiting"], "the second waits")
        status, body = node.request("GET", query_path("SELECT 3 AS x", "db"))
        assert (status, b"1 queries run and 1 wait" in body) == (503, True)
        metrics = node.request("GET", "/metrics")[1].decode().splitlines()
        assert {"runnel_queries_running 1.0", "runnel_queries_waiting 1.0"} <= set(metrics)
        ids = {query["phase"]: query["id"] for query in shown()}
        assert node.request("POST", f"{KILL_PATH}?id={ids['waiting']}")[0] == 200
        assert is_killed(second.answer(), ids["waiting"])
        assert node.request("POST", f"{KILL_PATH}?id={ids['running']}")[0] == 200
        assert is_killed(first.answer(), ids["running"])
        assert node.query("SELECT 4 AS x") == [{"x": 4}]
        assert node.alarms() == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    patient = {"RUNNEL_GOSSIP__SUSPICION_MULT": "1000"}  # a paused node is not declared dead while a test looks at it
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster(folder, ingest=1, gateways=1, queries=2, environment=patient) as made:
        made.write("g1", "m v=1 1").ok()
        yield made
        for each in made.nodes.values():
            each.resume()
        made.wait_settled()
        assert set(made.stop().values()) == {0}
        assert summary(made.alarms(UNDER_FAULTS)) == []


def cluster_rows(cluster: Cluster, count: int) -> list[dict[str, Any]]:
    """That many endless queries as SQL shows them, when so many run."""
    found: list[dict[str, Any]] = []

    def are_there() -> bool:
        found[:] = [row for row in cluster.query("g1", SHOWN) if row["phase"] == "running"]
        return len(found) == count

    eventually(are_there, f"{count} queries run")
    return found


def shows_and_counts(cluster: Cluster, rows: list[dict[str, Any]]) -> None:
    """Nodes of every kind show these queries, and query nodes count theirs."""

    def are_shown(name: str) -> bool:
        seen = cluster.node(name).ask("GET", QUERIES_PATH).ok().json
        return {query["id"] for query in seen} == {row["id"] for row in rows}

    def are_counted(name: str) -> bool:
        line = f"runnel_queries_running {sum(row['node'] == name for row in rows)}.0"
        return line in cluster.node(name).ask("GET", "/metrics").text.splitlines()

    for name in ("g1", "i1", "q1"):
        eventually(functools.partial(are_shown, name), f"{name} shows {rows}")
    for name in ("q1", "q2"):
        eventually(functools.partial(are_counted, name), f"{name} counts {rows}")


def test_in_a_cluster_all_are_seen_and_killed_through_any_node(cluster: Cluster) -> None:
    gateway = cluster.node("g1")
    asked: list[Asked] = []
    rows: list[dict[str, Any]] = []
    while {row["node"] for row in rows} != {"q1", "q2"}:  # each goes to the less loaded, as far as gossip knows
        assert len(asked) < ASKED_MAX, rows
        asked.append(Asked(*gateway.address))
        rows = cluster_rows(cluster, len(asked))
    assert {row["door"] for row in rows} == {"http"}
    assert all(row["client"].startswith("127.0.0.1:") for row in rows)
    shows_and_counts(cluster, rows)
    by_sql, *by_path = rows
    (killed,) = cluster.query("g1", f"KILL QUERY '{by_sql['id']}'")
    assert (killed["id"], killed["node"]) == (by_sql["id"], by_sql["node"])
    for row in by_path:
        cluster.node("i1").ask("POST", f"{KILL_PATH}?id={row['id']}").ok()
    replies = [one.answer() for one in asked]
    assert [sum(is_killed(reply, row["id"]) for reply in replies) for row in rows] == [1] * len(rows)
    gone = gateway.ask("GET", query_path(f"KILL QUERY '{by_sql['id']}'", "db"))
    assert (gone.status, by_sql["id"] in gone.text) == (404, True)


def test_in_a_cluster_one_whose_result_is_on_its_way_breaks_off(cluster: Cluster) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_on, *cluster.node("g1").address)
        kill_when_it_sends(lambda statement: cluster.query("g1", statement))
        status, taken = reading.result(SECONDS)
    assert status == 200
    assert taken > 1_000_000


def test_a_query_node_that_says_nothing_is_shown_as_unknown(cluster: Cluster) -> None:
    cluster.node("q2").pause()
    try:
        shown = cluster.node("q1").ask("GET", QUERIES_PATH).ok().json
        assert [(query["node"], query["phase"], query["id"]) for query in shown] == [("q2", "unknown", None)]
        reply = cluster.node("q1").ask("POST", f"{KILL_PATH}?id=abc")
        assert (reply.status, "q2 did not answer" in reply.text) == (503, True)
        assert queries("http://{}:{}".format(*cluster.node("q1").address), is_json=True) is ExitCode.FAILURE
    finally:
        cluster.node("q2").resume()
