"""What a query node keeps of shards' tails between queries, so that owners send only what is new (LOG L14).

Pure. For each query and shard: `ask` what to ask the owner, send it, and `merge` the answer. The question holds on to
what it builds on, so answers may come in any order. `whole_snapshot` makes one of an answer by itself: a
store read is never mixed with an owner's tail (L15).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.errors import CorruptObject
from storage.schema import PartitionSnapshot
from storage.shardstate import held_bytes
from storage.tailanswer import ShardSnapshot, TailRows, TailWanted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from storage.deletes import PendingDelete
    from storage.schema import DataFile
    from storage.tailanswer import TailAnswer

    Rows = Mapping[int, tuple[TailRows, ...]]
    """By partition, in the order of the Log."""
    Listed = tuple[tuple[DataFile, ...], tuple[PendingDelete, ...], int]
    """Files, deletes that are not carried out in all of them, and `PartitionSnapshot.changes_from`."""
    Files = Mapping[int, Listed]
    """By partition."""


FILE_BYTES: Final = 512
"""What a DataFile of a kept list takes in memory, about."""
ENTRY_BYTES: Final = 1024
"""What a table takes that has neither rows nor files, about: tables come and go, and their ids are never used again."""


@dataclass(frozen=True, slots=True)
class KeptTable:
    """The tail of one table in one shard: all of its rows in (k, ``sequence``] as owner ``epoch`` has them.

    ``files`` are its file lists by partition, with pending deletes, as of the Checkpoint ``checkpoint_seq``.
    """

    epoch: int
    sequence: int
    rows: Rows
    checkpoint_seq: int
    files: Files
    bytes: int


@dataclass(frozen=True, slots=True)
class TailAsk:
    """A question to one shard, with what is kept of the tables that it asks for."""

    log_id: int
    wanted: TailWanted
    kept: Mapping[int, KeptTable]


class KeptTails:
    """Tails by (Log, table); those least recently asked for go when all hold more than ``bytes_max``."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._kept: OrderedDict[tuple[int, int], KeptTable] = OrderedDict()

    def ask(self, log_id: int, table_ids: Collection[int]) -> TailAsk:
        """What to ask the owner of ``log_id``: what is newer than all that is kept of these tables."""
        kept = {table: self._kept[log_id, table] for table in table_ids if (log_id, table) in self._kept}
        tables = dict.fromkeys(table_ids)
        checkpoints = {entry.checkpoint_seq for entry in kept.values()}
        known = checkpoints.pop() if len(kept) == len(tables) and len(checkpoints) == 1 else 0
        epochs = {entry.epoch for entry in kept.values()}
        if len(kept) < len(tables) or len(epochs) != 1:
            return TailAsk(log_id, TailWanted(tables, known_checkpoint=known), kept)
        sequence = min(entry.sequence for entry in kept.values())
        return TailAsk(log_id, TailWanted(tables, epochs.pop(), sequence, known_checkpoint=known), kept)

    def merge(self, ask: TailAsk, answer: TailAnswer) -> ShardSnapshot:
        """The snapshot that ``answer`` completes; its rows are kept. Raises CorruptObject if it fits no such question.

        What was kept counts only above k, and only for the owner that it came from.
        """
        wanted = ask.wanted
        if answer.log_id != ask.log_id or answer.from_sequence not in (answer.covered, wanted.from_sequence):
            raise CorruptObject(f"log {ask.log_id}: an answer from {answer.from_sequence} to another question")
        if answer.from_sequence > answer.covered and answer.epoch != wanted.from_epoch:
            raise CorruptObject(f"log {ask.log_id}: an answer of epoch {answer.epoch} builds on {wanted.from_epoch}")
        if answer.files_known and answer.checkpoint_seq != wanted.known_checkpoint:
            raise CorruptObject(f"log {ask.log_id}: an answer without the files of Checkpoint {answer.checkpoint_seq}")
        new = _by_table(answer)
        files = {table: ask.kept[table].files for table in wanted.tables} if answer.files_known else _files(answer)
        tails: dict[int, Rows] = {}
        for table in wanted.tables:
            before = ask.kept[table].rows if wanted.from_sequence else {}
            tails[table] = _joined(before, new.get(table, {}), answer)
            self._keep((ask.log_id, table), answer, tails[table], files.get(table, {}))
        self._trim()
        return _snapshot(answer, tails, files)

    def forget(self, log_id: int) -> None:
        """Let go of everything of a Log: an operator gave one of its objects up, or rows do not fit."""
        for key in [key for key in self._kept if key[0] == log_id]:
            self._drop(key)

    def _keep(self, key: tuple[int, int], answer: TailAnswer, rows: Rows, files: Files) -> None:
        """Keep the newest: answers to questions that were asked earlier may come later."""
        known = self._kept.get(key)
        if known is not None and (known.epoch, known.sequence) > (answer.epoch, answer.position):
            return
        self._drop(key)
        batches = [part.batch for parts in rows.values() for part in parts]
        size = ENTRY_BYTES + sum(held_bytes(b.rows) + (0 if b.delete is None else b.delete.bytes) for b in batches)
        size += sum(FILE_BYTES * len(listed) + sum(p.bytes for p in pending) for listed, pending, _ in files.values())
        self._kept[key] = KeptTable(answer.epoch, answer.position, rows, answer.checkpoint_seq, files, size)
        self.bytes += size

    def _drop(self, key: tuple[int, int]) -> None:
        known = self._kept.pop(key, None)
        self.bytes -= 0 if known is None else known.bytes

    def _trim(self) -> None:
        while self.bytes > self._bytes_max and self._kept:
            self._drop(next(iter(self._kept)))


