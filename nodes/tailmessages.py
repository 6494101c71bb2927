"""A shard's snapshot as messages of protos/internal.proto `Tail`, and back (LOG L14). Pure; driven by both ends.

The first message has the head; rows follow in messages of about `CHUNK_BYTES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.errors import MalformedMessage
from nodes.messages import cutoffs_from, cutoffs_to, file_to, files_from, table_cutoffs_to
from protos import internal_pb2 as pb
from storage.deletes import PendingDelete, decode_delete, encode_delete
from storage.schema import NO_ROWS, TailBatch
from storage.tailanswer import TailAnswer, TailPartition, TailRows, TailWanted
from storage.tailcodec import pack_rows, unpack_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CHUNK_BYTES: Final = 1 << 20
ROW_BYTES_LEAST: Final = 1024
"""What one entry costs at least in a message: its schema travels with it."""
FILE_BYTES: Final = 256
"""About what a DataFile takes in a message."""


def wanted_to(shard: int, revision: int, wanted: TailWanted) -> pb.TailRequest:
    """The question as a message."""
    return pb.TailRequest(
        shard=shard,
        revision=revision,
        tables=[pb.TailTable(table_id=table, columns=columns or ()) for table, columns in wanted.tables.items()],
        time_low=wanted.time_low,
        time_high=wanted.time_high,
        tag_equals=wanted.tag_equals,
        from_epoch=wanted.from_epoch,
        from_sequence=wanted.from_sequence,
        known_checkpoint=wanted.known_checkpoint,
    )


def wanted_from(request: pb.TailRequest) -> TailWanted:
    """The reverse."""
    return TailWanted(
        {table.table_id: list(table.columns) or None for table in request.tables},
        request.from_epoch,
        request.from_sequence,
        request.time_low if request.HasField("time_low") else None,
        request.time_high if request.HasField("time_high") else None,
        dict(request.tag_equals),
        request.known_checkpoint,
    )


def head_to(answer: TailAnswer) -> pb.TailHead:
    """Everything of an answer but its rows."""
    return pb.TailHead(
        epoch=answer.epoch,
        position=answer.position,
        checkpoint_seq=answer.checkpoint_seq,
        covered=answer.covered,
        revision=answer.revision,
        from_sequence=answer.from_sequence,
        partitions=[
            pb.TailPartition(
                table_id=part.table_id,
                partition=part.partition,
                changed_at=part.changed_at,
                files=[file_to(file) for file in part.files],
                pending=[
                    pb.PendingDelete(order=one.order, delete=encode_delete(one.delete), files=sorted(one.files))
                    for one in part.pending
                ],
                changes_from=part.changes_from,
            )
            for part in answer.partitions
        ],
        cutoffs=cutoffs_to(answer.cutoffs.databases),
        table_cutoffs=table_cutoffs_to(answer.cutoffs.tables),
        dropped=sorted(answer.dropped),
        files_known=answer.files_known,
    )


def chunks(rows: Sequence[TailRows]) -> Iterator[list[TailRows]]:
    """Rows in groups that make messages of about `CHUNK_BYTES`; one alone may be larger."""
    group: list[TailRows] = []
    size = 0
    for entry in rows:
        group.append(entry)
        size += _entry_bytes(entry)
        if size >= CHUNK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def rows_to(rows: Sequence[TailRows]) -> list[pb.TailRows]:
    """One group as messages."""
    return [
        pb.TailRows(
            table_id=entry.table_id,
            partition=entry.partition,
            sequence=entry.sequence,
            base_offset=entry.batch.first_offset,
            rows=pack_rows(entry.batch.rows) if entry.batch.delete is None else b"",
            delete=b"" if entry.batch.delete is None else encode_delete(entry.batch.delete),
        )
        for entry in rows
    ]


def small(answers: Iterable[TailAnswer], bytes_max: int) -> list[pb.ShardTail]:
    """Those answers that fit into ``bytes_max`` together, each whole; the smallest first, so that most do."""
    found: list[pb.ShardTail] = []
    for answer in sorted(answers, key=_bytes):
        bytes_max -= _bytes(answer)
        if bytes_max < 0:
            break
        whole = pb.TailReply(head=head_to(answer), rows=rows_to(answer.rows))
        found.append(pb.ShardTail(shard=answer.log_id, whole=whole))
    return found


def _bytes(answer: TailAnswer) -> int:
    """About what it takes: its files count, or one shard with many would leave no room for others' rows."""
    rows = sum(_entry_bytes(entry) for entry in answer.rows)
    deletes = sum(one.bytes for part in answer.partitions for one in part.pending)
    return rows + deletes + FILE_BYTES * sum(len(part.files) for part in answer.partitions)


def _entry_bytes(entry: TailRows) -> int:
    batch = entry.batch
    size: int = batch.rows.nbytes if batch.delete is None else batch.delete.bytes
    return max(ROW_BYTES_LEAST, size)


def answer_from(shard: int, head: pb.TailHead, rows: Sequence[pb.TailRows]) -> TailAnswer:
    """The answer that the messages make. Raises MalformedMessage, CorruptObject."""
    asked = {part.table_id for part in head.partitions}
    for message in rows:
        if message.table_id not in asked:
            raise MalformedMessage(f"shard {shard}: rows of a table that the head does not name")
    return TailAnswer(
        shard,
        head.epoch,
        head.position,
        head.checkpoint_seq,
        head.covered,
        head.revision,
        head.from_sequence,
        tuple(
            TailPartition(
                part.table_id,
                part.partition,
                part.changed_at,
                files_from(part.files),
                _pending_from(shard, part),
                part.changes_from,
            )
            for part in head.partitions
        ),
        tuple(_rows_from(shard, message) for message in rows),
        cutoffs_from(head.cutoffs, head.table_cutoffs),
        frozenset(head.dropped),
        head.files_known,
    )


def _pending_from(shard: int, part: pb.TailPartition) -> tuple[PendingDelete, ...]:
    where = f"the head of shard {shard}'s tail"
    return tuple(
        PendingDelete(one.order, decode_delete(one.delete, None, where), frozenset(one.files)) for one in part.pending
    )


def _rows_from(shard: int, message: pb.TailRows) -> TailRows:
    where = f"the tail of shard {shard} at object {message.sequence}"
    if message.delete:
        batch = TailBatch(message.base_offset, NO_ROWS, decode_delete(message.delete, None, where))
    else:
        batch = TailBatch(message.base_offset, unpack_rows(message.rows, where))
    return TailRows(message.table_id, message.partition, message.sequence, batch)
