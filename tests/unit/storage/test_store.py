"""A store's identity and its paths (FORMAT F1, F2)."""

from __future__ import annotations

import json
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import CorruptObject, StoreUnavailable, UnsupportedFormat
from storage.objects import check_path
from storage.store import (
    IDENTITY_TRIES_MAX,
    STORE_FILE,
    data_path,
    decode_identity,
    epoch_of,
    log_folder,
    object_name,
    open_identity,
    part_path,
)
from tests.harness.stores import Fault, FaultStore, MemoryStore

ID = "0f8fad5b-d9cb-469f-a165-70867728950e"


def test_f1_an_empty_store_gets_an_identity_once() -> None:
    store = MemoryStore()
    first = open_identity(store)
    assert json.loads(store.get(STORE_FILE)) == {"store": str(first.id), "format": 1, "ancestors": []}
    assert open_identity(store) == first
    assert open_identity(MemoryStore()) != first


def test_f1_the_first_of_two_wins() -> None:
    """A create that lands late changes nothing: every process goes by the one that stands."""
    inner = MemoryStore()
    slow = FaultStore(inner)
    slow.arm(Fault.LATE)
    first = open_identity(slow)
    slow.land_late()
    assert open_identity(inner) == open_identity(slow) == first
    assert slow.fired[Fault.LATE] == 1


def test_a_store_that_refuses_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.store.IDENTITY_PAUSE_SECONDS", 0.0)
    store = FaultStore(MemoryStore())
    store.arm(Fault.UNAVAILABLE, "create", times=IDENTITY_TRIES_MAX - 1)
    assert open_identity(store) == open_identity(store)
    store = FaultStore(MemoryStore())
    store.arm(Fault.UNAVAILABLE, "create", times=IDENTITY_TRIES_MAX)
    with pytest.raises(StoreUnavailable):
        open_identity(store)


def test_f1_a_create_whose_answer_was_lost_is_read_again() -> None:
    store = FaultStore(MemoryStore())
    store.arm(Fault.LOST_ANSWER)
    first = open_identity(store)
    assert open_identity(store) == first
    assert store.fired[Fault.LOST_ANSWER] == 1


def test_logs_without_an_identity_are_not_given_a_new_one() -> None:
    store = MemoryStore({"logs/1/" + object_name(1): b"x"})
    with pytest.raises(CorruptObject, match="restore it"):
        open_identity(store)
    assert not store.exists(STORE_FILE)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", CorruptObject),
        (b"{}", CorruptObject),
        (b"[]", CorruptObject),
        (b'{"store":"no uuid","format":1}', CorruptObject),
        (b'{"store":"%s","format":0}' % ID.encode(), CorruptObject),
        (b'{"store":"%s","format":"1"}' % ID.encode(), CorruptObject),
        (b'{"store":"%s","format":1,"more":1}' % ID.encode(), CorruptObject),
        (b'{"store":"%s","format":2,"more":1}' % ID.encode(), UnsupportedFormat),
        (b'{"store":"%s","format":1,"ancestors":[{"store":"a","logs":{"1":9}}]}' % ID.encode(), UnsupportedFormat),
    ],
)
def test_what_is_no_identity_or_a_newer_one_is_refused(content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match="memory://store"):
        open_identity(MemoryStore({STORE_FILE: content}))


def test_identity_comes_back() -> None:
    assert decode_identity(b'{"store":"%s","format":1}' % ID.encode(), "here").id == uuid.UUID(ID)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_l1_names_sort_as_their_sequences(one: int, other: int) -> None:
    names = object_name(one), object_name(other)
    assert (names[0] < names[1]) == (one < other)
    assert re.fullmatch("[0-9]{20}", names[0])
    assert check_path(f"{log_folder(1)}/{names[0]}")


@given(*[st.integers(1, 2**64 - 1)] * 4)
def test_l20_names_of_files_hold_their_writers_epoch(log: int, database: int, table: int, epoch: int) -> None:
    paths = [data_path(log, database, table, epoch), part_path(log, epoch)]
    assert len(set(paths) | {data_path(log, database, table, epoch)}) == 3
    for path in paths:
        assert epoch_of(check_path(path)) == epoch
    assert paths[0].startswith(f"data/{log}/{database}/{table}/{epoch}-")


UUID = "0" * 32
NOT_OURS = ["readme.txt", "5-notes.parquet", f"-{UUID}", f"x-{UUID}", f"5-{UUID[1:]}", f"5-{UUID}.csv", f"²-{UUID}"]


@pytest.mark.parametrize("name", NOT_OURS)
def test_l20_what_we_did_not_name_is_left_alone(name: str) -> None:
    assert epoch_of(f"data/1/1/1/{name}") is None
