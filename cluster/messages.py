"""What gossip says: messages as MessagePack, in packets (UDP) and on streams (TCP). Bytes in, values out, no I/O.

`cluster.swim` makes and reads them; `cluster.gossip` seals what goes out (`cluster.keyring`) and moves it. The first
byte of each packet and stream message is the wire version, inside the seal: a member that was upgraded is told apart
from a forger. Every string, number and list has a bound that the decoder enforces.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import msgspec

from cluster.errors import ClusterMisconfigured, MalformedMessage
from cluster.members import Kind, MemberMeta, MemberState

if TYPE_CHECKING:
    from collections.abc import Iterable

WIRE_VERSION: Final = 1
META_BYTES_MAX: Final = 512
MEMBERS_MAX: Final = 1024
"""Members and tombstones that one member knows; also the members of one push/pull."""
INCARNATION_MAX: Final = 2**53
SEQUENCE_MAX: Final = 2**62
PACKET_OVERHEAD_BYTES: Final = 33
"""The seal (29 bytes) and the head of a packet: what `SwimConfig.packet_bytes_max` also has to hold."""

_HEAD: Final = struct.Struct(">BBH")  # wire version, MessagePack's array16, number of messages
_ARRAY16: Final = 0xDC
_MESSAGES_MAX: Final = 255

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=META_BYTES_MAX)]
Address: TypeAlias = Annotated[str, msgspec.Meta(max_length=64)]
Incarnation: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=INCARNATION_MAX)]
Sequence: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=SEQUENCE_MAX)]
MetaBytes: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=META_BYTES_MAX)]


class OtherVersion(MalformedMessage):
    """A member of this cluster that speaks another version of the wire protocol."""

    def __init__(self, version: int) -> None:
        super().__init__(f"wire version {version}; this node speaks {WIRE_VERSION}")
        self.version = version


def split_address(text: str) -> tuple[str, int]:
    """HOST:PORT or [HOST]:PORT as its two parts. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@functools.lru_cache(maxsize=4096)
def check_address(text: str) -> None:
    """An address literal with a port: members never make each other resolve names. Raises ValueError."""
    ipaddress.ip_address(split_address(text)[0])


class _Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages: a MessagePack array that begins with its tag."""


# -- in packets ------------------------------------------------------------------------------------------


class Ping(_Message, frozen=True, tag=1):
    """Are you alive? ``target`` guards against another member that took the address over."""

    sequence: Sequence
    target: Name


class Ack(_Message, frozen=True, tag=2):
    """Alive: the answer to a Ping, or to a PingRequest when the target answered."""

    sequence: Sequence


class Nack(_Message, frozen=True, tag=3):
    """The target has not answered so far; but this says that the asker's own network works (Lifeguard)."""

    sequence: Sequence


class PingRequest(_Message, frozen=True, tag=4):
    """Ping ``target`` for me."""

    sequence: Sequence
    target: Name
    address: Address

    def __post_init__(self) -> None:
        check_address(self.address)


class Alive(_Message, frozen=True, tag=5):
    """A member is alive, at this address and with this meta."""

    name: Name
    address: Address
    incarnation: Incarnation
    meta: MetaBytes

    def __post_init__(self) -> None:
        check_address(self.address)


class Suspect(_Message, frozen=True, tag=6):
    """``accuser`` could not reach the member."""

    name: Name
    incarnation: Incarnation
    accuser: Name


class Dead(_Message, frozen=True, tag=7):
    """The member was not refuted in time, or it leaves (``accuser`` is itself)."""

    name: Name
    incarnation: Incarnation
    accuser: Name


PacketMessage: TypeAlias = Ping | Ack | Nack | PingRequest | Alive | Suspect | Dead


# -- on streams ------------------------------------------------------------------------------------------

STATES: Final = (MemberState.ALIVE, MemberState.SUSPECT, MemberState.DEAD, MemberState.LEFT)


