"""When `runnel cluster status` says that something is wrong."""

from __future__ import annotations

import pytest

from nodes.cli.clusterstatus import troubles
from nodes.status import ClusterStatus, MemberStatus, ShardOwner


def cluster(owner: str, state: str = "alive", controller: str = "i1") -> ClusterStatus:
    members = [
        MemberStatus(name="i1", kind="ingest", state="alive"),
        MemberStatus(name="i2", kind="ingest", state=state),
    ]
    shards = [ShardOwner(shard=1, owner="i1"), ShardOwner(shard=2, owner=owner)]
    return ClusterStatus(name="c", controller=controller, members=members, shards=shards)


@pytest.mark.parametrize("state", ["alive", "suspect"])
def test_nothing_is_wrong(state: str) -> None:
    assert troubles(cluster("i2", state)) == []


@pytest.mark.parametrize(("owner", "state"), [("", "alive"), ("i2", "dead"), ("i2", "left"), ("gone", "alive")])
def test_a_shard_without_an_owner_that_is_there(owner: str, state: str) -> None:
    assert troubles(cluster(owner, state)) == ["without an owner that is there: shard 2"]


@pytest.mark.parametrize("controller", ["", "i9"])
def test_no_controller(controller: str) -> None:
    assert troubles(cluster("i1", controller=controller)) == ["there is no controller"]
