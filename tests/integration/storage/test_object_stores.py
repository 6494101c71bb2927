"""One contract, kept by every store: memory, local disk (both ways to write), S3 by a real server."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from storage.errors import InvalidName, ObjectMissing, StoreUnavailable
from storage.localstore import LocalStore
from storage.objects import (
    PART_CHARS_MAX,
    PATH_CHARS_MAX,
    CreateOutcome,
    Listed,
    ObjectStore,
    open_store,
    prove_store,
)
from tests.harness.s3server import S3Server, moto_server
from tests.harness.stores import FaultStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    OpenAgain = Callable[[], ObjectStore]

CREATED, EXISTS = CreateOutcome.CREATED, CreateOutcome.EXISTS
KINDS = ["memory", "faultless", "local", "local-named", "s3"]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(params=KINDS)
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenAgain]:
    """Opens one more instance of the same store, as another process would."""
    opened: list[ObjectStore] = []
    opener = _opener(request, tmp_path)

    def open_one() -> ObjectStore:
        opened.append(opener())
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


def _opener(request: pytest.FixtureRequest, tmp_path: Path) -> OpenAgain:
    kind = request.param
    if kind == "memory":
        shared = MemoryStore()
        return lambda: shared
    if kind == "faultless":
        behind = MemoryStore()
        return lambda: FaultStore(behind)
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3")
        url = server.new_store()
        return lambda: open_store(url, server.options)
    return lambda: _open_local(tmp_path / "store", named=kind == "local-named")


def _open_local(root: Path, *, named: bool) -> ObjectStore:
    store = open_store(str(root))
    assert isinstance(store, LocalStore)
    if named:
        store._unnamed_files = False
    return store


@pytest.fixture
def store(open_again: OpenAgain) -> ObjectStore:
    return open_again()


def test_create_then_read(store: ObjectStore) -> None:
    assert store.create("logs/1/00000000000000000001", b"first") is CREATED
    assert store.get("logs/1/00000000000000000001") == b"first"
    assert store.exists("logs/1/00000000000000000001")


def test_create_is_exclusive_and_changes_nothing_that_stands(store: ObjectStore) -> None:
    assert store.create("a/b", b"mine") is CREATED
    assert store.create("a/b", b"other") is EXISTS
    store.settle("a/b")  # L6
    assert store.get("a/b") == b"mine"


def test_many_buffers_become_one_object(store: ObjectStore) -> None:
    parts: list[bytes | memoryview] = [
        b"",
        b"head",
        memoryview(b"0123456789")[2:5],
        b"",
    ]
    parts += [bytes([number % 256]) for number in range(3000)]  # more than one writev takes
    assert store.create("many", parts) is CREATED
    assert store.get("many") == b"".join(parts)


def test_typed_memoryviews_are_taken_by_their_bytes(store: ObjectStore) -> None:
    words = memoryview(bytes(range(64))).cast("Q")
    assert store.create("words", [words]) is CREATED
    assert store.get("words") == bytes(range(64))


def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    assert store.create("empty", b"") is CREATED
    assert store.create("empty", [b""]) is EXISTS
    assert store.get("empty") == b""
    assert store.exists("empty")
    assert store.list("") == [Listed("empty", 0)]


def test_big_objects_and_ranges(store: ObjectStore) -> None:
    content = bytes(range(256)) * (8 * 4096)
    assert store.create("big", [content[:100], memoryview(content)[100:]]) is CREATED
    assert store.get("big") == content
    assert store.get_range("big", 0, 7) == content[:7]
    assert store.get_range("big", 5_000_001, 70_000) == content[5_000_001:5_070_001]
    assert store.get_range("big", len(content) - 3, 100) == content[-3:]
    assert store.get_range("big", len(content), 1) == b""
    assert store.list("") == [Listed("big", 8 << 20)]


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, 0), (3, -1)])
def test_ranges_that_no_object_has_are_refused(store: ObjectStore, start: int, length: int) -> None:
    store.create("a", b"abc")
    with pytest.raises(ValueError, match="range"):
        store.get_range("a", start, length)


def test_missing_objects_are_missing(store: ObjectStore) -> None:
    store.create("a/b/c", b"x")
    for path in ("a/b/d", "z", "a/b", "a/b/c/d", "a"):  # folders are no objects, objects no folders
        assert not store.exists(path), path
        with pytest.raises(ObjectMissing):
            store.get(path)
        with pytest.raises(ObjectMissing):
            store.get_range(path, 0, 1)
    assert store.list("nothing/here") == []
    assert store.list_all("nothing") == []


def test_delete_is_idempotent_and_frees_the_name(store: ObjectStore) -> None:
    store.delete("a/b")
    store.create("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")
    assert store.list("a") == []
    store.delete("a")  # a folder on disk, nothing on S3
    assert store.create("a/b", b"2") is CREATED
    assert store.get("a/b") == b"2"


def test_listing_starts_at_a_name_and_is_sorted(store: ObjectStore) -> None:
    names = [f"{number:020d}" for number in (3, 1, 20, 10, 2, 9)]
    for name in names:
        store.create(f"logs/7/{name}", b"x" * int(name))
    store.create("logs/7/below/00000000000000000004", b"")
    store.create("logs/70/00000000000000000005", b"")
    store.create("logs/8", b"")
    expected = [Listed(f"{n:020d}", n) for n in (1, 2, 3, 9, 10, 20)]
    assert store.list("logs/7") == expected
    assert store.list("logs/7", start=f"{2:020d}") == expected[1:]
    assert store.list("logs/7", start=f"{4:020d}") == expected[3:]
    assert store.list("logs/7", start=f"{10:020d}") == expected[4:]
    assert store.list("logs/7", start=f"{21:020d}") == []
    assert store.list("logs") == [Listed("8", 0)]


def test_every_start_lists_just_what_is_not_below_it(store: ObjectStore) -> None:
    names = sorted({"".join(t) for n in (1, 2) for t in itertools.product("-.0=Az_", repeat=n) if t[0] != "."})
    for name in names:
        store.create(f"f/{name}", b"")
    for start in (*names[::3], "..", "Az.", "zz-"):
        assert [entry.name for entry in store.list("f", start=start)] == [n for n in names if n >= start], start


def test_a_long_listing_is_complete(store: ObjectStore) -> None:
    """L9: a listing goes over many pages (S3: 1,000 names each) and leaves nothing out."""
    count = 1203
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: store.create(f"logs/1/{n:020d}", b""), range(count)))
    assert [entry.name for entry in store.list("logs/1")] == [f"{n:020d}" for n in range(count)]
    assert len(store.list_all("logs")) == count
    assert len(store.list("logs/1", start=f"{100:020d}")) == count - 100


def test_list_all_goes_to_any_depth(store: ObjectStore) -> None:
    paths = ["data/1/2/3/4-a.parquet", "data/1/2/30/4-b.parquet", "data/1/bundles/4-c.parquet", "data/1/x", "data/10/y"]
    for path in paths:
        store.create(path, path.encode())
    assert store.list_all("data/1") == [Listed(p.removeprefix("data/1/"), len(p)) for p in sorted(paths[:4])]
    assert [entry.name for entry in store.list_all("")] == sorted(paths)


ODD_PATHS = [
    "",
    "/",
    "/etc/passwd",
    "a//b",
    "a/",
    "../a",
    "a/../b",
    "a/..",
    ".",
    "./a",
    ".tmp/a",
    "a/.hidden",
    "a b",
    "a\0b",
    "a\nb",
    "a\n",
    "ä",
    "٣",
    "a%2e",
    "a\\b",
    "a'b",
    "a?b",
    "a#b",
    "*",
    "x" * (PART_CHARS_MAX + 1),
    "/".join(["x" * 99] * 6),
]


@pytest.mark.parametrize("path", ODD_PATHS, ids=ascii)
def test_odd_names_never_reach_a_store(store: ObjectStore, path: str) -> None:
    """FORMAT F2: names are data, and data never becomes a path."""
    for refused in (
        lambda: store.create(path, b"x"),
        lambda: store.settle(path),
        lambda: store.get(path),
        lambda: store.get_range(path, 0, 1),
        lambda: store.exists(path),
        lambda: store.delete(path),
        lambda: store.local_path(path),
    ):
        with pytest.raises(InvalidName):
            refused()
    if path:  # "" is the root of listings
        with pytest.raises(InvalidName):
            store.list(path)
        with pytest.raises(InvalidName):
            store.list_all(path)
    assert store.list_all("") == []


def test_odd_starts_are_refused(store: ObjectStore) -> None:
    for start in ("a/b", "a b", "a\0", "x" * (PART_CHARS_MAX + 1)):
        with pytest.raises(InvalidName):
            store.list("a", start=start)


def test_the_longest_path_works(store: ObjectStore) -> None:
    path = "/".join(["p" * PART_CHARS_MAX, "q" * PART_CHARS_MAX, "r" * (PATH_CHARS_MAX - 2 * PART_CHARS_MAX - 2)])
    assert len(path) == PATH_CHARS_MAX
    assert store.create(path, b"x") is CREATED
    assert store.list_all("") == [Listed(path, 1)]


@pytest.mark.parametrize("writers", [8, 16])
def test_a_race_has_one_winner_whose_content_stands(open_again: OpenAgain, writers: int) -> None:
    """L33: also between instances, in a folder that does not exist yet."""
    instances = [open_again() for _ in range(4)]
    for turn in range(5):
        start = threading.Barrier(writers)

        def contend(number: int, turn: int = turn, start: threading.Barrier = start) -> CreateOutcome:
            start.wait()
            return instances[number % 4].create(f"race/{turn}/{turn}", f"writer {number}".encode() * 50)

        with ThreadPoolExecutor(writers) as threads:
            outcomes = list(threads.map(contend, range(writers)))
        assert sorted(o.value for o in outcomes) == ["created"] + ["exists"] * (writers - 1)
        assert instances[0].get(f"race/{turn}/{turn}") == f"writer {outcomes.index(CREATED)}".encode() * 50


def test_what_one_instance_creates_another_sees_at_once(open_again: OpenAgain) -> None:
    """L35: neither exists nor a listing answers from what this instance saw before."""
    here, there = open_again(), open_again()
    for number in range(5):
        path, name = f"logs/1/{number:020d}", f"{number:020d}"
        assert not there.exists(path)
        assert name not in [entry.name for entry in there.list("logs/1")]
        assert here.create(path, b"x") is CREATED
        assert there.exists(path)
        assert there.list("logs/1", start=name) == [Listed(name, 1)]
        assert there.list_all("logs")[-1] == Listed(f"1/{name}", 1)
        assert there.get(path) == b"x"
        assert there.create(path, b"y") is EXISTS
    here.delete("logs/1/00000000000000000000")
    assert not there.exists("logs/1/00000000000000000000")
    assert len(there.list("logs/1")) == 4


def test_the_clock_is_the_present_and_does_not_go_back(open_again: OpenAgain, request: pytest.FixtureRequest) -> None:
    """L36: rounded down at most to a second, so that the smaller of two clocks stays safe."""
    store = open_again()
    first, second = store.clock_ms(), store.clock_ms()
    assert first <= second
    if "memory" not in store.url:
        assert abs(first - time.time() * 1000) < 3000
    assert store.list_all("") == []


def test_the_proof_accepts_the_store_and_leaves_nothing(store: ObjectStore) -> None:
    """L33."""
    prove_store(store)
    assert store.list_all("") == []


def test_a_closed_store_answers_nothing(store: ObjectStore) -> None:
    if isinstance(store, FaultStore):
        pytest.skip("closes one process's end only")
    store.create("a", b"x")
    store.close()
    store.close()
    for use in (
        lambda: store.get("a"),
        lambda: store.exists("a"),
        lambda: store.list(""),
        lambda: store.create("b", b""),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            use()


def test_urls_and_local_paths(store: ObjectStore, tmp_path: Path) -> None:
    store.create("a/b", b"x")
    if isinstance(store, LocalStore):
        assert store.url == f"file://{tmp_path}/store"
        path = store.local_path("a/b")
        assert path is not None
        assert path.read_bytes() == b"x"
    else:
        assert store.local_path("a/b") is None
        assert store.url.startswith(("s3://test-", "memory://"))
        assert not store.url.endswith("/")
