"""Between protobuf messages of protos/internal.proto and our values. Pure; driven by both ends of each call.

What comes from another node is checked here: MalformedMessage for whatever no node of ours would send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from cluster.errors import MalformedMessage
from engine.changes import ChangeKind, RowChange
from protos import internal_pb2 as pb
from storage.changes import Change, ColumnSpec, CreateDatabase, DropDatabase, DropTable, EnsureTable, SetRetention
from storage.deletes import decode_delete, encode_delete
from storage.errors import InvalidName, StorageError
from storage.frames import NO_WRITE_ID, ZERO16, WriteId
from storage.objects import check_path
from storage.schema import FILE_KINDS, DataFile, Op, Role, TypeKind
from storage.shardstate import Cutoff

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CHANGES_BYTES_MAX: Final = 16 * 2**20
CHANGES_MAX: Final = 65_536
KIND_MAX: Final = 255
WRITER_BYTES: Final = len(ZERO16)
_FILE_FIELDS: Final = tuple(field.name for field in pb.DataFile.DESCRIPTOR.fields)
_RANGES: Final = (("order_low", "order_high"), ("offset_low", "offset_high"), ("time_low", "time_high"))

# ---- write ids (FORMAT F14) ------------------------------------------------------------------------------------


def write_id_to(write_id: WriteId) -> pb.WriteId:
    """As a message."""
    kind, writer, epoch, sequence, span = write_id
    return pb.WriteId(kind=kind, writer=writer, epoch=epoch, sequence=sequence, count=span)


def write_id_from(message: pb.WriteId) -> WriteId:
    """The reverse; a message that is not set is no write id."""
    if message == pb.WriteId():
        return NO_WRITE_ID
    if len(message.writer) != WRITER_BYTES:
        raise MalformedMessage(f"a write id with a writer of {len(message.writer)} bytes")
    if message.kind > KIND_MAX:
        raise MalformedMessage(f"a write id of kind {message.kind}")
    return WriteId(message.kind, message.writer, message.epoch, message.sequence, message.count)


# ---- files (FORMAT F18) ----------------------------------------------------------------------------------------


def file_to(file: DataFile) -> pb.DataFile:
    """As a message."""
    return pb.DataFile(**{name: getattr(file, name) for name in _FILE_FIELDS})


def file_from(message: pb.DataFile) -> DataFile:
    """The reverse. The path must be one of a store; reserved kinds and fields are refused, as in a Checkpoint."""
    if message.kind not in FILE_KINDS or message.key_id or message.borrowed:
        raise MalformedMessage(f"a file of kind {message.kind[:40]!r} with reserved fields")
    try:
        check_path(message.path)
    except InvalidName as error:
        raise MalformedMessage(f"a file: {error}") from error
    if message.rows < 0 or message.bytes < 0 or any(getattr(message, a) > getattr(message, b) for a, b in _RANGES):
        raise MalformedMessage(f"file {message.path!r} has an impossible range or size")
    fields: dict[str, Any] = {name: getattr(message, name) for name in _FILE_FIELDS}
    return DataFile(**fields)


def files_from(messages: Iterable[pb.DataFile]) -> tuple[DataFile, ...]:
    """All of them."""
    return tuple(file_from(message) for message in messages)


# ---- cut-offs (LOG L36) ----------------------------------------------------------------------------------------


def cutoffs_to(cutoffs: Mapping[int, Cutoff]) -> list[pb.Cutoff]:
    """By database id, as messages."""
    return [
        pb.Cutoff(database_id=database, time_ns=one.time_ns, recorded_ms=one.recorded_ms)
        for database, one in cutoffs.items()
    ]


def cutoffs_from(messages: Iterable[pb.Cutoff]) -> dict[int, Cutoff]:
    """The reverse."""
    found: dict[int, Cutoff] = {}
    for message in messages:
        if message.database_id in found:
            raise MalformedMessage(f"two cut-offs for database {message.database_id}")
        found[message.database_id] = Cutoff(message.time_ns, message.recorded_ms)
    return found


# ---- what the rows of a statement are for -----------------------------------------------------------------------


def change_to(change: RowChange) -> pb.Change:
    """As a message."""
    return pb.Change(
        table=change.table,
        table_id=change.table_id,
        kind=int(change.kind),
        positions=dict(change.positions),
        delete=b"" if change.delete is None else encode_delete(change.delete),
    )


def change_from(message: pb.Change) -> RowChange:
    """The reverse."""
    if message.kind not in ChangeKind._value2member_map_ or not message.table:
        raise MalformedMessage(f"a change of kind {message.kind} of table {message.table[:40]!r}")
    try:
        delete = decode_delete(message.delete, None, "a change") if message.delete else None
    except StorageError as error:
        raise MalformedMessage(str(error)) from error
    return RowChange(ChangeKind(message.kind), message.table, message.table_id, dict(message.positions), delete)


# ---- changes of the Catalog (FORMAT F10) -----------------------------------------------------------------------
# Own shapes and tags: what is sent must not follow the names of classes.


class _Column(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    role: Role
    kind: TypeKind


class _CreateDatabase(msgspec.Struct, tag="create_database", forbid_unknown_fields=True):
    name: str
    retention_ns: int | None
    exist_ok: bool


class _SetRetention(msgspec.Struct, tag="set_retention", forbid_unknown_fields=True):
    database: str
    retention_ns: int | None


class _DropDatabase(msgspec.Struct, tag="drop_database", forbid_unknown_fields=True):
    name: str


class _EnsureTable(msgspec.Struct, tag="ensure_table", forbid_unknown_fields=True, omit_defaults=True):
    database: str
    table: str
    columns: list[_Column]
    exist_ok: bool
    create_database: bool
    default_op: Op | None = None


class _DropTable(msgspec.Struct, tag="drop_table", forbid_unknown_fields=True):
    database: str
    table: str


_Wire: TypeAlias = _CreateDatabase | _SetRetention | _DropDatabase | _EnsureTable | _DropTable
_DECODER: Final = msgspec.msgpack.Decoder(list[_Wire])


def changes_to(changes: Sequence[Change]) -> bytes:
    """MessagePack."""
    return msgspec.msgpack.encode([_change_to(change) for change in changes])


def changes_from(data: bytes) -> list[Change]:
    """The reverse."""
    if len(data) > CHANGES_BYTES_MAX:
        raise MalformedMessage(f"changes of {len(data)} bytes; at most {CHANGES_BYTES_MAX}")
    try:
        found = _DECODER.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise MalformedMessage(f"not changes of the Catalog: {error}") from error
    if len(found) > CHANGES_MAX:
        raise MalformedMessage(f"{len(found)} changes at once; at most {CHANGES_MAX}")
    return [_change_from(wire) for wire in found]


def _change_to(change: Change) -> _Wire:
    match change:
        case CreateDatabase():
            return _CreateDatabase(change.name, change.retention_ns, change.exist_ok)
        case SetRetention():
            return _SetRetention(change.database, change.retention_ns)
        case DropDatabase():
            return _DropDatabase(change.name)
        case EnsureTable():
            columns = [_Column(column.name, column.role, column.kind) for column in change.columns]
            flags = change.exist_ok, change.create_database
            return _EnsureTable(change.database, change.table, columns, *flags, change.default_op)
        case DropTable():
            return _DropTable(change.database, change.table)


def _change_from(wire: _Wire) -> Change:
    match wire:
        case _CreateDatabase():
            return CreateDatabase(wire.name, wire.retention_ns, wire.exist_ok)
        case _SetRetention():
            return SetRetention(wire.database, wire.retention_ns)
        case _DropDatabase():
            return DropDatabase(wire.name)
        case _EnsureTable():
            columns = tuple(ColumnSpec(column.name, column.role, column.kind) for column in wire.columns)
            flags = wire.exist_ok, wire.create_database
            return EnsureTable(wire.database, wire.table, columns, *flags, wire.default_op)
        case _DropTable():
            return DropTable(wire.database, wire.table)
