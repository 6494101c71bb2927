"""Canonical keys and routing: which partition a row belongs to (LOG L27, FORMAT F21, F22).

Pure. The canonical key of a row is, for each tag that is present in ascending column id: the id (u32), the
type class (u8), the value's length (u32) and the value, all little-endian. Time is left out, so that a series
stays in one partition; equal primary keys have equal canonical keys, which is all that merging needs.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from storage.schema import Column, Partition, Table

_HEAD: Final = struct.Struct("<IBI")
_NAN: Final = (0x7FF8 << 48).to_bytes(8, "little")


class TypeClass(enum.IntEnum):
    """Values of one class that are equal have equal keys: integers of every width are one class (F22)."""

    STRING = 1
    INTEGER = 2
    FLOAT = 3
    BOOL = 4
    TIMESTAMP = 5


KeyValue = str | int | float | bool


def encode_value(value: KeyValue, *, timestamp: bool = False) -> tuple[TypeClass, bytes]:
    """A value's class and bytes. Integers are their shortest two's complement; -0.0 is 0.0, every NaN is one."""
    if isinstance(value, bool):
        return TypeClass.BOOL, bytes([value])
    if isinstance(value, int):
        width = (value + (value < 0)).bit_length() // 8 + 1
        kind = TypeClass.TIMESTAMP if timestamp else TypeClass.INTEGER
        return kind, value.to_bytes(width, "little", signed=True)
    if isinstance(value, float):
        return TypeClass.FLOAT, _NAN if value != value else struct.pack("<d", value + 0.0)
    return TypeClass.STRING, value.encode()


def canonical_key(values: Sequence[tuple[int, KeyValue | None]]) -> bytes:
    """The key of (column id, value) pairs in ascending id; None is absent and skipped."""
    parts = []
    for column_id, value in values:
        if value is not None:
            kind, data = encode_value(value)
            parts.append(_HEAD.pack(column_id, kind, len(data)) + data)
    return b"".join(parts)


def key_hash(key: bytes) -> int:
    """xxh3_64 of a canonical key: stable for ever, unlike Python's own hash (L27)."""
    return xxhash.xxh3_64_intdigest(key)


def _codes(array: pa.Array) -> tuple[npt.NDArray[np.int64], list[str | None]]:
    """Dictionary codes of a tag column, 0 for NULL, and the values by code."""
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return indices, [None, *encoded.dictionary.to_pylist()]


def series_hashes(tags: Sequence[Column], rows: pa.RecordBatch) -> npt.NDArray[np.uint64]:
    """The hash of each row's canonical key. One Python step per distinct series, none per row."""
    present = sorted((t for t in tags if t.storage_name in rows.schema.names), key=lambda t: t.id)
    if not present:
        return np.full(rows.num_rows, key_hash(b""), dtype=np.uint64)
    encoded = [_codes(rows.column(t.storage_name)) for t in present]
    combined, inverse = np.unique(np.stack([codes for codes, _ in encoded]), axis=1, return_inverse=True)
    hashes = np.empty(combined.shape[1], dtype=np.uint64)
    for index, codes in enumerate(combined.T.tolist()):
        values = [(t.id, e[1][c]) for t, e, c in zip(present, encoded, codes, strict=True)]
        hashes[index] = key_hash(canonical_key(values))
    routed: npt.NDArray[np.uint64] = hashes[inverse.reshape(-1)]
    return routed


def route(table: Table, rows: pa.RecordBatch) -> Iterator[tuple[Partition, pa.RecordBatch]]:
    """Split ``rows`` by the table's partition map; the order of rows within a partition is kept."""
    if len(table.partitions) == 1:
        yield table.partitions[0], rows
        return
    hashes = series_hashes(table.tags, rows)
    for partition in table.partitions:
        inside = hashes >= np.uint64(partition.hash_low)
        if partition.hash_high < 2**64:
            inside &= hashes < np.uint64(partition.hash_high)
        picked = np.flatnonzero(inside)
        if len(picked) == rows.num_rows:
            yield partition, rows
        elif len(picked):
            yield partition, rows.take(pa.array(picked))
