"""Scripts for the Log's machines: one line is one answer and, behind the arrow, every effect that follows.

    append a            -> create 2 data
    created 2 unknown   -> create 2 data try 2

`run` plays a script against a real `LogCore` and compares. Objects that the store holds come from a `Shelf`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, Final

from storage.errors import CorruptObject, StoreFull, StoreUnavailable
from storage.frames import (
    Entry,
    EntryKind,
    Frame,
    FrameType,
    Header,
    LogObject,
    ObjectKind,
    decode_object,
    encode_object,
)
from storage.log import Identity, LogCore
from storage.logeffects import (
    CheckNext,
    CheckpointDraft,
    CheckpointStood,
    Closed,
    Collected,
    CreateObject,
    DeleteObject,
    Failed,
    ListObjects,
    Opened,
    Outcome,
    Proved,
    ReadObject,
    ReadPart,
    ReadsFailed,
    ReplayPaused,
    SettleObject,
    Stood,
    Ticket,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

STORE_ID: Final = b"S" * 16
NODE: Final = b"N" * 16
RIVAL: Final = b"R" * 16
LOG_ID: Final = 7


def text_entry(text: str) -> Entry:
    return Entry(EntryKind.ROWS, (Frame(FrameType.CLIENT, text.encode()),), row_count=1, offset_count=1)


def entry_text(entry: Entry) -> str:
    return bytes(memoryview(entry.frames[0].parts()[0])).decode()


def skip_entry(sequence: int) -> Entry:
    return Entry(EntryKind.SKIP, (Frame(FrameType.RECORD, b""),), base_offset=sequence)


class Ledger:
    """A state that writes down what it is told. A Checkpoint's first entry is ``k:text,text:part,part``."""

    def __init__(self, full_at: int = 0) -> None:
        self.k = 0
        self.lines: list[str] = []
        self.parts: list[str] = []
        self.refuses: set[str] = set()
        self.full_at = full_at
        self._fresh = 0

    def load(self, checkpoint: LogObject | None) -> Sequence[str]:
        if checkpoint is None:
            return ()
        head, lines, parts = entry_text(checkpoint.entries[0]).split(":")
        if "load" in self.refuses:
            raise CorruptObject("the Checkpoint's sections cannot be read")
        self.k, self.lines = int(head), [*filter(None, lines.split(","))]
        return [*filter(None, parts.split(","))]

    def load_part(self, path: str, data: bytes) -> None:
        if data == b"bad":
            raise CorruptObject(f"{path}: bad part")
        self.parts.append(path)

    def covered(self) -> int:
        return self.k

    def place(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        return tuple(dataclasses.replace(e, base_offset=len(self.lines) + i) for i, e in enumerate(entries))

    def apply(self, obj: LogObject, payloads: Sequence[object] = ()) -> None:
        new = [entry_text(e) for e in obj.entries if e.kind == EntryKind.ROWS]
        if self.refuses & set(new):
            raise CorruptObject(f"log {LOG_ID} object {obj.header.sequence}: does not fit")
        self.lines += new
        self._fresh += len(new)

    def checkpointed(self, sequence: int, covered: int, sections: Sequence[Entry]) -> None:
        self.k, self._fresh = covered, 0

    def replay_is_full(self) -> bool:
        return 0 < self.full_at <= self._fresh


class Shelf:
    """What stands in the store, by sequence."""

    def __init__(self) -> None:
        self.objects: dict[int, bytes] = {}

    def put(self, sequence: int, kind: ObjectKind, *texts: str, checkpoint_seq: int = 0, **more: Any) -> Shelf:
        entries = more.pop("entries", None) or [text_entry(t) for t in texts]
        header = Header(
            **{
                "kind": kind,
                "store_id": STORE_ID,
                "log_id": LOG_ID,
                "sequence": sequence,
                "epoch": 1,
                "node": RIVAL,
                "nonce": bytes([sequence]) * 16,
                "checkpoint_seq": checkpoint_seq,
                "opens": 1,
                "written_at_ms": 5,
                **more,
            }
        )
        self.objects[sequence] = b"".join(encode_object(header, entries))
        return self

    def open(self, sequence: int, checkpoint_seq: int = 0, **more: Any) -> Shelf:
        return self.put(sequence, ObjectKind.OPEN, checkpoint_seq=checkpoint_seq, epoch=sequence, **more)

    def data(self, sequence: int, *texts: str, checkpoint_seq: int = 0, **more: Any) -> Shelf:
        return self.put(sequence, ObjectKind.DATA, *texts, checkpoint_seq=checkpoint_seq, **more)

    def checkpoint(self, sequence: int, content: str, checkpoint_seq: int = 0, **more: Any) -> Shelf:
        return self.put(sequence, ObjectKind.CHECKPOINT, content, checkpoint_seq=checkpoint_seq, **more)

    def torn(self, sequence: int) -> Shelf:
        self.objects[sequence] = self.objects[sequence][:-20]
        return self


def run(script: str, shelf: Shelf | None = None, state: Ledger | None = None, core: LogCore | None = None) -> LogCore:
    """Play ``script``; every line must lead to exactly the effects behind its arrow."""
    play = Play(shelf or Shelf(), state or Ledger(), core)
    for line in filter(None, map(str.strip, script.splitlines())):
        command, _, expected = line.partition("->")
        wanted = [*filter(None, map(str.strip, expected.split(";")))]
        assert (command.strip(), play.do(command.split())) == (command.strip(), wanted)
    return play.core


class Play:
    """One core at work. `do` gives it one answer and returns what it asks for, as text."""

    def __init__(self, shelf: Shelf, state: Ledger, core: LogCore | None = None) -> None:
        self.shelf = shelf
        self.sent: dict[int, bytes] = {}
        self._nonces = 0
        self.core = core or LogCore(Identity(STORE_ID, LOG_ID, NODE), state, self._nonce)

    def _nonce(self) -> bytes:
        self._nonces += 1
        return self._nonces.to_bytes(16, "big")

    def do(self, words: list[str]) -> list[str]:
        getattr(self, f"_do_{words[0]}")(*words[1:])
        return [self._name(effect) for effect in self.core.take()]

    def header(self, sequence: int) -> Header:
        """The header of an object that the core has sent."""
        return decode_object(self.sent[sequence], "sent").header

    def _do_start(self, *skips: str) -> None:
        self.core.start(10, frozenset(map(int, skips)))

    def _do_listed(self, *sequences: str) -> None:
        self.core.listed([*map(int, sequences)])

    def _do_read(self, number: str, what: str = "") -> None:
        sequence = int(number)
        own = self.sent.get(sequence, b"")
        data = {"missing": None, "own": own, "cut": own[:-8], "": self.shelf.objects.get(sequence)}[what]
        assert what or data is not None, "the shelf does not hold it"
        self.core.read(sequence, data)

    def _do_part(self, path: str, what: str = "good") -> None:
        self.core.part_read(path, None if what == "missing" else what.encode())

    def _do_created(self, sequence: str, outcome: str) -> None:
        self.core.created(int(sequence), Outcome(outcome))

    def _do_refused(self, sequence: str) -> None:
        self.core.create_failed(int(sequence), StoreFull("full"))

    def _do_settled(self, sequence: str) -> None:
        self.core.settled(int(sequence))

    def _do_append(self, *texts: str) -> None:
        """Each word is a ticket; they are one request."""
        request = hash(texts)
        self.core.append([Ticket(ord(t[0]), text_entry(t), None, request) for t in texts], 20)

    def _do_checkpoint(self, covered: str) -> None:
        self.core.checkpoint(CheckpointDraft(int(covered), (text_entry(f"{covered}::"),)), 20)

    def _do_resume(self) -> None:
        self.core.resume_replay()

    def _do_prove(self, read: str) -> None:
        self.core.prove(int(read))

    def _do_checked(self, sequence: str, exists: str) -> None:
        self.core.checked(int(sequence), exists == "exists")

    def _do_unchecked(self) -> None:
        self.core.check_failed(StoreUnavailable("no answer"))

    def _do_collect(self) -> None:
        self.core.collect()

    def _do_deleted(self, sequence: str) -> None:
        self.core.deleted(int(sequence))

    def _do_undeleted(self) -> None:
        self.core.collect_failed()

    def _do_close(self) -> None:
        self.core.close()

    def _name(self, effect: Any) -> str:
        if isinstance(effect, CreateObject):
            data = b"".join(effect.buffers)
            again = "" if effect.attempt == 1 else f" try {effect.attempt}"
            assert effect.attempt == 1 or data == self.sent[effect.sequence], "L6: the same bytes"
            self.sent[effect.sequence] = data
            return f"create {effect.sequence} {self.header(effect.sequence).kind.name.lower()}{again}"
        return name_of(effect)


def _keys(tickets: Sequence[Ticket]) -> str:
    return "".join(chr(t.key) for t in tickets)


def name_of(effect: Any) -> str:
    """An effect as the scripts write it."""
    match effect:
        case ListObjects():
            return "list"
        case ReadObject() | CheckNext() | DeleteObject() | SettleObject():
            verb = re.sub("(Object|Next)$", "", type(effect).__name__).lower()
            return f"{verb} {effect.sequence}"
        case ReadPart():
            return f"part {effect.path}"
        case Opened():
            return f"opened {effect.epoch}"
        case ReplayPaused():
            return "paused"
        case Stood():
            return f"stood {effect.sequence} {_keys(effect.tickets)}"
        case CheckpointStood():
            return f"checkpoint {effect.sequence} covers {effect.covered}"
        case Failed():
            return " ".join(filter(None, ("failed", _keys(effect.tickets), type(effect.error).__name__)))
        case Proved():
            return f"proved {' '.join(map(str, effect.reads))}"
        case ReadsFailed():
            return f"unproved {' '.join(map(str, effect.reads))} {type(effect.error).__name__}"
        case Closed():
            return f"closed {type(effect.error).__name__}"
    assert isinstance(effect, Collected), effect
    return f"collected {effect.deleted}"
