"""What a node knows of its cluster, as metrics: read when /metrics is scraped, counted nowhere twice.

`CLUSTER_METRICS` names all of them; docs/metrics.md prints it, and each kind of node fills those that it has.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

    from nodes.status import ClusterControl, ClusterStatus

CLUSTER_METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "runnel_cluster_members": ("gauge", "Members by kind and state, as gossip sees them here."),
    "runnel_cluster_shards": ("gauge", "Shards by owner."),
    "runnel_cluster_shards_without_owner": ("gauge", "Shards that nobody owns: their writes wait."),
    "runnel_placement_epoch": ("gauge", "Catalog epoch of the newest Placement known here."),
    "runnel_placement_number": ("gauge", "Its number."),
    "runnel_is_controller": ("gauge", "1 on the node that is the controller."),
    "runnel_gossip_packets_in_total": ("counter", "Gossip packets received."),
    "runnel_gossip_packets_out_total": ("counter", "Gossip packets sent."),
    "runnel_gossip_packets_refused_total": ("counter", "Packets that were not of this cluster, or garbage."),
    "runnel_gossip_probes_failed_total": ("counter", "Members that did not answer a probe."),
    "runnel_gossip_refutations_total": ("counter", "How often others suspected this node wrongly."),
    "runnel_appends_total": ("counter", "Gateway: shard parts of writes."),
    "runnel_append_retries_total": ("counter", "Gateway: tries that had to be repeated while ownership moved."),
    "runnel_proposals_total": ("counter", "Gateway: changes to the Catalog."),
    "runnel_proposal_retries_total": ("counter", "Gateway: proposals that had to be repeated."),
    "runnel_query_retries_total": ("counter", "Gateway: statements that another query node had to take."),
    "runnel_tails_total": ("counter", "Query node: snapshots of shards that owners answered."),
    "runnel_store_reads_total": ("counter", "Query node: snapshots read from the store, as an owner was silent."),
}
"""Name -> (type, meaning)."""


class ClusterMetrics(Collector):
    """A source for `nodes.metrics.Metrics`."""

    def __init__(self, control: ClusterControl, name: str) -> None:
        self._control = control
        self._name = name

    def describe(self) -> list[Metric]:
        """Nothing before the first scrape: the node may not have joined yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        status = self._control.cluster_status()
        yield from _of_status(status, self._name)
        for name, value in self._control.numbers().items():
            kind, doc = CLUSTER_METRICS[name]
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            yield family(name.removesuffix("_total"), doc, value=float(value))


def _of_status(status: ClusterStatus, name: str) -> Iterator[Metric]:
    members = GaugeMetricFamily("runnel_cluster_members", _doc("runnel_cluster_members"), labels=["kind", "state"])
    for (kind, state), count in sorted(Counter((m.kind, m.state) for m in status.members).items()):
        members.add_metric([kind, state], count)
    yield members
    owners = GaugeMetricFamily("runnel_cluster_shards", _doc("runnel_cluster_shards"), labels=["owner"])
    for owner, count in sorted(Counter(shard.owner for shard in status.shards if shard.owner).items()):
        owners.add_metric([owner], count)
    yield owners
    for metric, value in (
        ("runnel_cluster_shards_without_owner", sum(1 for shard in status.shards if not shard.owner)),
        ("runnel_placement_epoch", status.placement_epoch),
        ("runnel_placement_number", status.placement_number),
        ("runnel_is_controller", int(bool(status.controller) and status.controller == name)),
    ):
        yield GaugeMetricFamily(metric, _doc(metric), value=float(value))


def _doc(name: str) -> str:
    return CLUSTER_METRICS[name][1]
