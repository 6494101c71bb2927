"""The cluster of docker-compose.yml: built, started, written to, queried and hurt, by real containers and networks."""

from __future__ import annotations

import json
import os
import shutil
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.compose.docker import docker
from tests.compose.stack import GATEWAYS, INGEST, NODES, QUERIES
from tests.compose.writer import Writer, check
from tests.harness.logscan import summary

if TYPE_CHECKING:
    from tests.compose.stack import Stack

pytestmark = pytest.mark.timeout(900)

FAIL_OVER_SECONDS_MAX = 60.0
RETURN_SECONDS_MAX = 120.0
"""For a node that was away until all agree that it is there again."""
STOP_SECONDS_MAX = 240.0
STOP_EXIT_CODE = 0


def busiest(stack: Stack, gateway: str = GATEWAYS[0]) -> str:
    """The ingest node with most shards."""
    held = list(stack.owners(gateway).values())
    return max(INGEST, key=held.count)


def owns_nothing(stack: Stack, gateway: str, lost: str) -> str:
    """ "" when every shard has an owner other than ``lost``."""
    owners = stack.owners(gateway)
    left = [shard for shard, owner in owners.items() if owner in ("", lost)]
    return f"shards {left} are still with {lost}" if left or not owners else ""


def test_every_container_is_healthy_unprivileged_and_bounded(stack: Stack) -> None:
    for name in NODES:
        stack.wait(partial(_unhealthy, stack, name), f"{name} is healthy")
        found = stack.inspect(name)
        assert found["Config"]["User"] == "runnel"
        assert docker("exec", stack.container(name), "id", "-u") == "10001"
        assert found["HostConfig"]["Memory"] == 2**30
        assert found["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert found["HostConfig"]["CapDrop"] == ["ALL"]
        assert all(binding["HostIp"] == "127.0.0.1" for binding in _bindings(found))
    assert stack.state("init")["ExitCode"] == 0


def _unhealthy(stack: Stack, name: str) -> str:
    health = stack.state(name)["Health"]
    return "" if health["Status"] == "healthy" else json.dumps(health)[-500:]


def _bindings(inspected: dict[str, dict[str, dict[str, list[dict[str, str]] | None]]]) -> list[dict[str, str]]:
    return [each for bindings in inspected["HostConfig"]["PortBindings"].values() for each in bindings or []]


def test_what_one_gateway_wrote_the_other_reads_at_once(stack: Stack) -> None:
    for n in range(20):
        writes, reads = GATEWAYS[n % 2], GATEWAYS[(n + 1) % 2]
        stack.write(writes, f"room,name=r{n} celsius={n}i {n + 1}").ok()
        assert stack.query(reads, f"SELECT celsius FROM room WHERE name = 'r{n}'") == [{"celsius": n}]


def test_what_one_gateway_creates_and_drops_the_other_knows_at_once(stack: Stack) -> None:
    first, second = GATEWAYS
    path = "/api/v3/configure/database"
    stack.ask(first, "POST", path, json.dumps({"db": "made"}).encode()).ok()
    assert "made" in stack.ask(second, "GET", f"{path}?format=json").ok().text
    stack.write(second, "t,a=b x=1i 1", "made").ok()
    assert stack.query(first, "SELECT x FROM t", "made") == [{"x": 1}]
    stack.ask(first, "DELETE", "/api/v3/configure/table?db=made&table=t").ok()
    rows = stack.query(second, "SELECT table_name FROM information_schema.tables WHERE table_name = 't'", "made")
    assert rows == []
    stack.ask(second, "DELETE", f"{path}?db=made").ok()
    assert "made" not in stack.ask(first, "GET", f"{path}?format=json").ok().text


def test_an_ingest_node_killed_under_load_loses_nothing(stack: Stack) -> None:
    stack.wait_settled()
    lost = busiest(stack)
    with Writer(stack, "killed") as writer:
        writer.wait_for(50)
        stack.kill(lost)
        stack.wait(lambda: owns_nothing(stack, GATEWAYS[0], lost), "others own its shards", FAIL_OVER_SECONDS_MAX)
        writer.wait_for(50)
        check(stack, writer)
        stack.start(lost)
        stack.wait_settled(seconds=RETURN_SECONDS_MAX)
        writer.wait_for(20)
    check(stack, writer)
    print(f"longest time without an acknowledgement {writer.longest_seconds:.1f} s, {len(writer.refusals)} refusals")


def test_a_node_starts_while_the_name_of_another_does_not_resolve(stack: Stack) -> None:
    """A container that is down has no name: neither a start nor a request may hang on it."""
    lost = INGEST[0]
    stack.kill(lost)
    try:
        stack.wait(lambda: owns_nothing(stack, GATEWAYS[0], lost), "others own its shards", FAIL_OVER_SECONDS_MAX)
        for name in (GATEWAYS[1], QUERIES[1]):
            begun = time.monotonic()
            docker("restart", "-t", "60", stack.container(name))
            stack.wait(partial(_unready, stack, name), f"{name} is ready", RETURN_SECONDS_MAX)
            print(f"{name} restarted in {time.monotonic() - begun:.1f} s")
        stack.write(GATEWAYS[1], "named,a=b x=1i 1").ok()
        assert stack.query(GATEWAYS[1], "SELECT x FROM named") == [{"x": 1}]
    finally:
        stack.start(lost)
    stack.wait_settled(seconds=RETURN_SECONDS_MAX)


def _unready(stack: Stack, name: str) -> str:
    reply = stack.ask(name, "GET", "/health/ready", seconds=5)
    return "" if reply.status == 200 else f"{reply.status} {reply.text[:200]}"


def test_a_node_paused_for_longer_than_the_fail_over_writes_nothing_afterwards(stack: Stack) -> None:
    stack.wait_settled()
    frozen = busiest(stack)
    with Writer(stack, "paused") as writer:
        writer.wait_for(50)
        with stack.paused(frozen):
            stack.wait(lambda: owns_nothing(stack, GATEWAYS[0], frozen), "others own its shards", FAIL_OVER_SECONDS_MAX)
            writer.wait_for(50)
        stack.wait_settled(seconds=RETURN_SECONDS_MAX)
        writer.wait_for(20)
    check(stack, writer)
    print(f"longest time without an acknowledgement {writer.longest_seconds:.1f} s, {len(writer.refusals)} refusals")


def test_a_node_cut_off_wholly_is_replaced_and_comes_back(stack: Stack) -> None:
    stack.wait_settled()
    cut = busiest(stack)
    before = stack.address(cut)
    with Writer(stack, "unplugged") as writer:
        writer.wait_for(50)
        with stack.unplugged(cut):
            stack.wait(lambda: owns_nothing(stack, GATEWAYS[0], cut), "others own its shards", FAIL_OVER_SECONDS_MAX)
            writer.wait_for(50)
        print(f"{cut} had the address {before}, has {stack.address(cut)}")
        stack.wait_settled(seconds=RETURN_SECONDS_MAX)
        writer.wait_for(20)
    check(stack, writer)
    print(f"longest time without an acknowledgement {writer.longest_seconds:.1f} s, {len(writer.refusals)} refusals")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nsenter"), reason="needs root, nsenter and iptables")
def test_a_node_that_hears_the_others_and_cannot_answer(stack: Stack) -> None:
    """A one-way cut: what it sends to other nodes is dropped."""
    stack.wait_settled()
    mute = busiest(stack)
    with Writer(stack, "mute") as writer:
        writer.wait_for(50)
        with stack.mute(mute, NODES):
            stack.wait(lambda: owns_nothing(stack, GATEWAYS[0], mute), "others own its shards", FAIL_OVER_SECONDS_MAX)
            writer.wait_for(50)
        stack.wait_settled(seconds=RETURN_SECONDS_MAX)
        writer.wait_for(20)
    check(stack, writer)
    print(f"longest time without an acknowledgement {writer.longest_seconds:.1f} s, {len(writer.refusals)} refusals")


def test_a_gateway_and_a_query_node_are_not_missed(stack: Stack) -> None:
    stack.wait_settled()
    with Writer(stack, "missed", GATEWAYS[1:]) as writer:
        writer.wait_for(20)
        stack.kill(GATEWAYS[0])
        stack.kill(QUERIES[0])
        writer.wait_for(20)
        for _ in range(5):
            assert stack.query(GATEWAYS[1], "SELECT count(*) AS rows FROM missed")[0]["rows"] >= 40
        stack.start(GATEWAYS[0])
        stack.start(QUERIES[0])
        stack.wait_settled(seconds=RETURN_SECONDS_MAX)
    check(stack, writer)


def test_a_clean_stop_of_one_node_ends_with_0_and_hands_its_shards_over(stack: Stack) -> None:
    stack.wait_settled()
    leaves = busiest(stack)
    with Writer(stack, "leaves") as writer:
        writer.wait_for(20)
        docker("stop", "-t", "120", stack.container(leaves), seconds=STOP_SECONDS_MAX)
        assert stack.state(leaves)["ExitCode"] == STOP_EXIT_CODE, stack.log(leaves, "40")
        writer.wait_for(20)
        stack.start(leaves)
        stack.wait_settled(seconds=RETURN_SECONDS_MAX)
    check(stack, writer)
    print(f"longest time without an acknowledgement {writer.longest_seconds:.1f} s, {len(writer.refusals)} refusals")


def test_all_are_killed_at_once_and_started_again(stack: Stack) -> None:
    stack.wait_settled()
    with Writer(stack, "all") as writer:
        writer.wait_for(30)
        docker("kill", "-s", "KILL", *[stack.container(name) for name in NODES])
        docker("start", *[stack.container(name) for name in NODES])
        print(f"settled after {stack.wait_settled(seconds=2 * RETURN_SECONDS_MAX):.1f} s")
        writer.wait_for(30)
    check(stack, writer)


def test_no_node_reported_an_error(stack: Stack) -> None:
    """Of all that was done to them above; each line of level error is a finding."""
    lines = [line for name in NODES for line in stack.lines(name)]
    assert lines
    errors = [line for line in lines if line.get("level") in ("error", "critical")]
    print("\n".join(summary(line for line in lines if line.get("level") == "warning")))
    assert not errors, "\n".join(summary(errors))


def test_all_are_stopped_cleanly_and_come_up_again_in_order(stack: Stack) -> None:
    stack.wait_settled()
    stack.write(GATEWAYS[0], "kept,a=b x=1i 1").ok()
    begun = time.monotonic()
    stack.compose("stop", seconds=2 * STOP_SECONDS_MAX)
    stopped = time.monotonic() - begun
    codes = {name: stack.state(name)["ExitCode"] for name in NODES}
    assert set(codes.values()) == {STOP_EXIT_CODE}, codes
    stack.compose("down")
    up = stack.up()
    stack.wait_settled(seconds=2 * RETURN_SECONDS_MAX)
    assert stack.query(GATEWAYS[1], "SELECT x FROM kept") == [{"x": 1}]
    print(f"stopped after {stopped:.1f} s, up again after {up:.1f} s")
