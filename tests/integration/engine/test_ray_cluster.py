"""A Ray cluster that somebody else has started: joined, used, and one of its nodes killed in mid-query."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from typing import TYPE_CHECKING

import psutil
import pytest

import engine.workers
import nodes.rayhead
from engine.workers import RayWorkers
from nodes.rayhead import ALONE, new_workers
from tests.harness.raycluster import RayCluster
from tests.harness.raydriver import (
    QUICK,
    SLOW,
    START_SECONDS,
    is_as_in_one_process,
    make_settings,
    make_tables,
    read,
    source_of,
    started,
    token_file,
    while_it_runs,
)
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datafusion import SessionContext

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    # Ray lets its own processes go without having waited for them.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> SessionContext:
    return make_tables(tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayCluster, RayWorkers]]:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, RayCluster(token_file(), 1) as cluster:
        patch.setattr(engine.workers, "HEAD_SECONDS", 3.0)
        patch.setattr(engine.workers, "LOOK_SECONDS", 0.3)
        patch.setattr(nodes.rayhead, "JOINED", ALONE)  # or Ray takes this machine's own address for 127.0.0.1
        workers = new_workers(make_settings(home, cluster.address, workers=4))
        assert isinstance(workers, RayWorkers)
        started(workers, 4)
        yield cluster, workers
        asyncio.run(workers.aclose())


def children_of(raylets: list[int]) -> list[psutil.Process]:
    found = [child for pid in raylets for child in psutil.Process(pid).children()]
    return [process for process in found if "QueryWorker" in " ".join(process.cmdline())]


def test_a_cluster_that_is_there_is_joined_and_other_nodes_have_workers_too(
    context: SessionContext, joined: tuple[RayCluster, RayWorkers]
) -> None:
    cluster, workers = joined
    is_as_in_one_process(context, workers)
    assert children_of(cluster.raylets), "Ray spreads them as well as it can: not all are on the first node"


def test_a_node_killed_in_mid_query_changes_no_answer(
    context: SessionContext, joined: tuple[RayCluster, RayWorkers]
) -> None:
    cluster, workers = joined
    (raylet,) = cluster.raylets
    theirs = children_of(cluster.raylets)

    def kill_node() -> None:
        for process in [psutil.Process(raylet), *theirs]:
            os.kill(process.pid, signal.SIGKILL)

    killer = while_it_runs(workers, kill_node, theirs)
    statement = SLOW.format(4)
    assert asyncio.run(read(source_of(context, workers, statement))) == context.sql(statement).to_pylist()
    killer.join()
    assert asyncio.run(read(source_of(context, workers, QUICK))) == context.sql(QUICK).to_pylist()
    eventually(lambda: workers.slots() >= 2, "workers are there again", START_SECONDS)
    is_as_in_one_process(context, workers)
