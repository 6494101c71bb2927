"""A whole cluster of real processes: what one gateway acknowledges another shows, and no death of a node loses a row.

One cluster for all tests of this module (DESIGN promises 1 to 3; LOG L12, L15, L32).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import secrets
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import pyarrow.parquet as pq
import pytest

from tests.chaos.clients import pulse_body
from tests.harness.cluster import Cluster
from tests.harness.exchange import Connection, query_path, write_path
from tests.harness.logscan import UNDER_FAULTS, summary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.harness.exchange import Reply

pytestmark = pytest.mark.timeout(240)

FAIL_OVER_SECONDS_MAX: Final = 20.0
KILLED_SECONDS_MAX: Final = 10.0
ENVIRONMENT: Final = {"RUNNEL_LOG__CHECKPOINT_OBJECTS": "200", "RUNNEL_LOG__CHECKPOINT_AGE": "10s"}
DATABASES: Final = "/api/v3/configure/database"
JSON: Final = {"Content-Type": "application/json"}
_numbers: Final = itertools.count()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), fast=True, environment=ENVIRONMENT) as made:
        yield made
        made.start()
        made.wait_settled()
        codes = made.stop()
        assert set(codes.values()) == {0}, codes
        assert summary(made.alarms(UNDER_FAULTS)) == []


@pytest.fixture
def cluster(started: Cluster) -> Iterator[Cluster]:
    """All nodes up and agreed, whatever the test before has done."""
    for node in started.nodes.values():
        node.resume()
    started.start()
    started.wait_settled()
    try:
        yield started
    except BaseException as error:
        error.add_note(started.tails())
        raise


@pytest.fixture
def table() -> str:
    """A new table for each test."""
    return f"t{next(_numbers)}"


class Load:
    """Writes rows of its own, one body after another through the given gateways, and keeps what was answered."""

    def __init__(self, cluster: Cluster, table: str, gateways: Sequence[str]) -> None:
        self.table = table
        self.acknowledged: set[int] = set()
        self.unknown: set[int] = set()
        self.failures: list[str] = []
        self.ends: list[float] = []
        self._links = [Connection(*cluster.nodes[name].address, 30.0) for name in gateways]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a write never ended"
        for link in self._links:
            link.close()

    def _run(self) -> None:
        for start in itertools.count(0, 8):
            if self._stopping.is_set():
                return
            rows = range(start, start + 8)
            body = "".join(f"{self.table},spread=s{n % 16} n={n}i {n + 1}\n" for n in rows).encode()
            reply = self._links[(start // 8) % len(self._links)].ask("POST", write_path("db"), body)
            if reply.status == 204:
                self.acknowledged.update(rows)
                self.ends.append(time.monotonic())
            else:
                self.unknown.update(rows)
                self.failures.append(f"{reply.status} {reply.text[:200]}")
            self._stopping.wait(0.02)

    def goes_on(self, cluster: Cluster, seconds: float) -> float:
        """Wait for an acknowledgement from now on; seconds until then."""
        begun, count = time.monotonic(), len(self.ends)
        cluster.wait(lambda: "" if len(self.ends) > count else str(self.failures[-2:]), "writes go on", seconds)
        return time.monotonic() - begun

    def judge(self, cluster: Cluster, gateway: str) -> None:
        """Every acknowledged row stands once; nothing stands that was not sent."""
        rows = cluster.query(gateway, f"SELECT n FROM {self.table}")
        counted = Counter(row["n"] for row in rows)
        assert not [n for n, count in counted.items() if count > 1]
        assert self.acknowledged <= counted.keys() <= self.acknowledged | self.unknown


def touch_all_shards(cluster: Cluster, gateway: str, seconds: float) -> None:
    """A body with rows for every shard is acknowledged in time."""
    replies: list[Reply] = []

    def missing() -> str:
        replies.append(cluster.write(gateway, pulse_body(len(replies)), seconds=seconds))
        return "" if replies[-1].status == 204 else f"{replies[-1].status} {replies[-1].text[:200]}"

    cluster.wait(missing, "every shard acknowledges", seconds)


def databases(cluster: Cluster, gateway: str) -> set[str]:
    reply = cluster.nodes[gateway].ask("GET", f"{DATABASES}?format=json").ok()
    return {row["iox::database"] for row in reply.json}


def alter(cluster: Cluster, gateway: str, method: str, path: str, **document: Any) -> int:
    body = json.dumps(document).encode() if document else None
    return cluster.nodes[gateway].ask(method, path, body, JSON if document else {}).status


def test_what_one_gateway_acknowledges_the_other_shows(cluster: Cluster, table: str) -> None:
    for n, (to, of) in enumerate([("g1", "g2"), ("g2", "g1")] * 15):
        assert cluster.write(to, f"{table},spread=s{n} n={n}i {n + 1}\n").status == 204
        assert cluster.query(of, f"SELECT n FROM {table} WHERE n = {n}") == [{"n": n}]
    (row,) = cluster.query("g1", f"SELECT count(*) AS c FROM {table}")
    assert row == {"c": 30}
    assert cluster.write("g1", f"{table},spread=s0,later=x m=1i 99\n").status == 204
    assert cluster.query("g2", f"SELECT later, m FROM {table} WHERE m = 1") == [{"later": "x", "m": 1}]


def test_schemas_through_both_gateways(cluster: Cluster) -> None:
    for n, (one, other) in enumerate([("g1", "g2"), ("g2", "g1")]):
        name = f"made{n}"
        assert alter(cluster, one, "POST", DATABASES, db=name) == 200
        assert name in databases(cluster, other)
        assert alter(cluster, other, "POST", DATABASES, db=name) == 409
        assert cluster.write(other, "t,a=b n=1i 1\n", name).status == 204
        assert cluster.query(one, "SELECT n FROM t", name) == [{"n": 1}]
        path = f"/api/v3/configure/table?db={name}&table=t"
        assert alter(cluster, one, "DELETE", path) == 200
        assert cluster.nodes[other].ask("GET", query_path("SELECT n FROM t", name)).status >= 400
        assert cluster.write(other, "t,a=b m=2i 2\n", name).status == 204, "the name is free again"
        assert cluster.query(one, "SELECT * FROM t", name)[0].keys() == {"a", "m", "time"}
        assert alter(cluster, other, "DELETE", f"{DATABASES}?db={name}") == 200
        assert name not in databases(cluster, one)
        assert alter(cluster, one, "DELETE", f"{DATABASES}?db={name}") == 404


def test_retention_through_the_other_gateway(cluster: Cluster) -> None:
    now = time.time_ns()
    assert alter(cluster, "g1", "POST", DATABASES, db="short") == 200
    body = f"t,a=b n=1i {now - 10 * 86_400 * 10**9}\nt,a=b n=2i {now}\n"
    assert cluster.write("g2", body, "short").status == 204
    assert len(cluster.query("g1", "SELECT n FROM t", "short")) == 2
    assert alter(cluster, "g2", "PUT", DATABASES, db="short", retention_period="5d") == 200
    assert cluster.query("g1", "SELECT n FROM t", "short") == [{"n": 2}]


def test_every_node_shows_itself_and_only_gateways_take_writes(cluster: Cluster) -> None:
    for name, node in cluster.nodes.items():
        for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/metrics"):
            assert node.ask("GET", path).status == 200, (name, path)
        assert node.ask("GET", "/api/runnel/status").json["name"] == name
        view = cluster.view(name)
        assert view is not None
        assert set(view.states) == set(cluster.nodes)
        assert len(view.owners) == 8
        if node.kind != "gateway":
            assert node.ask("POST", write_path("db"), b"t n=1i 1\n").status == 404, name
        if node.kind != "ingest":
            reply = node.ask("POST", "/api/runnel/compact")
            assert (reply.status, f"ask each ingest node ({', '.join(cluster.names('ingest'))})" in reply.text) == (
                400,
                True,
            )


def test_results_in_every_format_are_written_by_query_nodes(cluster: Cluster, table: str) -> None:
    """Small and large ones; and so a gateway carries no query engine, and a query node no line-protocol kernel."""
    rows: list[dict[str, Any]] = [{"t": f"s{n % 9}", "n": n} for n in range(30_000)]
    assert cluster.write("g1", "".join(f"{table},t={r['t']} n={r['n']}i {r['n'] + 1}\n" for r in rows)).status == 204

    def result(format: str, limit: int) -> bytes:
        statement = f"SELECT t, n FROM {table} WHERE n < {limit} ORDER BY n"
        path = query_path(statement, "db").replace("format=json", f"format={format}")
        return cluster.nodes["g2"].ask("GET", path, seconds=60).ok().body

    for limit in (3, 30_000):
        wanted = rows[:limit]
        assert json.loads(result("json", limit)) == wanted
        assert [json.loads(line) for line in result("jsonl", limit).splitlines()] == wanted
        lines = result("csv", limit).decode().splitlines()
        assert lines == ["t,n", *(f"{row['t']},{row['n']}" for row in wanted)]
        assert pq.read_table(io.BytesIO(result("parquet", limit))).to_pylist() == wanted
        assert result("pretty", limit).count(b"\n") == limit + 3
    assert result("json", 0) == b"[]"
    assert result("jsonl", 0) == b""
    for name in cluster.names("gateway"):
        assert "datafusion" not in mapped(cluster, name)
    for name in cluster.names("query"):
        assert "datafusion" in mapped(cluster, name)
        assert "llvmlite" not in mapped(cluster, name)


def mapped(cluster: Cluster, name: str) -> str:
    """The files that a node has mapped."""
    return Path(f"/proc/{cluster.nodes[name].pid}/maps").read_text()


def post(cluster: Cluster, gateway: str, statement: str) -> None:
    """A statement that changes something."""
    body = json.dumps({"db": "db", "q": statement, "format": "json"}).encode()
    reply = cluster.nodes[gateway].ask("POST", "/api/v3/query_sql", body, JSON)
    assert reply.status == 200, reply.text


def test_l36_a_tables_own_retention_holds_everywhere_and_survives_its_owners(cluster: Cluster, table: str) -> None:
    """By age, and by bytes, where each partition has its own cut-off: what is hidden once is never shown again.

    Comes after the test of what gateways load: to write down what ALTER answers they load the engine, as for INSERT.
    """
    now = time.time_ns()
    aged = "".join(f"{table}_a,s=s{n} n={n}i {now - n * 3600 * 10**9}\n" for n in range(10))
    assert cluster.write("g1", aged).status == 204
    post(cluster, "g2", f"ALTER TABLE {table}_a SET (retention = '150 min')")
    (row,) = cluster.query("g1", f"SELECT count(*) AS c FROM {table}_a")
    assert row == {"c": 3}

    def write(batch: int) -> None:
        rows = ((n, secrets.token_hex(40)) for n in range(800))
        body = "".join(f'{table},s=s{n} b={batch}i,w="{w}" {1000 * batch + n % 1000}\n' for n, w in rows)
        assert cluster.write("g1", body).status == 204
        for name in cluster.names("ingest", up=True):
            assert cluster.nodes[name].ask("POST", "/api/runnel/checkpoint", seconds=60).status == 204

    def seen(gateway: str) -> set[int]:
        return {row["b"] for row in cluster.query(gateway, f"SELECT DISTINCT b FROM {table}")}

    def kept() -> dict[str, Any]:
        (row,) = cluster.query("g1", f"SELECT * FROM system.retention WHERE table_name = '{table}'")
        return row

    write(0)
    size = kept()["file_bytes"]
    post(cluster, "g1", f"ALTER TABLE {table} SET (retention_bytes = {int(2.6 * size)})")
    for batch in range(1, 6):
        write(batch)
        assert max(seen("g2")) == batch
    assert seen("g1") == seen("g2") == {4, 5}
    before = kept()["hidden_before"]
    victim = cluster.owner()
    cluster.nodes[victim].kill()
    touch_all_shards(cluster, "g1", KILLED_SECONDS_MAX)
    assert (seen("g1"), kept()["hidden_before"]) == ({4, 5}, before), "after a takeover"
    assert cluster.write("g2", f'{table},s=late b=0i,w="late" 1\n').status == 204
    assert seen("g2") == {4, 5}, "a late row is hidden at once, by whoever owns its partition"
    cluster.nodes[victim].start()
    cluster.wait_settled()
    write(6)
    assert seen("g2") == {5, 6}
    (row,) = cluster.query("g2", f"SELECT count(*) AS c FROM {table}_a")
    assert row == {"c": 3}


def test_kill_9_of_an_owner(cluster: Cluster, table: str) -> None:
    touch_all_shards(cluster, "g1", 30)
    with Load(cluster, table, ["g1", "g2"]) as load:
        load.goes_on(cluster, 30)
        victim = cluster.owner()
        cluster.nodes[victim].kill()
        touch_all_shards(cluster, "g1", KILLED_SECONDS_MAX)
        load.goes_on(cluster, KILLED_SECONDS_MAX)
        assert victim not in cluster.owners().values()
        cluster.nodes[victim].start()
        cluster.wait_settled()
        load.goes_on(cluster, KILLED_SECONDS_MAX)
    load.judge(cluster, "g1")
    load.judge(cluster, "g2")


def test_an_owner_stands_still_and_wakes_up(cluster: Cluster, table: str) -> None:
    with Load(cluster, table, ["g1", "g2"]) as load:
        load.goes_on(cluster, 30)
        victim = cluster.owner()
        cluster.nodes[victim].pause()
        touch_all_shards(cluster, "g2", FAIL_OVER_SECONDS_MAX)
        assert victim not in cluster.owners(without=[victim]).values()
        cluster.nodes[victim].resume()
        cluster.wait_settled()
        load.goes_on(cluster, KILLED_SECONDS_MAX)
    load.judge(cluster, "g1")
    load.judge(cluster, "g2")


@pytest.mark.parametrize("kind", ["ingest", "query", "gateway"])
def test_sigterm_ends_with_0_and_no_client_notices(cluster: Cluster, table: str, kind: str) -> None:
    victim = cluster.owner() if kind == "ingest" else cluster.names(kind)[-1]
    gateways = [name for name in cluster.names("gateway") if name != victim]
    with Load(cluster, table, gateways) as load:
        load.goes_on(cluster, 30)
        cluster.nodes[victim].terminate()
        statement = query_path(f"SELECT count(*) AS c FROM {table}", "db")
        answers = []
        with contextlib.closing(Connection(*cluster.nodes[gateways[0]].address, 30.0)) as link:
            while cluster.nodes[victim].is_running:
                answers.append(link.ask("GET", statement).status)
            assert cluster.nodes[victim].wait_ended() == 0
            answers.append(link.ask("GET", statement).status)
        load.goes_on(cluster, KILLED_SECONDS_MAX)
        cluster.nodes[victim].start()
        cluster.wait_settled()
    assert load.failures == []
    assert set(answers) == {200}
    load.judge(cluster, gateways[0])


def test_drain_and_rebalance(cluster: Cluster, table: str) -> None:
    with Load(cluster, table, ["g1", "g2"]) as load:
        load.goes_on(cluster, 30)
        victim = cluster.owner()
        reply = cluster.nodes["g1"].ask("POST", f"/api/runnel/cluster/drain?node={victim}", seconds=60)
        assert reply.status == 200, reply.text
        assert victim not in cluster.owners().values()
        touch_all_shards(cluster, "g2", KILLED_SECONDS_MAX)
        assert cluster.nodes[victim].stop() == 0
        cluster.nodes[victim].start()
        cluster.wait_settled()
        assert cluster.nodes["g2"].ask("POST", "/api/runnel/cluster/rebalance", seconds=60).status == 200
        cluster.wait(
            lambda: "" if set(cluster.owners().values()) == set(cluster.names("ingest")) else str(cluster.owners()),
            "every ingest node owns something again",
        )
    assert load.failures == []
    load.judge(cluster, "g1")


def test_queries_go_on_while_owners_are_down(cluster: Cluster, table: str) -> None:
    """L15: the query nodes read the store, first without one owner, then without any."""
    body = "".join(f"{table},spread=s{n} n={n}i {n + 1}\n" for n in range(64))
    assert cluster.write("g1", body).status == 204
    for victims in ([cluster.owner()], cluster.names("ingest")):
        for name in victims:
            cluster.nodes[name].kill()
        for gateway in ("g1", "g2"):
            rows = cluster.query(gateway, f"SELECT n FROM {table} ORDER BY n", seconds=60)
            assert [row["n"] for row in rows] == list(range(64)), gateway


def test_l21_l25_owners_compact_while_writes_go_on_and_one_dies(cluster: Cluster, table: str) -> None:
    """Points all over a month, half of them rewritten: no answer changes, by any gateway, nor at the next owner."""
    other = f"{table}_scattered"
    with Load(cluster, table, ["g1", "g2"]) as load:
        for number in range(6):
            lines = [
                f"{other},spread=s{n % 7} f{(n + number) % 3}={number}i {(37 * n + number % 2) % 500}"
                for n in range(200)
            ]
            assert cluster.write("g1", "\n".join(lines)).status == 204
            for name in cluster.names("ingest"):
                assert cluster.nodes[name].ask("POST", "/api/runnel/checkpoint").status == 204
        statement = f"SELECT * FROM {other} ORDER BY spread, time"
        before = cluster.query("g1", statement)
        merges = 0
        for name in cluster.names("ingest"):
            reply = cluster.nodes[name].ask("POST", "/api/runnel/compact", seconds=120)
            assert reply.status == 200, reply.text
            merges += reply.json["merges"]
        assert merges > 0
        assert cluster.query("g1", statement) == cluster.query("g2", statement) == before
        victim = cluster.owner()
        cluster.nodes[victim].kill()
        touch_all_shards(cluster, "g1", KILLED_SECONDS_MAX)
        assert cluster.query("g1", statement) == cluster.query("g2", statement) == before
        cluster.nodes[victim].start()
        cluster.wait_settled()
    load.judge(cluster, "g1")


def test_everything_ends_and_comes_back(cluster: Cluster, table: str) -> None:
    body = "".join(f"{table},spread=s{n} n={n}i {n + 1}\n" for n in range(64))
    assert cluster.write("g1", body).status == 204
    codes = cluster.stop()
    assert set(codes.values()) == {0}, codes
    cluster.start()
    cluster.wait_settled()
    assert len(cluster.query("g1", f"SELECT n FROM {table}")) == 64
    assert cluster.write("g2", body.replace("n=", "m=")).status == 204
    for node in cluster.nodes.values():
        node.kill()
    cluster.start()
    cluster.wait_settled()
    (row,) = cluster.query("g2", f"SELECT count(n) AS n, count(m) AS m FROM {table}")
    assert row == {"n": 64, "m": 64}
