"""Values survive the messages between nodes; what no node of ours would send is refused."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import MalformedMessage
from engine.changes import ChangeKind, NewView, RowChange, ViewProgress
from nodes import messages
from nodes.messages import (
    change_from,
    change_to,
    changes_from,
    changes_to,
    cutoffs_from,
    cutoffs_to,
    file_from,
    file_to,
    files_from,
    table_cutoffs_to,
    write_id_from,
    write_id_to,
)
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
from storage.frames import NO_WRITE_ID, WriteId
from storage.schema import DataFile, Op, Role, TypeKind

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
RANGE = st.tuples(I64, I64).map(sorted)
WRITE_IDS = st.builds(WriteId, st.integers(0, 255), st.binary(min_size=16, max_size=16), U32, U64, U32)
NAMES = st.text(max_size=20)
COLUMNS = st.builds(ColumnSpec, NAMES, st.sampled_from(Role), st.sampled_from(TypeKind))
CHANGES = st.one_of(
    st.builds(CreateDatabase, NAMES, st.none() | I64, st.booleans()),
    st.builds(SetRetention, NAMES, st.none() | I64, NAMES),
    st.builds(SetRetentionBytes, NAMES, st.none() | I64, NAMES),
    st.builds(DropDatabase, NAMES),
    st.builds(
        EnsureTable,
        NAMES,
        NAMES,
        st.lists(COLUMNS, max_size=4).map(tuple),
        st.booleans(),
        st.booleans(),
        st.none() | st.sampled_from(Op),
    ),
    st.builds(CreateView, NAMES, NAMES, U32, NAMES, I64, I64, st.lists(COLUMNS, max_size=4).map(tuple), st.booleans()),
    st.builds(DropTable, NAMES, NAMES),
)
FILE = DataFile("data/1/a.parquet", 1, 0, 0, 9, 0, 9, -5, 5, 10, 1000, 1)


@st.composite
def files(draw: st.DrawFn) -> DataFile:
    order, offset, time = draw(RANGE), draw(RANGE), draw(RANGE)
    sizes = st.integers(0, 2**63 - 1)
    return DataFile(
        path="data/7/x-1.parquet",
        table_id=draw(U64),
        partition=draw(U32),
        order_low=order[0],
        order_high=order[1],
        offset_low=offset[0],
        offset_high=offset[1],
        time_low=time[0],
        time_high=time[1],
        rows=draw(sizes),
        bytes=draw(sizes),
        schema_version=draw(U32),
    )


def sent(message: Any) -> Any:
    """Over the wire."""
    return type(message).FromString(message.SerializeToString())


@given(WRITE_IDS)
def test_write_ids(write_id: WriteId) -> None:
    assert write_id_from(sent(write_id_to(write_id))) == write_id


def test_no_write_id() -> None:
    assert write_id_from(pb.WriteId()) == NO_WRITE_ID
    assert write_id_from(sent(write_id_to(NO_WRITE_ID))) == NO_WRITE_ID


@pytest.mark.parametrize(
    "message",
    [pb.WriteId(kind=1), pb.WriteId(kind=1, writer=b"x" * 15), pb.WriteId(kind=256, writer=b"x" * 16)],
)
def test_what_is_no_write_id(message: pb.WriteId) -> None:
    with pytest.raises(MalformedMessage):
        write_id_from(message)


@given(files())
def test_files(file: DataFile) -> None:
    assert file_from(sent(file_to(file))) == file
    assert files_from([file_to(file)] * 2) == (file, file)


def test_a_file_has_no_field_that_the_message_lacks() -> None:
    assert {field.name for field in dataclasses.fields(DataFile)} == set(messages._FILE_FIELDS)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/etc/passwd"},
        {"path": "../a"},
        {"path": "a/../../b"},
        {"path": "a//b"},
        {"path": ""},
        {"path": "a\x00b"},
        {"path": "s3://bucket/a"},
        {"path": "a" * 100_000},
        {"kind": ""},
        {"kind": "segment"},
        {"key_id": 1},
        {"borrowed": True},
        {"rows": -1},
        {"bytes": -1},
        {"time_low": 6},
        {"order_low": 10},
        {"offset_low": 10},
    ],
)
def test_what_is_no_file(change: dict[str, Any]) -> None:
    message = file_to(FILE)
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(MalformedMessage):
        file_from(message)


@given(
    st.dictionaries(U64, st.builds(Cutoff, I64, I64), max_size=5),
    st.dictionaries(
        st.tuples(U64, st.integers(0, 2**32 - 1)),
        st.builds(Cutoff, I64, I64, st.integers(0, 2**63 - 1), U64),
        max_size=5,
    ),
)
def test_cutoffs(databases: dict[int, Cutoff], tables: dict[tuple[int, int], Cutoff]) -> None:
    messages = [sent(one) for one in cutoffs_to(databases)], [sent(one) for one in table_cutoffs_to(tables)]
    assert cutoffs_from(*messages) == Cutoffs(databases, tables)


def test_two_cutoffs_for_one_database() -> None:
    with pytest.raises(MalformedMessage):
        cutoffs_from([pb.Cutoff(database_id=1), pb.Cutoff(database_id=1)], [])
    for bad in ([pb.TableCutoff(table_id=1), pb.TableCutoff(table_id=1)], [pb.TableCutoff(table_id=1, limit=-1)]):
        with pytest.raises(MalformedMessage, match="partition"):
            cutoffs_from([], bad)


@given(st.lists(CHANGES, max_size=6))
def test_changes(changes: list[Change]) -> None:
    assert changes_from(changes_to(changes)) == changes


def test_every_change_can_be_sent() -> None:
    tags = {kind.__struct_config__.tag for kind in get_args(messages._Wire)}
    assert len(tags) == len(get_args(Change))


def test_what_is_sent_is_fixed() -> None:
    """Nodes of another version read it: these bytes may not change."""
    change = EnsureTable("db", "t", (ColumnSpec("c", Role.FIELD, TypeKind.INT64),))
    assert msgspec.msgpack.decode(changes_to([change, DropDatabase("x")])) == [
        {
            "type": "ensure_table",
            "database": "db",
            "table": "t",
            "columns": [["c", "field", "int64"]],
            "exist_ok": True,
            "create_database": True,
        },
        {"type": "drop_database", "name": "x"},
    ]


VIEWS = st.one_of(
    st.builds(NewView, U32, NAMES, I64, I64, st.lists(COLUMNS, max_size=4).map(tuple), st.booleans()),
    st.builds(ViewProgress, U32, NAMES, st.booleans()),
)


@given(VIEWS, st.dictionaries(U32, U64, max_size=3))
def test_changes_of_views(view: NewView | ViewProgress, positions: dict[int, int]) -> None:
    kind = ChangeKind.CREATE_VIEW if isinstance(view, NewView) else ChangeKind.REFRESH_VIEW
    change = RowChange(kind, "v", 7, positions, view=view)
    assert change_from(sent(change_to(change))) == change


def test_a_change_of_a_view_says_which() -> None:
    message = change_to(RowChange(ChangeKind.REFRESH_VIEW, "v", 7, view=ViewProgress(8, "", False)))
    for bad in ({"view": b""}, {"view": b"\xc1"}, {"kind": int(ChangeKind.INSERT)}, {"kind": ChangeKind.CREATE_VIEW}):
        other = sent(message)
        for name, value in bad.items():
            setattr(other, name, value)
        with pytest.raises(MalformedMessage):
            change_from(other)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_changes(data: bytes) -> None:
    try:
        found = changes_from(data)
    except MalformedMessage:
        return
    assert isinstance(found, list)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [1],
        [{}],
        [{"type": "format_disk"}],
        [{"type": "drop_table", "database": "a"}],
        [{"type": "drop_table", "database": "a", "table": 1}],
        [{"type": "drop_table", "database": "a", "table": "t", "force": True}],
        [{"type": "create_database", "name": "a", "retention_ns": 1.5, "exist_ok": False}],
        [
            {
                "type": "ensure_table", "database": "a", "table": "t", "columns": [["c", "field", "int7"]],
                "exist_ok": True, "create_database": True,
            }
        ],
        [{"type": "drop_database", "name": "x"}] * (messages.CHANGES_MAX + 1),
    ],
)  # fmt: skip
def test_what_are_no_changes(value: Any) -> None:
    with pytest.raises(MalformedMessage):
        changes_from(msgspec.msgpack.encode(value))


def test_too_many_bytes_and_too_deep() -> None:
    with pytest.raises(MalformedMessage):
        changes_from(bytes(messages.CHANGES_BYTES_MAX + 1))
    with pytest.raises(MalformedMessage):
        changes_from(b"\x91" * 100_000)
