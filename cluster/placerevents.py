"""What the controller hears and what it orders: the values between `cluster.placer` and its driver (LOG L32)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.members import Member
    from cluster.placement import Placement, PlacementVersion


# ---- events -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeaderGained:
    """Raft says that this node leads."""


@dataclass(frozen=True, slots=True)
class LeaderLost:
    """Raft says that it does not, or that nobody does."""


@dataclass(frozen=True, slots=True)
class CatalogOpened:
    """Answer to OpenCatalog. ``epoch`` is the sequence of the open object, ``shards`` are all log ids of the store."""

    epoch: int
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CatalogFailed:
    """Answer to OpenCatalog: the store did not answer, or somebody was faster."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """The Catalog that was opened has been taken over by another controller (L12)."""


@dataclass(frozen=True, slots=True)
class ShardsChanged:
    """Shards were added to the store: all log ids."""

    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """Gossip's view, complete, with this node in it."""

    members: Mapping[str, Member]


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Its gRPC port refused connections twice in a row: enough to give its shards to others."""

    name: str


@dataclass(frozen=True, slots=True)
class Reachable:
    """Its gRPC port answers again. Needed only after Unreachable; a report says so too."""

    name: str


@dataclass(frozen=True, slots=True)
class Reported:
    """Answer to Announce. ``catalog_epoch`` is the newest that the node has heard of, from anybody."""

    name: str
    catalog_epoch: int
    owned: frozenset[int]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class ReportFailed:
    """Answer to Announce: refused, or nothing in time. No reason to move a shard."""

    name: str


@dataclass(frozen=True, slots=True)
class HandoverRequested:
    """Give the node's shards to others. ``leaving``: it stops when it has none left; else it stays, drained.

    A node's own word, ``draining`` in its reports, is what lasts.
    """

    name: str
    leaving: bool


@dataclass(frozen=True, slots=True)
class RebalanceRequested:
    """An operator wants the shards spread evenly now, whatever waits for quiet."""


@dataclass(frozen=True, slots=True)
class Learned:
    """A Placement from elsewhere: Raft's at start or later, a node's, another controller's. Any may be reported."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class Committed:
    """Raft has applied the Placement of this version."""

    version: PlacementVersion


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """Raft did not, or nobody knows."""

    version: PlacementVersion


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of a Wake has come. One too many, or too early, does no harm."""


Event: TypeAlias = (
    LeaderGained
    | LeaderLost
    | CatalogOpened
    | CatalogFailed
    | Fenced
    | ShardsChanged
    | MembersChanged
    | Unreachable
    | Reachable
    | Reported
    | ReportFailed
    | HandoverRequested
    | RebalanceRequested
    | Learned
    | Committed
    | CommitFailed
    | Tick
)


# ---- effects ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenCatalog:
    """Open the Catalog's Log (L28) and answer CatalogOpened or CatalogFailed, once."""


@dataclass(frozen=True, slots=True)
class CloseCatalog:
    """Let go of it. An OpenCatalog under way is cancelled and never answered."""


@dataclass(frozen=True, slots=True)
class Announce:
    """Call Ingest.Announce there and answer Reported or ReportFailed, in a second or so."""

    name: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Issue:
    """A new Placement: push it to the watchers here, and propose it to Raft, at once and independently."""

    placement: Placement


@dataclass(frozen=True, slots=True)
class Repeat:
    """The Placement in force once more, to the watchers; to Raft only if ``propose`` (it has not taken it yet)."""

    placement: Placement
    propose: bool


@dataclass(frozen=True, slots=True)
class Wake:
    """Send Tick at this time. Replaces the Wake before it."""

    at: float


Effect: TypeAlias = OpenCatalog | CloseCatalog | Announce | Issue | Repeat | Wake
