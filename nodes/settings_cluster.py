"""The settings of a node that is one of several: who is in the cluster, and how nodes reach and trust each other.

Values only. `nodes.settings_model` puts these sections into `Settings`; `nodes.clustercheck` says what cannot work
together; the node kinds read them.
"""
# ruff: noqa: RUF009 - `setting` is dataclasses.field under the name that says what it declares

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodes.settings_kinds import (
    ADDRESS,
    AUTO,
    COUNT,
    DURATION,
    NONE,
    PEER,
    TEXT,
    VOTER,
    Address,
    Voter,
    at_least,
    list_of,
    optional,
    setting,
)

GRPC_DEFAULT: Final = Address("127.0.0.1", 50051)
GOSSIP_PORT_DEFAULT: Final = 7946
RAFT_PORT_DEFAULT: Final = 7947
PARTITIONS_ALONE: Final = 1
PARTITIONS_IN_CLUSTER: Final = 4
INTERVAL_SECONDS_MIN: Final = 0.01


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The cluster that `runnel gateway`, `ingest` and `query` nodes make together."""

    name: str = setting("runnel", TEXT, "The cluster's name. Nodes of another name are turned away.")
    join: tuple[Address, ...] = setting(
        NONE,
        list_of(PEER),
        "Gossip addresses of nodes to ask at start; one that answers is enough. This node's own may be among them.",
    )
    zone: str = setting(
        "", TEXT, "Where this node stands (a rack, an availability zone); shown in the cluster's status."
    )
    secret_file: str = setting(
        "", TEXT, "File with the cluster's secret (`runnel cluster init`). Must be given to listen beyond loopback."
    )
    advertise: str = setting(
        "", TEXT, "Host by which other nodes reach this one. Empty: the host of each listen address."
    )
    partitions_default: int | None = setting(
        AUTO,
        optional(at_least(COUNT, 1), AUTO),
        f"Partitions of a table that does not say. auto: {PARTITIONS_ALONE} in one process, "
        f"{PARTITIONS_IN_CLUSTER} in a cluster.",
    )

    def partitions(self, *, in_cluster: bool) -> int:
        """Partitions of a table that does not say."""
        return self.partitions_default or (PARTITIONS_IN_CLUSTER if in_cluster else PARTITIONS_ALONE)

    def reached_at(self, listen: Address) -> Address:
        """Where other nodes find what listens there (with the port that it really got)."""
        return Address(self.advertise or listen.host, listen.port)


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    """The gRPC server that other nodes talk to."""

    listen: Address | None = setting(
        NONE,
        optional(ADDRESS, NONE),
        f"Where gRPC is served. none: {GRPC_DEFAULT} in a cluster's node, not at all in one process.",
    )

    @property
    def address(self) -> Address:
        """Where a cluster's node serves it."""
        return self.listen or GRPC_DEFAULT


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """Gossip: who is alive (SWIM). The defaults are memberlist's for a local network."""

    listen: Address = setting(f"127.0.0.1:{GOSSIP_PORT_DEFAULT}", ADDRESS, "Where gossip listens, by UDP and by TCP.")
    probe_interval: float = setting(
        "1s", at_least(DURATION, INTERVAL_SECONDS_MIN), "How often this node asks another whether it is alive."
    )
    probe_timeout: float = setting(
        "500ms", at_least(DURATION, INTERVAL_SECONDS_MIN), "No answer within this time: others are asked to try."
    )
    indirect_checks: int = setting(3, COUNT, "How many others are asked to try.")
    suspicion_mult: int = setting(
        4,
        at_least(COUNT, 1),
        "How long a suspect may refute before it is declared dead: this, times log10 of the nodes, in probes.",
    )
    retransmit_mult: int = setting(
        4, at_least(COUNT, 1), "How often news is passed on: this, times log10 of the nodes."
    )
    gossip_interval: float = setting(
        "200ms", at_least(DURATION, INTERVAL_SECONDS_MIN), "How often news is passed on between probes."
    )
    gossip_nodes: int = setting(3, at_least(COUNT, 1), "To how many nodes each time.")
    push_pull_interval: float = setting(
        "30s", at_least(DURATION, INTERVAL_SECONDS_MIN), "How often everything is compared with one other node, by TCP."
    )


@dataclass(frozen=True, slots=True)
class RaftSettings:
    """Raft between the ingest nodes that vote: who is the controller, and which node owns which shard."""

    listen: Address = setting(
        f"127.0.0.1:{RAFT_PORT_DEFAULT}", ADDRESS, "Where Raft listens, on an ingest node that votes."
    )
    voters: tuple[Voter, ...] = setting(
        NONE, list_of(VOTER), "The ingest nodes that vote: 1, 3 or 5, the same list on each of them. Others need none."
    )

    def is_voter(self, name: str) -> bool:
        """Whether the node of this name votes."""
        return any(voter.name == name for voter in self.voters)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS between nodes, each side with a certificate. Must be given to listen beyond loopback."""

    ca: str = setting("", TEXT, "File with the certificate authority that signed every node's certificate (PEM).")
    cert: str = setting("", TEXT, "File with this node's certificate (PEM).")
    key: str = setting("", TEXT, "File with its private key (PEM).")

    @property
    def is_on(self) -> bool:
        """All three files are named."""
        return bool(self.ca and self.cert and self.key)
