"""Placement: which node owns which shard (LOG L32). Values, their order, and their bytes.

The complete map with a version (Catalog epoch, number); the greater version wins, whoever sends it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from cluster.errors import MalformedMessage

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, order=True)
class PlacementVersion:
    """``catalog_epoch``: the sequence of the open object of the controller's Catalog. Zero is "none yet"."""

    catalog_epoch: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """The complete map. ``owners`` maps a shard's log id to a node's name; a shard may have no owner for a while."""

    version: PlacementVersion = PlacementVersion()
    controller: str = ""
    owners: Mapping[int, str] = field(default_factory=dict)

    def shards_of(self, node: str) -> frozenset[int]:
        """The shards that ``node`` owns."""
        return frozenset(shard for shard, owner in self.owners.items() if owner == node)


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    catalog_epoch: int
    number: int
    controller: str
    owners: dict[int, str]


def encode_placement(placement: Placement) -> bytes:
    """MessagePack: what Raft replicates and what Watch sends."""
    version = placement.version
    return msgspec.msgpack.encode(
        _Wire(version.catalog_epoch, version.number, placement.controller, dict(placement.owners))
    )


def decode_placement(data: bytes) -> Placement:
    """The reverse. Raises MalformedMessage."""
    try:
        wire = msgspec.msgpack.decode(data, type=_Wire)
    except (msgspec.DecodeError, ValueError) as error:
        raise MalformedMessage(f"not a Placement: {error}") from error
    return Placement(PlacementVersion(wire.catalog_epoch, wire.number), wire.controller, wire.owners)
