"""A store as a whole: its identity and where things lie in it (FORMAT F1, F2). Paths use ids, never names."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from storage.errors import CorruptObject, ObjectMissing, StoreUnavailable, UnsupportedFormat
from storage.frames import FORMAT_VERSION
from storage.objects import CreateOutcome

if TYPE_CHECKING:
    from storage.objects import ObjectStore

STORE_FILE: Final = "store.json"
LOGS_FOLDER: Final = "logs"
SEQUENCE_DIGITS: Final = 20
IDENTITY_TRIES_MAX: Final = 6
IDENTITY_PAUSE_SECONDS: Final = 0.02
"""Six tries take a little more than a second."""
CATALOG_LOG: Final = 0
"""The log id of the Catalog; shards count from 1."""


_OURS: Final = re.compile(r"([0-9]{1,20})-[0-9a-f]{32}(\.parquet)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """What ``store.json`` says: created exclusively, once, and named by the header of every object."""

    id: uuid.UUID
    format: int


class _StoreFile(msgspec.Struct, forbid_unknown_fields=True):
    store: uuid.UUID
    format: int
    ancestors: list[msgspec.Raw] = []


class _Version(msgspec.Struct):
    """What every version's ``store.json`` has."""

    format: int


def open_identity(store: ObjectStore) -> StoreIdentity:
    """Read ``store.json``, creating it for an empty store (F1). Blocking; a store that refuses is asked again."""
    for attempt in range(1, IDENTITY_TRIES_MAX):
        try:
            return _open_identity(store)
        except StoreUnavailable as error:
            if not error.retriable:
                raise
            time.sleep(IDENTITY_PAUSE_SECONDS * 2**attempt)
    return _open_identity(store)


def _open_identity(store: ObjectStore) -> StoreIdentity:
    if not store.exists(STORE_FILE):
        if store.list_all(LOGS_FOLDER) and not store.exists(STORE_FILE):
            raise CorruptObject(f"{store.url}: there are Logs but no {STORE_FILE}: restore it, they fit no other")
        content = _StoreFile(store=uuid.uuid4(), format=FORMAT_VERSION)
        if store.create(STORE_FILE, msgspec.json.encode(content)) is CreateOutcome.CREATED:
            return StoreIdentity(content.store, content.format)
    try:
        data = store.get(STORE_FILE)
    except ObjectMissing:
        raise StoreUnavailable(f"{store.url}: {STORE_FILE} was being created; try again") from None
    return decode_identity(data, store.url)


def decode_identity(data: bytes, where: str) -> StoreIdentity:
    """What ``store.json`` says. Raises CorruptObject, and UnsupportedFormat for a newer version or a clone."""
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version > FORMAT_VERSION:
            raise UnsupportedFormat(f"{where}: format {version}, this version reads {FORMAT_VERSION}")
        found = msgspec.json.decode(data, type=_StoreFile)
    except (msgspec.DecodeError, ValueError) as error:
        raise CorruptObject(f"{where}: {STORE_FILE} is not a store's identity: {error}") from error
    if found.format < 1:
        raise CorruptObject(f"{where}: {STORE_FILE} says format {found.format}")
    if found.ancestors:
        raise UnsupportedFormat(f"{where}: a clone; this version cannot read those")
    return StoreIdentity(found.store, found.format)


def log_folder(log_id: int) -> str:
    """Where the objects of a Log lie."""
    return f"{LOGS_FOLDER}/{log_id}"


def object_name(sequence: int) -> str:
    """L1: the name of an object is its sequence."""
    return f"{sequence:0{SEQUENCE_DIGITS}d}"


def is_sequence(name: str) -> bool:
    """Whether an object of a Log has this name; another one, as a number of fewer digits, would pass for its end."""
    return len(name) == SEQUENCE_DIGITS and name.isascii() and name.isdigit()


def data_folder(log_id: int) -> str:
    """Where the DataFiles of a Log's partitions lie."""
    return f"data/{log_id}"


def data_path(log_id: int, database_id: int, table_id: int, epoch: int) -> str:
    """A new DataFile's path: it holds its writer's epoch and a UUID (L20)."""
    return f"{data_folder(log_id)}/{database_id}/{table_id}/{epoch}-{uuid.uuid4().hex}.parquet"


def bundles_folder(log_id: int) -> str:
    """Where the bundles of a Log lie; the name is no database's id."""
    return f"{data_folder(log_id)}/bundles"


def bundle_path(log_id: int, epoch: int) -> str:
    """A new bundle's path (F2, L20)."""
    return f"{bundles_folder(log_id)}/{epoch}-{uuid.uuid4().hex}.parquet"


def parts_folder(log_id: int) -> str:
    """Where the parts of a Log's Checkpoints lie."""
    return f"parts/{log_id}"


def part_path(log_id: int, epoch: int) -> str:
    """A new part's path."""
    return f"{parts_folder(log_id)}/{epoch}-{uuid.uuid4().hex}"


def epoch_of(path: str) -> int | None:
    """The epoch in the name of a DataFile or part; None when it is neither (left alone by the sweep)."""
    named = _OURS.fullmatch(path.rsplit("/", 1)[-1])
    return None if named is None else int(named[1])
