"""The Catalog's content: databases, tables, the partition maps (FORMAT F19-F21, LOG L28-L31).

Pure. `CatalogSnapshot` is the Catalog at one Revision, immutable and shared freely between threads;
`CatalogState` is what the Catalog's Log adds up to: effects, never conditions (FORMAT F10). `storage.catalogplan` makes
them from changes.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from storage.checkpoint import Section, decode_tables, section_entry, section_from_table
from storage.cutoffs import shares
from storage.entries import decode_record
from storage.errors import (
    CorruptObject,
    UnsupportedFormat,
)
from storage.frames import FORMAT_VERSION, NO_WRITE_ID, SKIPPABLE_FROM, Entry, EntryKind
from storage.schema import RESERVED_PREFIX, Column, Database, Op, Partition, Role, Table, TypeKind, ViewDefinition
from storage.writeids import Remembered, forget, read_write_ids, write_id_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from storage.cutoffs import Share
    from storage.frames import LogObject, WriteId

HASH_END: Final = 2**64
"""Partition maps cover [0, HASH_END)."""

Effect = dict[str, Any]
EFFECT_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "format": frozenset({"do", "version"}),
    "logs": frozenset({"do", "ids"}),
    "counters": frozenset({"do", "database", "table", "partition"}),
    "database": frozenset({"do", "id", "name", "retention", "deleted"}),
    "table": frozenset({
        "do", "id", "uuid", "database", "name", "version", "columns", "partitions", "op", "router", "deleted",
    }),
    "columns": frozenset({"do", "table", "version", "columns"}),
}  # fmt: skip
"""Each effect has all of its keys and no others: an unknown one would be lost in the next Checkpoint."""
OPTIONAL_KEYS: Final[Mapping[str, frozenset[str]]] = {
    "database": frozenset({"dropping", "retention_bytes"}),
    "table": frozenset({"dropping", "retention", "retention_bytes", "view"}),
}
"""Save these, written only where they say something, so that older stores stay as they are: of what is being dropped
(L31), limits by bytes, a table's own retention period, of a materialized view what it is."""
VIEW_KEYS: Final = frozenset({"table", "state", "text", "width", "origin"})
COLUMN_KEYS: Final = frozenset({"id", "name", "stored", "role", "type"})
TYPE_RECORDS: Final[Mapping[TypeKind, dict[str, Any]]] = {
    **{kind: {"kind": kind.value} for kind in TypeKind},
    TypeKind.TIMESTAMP: {"kind": TypeKind.TIMESTAMP.value, "unit": "ns", "zone": ""},
}
"""A type is a tagged union with parameters (F20); other units and zones are reserved."""
ROUTERS: Final = frozenset({"hash"})
DEFAULT_OPS: Final = frozenset({Op.PATCH, Op.PUT})
"""How rows find their partition; ``client`` is reserved (F21)."""


@dataclass(frozen=True, slots=True)
class CatalogLimits:
    """Limits that an operator may set; None is no limit."""

    databases_max: int | None = None
    tables_max: int | None = None
    columns_max: int | None = None
    partitions_default: int = 1
    closed_logs: frozenset[int] = frozenset()  # Logs that nobody can write now: new partitions go elsewhere


@dataclass(frozen=True)
class CatalogSnapshot:
    """The Catalog at one Revision. Look-ups by name see live databases and tables only."""

    revision: int = 0
    logs: tuple[int, ...] = ()
    databases_by_id: Mapping[int, Database] = field(default_factory=dict)
    tables_by_id: Mapping[int, Table] = field(default_factory=dict)
    names: Mapping[str, Database] = field(default_factory=dict)
    table_names: Mapping[int, Mapping[str, Table]] = field(default_factory=dict)
    partitions_of_log: Mapping[int, int] = field(default_factory=dict)
    next_database: int = 1
    next_table: int = 1
    next_partition: int = 1
    format: int = FORMAT_VERSION

    @functools.cached_property
    def shares(self) -> Mapping[int, Sequence[Share]]:
        """By Log what partitions in it may have under limits by bytes; empty if there are none."""
        return shares(self)

    def database(self, name: str) -> Database | None:
        return self.names.get(name)

    def table(self, database: str, name: str) -> Table | None:
        owner = self.names.get(database)
        is_hidden = name.startswith(RESERVED_PREFIX)
        return None if owner is None or is_hidden else self.table_names.get(owner.id, {}).get(name)

    def databases(self, *, deleted: bool = False) -> Sequence[Database]:
        return [d for d in self.databases_by_id.values() if deleted or not d.deleted]

    def tables(self, database: str, *, deleted: bool = False, hidden: bool = False) -> Sequence[Table]:
        """Live ones, and those that are ``deleted`` or ``hidden`` from users if they are wanted too."""
        owner = self.names.get(database)
        if owner is None:
            return []
        found: Iterable[Table] = self.table_names.get(owner.id, {}).values()
        if deleted:
            found = [t for t in self.tables_by_id.values() if t.database_id == owner.id]
        return [t for t in found if hidden or not t.is_hidden]

    def views_of(self, table: Table) -> Sequence[Table]:
        """The materialized views that read a table."""
        found = self.table_names.get(table.database_id, {}).values()
        return [t for t in found if t.view is not None and t.view.table_id == table.id]


