"""A store that refuses for a moment does not keep a Log from being opened; one that denies does."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.errors import StorageError, StoreUnavailable
from storage.log import Identity
from storage.logdriver import OPEN_TRIES_MAX, LogDriver
from storage.shardstate import ShardState
from tests.harness.stores import Fault, FaultStore, MemoryStore


def open_log(store: FaultStore) -> int:
    async def run() -> int:
        with ThreadPoolExecutor(2) as executor:
            state = ShardState(b"s" * 16, 1, lambda _: None)
            failures: list[BaseException] = []
            driver = LogDriver(store, Identity(b"s" * 16, 1, b"n" * 16), state, executor, failures.append)
            try:
                return await driver.open()
            finally:
                await driver.close()

    return asyncio.run(run())


def test_an_open_is_sent_again_while_the_store_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.logdriver.RETRY_FIRST_SECONDS", 0.0)
    store = FaultStore(MemoryStore())
    store.arm(Fault.UNAVAILABLE, "create", times=OPEN_TRIES_MAX - 1)
    assert open_log(store) == 1
    assert store.fired[Fault.UNAVAILABLE] == OPEN_TRIES_MAX - 1


def test_an_open_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.logdriver.RETRY_FIRST_SECONDS", 0.0)
    store = FaultStore(MemoryStore())
    store.arm(Fault.UNAVAILABLE, "create", times=OPEN_TRIES_MAX)
    with pytest.raises(StorageError) as caught:
        open_log(store)
    assert isinstance(caught.value, StoreUnavailable)
