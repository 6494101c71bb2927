"""Canonical keys and routing: which partition a row belongs to (LOG L27, FORMAT F21, F22).

Pure. The canonical key of a row is, for each tag that is present in ascending column id: the id (u32), the
type class (u8), the value's length (u32) and the value, all little-endian. Time is left out, so that a series
stays in one partition; equal primary keys have equal canonical keys, which is all that merging needs.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from storage.fold import number_series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from storage.schema import Column, Partition, Table

    Places = npt.NDArray[np.int16] | npt.NDArray[np.int32]

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


def _codes(array: pa.Array) -> tuple[npt.NDArray[np.int32], pa.Array]:
    """Dictionary codes of a tag column, 0 for NULL, and the dictionary, whose values have codes from 1."""
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32) + np.int32(1)
    return indices, encoded.dictionary


def _key_parts(column_id: int, codes: npt.NDArray[Any], dictionary: pa.Array) -> list[bytes]:
    """What a tag adds to the canonical key of each of these codes; each value is encoded once."""
    used, where = np.unique(codes, return_inverse=True)
    values = dictionary.take(pa.array(used - 1, mask=used == 0)).to_pylist()
    parts = [canonical_key([(column_id, value)]) for value in values]
    return [parts[at] for at in where.tolist()]


def row_keys(table: Table, rows: pa.RecordBatch | pa.Table, series_max: int) -> tuple[pa.Array, pa.Array] | None:
    """For sorted rows, of which each column is one array, the hashes and the canonical keys of each row's series.

    One Python step per distinct series. None where they say no more than a column that is there, because the table has
    less than two tags; and where there are more than ``series_max`` series.
    """
    names = frozenset(rows.schema.names)
    tags = sorted((tag for tag in table.tags if tag.storage_name in names), key=lambda tag: tag.id)
    if len(table.tags) < 2 or not rows.num_rows:
        return None
    encoded = [_codes(_array(rows.column(tag.storage_name))) for tag in tags]
    is_first = np.zeros(rows.num_rows, np.bool_)
    is_first[0] = True
    for codes, _ in encoded:
        is_first[1:] |= codes[1:] != codes[:-1]
    first = np.flatnonzero(is_first)
    if len(first) > series_max:
        return None
    parts = [_key_parts(tag.id, codes[first], values) for tag, (codes, values) in zip(tags, encoded, strict=True)]
    keys = [b"".join(key) for key in zip(*parts, strict=True)] or [b""]
    hashes = np.array([key_hash(key) for key in keys], np.uint64).view(np.int64)
    repeats = np.diff(first, append=rows.num_rows)
    places = np.repeat(np.arange(len(keys), dtype=np.int32), repeats)
    return pa.array(np.repeat(hashes, repeats)), pa.DictionaryArray.from_arrays(places, pa.array(keys, pa.binary()))


def _array(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.chunk(0) if isinstance(values, pa.ChunkedArray) else values


def series_hashes(tags: Sequence[Column], rows: pa.RecordBatch) -> npt.NDArray[np.uint64]:
    """The hash of each row's canonical key. One Python step per distinct series, none per row."""
    names = frozenset(rows.schema.names)
    present = sorted((t for t in tags if t.storage_name in names), key=lambda t: t.id)
    if not present or rows.num_rows == 0:
        return np.full(rows.num_rows, key_hash(b""), dtype=np.uint64)
    encoded = [_codes(rows.column(t.storage_name)) for t in present]
    series = number_series(((codes, len(values) + 1) for codes, values in encoded), rows.num_rows)
    parts = [
        _key_parts(tag.id, codes, values)
        for tag, codes, (_, values) in zip(present, series.ranks, encoded, strict=True)
    ]
    hashes = [key_hash(b"".join(key)) for key in zip(*parts, strict=True)]
    routed: npt.NDArray[np.uint64] = np.array(hashes, dtype=np.uint64)[series.codes]
    return routed


