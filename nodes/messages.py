"""Between protobuf messages of protos/internal.proto and our values. Pure; driven by both ends of each call.

What comes from another node is checked here: MalformedMessage for whatever no node of ours would send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from cluster.errors import MalformedMessage
from engine.changes import ChangeKind, NewView, RowChange, ViewProgress
from protos import internal_pb2 as pb
from storage.changes import (
    Change,
    ColumnSpec,
    CreateDatabase,
    CreateView,
    DropDatabase,
    DropTable,
    EnsureTable,
    SetRetention,
    SetRetentionBytes,
)
from storage.cutoffs import Cutoff, Cutoffs
from storage.deletes import decode_delete, encode_delete
from storage.errors import InvalidName, StorageError
from storage.frames import NO_WRITE_ID, ZERO16, WriteId
from storage.objects import check_path
from storage.schema import FILE_KINDS, DataFile, Op, Role, TypeKind

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


def table_cutoffs_to(cutoffs: Mapping[tuple[int, int], Cutoff]) -> list[pb.TableCutoff]:
    """By table and partition, as messages."""
    return [
        pb.TableCutoff(
            table_id=table, partition=partition, time_ns=one.time_ns, recorded_ms=one.recorded_ms,
            limit=one.limit, database_id=one.database_id,
        )
        for (table, partition), one in cutoffs.items()
    ]  # fmt: skip


def cutoffs_from(databases: Iterable[pb.Cutoff], tables: Iterable[pb.TableCutoff]) -> Cutoffs:
    """The reverse of both."""
    found: dict[int, Cutoff] = {}
    for message in databases:
        if message.database_id in found:
            raise MalformedMessage(f"two cut-offs for database {message.database_id}")
        found[message.database_id] = Cutoff(message.time_ns, message.recorded_ms)
    of_tables: dict[tuple[int, int], Cutoff] = {}
    for one in tables:
        key = (one.table_id, one.partition)
        if key in of_tables or one.limit < 0:
            raise MalformedMessage(f"two cut-offs, or one of no limit, for partition {key}")
        of_tables[key] = Cutoff(one.time_ns, one.recorded_ms, one.limit, one.database_id)
    return Cutoffs(found, of_tables)


# ---- what the rows of a statement are for -----------------------------------------------------------------------


def change_to(change: RowChange) -> pb.Change:
    """As a message."""
    return pb.Change(
        table=change.table,
        table_id=change.table_id,
        kind=int(change.kind),
        positions=dict(change.positions),
        delete=b"" if change.delete is None else encode_delete(change.delete),
        view=b"" if change.view is None else msgspec.msgpack.encode(_view_to(change.view)),
    )


def change_from(message: pb.Change) -> RowChange:
    """The reverse."""
    if message.kind not in ChangeKind._value2member_map_ or not message.table:
        raise MalformedMessage(f"a change of kind {message.kind} of table {message.table[:40]!r}")
    try:
        delete = decode_delete(message.delete, None, "a change") if message.delete else None
        view = _view_from(_VIEWS.decode(message.view)) if message.view else None
    except (StorageError, msgspec.DecodeError) as error:
        raise MalformedMessage(str(error)) from error
    kind = ChangeKind(message.kind)
    if _VIEW_KINDS.get(kind, type(None)) is not type(view):
        raise MalformedMessage(f"a change of kind {kind.name} with {type(view).__name__}")
    return RowChange(kind, message.table, message.table_id, dict(message.positions), delete, view)


_VIEW_KINDS: Final = {ChangeKind.CREATE_VIEW: NewView, ChangeKind.REFRESH_VIEW: ViewProgress}


class _Column(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    name: str
    role: Role
    kind: TypeKind


class _NewView(msgspec.Struct, tag="new", forbid_unknown_fields=True):
    table_id: int
    text: str
    width_ns: int
    origin_ns: int
    columns: list[_Column]
    exist_ok: bool


class _ViewProgress(msgspec.Struct, tag="progress", forbid_unknown_fields=True):
    state_id: int
    state: str
    has_more: bool


_VIEWS: Final = msgspec.msgpack.Decoder(_NewView | _ViewProgress)


def _view_to(view: NewView | ViewProgress) -> _NewView | _ViewProgress:
    if isinstance(view, ViewProgress):
        return _ViewProgress(view.state_id, view.state, view.has_more)
    columns = _columns_to(view.columns)
    return _NewView(view.table_id, view.text, view.width_ns, view.origin_ns, columns, view.exist_ok)


def _view_from(wire: _NewView | _ViewProgress) -> NewView | ViewProgress:
    if isinstance(wire, _ViewProgress):
        return ViewProgress(wire.state_id, wire.state, wire.has_more)
    columns = _columns_from(wire.columns)
    return NewView(wire.table_id, wire.text, wire.width_ns, wire.origin_ns, columns, wire.exist_ok)


# ---- changes of the Catalog (FORMAT F10) -----------------------------------------------------------------------
# Own shapes and tags: what is sent must not follow the names of classes.


class _CreateDatabase(msgspec.Struct, tag="create_database", forbid_unknown_fields=True):
    name: str
    retention_ns: int | None
    exist_ok: bool


class _SetRetention(msgspec.Struct, tag="set_retention", forbid_unknown_fields=True, omit_defaults=True):
    database: str
    retention_ns: int | None
    table: str = ""


class _SetRetentionBytes(msgspec.Struct, tag="set_retention_bytes", forbid_unknown_fields=True):
    database: str
    retention_bytes: int | None
    table: str


class _DropDatabase(msgspec.Struct, tag="drop_database", forbid_unknown_fields=True):
    name: str


class _EnsureTable(msgspec.Struct, tag="ensure_table", forbid_unknown_fields=True, omit_defaults=True):
    database: str
    table: str
    columns: list[_Column]
    exist_ok: bool
    create_database: bool
    default_op: Op | None = None


class _CreateView(msgspec.Struct, tag="create_view", forbid_unknown_fields=True):
    database: str
    name: str
    table_id: int
    text: str
    width_ns: int
    origin_ns: int
    columns: list[_Column]
    exist_ok: bool


class _DropTable(msgspec.Struct, tag="drop_table", forbid_unknown_fields=True):
    database: str
    table: str


_Wire: TypeAlias = (
    _CreateDatabase | _SetRetention | _SetRetentionBytes | _DropDatabase | _EnsureTable | _CreateView | _DropTable
)
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


def _columns_to(columns: Iterable[ColumnSpec]) -> list[_Column]:
    return [_Column(column.name, column.role, column.kind) for column in columns]


def _columns_from(columns: Iterable[_Column]) -> tuple[ColumnSpec, ...]:
    return tuple(ColumnSpec(column.name, column.role, column.kind) for column in columns)


def _change_to(change: Change) -> _Wire:
    match change:
        case CreateDatabase():
            return _CreateDatabase(change.name, change.retention_ns, change.exist_ok)
        case SetRetention():
            return _SetRetention(change.database, change.retention_ns, change.table)
        case SetRetentionBytes():
            return _SetRetentionBytes(change.database, change.retention_bytes, change.table)
        case DropDatabase():
            return _DropDatabase(change.name)
        case EnsureTable():
            flags = change.exist_ok, change.create_database
            return _EnsureTable(change.database, change.table, _columns_to(change.columns), *flags, change.default_op)
        case CreateView():
            return _CreateView(
                change.database, change.name, change.table_id, change.text, change.width_ns, change.origin_ns,
                _columns_to(change.columns), change.exist_ok,
            )  # fmt: skip
        case DropTable():
            return _DropTable(change.database, change.table)


def _change_from(wire: _Wire) -> Change:
    match wire:
        case _CreateDatabase():
            return CreateDatabase(wire.name, wire.retention_ns, wire.exist_ok)
        case _SetRetention():
            return SetRetention(wire.database, wire.retention_ns, wire.table)
        case _SetRetentionBytes():
            return SetRetentionBytes(wire.database, wire.retention_bytes, wire.table)
        case _DropDatabase():
            return DropDatabase(wire.name)
        case _EnsureTable():
            flags = wire.exist_ok, wire.create_database
            return EnsureTable(wire.database, wire.table, _columns_from(wire.columns), *flags, wire.default_op)
        case _CreateView():
            return CreateView(
                wire.database, wire.name, wire.table_id, wire.text, wire.width_ns, wire.origin_ns,
                _columns_from(wire.columns), wire.exist_ok,
            )  # fmt: skip
        case _DropTable():
            return DropTable(wire.database, wire.table)