def whole_snapshot(answer: TailAnswer, table_ids: Collection[int]) -> ShardSnapshot:
    """The snapshot of an answer that is complete by itself: of a narrowed question, or from the store (L15)."""
    if answer.from_sequence != answer.covered:
        raise CorruptObject(f"log {answer.log_id}: an answer from {answer.from_sequence} is no snapshot by itself")
    new = _by_table(answer)
    return _snapshot(answer, {table: new.get(table, {}) for table in table_ids}, _files(answer))


def _files(answer: TailAnswer) -> dict[int, Files]:
    """The file lists of an answer by table and partition."""
    found: dict[int, dict[int, Listed]] = {}
    for part in answer.partitions:
        found.setdefault(part.table_id, {})[part.partition] = (part.files, part.pending, part.changes_from)
    return dict(found)


def _by_table(answer: TailAnswer) -> dict[int, dict[int, tuple[TailRows, ...]]]:
    """The rows of an answer by table and partition, in the order of the Log."""
    found: dict[int, dict[int, list[TailRows]]] = {}
    for rows in answer.rows:
        found.setdefault(rows.table_id, {}).setdefault(rows.partition, []).append(rows)
    return {
        table: {number: tuple(sorted(rows, key=lambda r: r.batch.first_offset)) for number, rows in parts.items()}
        for table, parts in found.items()
    }


def _joined(before: Rows, new: Rows, answer: TailAnswer) -> Rows:
    """L14: of what was kept only what is above k, and up to where the answer goes on."""
    low, high = answer.covered, answer.from_sequence
    joined: dict[int, tuple[TailRows, ...]] = {}
    for number in {*before, *new}:
        kept = tuple(rows for rows in before.get(number, ()) if low < rows.sequence <= high)
        if rows := (*kept, *new.get(number, ())):
            joined[number] = rows
    return joined


def _snapshot(answer: TailAnswer, tails: Mapping[int, Rows], files: Mapping[int, Files]) -> ShardSnapshot:
    tables: dict[int, list[PartitionSnapshot]] = {table: [] for table in tails}
    for part in answer.partitions:
        position = (answer.log_id, answer.epoch, part.changed_at)
        batches = tuple(rows.batch for rows in tails[part.table_id].get(part.partition, ()))
        listed = files.get(part.table_id, {}).get(part.partition, ((), (), 0))  # none: come since the Checkpoint
        found, pending, changes_from = listed
        tables[part.table_id].append(PartitionSnapshot(part.partition, position, found, batches, pending, changes_from))
    return ShardSnapshot(
        answer.log_id, answer.epoch, answer.position, answer.revision,
        {table: tuple(parts) for table, parts in tables.items()}, answer.cutoffs, answer.dropped,
    )  # fmt: skip
