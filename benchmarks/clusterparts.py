"""The parts of the cluster benchmark: each starts a cluster, hurts or loads it, and puts its figures into the report.

Driven by `benchmarks.cluster`.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import client, lines
from benchmarks.accounting import cpu_seconds, median, per_million, percentile, status_bytes
from benchmarks.clusterload import Ask, Stream, wait_served
from benchmarks.servers import Runnel
from tests.chaos.clients import pulse_body
from tests.harness.cluster import Cluster
from tests.harness.exchange import Connection, query_path, write_path
from tests.harness.netns import NetnsNetwork, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.clustergoals import ClusterReport

DATABASE: Final = "bench"
IDLE_SECONDS: Final = 5.0
BODY_LINES: Final = 10_000
CONNECTIONS: Final = 4
OWNERS: Final = (1, 2, 3)
ASKS_WARM: Final = 200
ASKS: Final = 2000
ROWS: Final = 1000
SERVED_SECONDS_MAX: Final = 60.0
REST_SECONDS_MAX: Final = 60.0
REBALANCE_SECONDS_MAX: Final = 60.0
REST_CPU_SHARE: Final = 0.10
"""All nodes together use less of one core than this: nothing is left to do but gossip."""
MEGABYTE: Final = 1e6


class NotMeasured(RuntimeError):
    """A part cannot be measured here; the message says why."""


def memory(report: ClusterReport, folder: Path) -> None:
    """Proportional set size of each node that has nothing to do; the largest of each kind counts."""
    with Cluster(folder) as cluster:
        time.sleep(IDLE_SECONDS)
        for kind in ("gateway", "ingest", "query"):
            found = {name: pss_bytes(cluster.nodes[name].pid) / MEGABYTE for name in cluster.names(kind)}
            report.put(f"memory of an idle {kind} node (PSS)", max(found.values()))
            report.notes.append(f"PSS, idle: {', '.join(f'{name} {size:.0f} MB' for name, size in found.items())}")


def pss_bytes(pid: int) -> int:
    """Proportional set size of a process."""
    return status_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())["Pss"]


def query(report: ClusterReport, folder: Path) -> None:
    """A row by its key, through a gateway, one question at a time, on an idle cluster."""
    with Cluster(folder) as cluster:
        body = "".join(f"one,key=k{n} v={n}i {n}\n" for n in range(ROWS))
        assert cluster.write("g1", body, DATABASE).is_ok
        link = Connection(*cluster.nodes["g1"].address)
        seconds = []
        for number in range(ASKS_WARM + ASKS):
            path = query_path(f"SELECT v FROM one WHERE key = 'k{number % ROWS}'", DATABASE)
            begun = time.perf_counter()
            reply = link.ask("GET", path)
            seconds.append(time.perf_counter() - begun)
            if reply.status != 200 or reply.json != [{"v": number % ROWS}]:
                raise NotMeasured(f"{reply.status} {reply.text[:300]}")
        link.close()
    measured = sorted(seconds[ASKS_WARM:])
    report.put("one-row SELECT through a gateway: p50", median(measured) * 1e3)
    report.put("one-row SELECT through a gateway: p99", percentile(measured, 0.99) * 1e3)


def ingest(report: ClusterReport, folder: Path, line_count: int) -> None:
    """TSBS lines through one gateway to 1, 2 and 3 owners; CPU of all nodes together, until all of them rest."""
    bodies = lines.bodies("cpu", line_count, BODY_LINES)
    dear = []
    for owners in OWNERS:
        with Cluster(folder / str(owners), owners, 1, 1, environment=Runnel.settings) as cluster:
            acknowledged, at_rest, wall = _ingest_once(cluster, bodies, line_count)
        dear.append(at_rest)
        report.put(f"ingest, {owners} owners: CPU per million lines", at_rest)
        report.put(f"ingest, {owners} owners: CPU when acknowledged", acknowledged)
        report.put(f"ingest, {owners} owners: thousand lines a second", line_count / wall / 1e3)
    report.put("ingest: dearest number of owners over the cheapest", (max(dear) / min(dear) - 1) * 100)


def _ingest_once(cluster: Cluster, bodies: Sequence[bytes], line_count: int) -> tuple[float, float, float]:
    """CPU seconds per million lines when acknowledged and at rest, and wall seconds."""
    pids = [node.pid for node in cluster.nodes.values()]
    port = cluster.nodes["g1"].address[1]
    warm = [client.build("POST", write_path("warm"), b"".join(bodies[0].splitlines(keepends=True)[:500]))]
    client.drive(port, warm, 1)
    before = sum(map(cpu_seconds, pids))
    driven = client.drive(port, [client.build("POST", write_path(DATABASE), body) for body in bodies], CONNECTIONS)
    acknowledged = sum(map(cpu_seconds, pids)) - before
    for name in cluster.names("ingest"):
        cluster.nodes[name].ask("POST", "/api/runnel/checkpoint", seconds=120).ok()
    _wait_rest(pids)
    at_rest = sum(map(cpu_seconds, pids)) - before
    (row,) = cluster.query("g1", "SELECT count(*) AS n FROM cpu", DATABASE)
    if row["n"] != line_count:
        raise NotMeasured(f"{line_count} lines were acknowledged, {row['n']} rows are there")
    return per_million(acknowledged, line_count), per_million(at_rest, line_count), driven.wall_seconds


def _wait_rest(pids: Sequence[int]) -> None:
    """Until the nodes do nothing but gossip, or long enough."""
    deadline = time.monotonic() + REST_SECONDS_MAX
    while time.monotonic() < deadline:
        before = sum(map(cpu_seconds, pids))
        time.sleep(1.0)
        if sum(map(cpu_seconds, pids)) - before < REST_CPU_SHARE:
            return


# -- fail-over --------------------------------------------------------------------------------------------------


def kill(report: ClusterReport, folder: Path, rounds: int) -> None:
    """kill -9 of the owner of most shards, under load."""
    with Cluster(folder) as cluster:
        found = _fail_overs(cluster, rounds, lambda name: cluster.nodes[name].kill(), lambda _: cluster.start())
    _put_fail_overs(report, "kill -9 of an owner until its shards acknowledge", found)


def pause(report: ClusterReport, folder: Path, rounds: int, *, fast: bool) -> None:
    """SIGSTOP of the owner of most shards, under load."""
    with Cluster(folder, fast=fast) as cluster:
        nodes = cluster.nodes
        found = _fail_overs(cluster, rounds, lambda name: nodes[name].pause(), lambda name: nodes[name].resume())
    _put_fail_overs(report, "SIGSTOP of an owner" + ", fast probes" * fast, found)


def cut(report: ClusterReport, folder: Path, rounds: int, *, fast: bool) -> None:
    """The owner of most shards is cut off from all other nodes, both ways, under load."""
    reason = unavailable()
    if reason:
        raise NotMeasured(reason)
    with ExitStack() as stack:
        network = stack.enter_context(NetnsNetwork())
        cluster = stack.enter_context(Cluster(folder, fast=fast, network=network))
        found = _fail_overs(cluster, rounds, network.cut, network.heal)
    _put_fail_overs(report, "cut of an owner" + ", fast probes" * fast, found)


def _fail_overs(
    cluster: Cluster, rounds: int, strike: Callable[[str], object], heal: Callable[[str], object]
) -> list[float]:
    """Seconds from the begin of each strike until a body for every shard, sent after its end, is acknowledged."""
    found = []
    for number in range(rounds):
        gateways = [cluster.nodes[name].address for name in cluster.names("gateway")]
        with Stream(gateways, _pulse, 0.02, first=number) as stream:
            wait_served(stream.track, time.monotonic(), SERVED_SECONDS_MAX)
            victim = cluster.owner()
            at = time.monotonic()
            strike(victim)
            struck = time.monotonic()  # a cut takes some tens of ms: what is asked meanwhile may still be answered
            try:
                found.append(struck - at + wait_served(stream.track, struck, SERVED_SECONDS_MAX))
            finally:
                heal(victim)
            cluster.wait_settled()
        cluster.wait(partial(_rebalance, cluster), "the shards are spread evenly", REBALANCE_SECONDS_MAX)
        cluster.wait_settled()
        print(f"  {victim}: {found[-1]:.2f} s", flush=True)
    return found


def _rebalance(cluster: Cluster) -> str:
    """The controller may have been the one that was cut off: then another one has just begun."""
    reply = cluster.nodes[cluster.any_gateway()].ask("POST", "/api/runnel/cluster/rebalance", seconds=60)
    return "" if reply.is_ok else reply.text[:200]


def _pulse(number: int) -> Ask:
    return "POST", write_path(DATABASE), pulse_body(number)


def _put_fail_overs(report: ClusterReport, part: str, found: Sequence[float]) -> None:
    report.put(f"{part}: median", median(found))
    report.put(f"{part}: worst", max(found))
    report.notes.append(f"{part}: {', '.join(f'{seconds:.2f}' for seconds in sorted(found))} s")


# -- restarts ---------------------------------------------------------------------------------------------------


def rolling(report: ClusterReport, folder: Path) -> None:
    """Each node by SIGTERM under load: one of each kind by itself, then all of them one after the other."""
    with Cluster(folder) as cluster:
        one_of_each = [cluster.owner(), "g1", "q1"]
        _restarts(report, cluster, "SIGTERM of each node", one_of_each)
        _restarts(report, cluster, "rolling restart", cluster.names())


def _restarts(report: ClusterReport, cluster: Cluster, part: str, names: Sequence[str]) -> None:
    gateways = [cluster.nodes[name].address for name in cluster.names("gateway")]
    tag = part[:3]
    with ExitStack() as stack:
        writes = [stack.enter_context(Stream(gateways, _pulse, 0.02, first=n)) for n in range(2)]
        changes = stack.enter_context(Stream(gateways, lambda n: _new_column(tag, n), 0.2))
        wait_served(writes[0].track, time.monotonic(), SERVED_SECONDS_MAX)
        reads = stack.enter_context(Stream(gateways, _read, 0.05, first=1))
        for name in names:
            code = cluster.nodes[name].stop()
            if code != 0:
                raise NotMeasured(f"{name} ended with {code}: {cluster.nodes[name].tail()}")
            cluster.nodes[name].start()
            cluster.wait_settled()
            wait_served(writes[0].track, time.monotonic(), SERVED_SECONDS_MAX)
    streams = [*writes, changes, reads]
    errors = [error for stream in streams for error in stream.track.errors]
    report.put(f"{part}: client errors", len(errors))
    report.put(f"{part}: longest pause of writes", max(stream.track.longest_pause() for stream in writes))
    report.put(f"{part}: longest pause of schema changes", changes.track.longest_pause())
    report.put(f"{part}: longest pause of reads", reads.track.longest_pause())
    moved = sum(stream.track.moved for stream in streams)
    done = sum(len(stream.track.spans) for stream in streams)
    report.notes.append(f"{part}: {done} requests, {moved} times to another gateway, errors {errors[:5]}")


def _new_column(tag: str, number: int) -> Ask:
    """A schema change: a table gets one more column."""
    return "POST", write_path(DATABASE), f"grows_{tag.strip()},key=a c{number}=1i 1\n".encode()


def _read(number: int) -> Ask:
    return "GET", query_path(f"SELECT n FROM pulse0 WHERE key = 'k{number % 20}'", DATABASE), None
