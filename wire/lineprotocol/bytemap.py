"""A map from byte strings to small integers that the kernel can read and grow at full speed.

Open addressing over an arena. Ids count up from 0 in the order of insertion. The hash is seeded, so
that a client cannot choose keys that collide. Used for raw series keys and raw field names.
"""

from __future__ import annotations

import secrets
from typing import Final, NamedTuple

import numpy as np

from wire.lineprotocol.machine import Bytes, Int32s, Int64s, UInt64s, inlined, jit, load64, multiply_high, signed

U64 = np.uint64

# Places in `ByteMap.meta`.
COUNT: Final = 0
ARENA_USED: Final = 1
SEED: Final = 2

ARENA_SLACK: Final = 16
"""Bytes after the last key that an 8-byte load may touch."""

FULL: Final = -1
"""What `find_or_add` returns when the caller must call `grown` first."""

_MULTIPLIER: Final = U64(0x9E3779B97F4A7C15)


class ByteMap(NamedTuple):
    """Arrays only, so that compiled code can take it. ``ids`` is -1 in free slots."""

    hashes: UInt64s
    ids: Int32s
    offsets: Int64s
    lengths: Int64s
    arena: Bytes
    meta: Int64s


def create(keys: int, arena_bytes: int) -> ByteMap:
    """An empty map with room for ``keys`` keys (a power of two) of ``arena_bytes`` together."""
    return _allocate(keys, arena_bytes, secrets.randbits(62))


def _allocate(keys: int, arena_bytes: int, seed: int) -> ByteMap:
    slots = 2 * keys
    return ByteMap(
        np.zeros(slots, np.uint64),
        np.full(slots, -1, np.int32),
        np.zeros(keys, np.int64),
        np.zeros(keys, np.int64),
        np.zeros(arena_bytes + ARENA_SLACK, np.uint8),
        np.array([0, 0, seed], np.int64),
    )


def grown(old: ByteMap, key_bytes: int) -> ByteMap:
    """A copy with twice the room, and room for one more key of ``key_bytes``. Ids stay."""
    count, used, seed = (int(x) for x in old.meta)
    keys = old.offsets.size * (2 if count >= old.offsets.size else 1)
    arena = old.arena.size - ARENA_SLACK
    while arena < used + key_bytes:
        arena *= 2
    new = _allocate(keys, arena, seed)
    new.offsets[:count] = old.offsets[:count]
    new.lengths[:count] = old.lengths[:count]
    new.arena[:used] = old.arena[:used]
    new.meta[:] = old.meta
    _rehash(old, new)
    return new


def key_of(table: ByteMap, key_id: int) -> bytes:
    """The bytes of a key."""
    start = int(table.offsets[key_id])
    return table.arena[start : start + int(table.lengths[key_id])].tobytes()


@inlined
def mix(state: np.uint64, word: np.uint64) -> np.uint64:
    """Fold 8 bytes into a hash."""
    mixed = state ^ word
    return (mixed * _MULTIPLIER) ^ multiply_high(mixed, _MULTIPLIER)


@inlined
def same(left: Bytes, left_at: int, right: Bytes, right_at: int, length: int) -> bool:
    """Whether two stretches are equal. Loads up to 7 bytes past both."""
    while length >= 8:
        if load64(left, left_at) != load64(right, right_at):
            return False
        left_at += 8
        right_at += 8
        length -= 8
    if length > 0:
        difference = load64(left, left_at) ^ load64(right, right_at)
        return bool(difference << U64(64 - 8 * length) == U64(0))
    return True


@inlined
def find_or_add(table: ByteMap, key_hash: np.uint64, buffer: Bytes, start: int, length: int) -> int:
    """The id of ``buffer[start:start + length]``, new or old; `FULL` if it is new and there is no room."""
    mask = table.ids.size - 1
    slot = signed(key_hash & U64(mask))
    while table.ids[slot] >= 0:
        if table.hashes[slot] == key_hash:
            found = table.ids[slot]
            if table.lengths[found] == length and same(buffer, start, table.arena, table.offsets[found], length):
                return signed(found)
        slot = (slot + 1) & mask
    count, used = table.meta[COUNT], table.meta[ARENA_USED]
    if count >= table.offsets.size or used + length + ARENA_SLACK > table.arena.size:
        return FULL
    table.ids[slot] = count
    table.hashes[slot] = key_hash
    table.offsets[count] = used
    table.lengths[count] = length
    for index in range(length):
        table.arena[used + index] = buffer[start + index]
    table.meta[COUNT] = count + 1
    table.meta[ARENA_USED] = used + length
    return signed(count)


@jit
def _rehash(old: ByteMap, new: ByteMap) -> None:
    mask = new.ids.size - 1
    for source in range(old.ids.size):
        if old.ids[source] < 0:
            continue
        key_hash = old.hashes[source]
        slot = signed(key_hash & U64(mask))
        while new.ids[slot] >= 0:
            slot = (slot + 1) & mask
        new.ids[slot] = old.ids[source]
        new.hashes[slot] = key_hash
