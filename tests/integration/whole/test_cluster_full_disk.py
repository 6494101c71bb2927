"""Full disks under a cluster: the store of all nodes, and one node's own folder (small tmpfs mounts)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest

from tests.chaos.clients import pulse_body
from tests.harness.cluster import Cluster
from tests.harness.smalldisk import MIB, SmallDisk, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.exchange import Reply

pytestmark = pytest.mark.timeout(180)

DISK_BYTES: Final = 64 * MIB
GOES_ON_SECONDS_MAX: Final = 30.0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def disk(stack: ExitStack, folder: Path) -> SmallDisk:
    try:
        return stack.enter_context(SmallDisk(folder, DISK_BYTES))
    except Unavailable as error:
        pytest.skip(str(error))


def rows(start: int, count: int) -> str:
    return "".join(f"t,spread=s{n % 16} n={n}i {n + 1}\n" for n in range(start, start + count))


def standing(cluster: Cluster, gateway: str) -> set[int]:
    return {row["n"] for row in cluster.query(gateway, "SELECT n FROM t")}


def goes_on(cluster: Cluster) -> None:
    replies: list[Reply] = []

    def missing() -> str:
        replies.append(cluster.write("g1", pulse_body(len(replies))))
        return "" if replies[-1].status == 204 else f"{replies[-1].status} {replies[-1].text[:200]}"

    cluster.wait(missing, "every shard acknowledges again", GOES_ON_SECONDS_MAX)


def test_the_store_is_full(tmp_path: Path, stack: ExitStack) -> None:
    """Writes are refused with a reason, reads go on, nodes stay, and writes go on as soon as there is room."""
    small = disk(stack, tmp_path / "disk")
    cluster = stack.enter_context(Cluster(tmp_path, 3, 1, 1, store=str(small.folder / "store"), fast=True))
    goes_on(cluster)
    acknowledged: set[int] = set()
    assert cluster.write("g1", rows(0, 500)).status == 204
    acknowledged |= set(range(500))
    small.fill()
    refused: set[int] = set()
    for start in range(1000, 2000, 200):
        reply = cluster.write("g1", rows(start, 200))
        (acknowledged if reply.status == 204 else refused).update(range(start, start + 200))
        if reply.status != 204:
            assert reply.status == 503, (reply.status, reply.text)
            assert "space" in reply.text or "full" in reply.text or "unknown" in reply.text, reply.text
    assert refused, "the disk never became full"
    assert acknowledged <= standing(cluster, "g1") <= acknowledged | refused
    assert all(node.is_running for node in cluster.nodes.values())
    small.relieve()
    goes_on(cluster)
    cluster.wait_settled()
    for node in cluster.nodes.values():
        node.kill()
    cluster.start()
    cluster.wait_settled()
    assert acknowledged <= standing(cluster, "g1") <= acknowledged | refused
    assert set(cluster.stop().values()) == {0}


def test_an_owners_own_folder_is_full(tmp_path: Path, stack: ExitStack) -> None:
    """It holds nothing that must survive: rows go on, at this owner or at another."""
    small = disk(stack, tmp_path / "i1" / "data")
    cluster = stack.enter_context(Cluster(tmp_path, 3, 1, 1, fast=True))
    goes_on(cluster)
    small.fill()
    for start in range(0, 1000, 200):
        assert cluster.write("g1", rows(start, 200)).status == 204
    owner = cluster.owner()
    cluster.nodes[owner].kill()
    goes_on(cluster)
    assert standing(cluster, "g1") == set(range(1000))
    small.relieve()
    cluster.start()
    cluster.wait_settled()
    goes_on(cluster)
    assert standing(cluster, "g1") == set(range(1000))
    for node in cluster.nodes.values():
        node.kill()
