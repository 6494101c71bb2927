"""Seals gossip: AES-256-GCM under keys derived from the cluster's secrets. Bytes in, bytes out, for `cluster.gossip`.

The first key seals, every key opens: so a secret is changed in three rounds of restarts (add the new one behind the
old, swap them, drop the old). The cluster's name is associated data: another cluster's messages do not open, even
under the same secret. Nonces are random, 96 bits: under one secret the chance that two of 2^32 messages share one is
2^-32, and a cluster of 30 sends that many in a year; change the secret now and then.

**Replay** of an old message is harmless, so there is no window of seen nonces. Claims about members carry an
incarnation that only its owner raises, and an older or equal one changes nothing that is newer; at worst a replayed
suspicion of the present incarnation is refuted, as an honest one would be, and a replayed member that everybody has
forgotten is probed, found dead and forgotten again. An Ack or Nack counts only for a sequence that is being waited
for, and sequences start at a random number of 61 bits in each process and are not used twice. A replayed Ping is
answered with one Ack, and a replayed PingRequest with one Ping. A replayed push/pull is a list of such claims.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cluster.errors import ClusterMisconfigured, MalformedMessage

if TYPE_CHECKING:
    from collections.abc import Sequence

KEY_BYTES: Final = 32
KEYS_MAX: Final = 8
"""Each is tried on a message that does not open: a bound on what garbage costs."""
SEAL_BYTES: Final = 1 + 12 + 16
"""What sealing adds: format, nonce, tag."""

_FORMAT: Final = 1
_NONCE_BYTES: Final = 12
_ASSOCIATED: Final = b"runnel-gossip-1\0"


class NotForUs(MalformedMessage):
    """It does not open: another secret, another cluster, or garbage. Which of them cannot be known."""


def derive_key(secret: bytes) -> bytes:
    """The gossip key of a cluster secret (HKDF-SHA256)."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"runnel-gossip-1 secret").derive(secret)


def open_key(cluster: str) -> bytes:
    """The key of a cluster without a secret. It keeps other clusters out, and nobody else: for loopback only."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"runnel-gossip-1 open").derive(cluster.encode())


class Keyring:
    """A ring of 32-byte keys. Immutable, so any thread may use it."""

    def __init__(self, keys: Sequence[bytes], cluster: str) -> None:
        if not 1 <= len(keys) <= KEYS_MAX or any(len(key) != KEY_BYTES for key in keys):
            raise ClusterMisconfigured(f"gossip needs 1 to {KEYS_MAX} keys of {KEY_BYTES} bytes")
        self._ciphers = tuple(AESGCM(key) for key in keys)
        self._associated = _ASSOCIATED + cluster.encode()

    @classmethod
    def of_cluster(cls, cluster: str, secrets: Sequence[bytes]) -> Keyring:
        """The ring of these cluster secrets, or of a cluster without any."""
        return cls([derive_key(secret) for secret in secrets] or [open_key(cluster)], cluster)

    def seal(self, data: bytes) -> bytes:
        """``data`` with `SEAL_BYTES` more."""
        nonce = os.urandom(_NONCE_BYTES)
        return b"".join((bytes((_FORMAT,)), nonce, self._ciphers[0].encrypt(nonce, data, self._associated)))

    def open(self, sealed: bytes) -> bytes:
        """The reverse. Raises NotForUs."""
        if len(sealed) < SEAL_BYTES or sealed[0] != _FORMAT:
            raise NotForUs("not a sealed message")
        nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        for cipher in self._ciphers:
            try:
                return cipher.decrypt(nonce, body, self._associated)
            except InvalidTag:
                continue
        raise NotForUs("it does not open: another secret, another cluster, or garbage")