class SeriesPlaces:
    """Where the series of one table go, by numbers that somebody else gives them: a parser that knows each row's
    series. Each series is hashed once, by the first row that has it; then a row costs one look-up.

    Equal numbers must mean equal tags for as long as this is used.
    """

    def __init__(self) -> None:
        self._tags: tuple[Column, ...] = ()
        self._partitions: tuple[Partition, ...] = ()
        self._hashes = np.zeros(0, np.uint64)
        self._known = np.zeros(0, np.bool_)
        self._places: Places = np.zeros(0, np.int16)

    def places(self, table: Table, rows: pa.RecordBatch, numbers: npt.NDArray[np.int32]) -> Places:
        """Of each row the position of its partition in ``table.partitions``."""
        if len(numbers) == 0:
            return np.zeros(0, np.int16)
        self._follow(table)
        self._grow(int(numbers.max()) + 1)
        found = self._places.take(numbers)
        if int(found.min()) < 0:
            self._learn(table, rows, numbers, np.flatnonzero(found < 0))
            found = self._places.take(numbers)
        return found

    def _follow(self, table: Table) -> None:
        """Columns that were added change no hash of a series without them; ranges that were split change places."""
        tags = table.tags
        if tags is not self._tags and tags != self._tags:
            if tags[: len(self._tags)] != self._tags:
                self._known[:] = False
                self._places[:] = -1
            self._tags = tags
        if table.partitions is not self._partitions and table.partitions != self._partitions:
            self._partitions = table.partitions
            self._places = place_of(self._partitions, self._hashes)
            self._places[~self._known] = -1

    def _grow(self, size: int) -> None:
        if size > len(self._hashes):
            more = max(size, 2 * len(self._hashes)) - len(self._hashes)
            self._hashes = np.append(self._hashes, np.zeros(more, np.uint64))
            self._known = np.append(self._known, np.zeros(more, np.bool_))
            grown: Places = np.full(len(self._places) + more, -1, self._places.dtype)
            grown[: len(self._places)] = self._places
            self._places = grown

    def _learn(
        self, table: Table, rows: pa.RecordBatch, numbers: npt.NDArray[np.int32], where: npt.NDArray[np.intp]
    ) -> None:
        """Hash the series of these rows, each once."""
        new, first = np.unique(numbers[where], return_index=True)
        names = frozenset(rows.schema.names)
        keys = [tag.storage_name for tag in table.tags if tag.storage_name in names]
        hashes = series_hashes(table.tags, rows.select(keys).take(pa.array(where[first])))
        self._hashes[new] = hashes
        self._known[new] = True
        self._places[new] = place_of(self._partitions, hashes)


class RowSeries(NamedTuple):
    """The series of each row of a batch, by number, and where series go."""

    numbers: npt.NDArray[np.int32]
    places: SeriesPlaces


def place_of(partitions: Sequence[Partition], hashes: npt.NDArray[np.uint64]) -> Places:
    """Of each hash the position in ``partitions`` of the one whose range has it (F21)."""
    order = sorted(range(len(partitions)), key=lambda index: partitions[index].hash_low)
    lows = np.array([partitions[index].hash_low for index in order], dtype=np.uint64)
    at = np.searchsorted(lows, hashes, side="right") - 1
    if len(partitions) < 2**15:  # NumPy sorts 16-bit integers by radix
        return np.array(order, dtype=np.int16)[at]
    return np.array(order, dtype=np.int32)[at]


def route(
    table: Table, rows: pa.RecordBatch, series: RowSeries | None = None, *, share: bool = False
) -> Iterator[tuple[Partition, pa.RecordBatch]]:
    """Split ``rows`` by the table's partition map; the order of rows within a partition is kept.

    With ``share`` the parts are slices of one batch, which costs less and keeps all of it in memory while one of them
    is there: for rows that are encoded and let go.
    """
    partitions = table.partitions
    if len(partitions) == 1:
        yield partitions[0], rows
        return
    if series is None:
        places = place_of(partitions, series_hashes(table.tags, rows))
    else:
        places = series.places.places(table, rows, series.numbers)
    counts = np.bincount(places, minlength=len(partitions))
    if len(counts) and int(counts.max()) == rows.num_rows:
        if rows.num_rows:
            yield partitions[int(counts.argmax())], rows
        return
    order = np.argsort(places, kind="stable")
    sorted_rows = rows.take(pa.array(order)) if share else None
    start = 0
    for partition, count in zip(partitions, counts.tolist(), strict=True):
        if count and sorted_rows is not None:
            yield partition, sorted_rows.slice(start, count)
        elif count:
            yield partition, rows.take(pa.array(order[start : start + count]))
        start += count
