"""A voter's files, and whether they can be used. Blocking; driven by `cluster.raft` at start and in its thread.

Raft's state here is a Placement and may be lost without harm (it is computed again), but pysyncobj starts *empty
and silent*, or not at all, when its files are damaged. So they are judged before it sees them, and set aside
with their folder kept for a look when they are not sound.
"""

from __future__ import annotations

import logging
import os
import shutil
import struct
import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

DUMP: Final = "raft.state"
JOURNAL: Final = "raft.journal"
META: Final = "raft.journal.meta"
ASIDE: Final = "unreadable"
"""Folder for the newest unsound files: one set, so it does not grow."""
_MAGIC: Final = b"RUNNELRAFT1\n"
_HEADER: Final = struct.Struct("<24s8sII")  # pysyncobj's journal: name, version, format, end of the last record
_RECORD: Final = struct.Struct("<QQ")  # index, term; then the command
_COMMAND_KINDS: Final = 4
_RECORD_BYTES_MAX: Final = 4 << 20

LogEntry = tuple[bytes, int, int]
"""Command, index, term."""


class Unsound(ClusterError):
    """Files that pysyncobj would misread."""

    code = "raft_state_unsound"


class _Dump(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    state: bytes
    last: LogEntry
    before: LogEntry


class _Meta(msgspec.Struct, forbid_unknown_fields=True):
    currentTerm: int = 0
    votedForNodeId: str | None = None
    raftCommitIndex: int = 1


def with_checksum(command: bytes) -> bytes:
    """As it is replicated: the journal has none, and one wrong bit of a version could outlive every controller."""
    return zlib.crc32(command).to_bytes(4, "little") + command


def write_dump(path: Path, state: bytes, last: LogEntry, before: LogEntry) -> None:
    """The state at entry ``last``, and the entry below, which pysyncobj wants too."""
    body = msgspec.msgpack.encode(_Dump(state, last, before))
    path.write_bytes(_MAGIC + zlib.crc32(body).to_bytes(4, "little") + body)


def read_dump(path: Path) -> tuple[bytes, LogEntry, LogEntry]:
    """The reverse. Raises Unsound, OSError."""
    data = path.read_bytes()
    start = len(_MAGIC) + 4
    body = data[start:]
    if not data.startswith(_MAGIC) or zlib.crc32(body).to_bytes(4, "little") != data[len(_MAGIC) : start]:
        raise Unsound(f"{path.name}: not a dump, or damaged")
    try:
        dump = msgspec.msgpack.decode(body, type=_Dump)
    except (msgspec.DecodeError, ValueError) as error:
        raise Unsound(f"{path.name}: {error}") from error
    return dump.state, dump.last, dump.before


def write_meta(path: Path, meta: Mapping[str, object]) -> None:
    """Term, vote and commit index, by pysyncobj's names."""
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.encode(meta))
    os.replace(temporary, path)


def read_meta(path: Path) -> dict[str, object]:
    """The reverse; empty if there is none. Raises Unsound, OSError."""
    if not path.exists():
        return {}
    try:
        meta = msgspec.json.decode(path.read_bytes(), type=_Meta)
    except (msgspec.DecodeError, ValueError) as error:
        raise Unsound(f"{path.name}: {error}") from error
    return msgspec.structs.asdict(meta)


def prepare(folder: Path) -> None:
    """Make the folder, and see to it that what is in it is sound or gone. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _judge(folder)
    except (Unsound, OSError) as error:
        set_aside(folder, str(error))


def set_aside(folder: Path, reason: str) -> None:
    """Start empty: the leader sends what there is, and a Placement can be computed again."""
    log.warning("raft state cannot be used and is set aside; starting empty: %s", reason)
    aside = folder / ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in (DUMP, JOURNAL, META):
        if (folder / name).exists():
            os.replace(folder / name, aside / name)


def _judge(folder: Path) -> None:
    dump, journal = folder / DUMP, folder / JOURNAL
    commit = read_meta(folder / META).get("raftCommitIndex", 1)
    assert isinstance(commit, int)
    dumped = read_dump(dump)[1][1] if dump.exists() else 0
    indexes = _indexes(journal) if journal.exists() else []
    if dumped:
        return  # pysyncobj fits the journal to the dump
    if indexes and indexes[0] != 1:
        raise Unsound("the journal begins after what was dumped, and there is no dump")
    if commit > max(len(indexes), 1):
        raise Unsound("more was committed than is in the journal")


def _indexes(path: Path) -> list[int]:
    """The indexes of a journal's records, which must be a row without a gap."""
    data = path.read_bytes()
    if len(data) < _HEADER.size:
        raise Unsound(f"{path.name}: {len(data)} bytes are no journal")
    name, _, version, end = _HEADER.unpack_from(data)
    if not name.startswith(b"PYSYNCOBJ\0") or version != 1 or not _HEADER.size <= end <= len(data):
        raise Unsound(f"{path.name}: not a journal")
    indexes: list[int] = []
    offset = _HEADER.size
    while offset < end:
        index, offset = _record(data, offset, end, path.name)
        if indexes and index != indexes[-1] + 1:
            raise Unsound(f"{path.name}: entry {index} after {indexes[-1]}")
        indexes.append(index)
    return indexes


def _record(data: bytes, offset: int, end: int, name: str) -> tuple[int, int]:
    """Index of the record at ``offset``, and where the next one begins."""
    after = offset + 4 + int.from_bytes(data[offset : offset + 4], "little") + 4
    size = after - offset - 8
    if (
        not _RECORD.size < size <= _RECORD_BYTES_MAX
        or after > end
        or data[after - 4 : after] != data[offset : offset + 4]
    ):
        raise Unsound(f"{name}: no record at byte {offset}")
    if data[offset + 4 + _RECORD.size] >= _COMMAND_KINDS:
        raise Unsound(f"{name}: no command at byte {offset}")
    index: int = _RECORD.unpack_from(data, offset + 4)[0]
    return index, after
