"""Files that pysyncobj would misread are found before it sees them; sound ones are left alone."""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING

import pytest
from pysyncobj.journal import FileJournal

from cluster.errors import ClusterMisconfigured
from cluster.placement import Placement, PlacementVersion, encode_placement
from cluster.raft import RaftConfig  # which gives pysyncobj our file for the term
from cluster.raftconfig import Keeper
from cluster.raftfiles import (
    ASIDE,
    DUMP,
    JOURNAL,
    META,
    Unsound,
    prepare,
    read_dump,
    read_meta,
    set_aside,
    write_dump,
    write_meta,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENTRIES = [(b"\1", 1, 0), (b"\0abcd", 2, 1), (b"\0efgh", 3, 1)]


def journal(folder: Path, entries: list[tuple[bytes, int, int]], commit: int = 1) -> None:
    """As pysyncobj writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    written = FileJournal(str(folder / JOURNAL))
    for entry in entries:
        written.add(*entry)
    written.setRaftCommitIndex(commit)
    written.setCurrentTerm(1, "h1:1")
    written._destroy()


def is_kept(folder: Path) -> bool:
    prepare(folder)
    return not (folder / ASIDE).exists()


def test_what_pysyncobj_writes_is_sound(tmp_path: Path) -> None:
    assert is_kept(tmp_path / "new")
    journal(tmp_path / "a", ENTRIES, commit=3)
    assert is_kept(tmp_path / "a")
    assert read_meta(tmp_path / "a" / META) == {"currentTerm": 1, "votedForNodeId": "h1:1", "raftCommitIndex": 3}


def test_a_journal_after_a_compaction_needs_its_dump(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pysyncobj would start, elect, and never apply anything again."""
    journal(tmp_path, [(b"\0x", 7, 1), (b"\0y", 8, 1)], commit=8)
    write_dump(tmp_path / DUMP, b"state", (b"\0y", 8, 1), (b"\0x", 7, 1))
    assert is_kept(tmp_path)
    (tmp_path / DUMP).unlink()
    assert not is_kept(tmp_path)
    assert "set aside" in caplog.text
    assert not (tmp_path / JOURNAL).exists()


def test_a_commit_above_the_journals_end_is_unsound(tmp_path: Path) -> None:
    journal(tmp_path, ENTRIES, commit=9)
    assert not is_kept(tmp_path)


def spoilt() -> Iterator[tuple[str, bytes]]:
    header = struct.Struct("<24s8sII")
    name, record = b"PYSYNCOBJ".ljust(24, b"\0"), struct.pack("<IQQcI", 17, 1, 0, b"\1", 17)
    end = header.size + len(record)
    good = header.pack(name, b"0.3.17\0\0", 1, end) + record
    yield "good", good
    yield "empty", b""
    yield "short", good[:30]
    yield "other name", b"X" + good[1:]
    yield "other format", header.pack(name, b"", 2, end) + record
    yield "end beyond the file", header.pack(name, b"", 1, end + 1) + record
    yield "end in the header", header.pack(name, b"", 1, 3) + record
    yield "sizes differ", good[:-1] + b"\1"
    yield "huge record", header.pack(name, b"", 1, end) + struct.pack("<I", 1 << 31) + record[4:]
    yield "no command", header.pack(name, b"", 1, end - 1) + struct.pack("<IQQI", 16, 1, 0, 16)
    yield "unknown command", header.pack(name, b"", 1, end) + struct.pack("<IQQcI", 17, 1, 0, b"\7", 17)
    second = struct.pack("<IQQcI", 17, 5, 0, b"\1", 17)
    yield "a gap", header.pack(name, b"", 1, end + len(second)) + record + second


@pytest.mark.parametrize(("what", "data"), [*spoilt()], ids=[what for what, _ in spoilt()])
def test_a_spoilt_journal_is_set_aside(tmp_path: Path, what: str, data: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(data)
    assert is_kept(tmp_path) == (what == "good")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"currentTerm": "x"}', b'{"other": 1}', b"\x80\x02}q\x00."])
def test_a_spoilt_term_is_set_aside(tmp_path: Path, data: bytes) -> None:
    journal(tmp_path, ENTRIES)
    (tmp_path / META).write_bytes(data)
    assert not is_kept(tmp_path)
    assert (tmp_path / ASIDE / META).read_bytes() == data
    assert read_meta(tmp_path / META) == {}


def test_a_dump_comes_back_or_is_unsound(tmp_path: Path) -> None:
    path = tmp_path / DUMP
    write_dump(path, b"state", ENTRIES[2], ENTRIES[1])
    assert read_dump(path) == (b"state", ENTRIES[2], ENTRIES[1])
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place])
        with pytest.raises(Unsound):
            read_dump(path)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(Unsound):
            read_dump(path)


def test_only_the_newest_unsound_files_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            write_meta(tmp_path / META, {"currentTerm": number})
            set_aside(tmp_path, f"reason {number}")
    assert sorted(p.name for p in tmp_path.iterdir()) == [ASIDE]
    assert read_meta(tmp_path / ASIDE / META)["currentTerm"] == 2
    assert len(caplog.records) == 3


# ---- what is kept, and what is told -----------------------------------------------------------------------------


def test_the_keeper_keeps_the_greater_and_of_equals_the_first() -> None:
    def command(epoch: int, number: int, owner: str = "a") -> bytes:
        return encode_placement(Placement(PlacementVersion(epoch, number), "a", {1: owner}))

    keeper = Keeper()
    kept = []
    for given in (command(1, 5), command(1, 4), b"junk", command(1, 5, "b"), command(2, 1), b"", command(1, 9)):
        keeper.keep(given)
        kept.append(keeper.command)
    assert kept == [command(1, 5)] * 4 + [command(2, 1)] * 3


@pytest.mark.parametrize(
    ("name", "voters", "secret"),
    [
        ("a", {}, b"s"),
        ("a", {"a": "h:1", "b": "h:2"}, b"s"),
        ("d", {"a": "h:1", "b": "h:2", "c": "h:3"}, b"s"),
        ("a", {"a": "h:1", "b": "h:1", "c": "h:3"}, b"s"),
        ("a", {"a": "h"}, b"s"),
        ("a", {"a": ":1"}, b"s"),
        ("a", {"a": "h:0"}, b"s"),
        ("a", {"a": "h:65536"}, b"s"),
        ("a", {"a": "h:1"}, b""),
    ],
)
def test_settings_that_make_no_raft_are_refused(
    tmp_path: Path, name: str, voters: dict[str, str], secret: bytes
) -> None:
    with pytest.raises(ClusterMisconfigured):
        RaftConfig(name, ("127.0.0.1", 1), voters, tmp_path, (secret,))


def test_no_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterMisconfigured):
        RaftConfig("a", ("127.0.0.1", 1), {"a": "h:1"}, tmp_path, ())


def test_the_secret_is_not_shown(tmp_path: Path) -> None:
    assert "hush" not in repr(RaftConfig("a", ("127.0.0.1", 1), {"a": "h:1"}, tmp_path, (b"hush",)))