# -- effects ----------------------------------------------------------------------------------------------


def column_record(column: Column) -> dict[str, Any]:
    """A column as effects say it."""
    return {
        "id": column.id, "name": column.name, "stored": column.storage_name, "role": column.role.value,
        "type": TYPE_RECORDS[column.kind],
    }  # fmt: skip


def _column(record: Mapping[str, Any]) -> Column:
    kind = TypeKind(record["type"]["kind"])
    if record["type"] != TYPE_RECORDS[kind] or record.keys() != COLUMN_KEYS:
        raise UnsupportedFormat(f"column {record['name']!r} has a type or a field that this version does not know")
    return Column(record["id"], record["name"], record["stored"], Role(record["role"]), kind)


def counters_effect(snapshot: CatalogSnapshot) -> Effect:
    """The next ids: none is ever used again, even when what had it is forgotten (F19)."""
    return {
        "do": "counters", "database": snapshot.next_database, "table": snapshot.next_table,
        "partition": snapshot.next_partition,
    }  # fmt: skip


def database_effect(database: Database) -> Effect:
    """This database is now so."""
    return {
        "do": "database", "id": database.id, "name": database.name, "retention": database.retention_ns,
        "deleted": database.deleted, **_optional(database),
    }  # fmt: skip


def _optional(what: Database | Table) -> Effect:
    """`OPTIONAL_KEYS` that both have."""
    dropping = {"dropping": what.dropping} if what.dropping else {}
    return dropping if what.retention_bytes is None else {**dropping, "retention_bytes": what.retention_bytes}


def table_effect(table: Table) -> Effect:
    """This table is now so."""
    retention = {} if table.retention_ns is None else {"retention": table.retention_ns}
    return {
        "do": "table", "id": table.id, "uuid": table.uuid, "database": table.database_id, "name": table.name,
        "version": table.version, "columns": [column_record(c) for c in table.columns],
        "partitions": [[p.id, p.hash_low.to_bytes(9, "big"), p.hash_high.to_bytes(9, "big"), p.log_id]
                       for p in table.partitions],
        "op": table.default_op.value, "router": table.router, "deleted": table.deleted, **_optional(table),
        **retention, **_view_record(table.view),
    }  # fmt: skip


def _view_record(view: ViewDefinition | None) -> Effect:
    if view is None:
        return {}
    return {
        "view": {
            "table": view.table_id, "state": view.state_id, "text": view.text, "width": view.width_ns,
            "origin": view.origin_ns,
        }
    }  # fmt: skip


def _view(record: Mapping[str, Any] | None) -> ViewDefinition | None:
    if record is None:
        return None
    if record.keys() != VIEW_KEYS:
        raise UnsupportedFormat("a materialized view with a field that this version does not know")
    return ViewDefinition(record["table"], record["state"], record["text"], record["width"], record["origin"])


def _table(effect: Mapping[str, Any]) -> Table:
    if effect["router"] not in ROUTERS:
        raise UnsupportedFormat(f"table {effect['name']!r} has the router {effect['router']!r}")
    if Op(effect["op"]) not in DEFAULT_OPS:
        raise UnsupportedFormat(f"table {effect['name']!r} has the default op {effect['op']!r}")
    partitions = tuple(
        Partition(p[0], int.from_bytes(p[1], "big"), int.from_bytes(p[2], "big"), p[3]) for p in effect["partitions"]
    )
    return Table(
        effect["id"], effect["uuid"], effect["database"], effect["name"], effect["version"],
        tuple(_column(c) for c in effect["columns"]), partitions, Op(effect["op"]), effect["router"],
        effect["deleted"], effect.get("dropping", 0), effect.get("retention"), effect.get("retention_bytes"),
        _view(effect.get("view")),
    )  # fmt: skip