class Entry(_Message, frozen=True):
    """One member in a push/pull. ``state`` is an index into `STATES`."""

    name: Name
    address: Address
    incarnation: Incarnation
    state: Annotated[int, msgspec.Meta(ge=0, le=3)]
    meta: MetaBytes

    def __post_init__(self) -> None:
        check_address(self.address)


class PushPull(_Message, frozen=True, tag=16):
    """Everything that the sender believes, itself included. ``sent_at_ms`` is its wall clock."""

    name: Name
    address: Address
    sent_at_ms: Annotated[int, msgspec.Meta(ge=0)]
    members: Annotated[list[Entry], msgspec.Meta(max_length=MEMBERS_MAX + 1)]

    def __post_init__(self) -> None:
        check_address(self.address)


class StreamPing(_Message, frozen=True, tag=17):
    """A ping over TCP, for networks that lose packets."""

    target: Name


class StreamPong(_Message, frozen=True, tag=18):
    """The answer, from ``name``."""

    name: Name


class NameIsTaken(_Message, frozen=True, tag=19):
    """The refusal of a push/pull: a live member of the sender's name is at ``holder``."""

    holder: Address

    def __post_init__(self) -> None:
        check_address(self.holder)


StreamMessage: TypeAlias = PushPull | StreamPing | StreamPong | NameIsTaken

_ENCODER: Final = msgspec.msgpack.Encoder()
_PACKET: Final[msgspec.msgpack.Decoder[list[PacketMessage]]] = msgspec.msgpack.Decoder(
    Annotated[list[PacketMessage], msgspec.Meta(max_length=_MESSAGES_MAX)]
)
_STREAM: Final[msgspec.msgpack.Decoder[StreamMessage]] = msgspec.msgpack.Decoder(StreamMessage)


def encode_message(message: PacketMessage) -> bytes:
    """One message of a packet."""
    return _ENCODER.encode(message)


def encode_packet(messages: Iterable[bytes]) -> bytes:
    """A packet of encoded messages, not yet sealed."""
    parts = list(messages)
    assert len(parts) <= _MESSAGES_MAX
    return _HEAD.pack(WIRE_VERSION, _ARRAY16, len(parts)) + b"".join(parts)


def decode_packet(data: bytes) -> list[PacketMessage]:
    """The reverse. Raises MalformedMessage."""
    _check_version(data)
    try:
        return _PACKET.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not a packet: {error}") from error


def encode_stream(message: StreamMessage) -> bytes:
    """One stream message, not yet sealed."""
    return bytes((WIRE_VERSION,)) + _ENCODER.encode(message)


def decode_stream(data: bytes) -> StreamMessage:
    """The reverse. Raises MalformedMessage."""
    _check_version(data)
    try:
        return _STREAM.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not a stream message: {error}") from error


def _check_version(data: bytes) -> None:
    if not data:
        raise MalformedMessage("an empty message")
    if data[0] != WIRE_VERSION:
        raise OtherVersion(data[0])


# -- the meta of a member --------------------------------------------------------------------------------


class _Meta(_Message, frozen=True):
    kind: Kind
    addresses: dict[Text, Text]
    zone: Text
    version: Text
    load: float
    revision: Annotated[int, msgspec.Meta(ge=0)]


_META: Final = msgspec.msgpack.Decoder(_Meta)


def encode_meta(meta: MemberMeta) -> bytes:
    """At most `META_BYTES_MAX` bytes. Raises ClusterMisconfigured for more."""
    wire = _Meta(meta.kind, dict(meta.addresses), meta.zone, meta.version, float(meta.load), meta.revision)
    data = _ENCODER.encode(wire)
    if len(data) > META_BYTES_MAX:
        raise ClusterMisconfigured(f"a member's meta has {len(data)} bytes, at most {META_BYTES_MAX}: shorten its zone")
    return data


def decode_meta(data: bytes) -> MemberMeta:
    """The reverse. Raises MalformedMessage."""
    try:
        wire = _META.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not the meta of a member: {error}") from error
    return MemberMeta(wire.kind, wire.addresses, wire.zone, wire.version, wire.load, wire.revision)
