"""Stands where `python -m nodes gateway|ingest|query` is: a real node's life and HTTP, nothing stored, nobody asked.

``python -m tests.integration.nodes.standin_kind KIND --config FILE``. It refuses to start while ``refuse`` lies in
its data folder, and never becomes ready while ``slow`` does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cluster.members import Kind
from nodes import logs
from nodes.clustercheck import check_cluster
from nodes.gateway.assembly import open_gateway
from nodes.node import NodeParts, run_node
from nodes.settings import load
from nodes.status import ClusterStatus, MemberStatus, ShardOwner
from storage.errors import StoreUnavailable
from tests.integration.nodes.placeholder_node import PlaceholderBackend

MEMBERS = [
    MemberStatus(
        name="ingest-1", kind="ingest", state="alive", zone="a", load=2, revision=5,
        addresses={"http": "127.0.0.1:18181", "grpc": "127.0.0.1:18182"},
    ),
    MemberStatus(name="ingest-2", kind="ingest", state="dead"),
    MemberStatus(name="gateway-1", kind="gateway", state="suspect"),
]  # fmt: skip


class StandinControl:
    """A cluster of two ingest nodes, one dead; draining moves what is there to the other."""

    def __init__(self) -> None:
        self.owners = {1: "ingest-1", 2: "ingest-2"}

    def cluster_status(self) -> ClusterStatus:
        shards = [ShardOwner(shard=shard, owner=owner) for shard, owner in self.owners.items()]
        return ClusterStatus(
            name="runnel", controller="ingest-1", placement_epoch=3, placement_number=9, members=MEMBERS, shards=shards
        )

    def numbers(self) -> dict[str, float]:
        return {}

    async def drain(self, node: str) -> int:
        if node == "ingest-1":
            raise StoreUnavailable("no other ingest node could take its shards")
        return self._give("ingest-1", [shard for shard, owner in self.owners.items() if owner == node])

    async def rebalance(self) -> int:
        return self._give("ingest-2", [2])

    def _give(self, node: str, shards: list[int]) -> int:
        self.owners |= dict.fromkeys(shards, node)
        return len(shards)


def main(kind: str, *arguments: str) -> int:
    settings = load(Path(arguments[arguments.index("--config") + 1])).settings
    check_cluster(settings, Kind(kind))
    logs.configure(settings.logs, settings.node_name, kind=kind)
    if (settings.data_dir / "refuse").exists():
        sys.stderr.write("told not to start\n")
        return 78
    options = {"replay": "600" if (settings.data_dir / "slow").exists() else "0"}
    parts = NodeParts(open_gateway, lambda context: PlaceholderBackend(context, options), StandinControl())
    return run_node(settings, parts)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
