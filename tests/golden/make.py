"""Writes the golden files: one of everything that docs/format.md describes, as format version 1 has it.

`python -m tests.golden.make` writes those that are missing and never touches one that is there: a golden file
is a promise to stores that exist. `tests/unit/storage/test_golden.py` reads them and writes them again.
"""

from __future__ import annotations

import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from storage.bundle import small_tail, write_tails
from storage.catalogplan import plan
from storage.catalogstate import CatalogLimits, CatalogSnapshot, CatalogState, Effect, apply_effects
from storage.changes import Change, ColumnSpec, CreateDatabase, EnsureTable, SetRetention, SetRetentionBytes
from storage.checkpoint import Part, encode_part
from storage.datafile import encode_parquet, with_keys
from storage.deletes import RangeDelete, TagValues
from storage.entries import delete_entry, record_entry, rows_entry
from storage.fold import fold
from storage.frames import (
    Codec,
    Entry,
    EntryKind,
    Frame,
    FrameType,
    Header,
    LogObject,
    ObjectKind,
    WriteId,
    decode_object,
    encode_object,
)
from storage.schema import OP_COLUMN, OP_TYPE, PARQUET_OPS, DataFile, Role, Table, TailBatch, TypeKind
from storage.shardstate import PartitionState, ShardState, encode_frozen
from tests.harness.stores import MemoryStore
from tests.harness.tables import make_rows, make_table

FOLDER = Path(__file__).parent
STORE_ID = uuid.UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
NODE = bytes(range(16))
LOG_ID = 3
UNKNOWN_KIND = 200
TABLE = make_table(table_id=7, log_id=LOG_ID)
WRITE_ID = WriteId(1, bytes(range(16, 32)), 5, 6, 1)


def header(kind: ObjectKind, sequence: int, checkpoint_seq: int = 0, log_id: int = LOG_ID) -> Header:
    nonce = bytes([sequence]) * 16
    return Header(
        kind, STORE_ID.bytes, log_id, sequence, 1, NODE, nonce, checkpoint_seq, 1, 1_700_000_000_000 + sequence
    )


def data_entries() -> tuple[Entry, ...]:
    """One of each entry that a shard's Log may hold, and one of a kind that nobody knows yet."""
    small = rows_entry(TABLE, 1, make_rows([1_700_000_000_000_000_000, 5, -7], ["a", None, "b"]), WRITE_ID)
    many = rows_entry(TABLE, 1, make_rows(list(range(600)), [f"h{n % 7}" for n in range(600)]))
    stream = many.frames[0]
    squeezed = replace(many, frames=(Frame(FrameType.IPC, stream.payload, Codec.ZSTD),), base_offset=3)
    client = Frame(FrameType.CLIENT, b"what a client sent")
    return (
        replace(small, frames=(*small.frames, client)),
        squeezed,
        record_entry(EntryKind.RETENTION, {"database": 1, "cutoff": -5, "recorded_ms": 1_700_000_000_000}),
        record_entry(EntryKind.DROP, {"revision": 9}, table_id=99),
        record_entry(EntryKind.SKIP, {"sequence": 1, "skipped_at_ms": 1_700_000_000_001}, base_offset=1),
        Entry(UNKNOWN_KIND, (Frame(FrameType.RECORD, b"from later on", Codec.LZ4),), flags=3),
    )


def data_file(number: int) -> DataFile:
    path = f"data/{LOG_ID}/1/7/1-{uuid.UUID(int=number).hex}.parquet"
    low = 10 * number
    return DataFile(path, 7, 1, low, low + 9, low, low + 9, -number, number, 10, 1000 + number, 1)


PART_PATH = f"parts/{LOG_ID}/1-{uuid.UUID(int=77).hex}"
BUNDLE_PATH = f"data/{LOG_ID}/bundles/4-{uuid.UUID(int=78).hex}.parquet"
PART_FILES = (data_file(100), data_file(101))


def lookup(table_id: int) -> Table | None:
    return TABLE if table_id == TABLE.id else None


def checkpoint_entries() -> tuple[Entry, ...]:
    state = ShardState(STORE_ID.bytes, LOG_ID, lookup)
    entries = tuple(entry for entry in data_entries() if entry.kind != EntryKind.SKIP)
    state.apply(decode_object(_object(header(ObjectKind.DATA, 2), entries), "golden"))
    state.parts = (Part(PART_PATH, PART_FILES),)
    files = (data_file(1), data_file(2))
    frozen = state.freeze()
    return (*encode_frozen(frozen, files), *state.prepare(frozen, files, None))


