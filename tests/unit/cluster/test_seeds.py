"""Seeds, the peers file, and errands that may hang; and the limit on complaints."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from cluster.gossiploop import COMPLAINTS_MAX, Seldom
from cluster.seeds import ERRANDS_MAX, PEERS_MAX, Errands, own_address, read_peers, resolve_seed, write_peers

if TYPE_CHECKING:
    from pathlib import Path


def test_the_peers_file_comes_back_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    assert read_peers(path) == []
    write_peers(path, [f"10.0.0.1:{port}" for port in range(1, 400)])
    assert len(read_peers(path)) == PEERS_MAX
    write_peers(path, ["10.0.0.2:7"])
    assert read_peers(path) == ["10.0.0.2:7"]
    assert [p.name for p in tmp_path.iterdir()] == ["peers.json"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["host:7"]', '["10.0.0.1"]', "[" * 5000, " " * 70_000, "\udcff"])
def test_a_peers_file_that_is_not_ours_counts_as_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_peers(path) == []


def test_seeds_that_are_literals_need_no_errand() -> None:
    async def test() -> None:
        assert await resolve_seed(Errands(), "10.0.0.1:7") == ["10.0.0.1:7"]
        assert await resolve_seed(Errands(), "[::1]:7") == ["[::1]:7"]
        assert await resolve_seed(Errands(), "a..b:7") == []  # cannot be a name

    asyncio.run(test())


def test_an_errand_that_hangs_is_left_behind_and_counted() -> None:
    async def test() -> None:
        errands, release = Errands(), threading.Event()
        for _ in range(ERRANDS_MAX):
            with pytest.raises(TimeoutError):
                await errands.run(0.0, release.wait)
        with pytest.raises(TimeoutError, match="too many"):
            await errands.run(1.0, int)
        release.set()
        while errands._busy:
            await asyncio.sleep(0)
        assert await errands.run(5.0, int, "12") == 12
        with pytest.raises(ValueError):
            await errands.run(5.0, int, "x")

    asyncio.run(test())


def test_the_own_address_is_the_one_towards_the_seed() -> None:
    assert own_address(["127.0.0.1:9"]) == "127.0.0.1"
    assert own_address([]) != ""


def test_complaints_about_one_thing_are_seldom_and_their_table_is_bounded() -> None:
    seldom = Seldom(60.0)
    assert seldom.allows("a", 0.0)
    assert not seldom.allows("a", 59.0)
    assert seldom.allows("b", 59.0)
    assert seldom.allows("a", 60.0)
    for number in range(2 * COMPLAINTS_MAX):
        seldom.allows(str(number), 61.0)
    assert len(seldom._last) == COMPLAINTS_MAX
