"""Which files of a snapshot are gone: as few requests to an object store as that takes (LOG L16)."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from engine.files import ASKED_ALONE_MAX, FileRoot

if TYPE_CHECKING:
    from pathlib import Path

    from storage.objects import ObjectStore


class Store:
    """Objects by path, and how often it was asked."""

    def __init__(self, *paths: str) -> None:
        self.paths = set(paths)
        self.asked: Counter[str] = Counter()

    def exists(self, path: str) -> bool:
        self.asked["exists"] += 1
        return path in self.paths

    def list(self, folder: str) -> list[SimpleNamespace]:
        self.asked["list"] += 1
        return [SimpleNamespace(name=p.rpartition("/")[2]) for p in self.paths if p.rpartition("/")[0] == folder]


def missing(store: Store, paths: list[str]) -> list[str]:
    root = FileRoot("s3://bucket", None)
    root._store = cast("ObjectStore", store)
    return root.missing(paths)


def test_a_few_are_asked_for_one_by_one() -> None:
    store = Store("data/1/a", "data/2/b")
    assert missing(store, ["data/1/a", "data/1/c", "data/2/b"]) == ["data/1/c"]
    assert store.asked == {"exists": 3}


def test_many_of_one_folder_take_one_listing() -> None:
    wanted = [f"data/1/{n}" for n in range(ASKED_ALONE_MAX + 1)]
    store = Store(*wanted[1:], "data/1/other", "data/2/0")
    assert missing(store, [*wanted, "data/2/0"]) == ["data/1/0"]
    assert store.asked == {"list": 1, "exists": 1}


def test_nothing_is_asked_for_nothing() -> None:
    store = Store()
    assert missing(store, []) == []
    assert not store.asked


def test_on_a_disk(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").touch()
    root = FileRoot(str(tmp_path), None)
    assert root.missing(["data/a", "data/b", "data"]) == ["data/b", "data"]
