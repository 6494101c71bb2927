"""A node as gossip sees it (DESIGN section 2: Member, Incarnation). Values only.

`cluster.swim` decides who is alive, `cluster.gossip` drives it, everybody else reads `Member`s.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Kind(enum.Enum):
    """What a node does. A *role* is something else (RBAC)."""

    GATEWAY = "gateway"
    INGEST = "ingest"
    QUERY = "query"


class MemberState(enum.Enum):
    """What gossip believes of a member."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class MemberMeta:
    """What a member says of itself: at most 512 bytes when encoded.

    ``addresses`` maps a door to HOST:PORT ("grpc", "http", "raft"). ``load`` is work under way (queries running, or
    shards owned), ``revision`` the newest Catalog Revision known there: a hint, never trusted for safety.
    """

    kind: Kind
    addresses: Mapping[str, str] = field(default_factory=dict)
    zone: str = ""
    version: str = ""
    load: float = 0.0
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """One node. ``address`` is HOST:PORT of its gossip (UDP and TCP); ``incarnation`` grows when it refutes."""

    name: str
    address: str
    incarnation: int
    state: MemberState
    meta: MemberMeta

    @property
    def is_usable(self) -> bool:
        """Send work there: a suspect may be slow, but it has not been declared dead."""
        return self.state in (MemberState.ALIVE, MemberState.SUSPECT)