DELETE = RangeDelete(-7, 9, (TagValues(2, ("a", None)), TagValues(3, ("ü",))))


def changed_rows() -> pa.RecordBatch:
    """Rows with ops: a put, a delete, and one of the table's default."""
    rows = make_rows([4, 5, 6], ["a", "b", None])
    fields = {name: pc.if_else(pa.array([True, False, True]), rows.column(name), None) for name in ("f", "i", "u", "s")}
    keys = {name: rows.column(name) for name in ("time", "host")}
    return pa.RecordBatch.from_pydict({**keys, **fields, OP_COLUMN: pa.array([1, 2, None], OP_TYPE)})


def delete_entries() -> tuple[Entry, ...]:
    """Rows with ops in both forms, and a range delete (F10, F11)."""
    many = pa.Table.from_batches([changed_rows()] * 4).combine_chunks().to_batches()[0]
    return (
        rows_entry(TABLE, 1, changed_rows(), WRITE_ID),
        replace(rows_entry(TABLE, 1, many), base_offset=3),
        replace(delete_entry(TABLE, 1, DELETE, WRITE_ID._replace(sequence=7)), base_offset=15),
    )


def delete_checkpoint_entries() -> tuple[Entry, ...]:
    """A delete that waits for one file, and a file of rows with ops."""
    state = ShardState(STORE_ID.bytes, LOG_ID, lookup)
    old = data_file(1)
    state.partitions[7, 1] = PartitionState(files=(old,))
    state.loose = (old,)
    state.apply(decode_object(_object(header(ObjectKind.DATA, 2), delete_entries()), "golden"))
    frozen = state.freeze()
    new = replace(data_file(2), kind=PARQUET_OPS)
    return (*encode_frozen(frozen, (new,)), *state.prepare(frozen, (new,), None))


def cutoff_entries() -> tuple[Entry, ...]:
    """Cut-offs of a table, by age, and of two partitions, by bytes (LOG L36)."""
    record = {"database": 1, "cutoff": -5, "recorded_ms": 1_700_000_000_000}
    return (
        record_entry(EntryKind.RETENTION, {**record, "limit": 0}, table_id=7),
        record_entry(EntryKind.RETENTION, {**record, "limit": 1_000}, table_id=7, partition=1),
        record_entry(EntryKind.RETENTION, {**record, "database": 0, "limit": 2_000}, table_id=8, partition=2),
    )


def cutoff_checkpoint_entries() -> tuple[Entry, ...]:
    state = ShardState(STORE_ID.bytes, LOG_ID, lookup)
    state.apply(decode_object(_object(header(ObjectKind.DATA, 2), cutoff_entries()), "golden"))
    frozen = state.freeze()
    return (*encode_frozen(frozen, ()), *state.prepare(frozen, (), None))


def kept_effects() -> list[Effect]:
    """A database and a table with limits, and the table's own period."""
    base = apply_effects(CatalogSnapshot(), catalog_effects(), 2)
    changes: list[Change] = [
        SetRetentionBytes("a db/..", 10**12), SetRetention("a db/..", 0, "t"), SetRetentionBytes("a db/..", 10**9, "t"),
    ]  # fmt: skip
    return plan(base, changes, CatalogLimits(), "20260101T000000")


def bundle_files() -> tuple[dict[str, bytes], tuple[DataFile, ...]]:
    """A bundle of three tables, of which one has ops, and its entries under a fixed path."""
    tables = [make_table(7), replace(make_table(8), version=2), make_table(9)]
    batches = (make_rows([3, 1, 2, 1], ["b", "a", None, "a"]), make_rows([9], ["ü"]), changed_rows())
    store = MemoryStore()
    tails = [small_tail(table, 2, [TailBatch(40, rows)]) for table, rows in zip(tables, batches, strict=True)]
    made = write_tails(store, LOG_ID, 4, [tail for tail in tails if tail is not None])
    (data,) = store.objects.values()
    return {"bundle.parquet": data}, tuple(replace(file, path=BUNDLE_PATH) for file in made)


