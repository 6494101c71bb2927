"""The cluster's secret: what its nodes know and nobody else (gossip is encrypted with it).

A file with one secret for each line; during a rotation the first is used and all are accepted. Read once at start by
whatever joins a cluster. Nothing here puts a secret into a message, a log line or a repr.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.errors import ClusterMisconfigured

if TYPE_CHECKING:
    from pathlib import Path

SECRET_BYTES_MIN: Final = 32
SECRETS_MAX: Final = 8
"""Lines in one file: a rotation needs two."""
FILE_BYTES_MAX: Final = 64 * 1024
MADE_BYTES: Final = 48
_NOT_OURS_ALONE: Final = 0o177
"""Everything beyond 0600."""


@dataclass(frozen=True, slots=True)
class ClusterSecret:
    """``keys``: the first is used for what this node sends, each is accepted from others."""

    keys: tuple[bytes, ...] = field(repr=False)

    @property
    def primary(self) -> bytes:
        return self.keys[0]


def read_secret(path: Path) -> ClusterSecret:
    """Read and check the file. ClusterMisconfigured says what is wrong with it, never what is in it."""
    lines = [line.strip() for line in _read_private(path).splitlines()]
    keys = tuple(dict.fromkeys(line for line in lines if line))
    if not keys:
        raise ClusterMisconfigured(f"the cluster secret {path} is empty")
    if len(keys) > SECRETS_MAX:
        raise ClusterMisconfigured(
            f"the cluster secret {path} has {len(keys)} lines; at most {SECRETS_MAX} are allowed"
        )
    for key in keys:
        if len(key) < SECRET_BYTES_MIN:
            number = lines.index(key) + 1
            raise ClusterMisconfigured(
                f"line {number} of the cluster secret {path} is shorter than {SECRET_BYTES_MIN} bytes"
            )
    return ClusterSecret(keys)


def make_secret(path: Path) -> ClusterSecret:
    """Write a new secret to a file that is not there yet (mode 0600), and return it."""
    key = secrets.token_urlsafe(MADE_BYTES).encode("ascii")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ClusterMisconfigured(
            f"{path} is there already; to rotate, put a new first line into it on every node"
        ) from error
    except OSError as error:
        raise ClusterMisconfigured(f"cannot write the cluster secret {path}: {error.strerror}") from error
    with open(handle, "wb") as file:
        file.write(key + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return ClusterSecret((key,))


def _read_private(path: Path) -> bytes:
    """The bytes of a file that only we (or root) can read: judged by the opened file, so it cannot change between."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ClusterMisconfigured(f"cannot read the cluster secret {path}: {error.strerror}") from error
    with open(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ClusterMisconfigured(f"the cluster secret {path} is not a file")
        if found.st_mode & _NOT_OURS_ALONE:
            mode = stat.S_IMODE(found.st_mode)
            raise ClusterMisconfigured(f"the cluster secret {path} has mode {mode:04o}; run: chmod 600 {path}")
        if found.st_uid not in (os.geteuid(), 0):
            raise ClusterMisconfigured(f"the cluster secret {path} belongs to user {found.st_uid}, not to this process")
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise ClusterMisconfigured(f"the cluster secret {path} is larger than {FILE_BYTES_MAX} bytes")
    return data
