"""The cluster harness on stand-in nodes: it starts, hurts, restarts and looks, and leaves no process behind."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.harness.cluster import Cluster
from tests.harness.clusternode import NodeDied

if TYPE_CHECKING:
    from pathlib import Path

STANDIN = "tests.harness.standin"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_life(tmp_path: Path) -> None:
    with Cluster(tmp_path, 2, 2, 1, module=STANDIN) as cluster:
        assert cluster.write("g1", "t,a=b n=1i 1\n").status == 204
        assert cluster.query("g2", "SELECT n FROM t") == [{"n": 1}]
        assert set(cluster.owners().values()) == {"i1", "i2"}
        owner = cluster.node(cluster.owner())
        ports = owner.blueprint.addresses
        owner.kill()
        assert cluster.unsettled() != "" or cluster.owner() != owner.name
        cluster.wait_settled()
        assert owner.name not in cluster.owners().values()
        owner.start()
        cluster.wait_settled()
        assert owner.blueprint.addresses == ports
        assert owner.starts == 2
        owner.pause()
        assert owner.name not in cluster.names(up=True)
        assert cluster.owner() != owner.name
        owner.resume()
        cluster.wait_settled()
        assert cluster.stop(["g1", "q1"]) == {"g1": 0, "q1": 0}
        assert cluster.any_gateway() == "g2"
        cluster.start()
        cluster.wait_settled()
        assert cluster.alarms() == []


def test_strange_lines_are_alarms(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1, 1, 1, module=STANDIN) as cluster:
        with cluster.node("i1").log_path.open("a") as log:
            log.write('{"level": "warning", "event": "odd"}\n{"level": "info", "event": "fine"}\nTraceback: oh\n')
        assert [(alarm["node"], alarm["event"]) for alarm in cluster.alarms()] == [
            ("i1", "odd"),
            ("i1", "not a log line"),
        ]
        assert len(cluster.alarms(expected=["odd"])) == 1


def fail_inside(cluster: Cluster) -> None:
    with cluster:
        cluster.node("i1").pause()
        raise RuntimeError("the test fails")


def test_no_process_outlives_a_failure(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1, 1, 1, module=STANDIN)
    with pytest.raises(RuntimeError, match="the test fails") as caught:
        fail_inside(cluster)
    assert "--- i1 (ingest)" in caught.value.__notes__[0]
    assert not any(is_alive(node.pid) for node in cluster.nodes.values())


def test_a_node_that_does_not_start_says_why(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 1, 1, 1, module="tests.harness.nothing_there")
    with pytest.raises(NodeDied, match="nothing_there"), cluster:
        pass
    assert not any(node.is_running for node in cluster.nodes.values())


def test_an_unsettled_cluster_says_what_is_missing(tmp_path: Path) -> None:
    with Cluster(tmp_path, 1, 1, 1, module=STANDIN) as cluster:
        cluster.node("i1").kill()
        with pytest.raises(AssertionError, match=r"controller is ''(.|\n)*--- g1"):
            cluster.wait_settled(0.3)
