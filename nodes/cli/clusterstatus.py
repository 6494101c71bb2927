"""`runnel cluster status|drain|rebalance`: ask any node about the whole cluster, or through it for a change."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec

from cluster.members import MemberState
from nodes.cli.client import ask, run
from nodes.exitcodes import ExitCode
from nodes.status import CLUSTER_PATH, DRAIN_PATH, REBALANCE_PATH, ClusterStatus, ShardsMoved

if TYPE_CHECKING:
    from rich.table import Table

COLOURS = {MemberState.ALIVE.value: "green", MemberState.SUSPECT.value: "yellow"}


def status(host: str | None, *, is_json: bool) -> ExitCode:
    """0 if there is a controller and every shard has an owner that is there; 1 if not."""
    raw, cluster = run(ask(host, "GET", CLUSTER_PATH, ClusterStatus))
    if is_json:
        sys.stdout.write(msgspec.json.format(raw, indent=2).decode() + "\n")
    else:
        _print(cluster)
    return ExitCode.FAILURE if troubles(cluster) else ExitCode.OK


def drain(node: str, host: str | None) -> ExitCode:
    """Move a node's shards to others, so that it can be stopped without a pause for anyone."""
    _, answer = run(ask(host, "POST", DRAIN_PATH, ShardsMoved, {"node": node}))
    sys.stdout.write(f"{node} is drained: {_shards(answer.moved)} moved to other nodes\n")
    return ExitCode.OK


def rebalance(host: str | None) -> ExitCode:
    """Spread the shards evenly."""
    _, answer = run(ask(host, "POST", REBALANCE_PATH, ShardsMoved))
    sys.stdout.write(f"{_shards(answer.moved)} moved\n")
    return ExitCode.OK


def troubles(cluster: ClusterStatus) -> list[str]:
    """What keeps the cluster from serving everything, one sentence each."""
    there = {member.name for member in cluster.members if member.state in COLOURS}
    found = [] if cluster.controller in there else ["there is no controller"]
    lost = [str(shard.shard) for shard in cluster.shards if shard.owner not in there]
    if lost:
        found.append(f"without an owner that is there: shard {', '.join(lost)}")
    return found


def _print(cluster: ClusterStatus) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    version = f"{cluster.placement_epoch}.{cluster.placement_number}"
    revision = max((member.revision for member in cluster.members), default=0)
    console.print(
        f"[bold]{cluster.name}[/bold]  controller {cluster.controller or 'none'}, placement {version}, "
        f"catalog revision {revision}"
    )
    for trouble in troubles(cluster):
        console.print(f"  {trouble}", style="yellow", markup=False)
    console.print(_members(cluster))


def _members(cluster: ClusterStatus) -> Table:
    from rich.table import Table

    owned: dict[str, list[int]] = defaultdict(list)
    for shard in cluster.shards:
        owned[shard.owner].append(shard.shard)
    has_zones = any(member.zone for member in cluster.members)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("node", "kind", "state", *(["zone"] if has_zones else []), "http"):
        table.add_column(name, no_wrap=True)
    table.add_column("shards", overflow="fold")
    for name in ("load", "revision"):
        table.add_column(name, justify="right", no_wrap=True)
    for member in sorted(cluster.members, key=lambda one: (one.kind, one.name)):
        state = f"[{COLOURS.get(member.state, 'red')}]{member.state}[/]"
        zone = [member.zone.replace("[", "\\[")] if has_zones else []
        shards = " ".join(map(str, sorted(owned.get(member.name, []))))
        numbers = (f"{member.load:g}", str(member.revision))
        table.add_row(member.name, member.kind, state, *zone, member.addresses.get("http", ""), shards, *numbers)
    return table


def _shards(count: int) -> str:
    return f"{count} shard{'' if count == 1 else 's'}"