def ordered_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Time, then tags, then fields, each in the order of their first write."""
    rank = {Role.TIME: 0, Role.TAG: 1, Role.FIELD: 2}
    return tuple(sorted(columns, key=lambda c: rank[c.role]))


def apply_effects(snapshot: CatalogSnapshot, effects: Sequence[Effect], revision: int) -> CatalogSnapshot:
    """The Catalog after ``effects``. Raises UnsupportedFormat for one that this version does not know."""
    draft = _Draft(snapshot)
    for effect in effects:
        kind = effect.get("do", "")
        optional = OPTIONAL_KEYS.get(kind, frozenset())
        if kind not in EFFECT_KEYS or effect.keys() - optional != EFFECT_KEYS[kind]:
            raise UnsupportedFormat(f"the Catalog holds an effect {effect.get('do')!r} that is not known here")
        try:
            draft.apply(effect)
        except (KeyError, ValueError, TypeError) as error:
            raise CorruptObject(f"the Catalog holds an effect {effect['do']!r} that cannot be: {error!r}") from error
    return draft.done(revision)


class _Draft:
    """A mutable copy, made once for a list of effects."""

    def __init__(self, base: CatalogSnapshot) -> None:
        self.logs = base.logs
        self.format = base.format
        self.databases = dict(base.databases_by_id)
        self.tables = dict(base.tables_by_id)
        self.table_names = dict(base.table_names)
        self.counts = dict(base.partitions_of_log)
        self.next_database, self.next_table = base.next_database, base.next_table
        self.next_partition = base.next_partition
        self._copied: set[int] = set()

    def apply(self, effect: Effect) -> None:
        kind = effect["do"]
        if kind == "database":
            fields = (effect["id"], effect["name"], effect["retention"], effect["deleted"])
            database = Database(*fields, effect.get("dropping", 0), effect.get("retention_bytes"))
            self.databases[database.id] = database
            self.next_database = max(self.next_database, database.id + 1)
        elif kind == "table":
            self._put(_table(effect))
        elif kind == "columns":
            table = self.tables[effect["table"]]
            added = [_column(c) for c in effect["columns"]]
            columns = ordered_columns((*table.columns, *added))
            self._put(replace(table, columns=columns, version=effect["version"]))
        elif kind == "logs":
            self.logs = tuple(effect["ids"])
        elif kind == "counters":
            self.next_database = max(self.next_database, effect["database"])
            self.next_table = max(self.next_table, effect["table"])
            self.next_partition = max(self.next_partition, effect["partition"])
        elif kind == "format":
            self.format = effect["version"]
            if self.format > FORMAT_VERSION:  # F6
                raise UnsupportedFormat(f"the Catalog was raised to format {self.format}, this is {FORMAT_VERSION}")

    def _put(self, table: Table) -> None:
        old = self.tables.get(table.id)
        self.tables[table.id] = table
        self.next_table = max(self.next_table, table.id + 1)
        if old is None:
            for partition in table.partitions:
                self.counts[partition.log_id] = self.counts.get(partition.log_id, 0) + 1
                self.next_partition = max(self.next_partition, partition.id + 1)
        if table.database_id not in self._copied:
            self.table_names[table.database_id] = dict(self.table_names.get(table.database_id, {}))
            self._copied.add(table.database_id)
        names = self.table_names[table.database_id]
        assert isinstance(names, dict)
        if old is not None and names.get(old.name) is not None and names[old.name].id == table.id:
            del names[old.name]
        if not table.deleted:
            names[table.name] = table

    def done(self, revision: int) -> CatalogSnapshot:
        names = {d.name: d for d in self.databases.values() if not d.deleted}
        return CatalogSnapshot(
            revision, self.logs, self.databases, self.tables, names, self.table_names, self.counts,
            self.next_database, self.next_table, self.next_partition, self.format,
        )  # fmt: skip


# -- the Log's state --------------------------------------------------------------------------------------


class CatalogState:
    """What the Catalog's Log adds up to (LOG L28); the same rules as every Log. A follower remembers no write ids."""

    def __init__(self, *, follower: bool = False) -> None:
        self.snapshot = CatalogSnapshot()
        self.k = 0
        self.position = 0
        self.horizon = 0
        self.write_ids: OrderedDict[WriteId, Remembered] = OrderedDict()
        self._follower = follower
        self._above_k: list[int] = []

    def copy(self) -> CatalogState:
        """A follower's, to go on from; what was applied here stays as it is."""
        assert self._follower
        other = CatalogState(follower=True)
        other.snapshot, other.k, other.position = self.snapshot, self.k, self.position
        other._above_k = list(self._above_k)
        return other

    def load(self, checkpoint: LogObject | None) -> Sequence[str]:
        """Start from a Checkpoint: one section row per database, so that each may become a part (F23)."""
        if checkpoint is None:
            return ()
        where = f"catalog checkpoint {checkpoint.header.sequence}"
        tables = decode_tables(checkpoint.entries, where)
        remembered = tables.pop(Section.WRITE_IDS)
        if not self._follower:
            self.write_ids = read_write_ids(remembered)
        sections = {section: table.to_pylist() for section, table in tables.items()}
        (meta,) = sections[Section.META]
        self.k = self.position = meta["covered"]
        self.horizon = meta["horizon"]
        if sections[Section.PARTS]:
            raise UnsupportedFormat(f"{where}: parts of the Catalog are of a newer version")
        effects: list[Effect] = []
        try:
            for row in sections[Section.CATALOG]:
                effects.extend(msgspec.msgpack.decode(row["state"]))
        except msgspec.DecodeError as error:
            raise CorruptObject(f"{where}: {error}") from error
        self.snapshot = apply_effects(CatalogSnapshot(), effects, meta["revision"])
        return ()

    def load_part(self, path: str, data: bytes) -> None:
        raise CorruptObject(f"{path}: a Catalog Checkpoint of this version has no parts")

    def covered(self) -> int:
        return self.k

    def place(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        return tuple(entries)

    def apply(self, obj: LogObject, payloads: Sequence[object] = ()) -> None:
        """Each record is one Revision, without a gap, save where an object between was given up (L3)."""
        where = f"catalog object {obj.header.sequence}"
        snapshot = self.snapshot
        ids: dict[WriteId, Remembered] = {}
        for entry in obj.entries:
            if entry.kind == EntryKind.RECORD:
                record = decode_record(entry, where)
                if entry.write_id != NO_WRITE_ID and not self._follower:  # L7: replay only adds
                    ids[entry.write_id] = Remembered(obj.header.sequence, record["revision"], obj.header.written_at_ms)
                steps = record["revision"] - snapshot.revision
                if steps != 1 and not 1 < steps <= obj.header.sequence - self.position:
                    raise CorruptObject(f"{where}: Revision {record['revision']} after {snapshot.revision}")
                snapshot = apply_effects(snapshot, record["effects"], record["revision"])
            elif entry.kind != EntryKind.SKIP and entry.kind < SKIPPABLE_FROM:
                raise UnsupportedFormat(f"{where}: an entry of kind {entry.kind} does not belong into the Catalog")
        self.snapshot = snapshot
        self.write_ids.update(ids)
        self.position = obj.header.sequence
        self._above_k.append(self.position)

    @property
    def objects_above_k(self) -> int:
        return len(self._above_k)

    def checkpointed(self, sequence: int, covered: int, sections: Sequence[Entry]) -> None:
        self.k = covered
        self._above_k = [s for s in self._above_k if s > covered]

    def replay_is_full(self) -> bool:
        return False

    def advance_horizon(self, forget_before_ms: int) -> None:
        """Forget ids of records written before ``forget_before_ms``, and the oldest of too many (L7)."""
        self.horizon = forget(self.write_ids, self.horizon, forget_before_ms)

    def sections(self) -> tuple[Entry, ...]:
        """The whole Catalog as it is now."""
        base = self.snapshot
        whole: list[Effect] = [
            {"do": "format", "version": base.format}, {"do": "logs", "ids": list(base.logs)}, counters_effect(base),
        ]  # fmt: skip
        rows = [{"revision": base.revision, "database_id": 0, "state": msgspec.msgpack.encode(whole)}]
        tables: dict[int, list[Effect]] = {}
        for table in base.tables_by_id.values():
            tables.setdefault(table.database_id, []).append(table_effect(table))
        for database in base.databases_by_id.values():
            effects = [database_effect(database), *tables.get(database.id, [])]
            state = msgspec.msgpack.encode(effects)
            rows.append({"revision": base.revision, "database_id": database.id, "state": state})
        meta = [{"covered": self.position, "horizon": self.horizon, "revision": base.revision}]
        whole_state = (section_entry(Section.META, meta), section_entry(Section.CATALOG, rows))
        if not self.write_ids:
            return whole_state
        ids = write_id_table(list(self.write_ids), list(self.write_ids.values()))
        return (*whole_state, section_from_table(Section.WRITE_IDS, ids))
