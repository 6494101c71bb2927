"""docker-compose.ray.yml: the cluster with a Ray head and two Ray nodes, used, killed and back, for real."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.compose.stack import GATEWAYS, INGEST, NODES, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(1_500)

RAY = ("ray-head", "ray-worker-1", "ray-worker-2")
READY_SECONDS = 240.0
HOSTS = 40
ROWS = 4_000
GROUPED = "SELECT host, count(*) AS n, sum(v) AS s FROM t GROUP BY host ORDER BY host"
ALWAYS = {
    "COMPOSE_FILE": "docker-compose.yml:docker-compose.ray.yml",
    "RUNNEL_RAY__QUERY_BYTES_MIN": "1",
    "RUNNEL_RAY__SHUFFLE_BYTES_MIN": "1",
    "RUNNEL_RAY__TASK_BYTES": "1 KiB",
}


@pytest.fixture(scope="module")
def ray_stack() -> Iterator[Stack]:
    with Stack("runnel-test-ray", **ALWAYS) as stack:
        stack.up(*RAY, *NODES)
        stack.wait_settled()
        lines = "\n".join(f"t,host=h{at % HOSTS:02} v={at}i {at + 1}" for at in range(ROWS))
        stack.write(GATEWAYS[0], lines).ok()
        stack.compose("restart", "-t", "120", *INGEST)  # they checkpoint, so that there are files
        stack.wait_settled()
        yield stack


def right(stack: Stack) -> str:
    """ "" if both gateways give the rows that were written."""
    wanted = [{"host": f"h{h:02}", "n": ROWS // HOSTS, "s": sum(range(h, ROWS, HOSTS))} for h in range(HOSTS)]
    answers = [stack.query(gateway, GROUPED) for gateway in GATEWAYS]
    return "" if all(answer == wanted for answer in answers) else str(answers)[:500]


def not_on_workers(stack: Stack, wanted: int = 2) -> str:
    """ "" if a query runs its tasks in containers other than the query nodes', so many of them."""
    assert right(stack) == ""
    plan = {row["plan_type"]: row["plan"] for row in stack.query(GATEWAYS[0], f"EXPLAIN ANALYZE {GROUPED}")}
    places = {line.partition(":")[0] for name, line in plan.items() if " task " in name}
    queries = {stack.container(name)[:12] for name in ("query-1", "query-2")}
    return "" if len(places) >= wanted and not places <= queries else str(plan)[:1_000]


def test_large_queries_run_on_the_ray_nodes(ray_stack: Stack) -> None:
    ray_stack.wait(partial(not_on_workers, ray_stack), "queries run on workers", READY_SECONDS)


def test_nothing_of_ray_is_published_and_all_of_it_is_unprivileged(ray_stack: Stack) -> None:
    for name in RAY:
        found = ray_stack.inspect(name)
        assert not found["HostConfig"]["PortBindings"]
        assert found["Config"]["User"] == "runnel"
        assert found["HostConfig"]["CapDrop"] == ["ALL"]


def test_a_ray_node_that_was_killed_is_done_without_and_comes_back(ray_stack: Stack) -> None:
    ray_stack.kill("ray-worker-1")
    assert right(ray_stack) == ""
    ray_stack.start("ray-worker-1")
    ray_stack.wait(partial(not_on_workers, ray_stack), "queries run on workers again", READY_SECONDS)


def test_the_head_that_was_killed_is_done_without_and_comes_back(ray_stack: Stack) -> None:
    ray_stack.kill("ray-head")
    for _ in range(5):
        assert right(ray_stack) == ""
    ray_stack.start("ray-head")
    ray_stack.wait(partial(not_on_workers, ray_stack), "queries run on workers again", READY_SECONDS)