def bundle_checkpoint_entries() -> tuple[Entry, ...]:
    """Three slices of one object."""
    state = ShardState(STORE_ID.bytes, LOG_ID, lookup)
    _, files = bundle_files()
    frozen = state.freeze()
    return (*encode_frozen(frozen, files), *state.prepare(frozen, files, None))


def catalog_effects() -> list[Effect]:
    """The effects of one change, with a fixed UUID."""
    base = apply_effects(CatalogSnapshot(), [{"do": "format", "version": 1}, {"do": "logs", "ids": [1, 2]}], 1)
    columns = [
        ColumnSpec("host", Role.TAG, TypeKind.STRING),
        ColumnSpec("Host", Role.FIELD, TypeKind.INT64),
        ColumnSpec("?runnel_x", Role.FIELD, TypeKind.BOOL),
    ]
    changes: list[Change] = [
        CreateDatabase("a db/..", retention_ns=86_400_000_000_000),
        EnsureTable("a db/..", "t", columns),
    ]
    effects = plan(base, changes, CatalogLimits(partitions_default=2), "20260101T000000")
    for effect in effects:
        if "uuid" in effect:
            effect["uuid"] = str(STORE_ID)
    return effects


def catalog_state() -> CatalogState:
    state = CatalogState()
    first = [{"do": "format", "version": 1}, {"do": "logs", "ids": [1, 2]}]
    entries = (
        record_entry(EntryKind.RECORD, {"revision": 1, "effects": first}),
        record_entry(EntryKind.RECORD, {"revision": 2, "effects": catalog_effects()}),
    )
    state.apply(LogObject(header(ObjectKind.DATA, 2, log_id=0), entries))
    return state


def _object(head: Header, entries: tuple[Entry, ...]) -> bytes:
    return b"".join(encode_object(head, entries))


def golden_files() -> dict[str, bytes]:
    """Each golden file by its name, as this version writes it."""
    effects = catalog_effects()
    record = record_entry(EntryKind.RECORD, {"revision": 2, "effects": effects})
    kept = record_entry(EntryKind.RECORD, {"revision": 3, "effects": kept_effects()})
    rows = fold(TABLE, [TailBatch(40, make_rows([3, 1, 2, 1], ["b", "a", None, "a"]))])
    return {
        "store.json": b'{"store":"%s","format":1,"ancestors":[]}' % str(STORE_ID).encode(),
        "open.bin": _object(header(ObjectKind.OPEN, 1), ()),
        "data.bin": _object(header(ObjectKind.DATA, 2), data_entries()),
        "checkpoint.bin": _object(header(ObjectKind.CHECKPOINT, 3), checkpoint_entries()),
        "part.bin": encode_part(STORE_ID.bytes, LOG_ID, PART_FILES),
        "catalog-data.bin": _object(header(ObjectKind.DATA, 3, log_id=0), (record,)),
        "catalog-checkpoint.bin": _object(header(ObjectKind.CHECKPOINT, 4, log_id=0), catalog_state().sections()),
        "datafile.parquet": encode_parquet(TABLE, rows).to_pybytes(),
        "data-deletes.bin": _object(header(ObjectKind.DATA, 2), delete_entries()),
        "checkpoint-deletes.bin": _object(header(ObjectKind.CHECKPOINT, 3), delete_checkpoint_entries()),
        "data-cutoffs.bin": _object(header(ObjectKind.DATA, 2), cutoff_entries()),
        "checkpoint-cutoffs.bin": _object(header(ObjectKind.CHECKPOINT, 3), cutoff_checkpoint_entries()),
        "catalog-kept.bin": _object(header(ObjectKind.DATA, 5, log_id=0), (kept,)),
        "datafile-keys.parquet": encode_parquet(TABLE, with_keys(TABLE, rows, rows.num_rows)).to_pybytes(),
        "datafile-ops.parquet": encode_parquet(TABLE, fold(TABLE, [TailBatch(0, changed_rows())])).to_pybytes(),
        **bundle_files()[0],
        "checkpoint-bundles.bin": _object(header(ObjectKind.CHECKPOINT, 3), bundle_checkpoint_entries()),
    }


def main() -> int:
    """Write what is missing; say what is there and differs."""
    different = 0
    for name, content in golden_files().items():
        path = FOLDER / name
        if not path.exists():
            path.write_bytes(content)
            print(f"{name}: written, {len(content)} bytes")
        elif path.read_bytes() != content:
            different += 1
            print(f"{name}: is there and differs; a new version gets a new file, this one stays readable")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
