"""Ids from keys: the same for the same write, wherever it is made; of no other write."""

from __future__ import annotations

import pytest

from nodes.gateway.faults import BadRequest
from nodes.idempotency import KEY_BYTES_MAX, KIND, KeyedIds, check_key
from storage.frames import ZERO16, WriteId


def ids(key: str, *parts: tuple[int, int]) -> list[WriteId]:
    keyed = KeyedIds(key)
    return [keyed.of(table, partition) for table, partition in parts]


def test_the_same_parts_have_the_same_ids() -> None:
    parts = [(1, 0), (1, 1), (2, 0), (1, 0)]
    assert ids("order-7", *parts) == ids("order-7", *parts)
    assert len(set(ids("order-7", *parts))) == len(parts)


def test_the_ids_are_fixed_for_ever() -> None:
    """Nodes of another version must find them in the Logs."""
    (found,) = ids("order-7", (1, 0))
    assert found == WriteId(KIND, bytes.fromhex("47d5d3fbf4b0be428f8677789d714909"), 0, 0, 1)


def test_a_part_keeps_its_id_when_others_are_left_out() -> None:
    """When a table was dropped the others are written again without it."""
    assert ids("k", (1, 0), (2, 0))[1] == ids("k", (2, 0))[0]


def test_keys_tables_and_partitions_do_not_run_into_each_other() -> None:
    found = [ids(key, part)[0] for key in ("k", "1/k", "kk") for part in ((1, 1), (11, 1), (1, 11), (111, 1))]
    assert len(set(found)) == len(found)
    assert all(one.writer != ZERO16 and len(one.writer) == 16 for one in found)


@pytest.mark.parametrize("key", ["", "a\nb", "\x00", "k" * (KEY_BYTES_MAX + 1), "ü" * KEY_BYTES_MAX])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(BadRequest):
        check_key(key)
    with pytest.raises(BadRequest):
        KeyedIds(key)
