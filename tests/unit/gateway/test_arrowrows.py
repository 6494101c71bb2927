"""Rows that come as Arrow: what becomes of each type, and what is refused before it costs anything."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.backend import ColumnSpec, EnsureTable, Principal
from nodes.gateway.arrowrows import BATCHES_MAX, batches_for, read_rows
from nodes.gateway.arrowwrite import ArrowWriter
from nodes.gateway.batches import StaleTable
from nodes.gateway.faults import BadRequest
from storage.errors import NoSuchTable, SchemaConflict
from storage.schema import Role, TypeKind
from tests.harness.memory_backend import MemoryBackend, rows_of

TIME = pa.array([1, 2], pa.timestamp("ns"))


def ipc(*batches: pa.RecordBatch, options: Any = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def table(**columns: Any) -> bytes:
    return ipc(pa.record_batch({"time": TIME} | columns))


def refused(data: bytes, tags: tuple[str, ...] = ()) -> str:
    with pytest.raises(BadRequest) as caught:
        read_rows(data, tags)
    return str(caught.value)


def test_each_type_finds_its_kind() -> None:
    found = read_rows(
        table(
            host=pa.array(["a", None]).dictionary_encode(),
            zone=pa.array(["1", "2"], pa.large_string()),
            i=pa.array([1, -1], pa.int8()),
            u=pa.array([1, 2], pa.uint32()),
            f=pa.array([1.5, None], pa.float32()),
            s=pa.array(["x", "y"]),
            b=pa.array([True, None]),
        ),
        ("zone",),
    )
    tag, field = Role.TAG, Role.FIELD
    assert found.columns == (
        ColumnSpec("host", tag, TypeKind.STRING),
        ColumnSpec("zone", tag, TypeKind.STRING),
        ColumnSpec("i", field, TypeKind.INT64),
        ColumnSpec("u", field, TypeKind.UINT64),
        ColumnSpec("f", field, TypeKind.FLOAT64),
        ColumnSpec("s", field, TypeKind.STRING),
        ColumnSpec("b", field, TypeKind.BOOL),
    )
    dictionary = pa.dictionary(pa.int32(), pa.string())
    types = [pa.timestamp("ns"), dictionary, dictionary, pa.int64(), pa.uint64(), pa.float64(), pa.string(), pa.bool_()]
    assert found.batches[0].schema.types == types
    assert found.rows == 2


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_every_unit_and_zone(unit: str) -> None:
    found = read_rows(ipc(pa.record_batch({"time": pa.array([1], pa.timestamp(unit, "UTC")), "v": [1]})))
    assert found.batches[0].column("time").cast(pa.int64()).to_pylist() == [
        {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}[unit]
    ]
    plain = read_rows(ipc(pa.record_batch({"v": [1], "time": pa.array([7], pa.int64())})))
    assert plain.batches[0].schema.names == ["time", "v"]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"v": pa.array([[1], [2]])}, "'v' has type list"),
        ({"v": pa.nulls(2)}, "'v' has type null"),
        ({"v": pa.array(["a", "b"], pa.string_view())}, "'v' has type string_view"),
        ({"v": pa.array([b"a", b"b"])}, "'v' has type binary"),
        ({"v": TIME}, "'v' has type timestamp"),
        ({"v": pa.array([1, 2]).dictionary_encode()}, "'v' has type dictionary"),
        ({"v": pa.RunEndEncodedArray.from_arrays([2], [1])}, "'v' has type run_end_encoded"),
        ({"time": pa.array(["a", "b"])}, "send a timestamp"),
        ({"time": pa.array([1, None], pa.timestamp("ns"))}, "has 1 nulls"),
        ({"time": pa.array([10**12, 1], pa.timestamp("s"))}, "'time'"),
    ],
)
def test_other_types_are_refused(columns: dict[str, Any], words: str) -> None:
    assert words in refused(table(**columns))


def test_names_that_cannot_be() -> None:
    assert "'time' is missing" in refused(ipc(pa.record_batch({"v": [1]})))
    assert "same name" in refused(ipc(pa.RecordBatch.from_arrays([TIME, TIME], names=["time", "time"])))
    assert "'x', which tags name" in refused(table(v=[1, 2]), ("x",))
    assert "tags are strings" in refused(table(v=[1, 2]), ("v",))
    assert "10001 columns" in refused(
        ipc(pa.RecordBatch.from_arrays([TIME] * 10_001, names=[f"c{i}" for i in range(10_001)]))
    )


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compression_is_refused_in_rows_and_in_dictionaries(codec: str) -> None:
    options = pa.ipc.IpcWriteOptions(compression=codec)
    plain = pa.record_batch({"time": pa.array(range(10_000), pa.timestamp("ns")), "v": pa.array([0] * 10_000)})
    assert "without compression" in refused(ipc(plain, options=options))
    tagged = pa.record_batch({"time": TIME, "t": pa.array(["a" * 10_000, "b"]).dictionary_encode()})
    assert "without compression" in refused(ipc(tagged, options=options))


def test_a_dictionary_may_not_stand_for_too_much() -> None:
    indices = pa.array([0] * 100_000, pa.int8())
    times = pa.array(range(100_000), pa.timestamp("ns"))
    large = pa.record_batch({"time": times, "t": pa.DictionaryArray.from_arrays(indices, ["x" * 100_000])})
    assert "8 times" in refused(ipc(large))
    small = pa.record_batch({"time": times, "t": pa.DictionaryArray.from_arrays(indices, ["x" * 10])})
    assert read_rows(ipc(small)).rows == 100_000


def test_values_are_checked() -> None:
    offsets = pa.py_buffer(bytes(4) + (1).to_bytes(4, "little") + (2).to_bytes(4, "little"))
    broken = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    assert "no Arrow IPC stream" in refused(table(s=broken))
    far = pa.DictionaryArray.from_arrays(pa.array([0, 9], pa.int32()), ["a"], safe=False)
    assert "no Arrow IPC stream" in refused(table(t=far))


def test_what_is_no_stream() -> None:
    good = table(v=[1, 2])
    for data in (b"", b"x", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f", good[:100], b"ARROW1" + good):
        assert "no Arrow IPC stream" in refused(data)
    many = ipc(*[pa.record_batch({"time": TIME})] * (BATCHES_MAX + 1))
    assert "record batches" in refused(many)
    assert read_rows(ipc(pa.record_batch({"time": TIME}).slice(0, 0))).batches == ()


@given(st.data())
def test_flipped_bytes_are_refused_or_read(data: st.DataObject) -> None:
    body = bytearray(table(v=[1, 2], t=pa.array(["a", "b"]).dictionary_encode()))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BadRequest):
        read_rows(bytes(body))


ME = Principal()


def run(work: Any) -> Any:
    return asyncio.run(work)


def test_a_write_makes_the_table_and_its_columns() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        writer = ArrowWriter(backend)
        data = table(v=[1.5, 2.5], host=pa.array(["a", "b"]).dictionary_encode())
        assert await writer.write("db", "m", data, principal=ME) == 2
        assert await writer.write("db", "m", data, principal=ME) == 2
        assert len(backend.alters) == 1
        more = table(w=[1, 2], host=["a", "b"])
        with pytest.raises(SchemaConflict):
            await writer.write("db", "m", more, principal=ME)
        assert await writer.write("db", "m", more, tags=["host"], principal=ME, idempotency_key="k") == 2
        assert backend.alters[-1] == [EnsureTable("db", "m", (ColumnSpec("w", Role.FIELD, TypeKind.INT64),))]
        assert backend.keys == ["", "", "k"]
        assert rows_of(backend.table("db", "m"))[-1] == {"time": 2, "host": "b", "w": 2}

    run(scenario())


def test_a_table_that_was_dropped_is_made_again() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        backend.fail_writes = [NoSuchTable("gone"), NoSuchTable("gone")]
        assert await ArrowWriter(backend).write("db", "m", table(v=[1, 2]), principal=ME) == 2
        backend.fail_writes = [NoSuchTable("gone")] * 5
        with pytest.raises(NoSuchTable):
            await ArrowWriter(backend).write("db", "m", table(v=[1, 2]), principal=ME)

    run(scenario())


def test_no_rows_write_nothing() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        empty = ipc(pa.record_batch({"time": TIME}).slice(0, 0))
        assert await ArrowWriter(backend).write("db", "m", empty, principal=ME) == 0
        assert backend.alters == []

    run(scenario())


def test_a_table_of_another_version_is_stale() -> None:
    async def scenario() -> None:
        backend = MemoryBackend()
        await ArrowWriter(backend).write("db", "m", table(v=[1, 2]), principal=ME)
        found = backend.catalog.table("db", "m")
        assert found is not None
        assert len(batches_for(found, read_rows(table(v=[1, 2])))) == 1
        for other in (table(w=[1, 2]), table(v=[1.5, 2.5])):
            with pytest.raises(StaleTable):
                batches_for(found, read_rows(other))

    run(scenario())
