"""What a voter is told, what it keeps, and what it may say. For `cluster.raft`; no I/O."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.errors import ClusterMisconfigured, MalformedMessage
from cluster.placement import Placement, decode_placement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RaftConfig:
    """``voters`` maps each voter's name to HOST:PORT, and is the same on each. Raises ClusterMisconfigured."""

    name: str
    listen: tuple[str, int]
    voters: Mapping[str, str]
    folder: Path
    secrets: tuple[bytes, ...] = field(repr=False)
    """The first seals what is sent, each of them opens what comes."""

    def __post_init__(self) -> None:
        if len(self.voters) not in (1, 3, 5):
            raise ClusterMisconfigured(f"{len(self.voters)} Raft voters: name 1, 3 or 5 ingest nodes")
        if self.name not in self.voters:
            raise ClusterMisconfigured(f"{self.name!r} is not one of the Raft voters {sorted(self.voters)}")
        if len(set(self.voters.values())) != len(self.voters):
            raise ClusterMisconfigured("two Raft voters have the same address")
        for name, address in self.voters.items():
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
                raise ClusterMisconfigured(f"Raft voter {name!r}: {address!r} is not HOST:PORT")
        if not self.secrets or not all(self.secrets):
            raise ClusterMisconfigured("Raft needs the cluster's secret")


class Keeper:
    """The state machine: the newest Placement. Never raises: pysyncobj would apply that entry for ever."""

    def __init__(self) -> None:
        self.command = b""
        self._placement = Placement()

    def keep(self, command: bytes) -> None:
        """The greater version wins (L32); of two with one version the first."""
        try:
            placement = decode_placement(command)
        except MalformedMessage as error:
            log.warning("a raft entry is ignored: %s", error)
            return
        if placement.version > self._placement.version:
            self._placement, self.command = placement, command


class _AsInfo(logging.Filter):
    """What pysyncobj warns of is harmless here, and nothing that an operator could act on."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno > logging.INFO:
            record.levelno, record.levelname = logging.INFO, "INFO"
        return logging.getLogger(record.name).isEnabledFor(record.levelno)


_AS_INFO: Final = _AsInfo()


def quieten_pysyncobj() -> None:
    """May be called again: a filter is added once."""
    for module in ("syncobj", "serializer", "dns_resolver"):
        logging.getLogger(f"pysyncobj.{module}").addFilter(_AS_INFO)
