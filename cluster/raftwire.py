"""What voters say to each other, and how it is sealed. Pure: bytes in, messages out; `cluster.raft` drives it.

pysyncobj's own wire is pickle. Here every message is a fixed structure in MessagePack, and every frame is
authenticated and encrypted before a byte of it is decoded: without the secret nobody gets further than one HMAC,
and with it nobody gets further than these structures. A frame also names the sender and a digest of its voter
list, so that voters whose lists differ find each other out instead of electing two leaders.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cluster.errors import ClusterDenied, MalformedMessage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FRAME_BYTES_MAX: Final = 4 << 20
"""Of one sealed frame: a snapshot is a Placement, an AppendEntries a few of them."""
HELLO_BYTES_MAX: Final = 4 << 10
"""Of a frame from a peer that has not proved that it knows the secret: it holds no more memory than this."""
HELLO_KEY_BYTES: Final = 32
ODD_NAMES_MAX: Final = 16
_DIGEST_BYTES: Final = 8


class _Message(msgspec.Struct, tag_field="type", forbid_unknown_fields=True):
    """Names and presence of fields are pysyncobj's."""


class Hello(_Message, tag="hello"):
    """The first in each direction: what the other must name in each frame from now on."""

    key: bytes


class Address(_Message, tag="address"):
    """Who connects. Empty: a sign of life."""

    address: str


class RequestVote(_Message, tag="request_vote"):
    """A candidate asks."""

    term: int
    last_log_index: int
    last_log_term: int


class ResponseVote(_Message, tag="response_vote"):
    """A vote."""

    term: int


class AppendEntries(_Message, tag="append_entries"):
    """A leader's heartbeat, with entries or with a snapshot. (Entries in pieces, which are pickled, never are.)"""

    term: int
    commit_index: int
    entries: list[tuple[bytes, int, int]] | msgspec.UnsetType = msgspec.UNSET
    prevLogIdx: int | msgspec.UnsetType | None = msgspec.UNSET
    prevLogTerm: int | msgspec.UnsetType | None = msgspec.UNSET
    serialized: tuple[bytes, bool, bool] | msgspec.UnsetType | None = msgspec.UNSET


class NextNodeIdx(_Message, tag="next_node_idx"):
    """A follower's answer to AppendEntries."""

    next_node_idx: int
    reset: bool
    success: bool


class ApplyCommand(_Message, tag="apply_command"):
    """A follower hands a proposal to the leader."""

    command: bytes
    request_id: int | msgspec.UnsetType = msgspec.UNSET


class ApplyCommandResponse(_Message, tag="apply_command_response"):
    """Where the proposal went, or why not."""

    request_id: int
    log_idx: int | msgspec.UnsetType = msgspec.UNSET
    log_term: int | msgspec.UnsetType = msgspec.UNSET
    error: int | msgspec.UnsetType = msgspec.UNSET


_Body: TypeAlias = (
    Hello | Address | RequestVote | ResponseVote | AppendEntries | NextNodeIdx | ApplyCommand | ApplyCommandResponse
)


class _Frame(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    digest: bytes
    name: str
    key: bytes  # the receiver's, drawn for this connection: an old recording opens nothing
    number: int  # 1, 2, 3 in each direction: nothing is repeated, left out, or moved
    body: _Body


class AnotherVoterList(ClusterDenied):
    """A peer that knows the secret has other voters in its settings."""

    def __init__(self, name: str, is_first: bool) -> None:
        super().__init__(f"voter {name!r} has another voter list")
        self.name = name
        self.is_first = is_first  # it tries again and again, and one line of a log says it


class Seal:
    """Seals and opens the frames of one voter. The same for all its connections.

    The first secret seals, each of them opens: so voters go on hearing each other while secrets are changed.
    """

    def __init__(self, name: str, voters: Mapping[str, str], secrets: Sequence[bytes]) -> None:
        self._name = name
        self._digest = _digest(voters)
        self._fernet = MultiFernet([Fernet(_derive(secret)) for secret in secrets])
        self._odd: set[str] = set()

    def seal(self, key: bytes, number: int, message: object) -> bytes:
        """A frame's bytes. ``message`` is what pysyncobj sends: a dict, or in the hand-shake bytes or a str."""
        plain = msgspec.msgpack.encode((self._digest, self._name, key, number, _named(message)))
        return self._fernet.encrypt(plain)

    def open(self, data: bytes, key: bytes, number: int) -> dict[str, Any] | bytes | str:
        """The reverse. ``key`` empty: none is expected yet. Raises ClusterDenied, MalformedMessage."""
        try:
            plain = self._fernet.decrypt(data)
        except InvalidToken:
            raise ClusterDenied("not sealed with our secret") from None
        try:
            frame = _DECODER.decode(plain)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise MalformedMessage(f"not a voter's message: {error}") from error
        self._check(frame, key, number)
        if isinstance(frame.body, Hello):
            return frame.body.key
        if isinstance(frame.body, Address):
            return frame.body.address
        built: dict[str, Any] = msgspec.to_builtins(frame.body, builtin_types=(bytes,))
        return built

    def _check(self, frame: _Frame, key: bytes, number: int) -> None:
        if frame.digest != self._digest:
            is_first = frame.name not in self._odd and len(self._odd) < ODD_NAMES_MAX
            if is_first:
                self._odd.add(frame.name)
            raise AnotherVoterList(frame.name, is_first)
        if key and frame.key != key:
            raise ClusterDenied("a frame of another connection")
        if frame.number != number:
            raise ClusterDenied("a frame out of order")


_DECODER: Final = msgspec.msgpack.Decoder(_Frame)


def _named(message: object) -> object:
    if isinstance(message, bytes):
        return Hello(message)
    if isinstance(message, str):
        return Address(message)
    return message


def _digest(voters: Mapping[str, str]) -> bytes:
    listed = msgspec.msgpack.encode(sorted(voters.items()))
    return hashlib.sha256(listed).digest()[:_DIGEST_BYTES]


def _derive(secret: bytes) -> bytes:
    """A key for this purpose alone: the cluster's secret protects gossip too."""
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"runnel raft 1").derive(secret)
    return base64.urlsafe_b64encode(key)
