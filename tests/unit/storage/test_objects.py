"""Paths, URLs, the meaning of S3's answers, and the proof at start against stores that lie (LOG L33)."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage import objects
from storage.errors import InvalidName, ObjectMissing, StoreUnavailable, StoreUnsuitable
from storage.objects import (
    Buffers,
    CreateOutcome,
    Listing,
    S3Options,
    StoreDenied,
    check_path,
    check_start,
    is_object_name,
    open_store,
    outcome_of_refusal,
    prove_store,
)
from tests.harness.stores import Fault, FaultStore, MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

ALPHABET = "ABCXYZabcxyz0189_=.-"
names = st.text(ALPHABET, min_size=1, max_size=6).filter(lambda name: not name.startswith("."))


@given(st.text(max_size=12))
@example("a/b\n")
@example("a/../b")
@example("٣")
@example("a//b")
def test_a_path_that_passes_is_harmless(path: str) -> None:
    """FORMAT F2: whatever comes in, a path keeps below the root and means the same to disks and S3."""
    try:
        check_path(path)
    except InvalidName:
        return
    assert path.isascii()
    assert path
    for part in path.split("/"):
        assert part
        assert not part.startswith(".")
        assert all(char.isalnum() or char in "_=.-" for char in part)


@given(st.lists(names, min_size=1, max_size=4).map("/".join))
def test_every_path_of_the_format_passes(path: str) -> None:
    assert check_path(path) == path


@given(names, names)
@example("a", "Z")
@example("0", "/")
@example("a-", "a")
def test_no_name_lies_between_a_start_and_its_predecessor(start: str, other: str) -> None:
    """L9: ``StartAfter`` names the key before the first one wanted, so nothing may be lost between."""
    before = objects._predecessor(start)
    assert before < start
    assert not before < other < start


@given(st.text(max_size=5))
def test_starts_hold_only_what_names_hold(start: str) -> None:
    try:
        check_start(start)
    except InvalidName:
        assert not is_object_name(start)


@pytest.mark.parametrize(
    ("status", "code", "outcome"),
    [
        (412, "PreconditionFailed", CreateOutcome.EXISTS),
        (409, "ConditionalRequestConflict", CreateOutcome.UNKNOWN),
        (409, "OperationAborted", CreateOutcome.UNKNOWN),
        (400, "RequestTimeout", CreateOutcome.UNKNOWN),
        (408, "", CreateOutcome.UNKNOWN),
        (429, "TooManyRequests", CreateOutcome.UNKNOWN),
        (500, "InternalError", CreateOutcome.UNKNOWN),
        (502, "", CreateOutcome.UNKNOWN),
        (503, "SlowDown", CreateOutcome.UNKNOWN),
        (507, "", CreateOutcome.UNKNOWN),
        (200, "InternalError", CreateOutcome.UNKNOWN),
        (0, "", CreateOutcome.UNKNOWN),
        (301, "PermanentRedirect", None),
        (400, "InvalidRequest", None),
        (403, "AccessDenied", None),
        (404, "NoSuchBucket", None),
        (413, "EntityTooLarge", None),
        (501, "NotImplemented", CreateOutcome.UNKNOWN),
    ],
)
def test_what_an_answer_says_of_a_create(status: int, code: str, outcome: CreateOutcome | None) -> None:
    """L6: only what is certain counts as "nothing was created"."""
    assert outcome_of_refusal(status, code) is outcome


def test_secrets_do_not_show() -> None:
    options = S3Options(access_key="the-access", secret_key="the-secret", session_token="the-token", region="here")
    assert "the-" not in repr(options)
    assert "here" in str(options)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("gs://bucket/x", "'gs'"),
        ("memory://x", "'memory'"),
        ("file://host/x", "names no host"),
        ("file://x", "names no host"),
        ("s3://", "bucket"),
        ("s3://ab", "bucket"),
        ("s3://key:secret@bucket/x", "without credentials"),
        ("s3://bucket/a b", "prefix"),
        ("s3://bucket/a/../b", "prefix"),
    ],
)
def test_urls_that_are_no_store(url: str, says: str) -> None:
    with pytest.raises(StoreUnsuitable, match=says) as raised:
        open_store(url)
    assert "secret@" not in str(raised.value)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://127.0.0.1:9", "plain HTTP"),
        ("ftp://host", "https://"),
        ("https://key:hidden@host", "without credentials"),
        ("localhost:9000", "https://"),
    ],
)
def test_endpoints_that_are_refused(endpoint: str, says: str) -> None:
    with pytest.raises(StoreUnsuitable, match=says) as raised:
        open_store("s3://bucket/x", S3Options(endpoint=endpoint))
    assert "hidden" not in str(raised.value)


def test_local_urls(tmp_path: Path) -> None:
    for url in (f"{tmp_path}/a b", f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        store = open_store(url)
        assert store.url == f"file://{tmp_path}/a%20b"
        store.close()


def test_the_s3_libraries_are_loaded_on_first_need(tmp_path: Path) -> None:
    """They cost half a second and 60 MB that a local store need not pay."""
    code = (
        "import sys; from storage.objects import open_store; open_store(sys.argv[1]).close();"
        "sys.exit(sorted({'s3fs', 'fsspec', 'botocore', 'aiobotocore', 'aiohttp'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=objects.__file__.rsplit("/", 2)[0])


# --- L33 --------------------------------------------------------------------------------------------


class _Overwriting(MemoryStore):
    """Ignores the condition, as S3 look-alikes without If-None-Match do."""

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        self.delete(path)
        return super().create(path, data)


class _RacyCreate(MemoryStore):
    """Looks, then writes: two at once may both win."""

    def __init__(self) -> None:
        super().__init__()
        self.together = threading.Barrier(2)

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        if self.exists(path):
            return CreateOutcome.EXISTS
        try:
            self.together.wait(0.5)
        except threading.BrokenBarrierError:
            self.together.reset()
        self.objects[path] = data if isinstance(data, bytes) else b"".join(data)
        return CreateOutcome.CREATED


class _LoserStands(MemoryStore):
    """Tells the loser's content for the winner's."""

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        outcome = super().create(path, data)
        if outcome is CreateOutcome.EXISTS and data != b"late":
            self.objects[path] = bytes(data)  # type: ignore[arg-type]
        return outcome


class _LateOverwrite(MemoryStore):
    """Says "exists", and replaces all the same."""

    def create(self, path: str, data: Buffers) -> CreateOutcome:
        outcome = super().create(path, data)
        if data == b"late":
            self.objects[path] = b"late"
        return outcome


class _DeniesMissing(MemoryStore):
    """S3 without ListBucket: 403 for what is not there."""

    def exists(self, path: str) -> bool:
        if path not in self.objects:
            raise StoreDenied(f"{path}: S3 answered 403")
        return True


class _RemembersMissing(MemoryStore):
    """Caches what was not there (L35)."""

    def __init__(self) -> None:
        super().__init__()
        self.missing: set[str] = set()

    def exists(self, path: str) -> bool:
        if path in self.missing:
            return False
        found = super().exists(path)
        if not found:
            self.missing.add(path)
        return found


class _ListsLate(MemoryStore):
    def list(self, folder: str, start: str = "") -> Listing:
        return super().list(folder, start)[:-1]


class _InventsObjects(MemoryStore):
    def get(self, path: str) -> bytes:
        try:
            return super().get(path)
        except ObjectMissing:
            return b""


class _KeepsDeleted(MemoryStore):
    def delete(self, path: str) -> None:
        self.exists(path)


class _ShiftsRanges(MemoryStore):
    def get_range(self, path: str, start: int, length: int) -> bytes:
        return super().get_range(path, start + 1, length)


@pytest.mark.parametrize(
    ("store", "says"),
    [
        (_Overwriting(), "ignores the condition"),
        (_RacyCreate(), "ignores the condition"),
        (_LoserStands(), "not that of the create that won"),
        (_LateOverwrite(), "replaced an object"),
        (_DeniesMissing(), "s3:ListBucket"),
        (_RemembersMissing(), "not seen at once"),
        (_ListsLate(), "listing does not show"),
        (_InventsObjects(), "never written"),
        (_KeepsDeleted(), "deleted is still there"),
        (_ShiftsRanges(), "other bytes"),
    ],
    ids=lambda value: type(value).__name__.strip("_") if isinstance(value, MemoryStore) else "",
)
def test_a_store_that_cannot_keep_a_log_is_refused(store: MemoryStore, says: str) -> None:
    """L33, and what it left is deleted again."""
    with pytest.raises(StoreUnsuitable, match=says):
        prove_store(store)
    assert not store.objects or isinstance(store, _KeepsDeleted)


def test_the_proof_bears_unclear_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 409 to some of many creates at once (L6); answers may be lost; late copies may land."""
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.0)
    rates = {Fault.CONFLICT: 0.3, Fault.LATE: 0.2}
    for seed in range(20):
        behind = MemoryStore()
        store = FaultStore(behind, seed=seed, rates=rates)
        store.arm(Fault.LOST_ANSWER, times=3)
        prove_store(store)
        assert store.fired[Fault.LOST_ANSWER] == 3
        assert store.fired[Fault.CONFLICT] + store.fired[Fault.LATE] > 0
        assert all(path.startswith("probe/") for path in behind.objects)  # a late copy may come after the delete


def test_the_proof_of_a_store_that_is_away_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRY_SECONDS", 0.0)
    with pytest.raises(StoreUnavailable):
        prove_store(FaultStore(MemoryStore(), rates={Fault.UNAVAILABLE: 1.0}))
    with pytest.raises(StoreUnavailable, match="answered clearly"):
        prove_store(FaultStore(MemoryStore(), rates={Fault.CONFLICT: 1.0}))
