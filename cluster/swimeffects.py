"""What SWIM's machine asks for and reports: effects and notices (values only). `cluster.gossip` performs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from cluster.members import Member

# -- effects ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Seal ``data`` and send it by UDP. It may be lost."""

    address: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Exchange:
    """Push/pull with the member there: send `Swim.state`, give what comes back to `Swim.merge`. It may fail."""

    address: str


@dataclass(frozen=True, slots=True)
class PingStream:
    """Ping by TCP. Answer, if there is one: `Swim.stream_acked`."""

    address: str
    name: str
    sequence: int


# -- notices ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """It was unknown, dead or gone, and is alive."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """Its meta, its address, or whether it is suspected."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberLeft:
    """It said that it leaves."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberDead:
    """It was suspected, and not refuted in time."""

    member: Member


@dataclass(frozen=True, slots=True)
class NameTaken:
    """``claimant`` says that it is the member ``name``, which lives at ``holder``: it is not believed."""

    name: str
    holder: str
    claimant: str


@dataclass(frozen=True, slots=True)
class PacketsBlocked:
    """A member answers by TCP, and by UDP neither to us nor to others: the network is set up wrongly."""

    member: Member


@dataclass(frozen=True, slots=True)
class LeaveSent:
    """Enough members have been sent our leave: the process may end."""


Notice: TypeAlias = MemberJoined | MemberChanged | MemberLeft | MemberDead | NameTaken | PacketsBlocked | LeaveSent
Effect: TypeAlias = SendPacket | Exchange | PingStream | Notice
