"""The slot refuses with a retryable error until it is filled, and passes everything on afterwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest

from nodes.backend import Principal, QueryRequest
from nodes.health import Health, Phase
from nodes.slot import BackendSlot
from storage.errors import ShardClosed

if TYPE_CHECKING:
    from nodes.backend import Backend


class Echo:
    """Answers every call with its own arguments."""

    catalog = "catalog"
    store_id = "id"

    async def refresh(self) -> str:
        return "fresh"

    async def write(self, *arguments: Any, idempotency_key: str) -> None:
        assert len(arguments) == 2
        assert idempotency_key == "k"

    async def alter(self, *arguments: Any) -> Any:
        return arguments

    async def query(self, *arguments: Any) -> Any:
        return arguments

    async def query_text(self, *arguments: Any) -> Any:
        return arguments

    async def queries(self) -> str:
        return "queries"

    async def kill(self, query_id: str) -> str:
        return f"killed {query_id}"


REQUEST = QueryRequest("d", "SELECT 1")


async def call_all(slot: BackendSlot) -> list[Any]:
    results = await asyncio.gather(
        slot.refresh(),
        slot.write([], Principal(), idempotency_key="k"),
        slot.alter([], Principal()),
        slot.query(REQUEST, Principal()),
        slot.query_text(REQUEST, "csv", Principal()),
        slot.queries(),
        slot.kill("q"),
        return_exceptions=True,
    )
    return list(results)


def test_empty() -> None:
    health = Health()
    health.move(Phase.REPLAYING, "3 of 8 shards")
    slot = BackendSlot(health)
    results = asyncio.run(call_all(slot))
    assert [type(result) for result in results] == [ShardClosed] * len(results)
    assert "3 of 8 shards" in str(results[0])
    assert slot.store_id == ""
    with pytest.raises(ShardClosed):
        _ = slot.catalog


def test_filled_then_empty_again() -> None:
    slot = BackendSlot(Health())
    slot.fill(cast("Backend", Echo()))
    assert slot.catalog == cast("Any", "catalog")
    assert slot.store_id == "id"
    asked = (REQUEST, Principal())
    answers: list[Any] = ["fresh", None, ([], Principal()), asked, (REQUEST, "csv", Principal()), "queries", "killed q"]
    assert asyncio.run(call_all(slot)) == answers
    slot.empty()
    assert [type(result) for result in asyncio.run(call_all(slot))] == [ShardClosed] * len(answers)
