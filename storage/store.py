"""A store as a whole: its identity and where things lie in it (FORMAT F1, F2). Paths use ids, never names."""

from __future__ import annotations

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
CATALOG_LOG: Final = 0
"""The log id of the Catalog; shards count from 1."""


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """What ``store.json`` says: created exclusively, once, and named by the header of every object."""

    id: uuid.UUID
    format: int


class _StoreFile(msgspec.Struct, forbid_unknown_fields=True):
    store: str
    format: int
    ancestors: list[dict[str, int]] = []


def open_identity(store: ObjectStore) -> StoreIdentity:
    """Read ``store.json``, creating it for an empty store (F1)."""
    content = _StoreFile(store=str(uuid.uuid4()), format=FORMAT_VERSION)
    if not store.exists(STORE_FILE) and store.create(STORE_FILE, msgspec.json.encode(content)) is CreateOutcome.CREATED:
        return StoreIdentity(uuid.UUID(content.store), content.format)
    try:
        found = msgspec.json.decode(store.get(STORE_FILE), type=_StoreFile)
        identity = StoreIdentity(uuid.UUID(found.store), found.format)
    except ObjectMissing:
        raise StoreUnavailable(f"{store.url}: {STORE_FILE} was being created; try again") from None
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise CorruptObject(f"{store.url}: {STORE_FILE} is not a store's identity: {error}") from error
    if found.format > FORMAT_VERSION or found.ancestors:
        raise UnsupportedFormat(f"{store.url}: written by a newer version (format {found.format}, or a clone)")
    return identity


def log_folder(log_id: int) -> str:
    """Where the objects of a Log lie."""
    return f"logs/{log_id}"


def object_name(sequence: int) -> str:
    """L1: the name of an object is its sequence."""
    return f"{sequence:020d}"


def data_folder(log_id: int) -> str:
    """Where the DataFiles of a Log's partitions lie."""
    return f"data/{log_id}"


def data_path(log_id: int, database_id: int, table_id: int, epoch: int) -> str:
    """A new DataFile's path: it holds its writer's epoch and a UUID (L20)."""
    return f"{data_folder(log_id)}/{database_id}/{table_id}/{epoch}-{uuid.uuid4().hex}.parquet"


def parts_folder(log_id: int) -> str:
    """Where the parts of a Log's Checkpoints lie."""
    return f"parts/{log_id}"


def part_path(log_id: int, epoch: int) -> str:
    """A new part's path."""
    return f"{parts_folder(log_id)}/{epoch}-{uuid.uuid4().hex}"


def epoch_of(path: str) -> int | None:
    """The epoch in the name of a DataFile or part; None when it is neither (left alone by the sweep)."""
    head, dash, _ = path.rsplit("/", 1)[-1].partition("-")
    return int(head) if dash and head.isdigit() else None
