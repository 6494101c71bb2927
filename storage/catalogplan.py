"""Changes to the Catalog, planned: what is asked for becomes effects, or is refused (FORMAT F10, F19-F21, LOG L31).

Pure. `storage.catalog` plans each proposal against the newest Revision; `storage.catalogstate` says what effects mean.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from storage.catalogstate import (
    HASH_END,
    apply_effects,
    column_record,
    database_effect,
    ordered_columns,
    table_effect,
)
from storage.changes import (
    Change,
    CreateDatabase,
    CreateView,
    DropDatabase,
    DropTable,
    EnsureTable,
    FinishDrop,
    SetRetention,
    SetRetentionBytes,
)
from storage.cutoffs import KEEP
from storage.errors import (
    AlreadyExists,
    InvalidName,
    LimitExceeded,
    NoSuchDatabase,
    NoSuchTable,
    SchemaConflict,
    TableDropping,
    TableInUse,
    ViewNotWritable,
)
from storage.schema import (
    RESERVED_PREFIX,
    TIME_COLUMN,
    Column,
    Database,
    Op,
    Partition,
    Role,
    Table,
    TypeKind,
    ViewDefinition,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.catalogstate import CatalogLimits, CatalogSnapshot, Effect
    from storage.changes import ColumnSpec

NAME_BYTES_MAX: Final = 64 * 1024
"""A name longer than this is refused: names stand in every copy of the Catalog."""
STORAGE_NAME_CHARS_MAX: Final = 128
"""Display names that are longer are cut in files, before the id is added."""
_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")
STATE_PREFIX: Final = f"{RESERVED_PREFIX}view_"
"""With the view's id it names the table that says how far a materialized view is."""
STATE_FIELD: Final = "state"
_Kept = TypeVar("_Kept", Database, Table)


def plan(
    base: CatalogSnapshot, changes: Sequence[Change | FinishDrop], limits: CatalogLimits, stamp: str
) -> list[Effect]:
    """The effects of ``changes``, in order, all or none; [] when everything is so already.

    ``stamp`` (YYYYMMDDTHHMMSS) names what is soft-deleted. Raises a StorageError and changes nothing.
    """
    effects: list[Effect] = []
    current = base
    for index, change in enumerate(changes):
        step = _plan_one(current, change, limits, stamp)
        effects.extend(step)
        if step and index < len(changes) - 1:
            current = apply_effects(current, step, current.revision)
    return effects


def _plan_one(base: CatalogSnapshot, change: Change | FinishDrop, limits: CatalogLimits, stamp: str) -> list[Effect]:
    if isinstance(change, CreateDatabase):
        return _create_database(base, change, limits)
    if isinstance(change, (SetRetention, SetRetentionBytes)):
        return _set_retention(base, change)
    if isinstance(change, DropDatabase):
        return _drop_database(base, change, stamp)
    if isinstance(change, EnsureTable):
        return _ensure_table(base, change, limits)
    if isinstance(change, CreateView):
        return _create_view(base, change, limits)
    if isinstance(change, DropTable):
        return _drop_table(base, change)
    return _finish_drop(base, change, stamp)


def drop_targets(base: CatalogSnapshot, changes: Sequence[Change | FinishDrop]) -> frozenset[int]:
    """The ids of tables that ``changes`` ask to drop, as far as that is still going on at ``base``."""
    found: list[Table | None] = []
    for change in changes:
        if isinstance(change, DropDatabase):
            found.extend(base.tables(change.name, hidden=True))
        elif isinstance(change, DropTable):
            found.extend(_with_state(base, base.table(change.database, change.table)))
    return _being_dropped(found)


def drop_blocks(base: CatalogSnapshot, changes: Sequence[Change | FinishDrop]) -> frozenset[int]:
    """The ids of tables whose drop ``changes`` have to wait for: of the same name, or of a database that goes."""
    found: list[Table | None] = []
    for change in changes:
        if isinstance(change, (CreateDatabase, SetRetention, SetRetentionBytes, EnsureTable, CreateView)):
            name = change.name if isinstance(change, CreateDatabase) else change.database
            database = base.database(name)
            if database is not None and database.dropping:
                found.extend(base.tables(name, hidden=True))
            elif isinstance(change, CreateView):
                found.extend(_with_state(base, base.table(name, change.name)))
            elif not isinstance(change, CreateDatabase) and change.table:
                found.append(base.table(name, change.table))
    return _being_dropped(found)


def _with_state(base: CatalogSnapshot, table: Table | None) -> list[Table]:
    """A table; of a materialized view also the one that says how far it is."""
    if table is None:
        return []
    return [table] if table.view is None else [table, base.tables_by_id[table.view.state_id]]


def _being_dropped(tables: Sequence[Table | None]) -> frozenset[int]:
    return frozenset(table.id for table in tables if table is not None and table.dropping)


def _live_database(base: CatalogSnapshot, name: str) -> Database:
    database = base.database(name)
    if database is None:
        raise NoSuchDatabase(f"database not found: {name}")
    return database


def _usable_database(base: CatalogSnapshot, name: str) -> Database:
    """L31: whoever wants to use the name of what is being dropped waits until that is done."""
    database = _live_database(base, name)
    if database.dropping:
        raise TableDropping(f"database {name!r} is being dropped: try again")
    return database


def _deleted_name(name: str, stamp: str, base: CatalogSnapshot) -> str:
    taken = {d.name for d in base.databases_by_id.values()}
    candidate, number = f"{name}-{stamp}", 1
    while candidate in taken:
        number += 1
        candidate = f"{name}-{stamp}-{number}"
    return candidate


def check_name(name: str, what: str) -> None:
    """Names may be anything that is not reserved (F2, F20)."""
    if not name:
        raise InvalidName(f"a {what} needs a name")
    if name.startswith(RESERVED_PREFIX):
        raise InvalidName(f"{what} name {name!r}: names that begin with {RESERVED_PREFIX} are reserved")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"{what} name {name!r} is not Unicode text") from None
    if "\0" in name:  # Arrow's C interface ends names there: the table could not be queried any more
        raise InvalidName(f"{what} name {name!r} contains a NUL character")
    if size > NAME_BYTES_MAX:
        raise InvalidName(f"{what} name of {size} bytes: at most {NAME_BYTES_MAX}")


def _create_database(base: CatalogSnapshot, change: CreateDatabase, limits: CatalogLimits) -> list[Effect]:
    if base.database(change.name) is not None:
        _usable_database(base, change.name)
        if change.exist_ok:
            return []
        raise AlreadyExists(f"database {change.name!r} exists")
    check_name(change.name, "database")
    if limits.databases_max is not None and len(base.names) >= limits.databases_max:
        raise LimitExceeded(f"Adding a new database would exceed limit of {limits.databases_max} databases")
    return [database_effect(Database(base.next_database, change.name, change.retention_ns))]


def _set_retention(base: CatalogSnapshot, change: SetRetention | SetRetentionBytes) -> list[Effect]:
    """Of a table its version stays: that counts its columns."""
    database = _usable_database(base, change.database)
    if not change.table:
        changed = _kept(database, change)
        return [] if changed == database else [database_effect(changed)]
    table = base.table(change.database, change.table)
    if table is None:
        raise NoSuchTable(f"table not found: {change.table}")
    if table.dropping:
        raise TableDropping(f"table {change.table!r} is being dropped: try again")
    altered = _kept(table, change)
    return [] if altered == table else [table_effect(altered)]


def _kept(what: _Kept, change: SetRetention | SetRetentionBytes) -> _Kept:
    if isinstance(change, SetRetention):
        return replace(what, retention_ns=change.retention_ns)
    return replace(what, retention_bytes=change.retention_bytes)


def _ensure_table(base: CatalogSnapshot, change: EnsureTable, limits: CatalogLimits) -> list[Effect]:
    effects: list[Effect] = []
    if base.database(change.database) is None:
        if not change.create_database:
            raise NoSuchDatabase(f"database not found: {change.database}")
        effects = _create_database(base, CreateDatabase(change.database), limits)
        base = apply_effects(base, effects, base.revision)
    database = _usable_database(base, change.database)
    table = base.table(change.database, change.table)
    if table is not None and table.dropping:
        raise TableDropping(f"table {change.table!r} is being dropped: try again")
    if table is None:
        return [*effects, table_effect(_new_table(base, database, change, limits))]
    if table.view is not None:
        raise ViewNotWritable(f"{change.table!r} is a materialized view: its rows come from the table that it reads")
    if not change.exist_ok:
        raise AlreadyExists(f"table {change.table!r} exists in database {change.database!r}")
    if change.default_op not in (None, table.default_op):
        raise SchemaConflict(f"the rows of table {change.table!r} are a {table.default_op}, not a {change.default_op}")
    added = _missing_columns(table, change.columns, limits)
    if added:
        columns = [column_record(c) for c in added]
        effects.append({"do": "columns", "table": table.id, "version": table.version + 1, "columns": columns})
    return effects


def _create_view(base: CatalogSnapshot, change: CreateView, limits: CatalogLimits) -> list[Effect]:
    """The view's table and that of its state: one partition each, in the same Log, so that they are written at once."""
    database = _usable_database(base, change.database)
    there = base.table(change.database, change.name)
    if there is not None and there.dropping:
        raise TableDropping(f"table {change.name!r} is being dropped: try again")
    if there is not None and change.exist_ok and there.view is not None:
        return []
    if there is not None:
        raise AlreadyExists(f"table {change.name!r} exists in database {change.database!r}")
    source = base.tables_by_id.get(change.table_id)
    if source is None or source.deleted or source.dropping or source.database_id != database.id:
        raise NoSuchTable("the table that the materialized view reads was dropped")
    asked = EnsureTable(change.database, change.name, change.columns)
    bare = _new_table(base, database, asked, replace(limits, partitions_default=1))
    (partition,) = bare.partitions
    state_id = bare.id + 1
    definition = ViewDefinition(change.table_id, state_id, change.text, change.width_ns, change.origin_ns)
    (time, field) = (bare.columns[0], Column(2, STATE_FIELD, STATE_FIELD, Role.FIELD, TypeKind.STRING))
    state = Table(
        state_id, str(uuid.uuid4()), database.id, f"{STATE_PREFIX}{bare.id}", 1, (time, field),
        (replace(partition, id=partition.id + 1),), retention_ns=KEEP, retention_bytes=KEEP,
    )  # fmt: skip
    return [table_effect(replace(bare, view=definition)), table_effect(state)]


def _new_table(base: CatalogSnapshot, database: Database, change: EnsureTable, limits: CatalogLimits) -> Table:
    check_name(change.table, "table")
    live = sum(len(t) for d, t in base.table_names.items() if not base.databases_by_id[d].deleted)
    if limits.tables_max is not None and live >= limits.tables_max:
        raise LimitExceeded(f"Adding a new table would exceed limit of {limits.tables_max} tables")
    time = Column(1, TIME_COLUMN, TIME_COLUMN, Role.TIME, TypeKind.TIMESTAMP)
    identity = str(uuid.uuid4())
    bare = Table(base.next_table, identity, database.id, change.table, 1, (time,), _partitions(base, limits))
    added = _missing_columns(bare, change.columns, limits)
    return replace(bare, columns=ordered_columns((time, *added)), default_op=change.default_op or Op.PATCH)


def _partitions(base: CatalogSnapshot, limits: CatalogLimits) -> tuple[Partition, ...]:
    """Contiguous hash ranges, each on the Log that has the fewest partitions (F21)."""
    count = limits.partitions_default
    logs = [log for log in base.logs if log not in limits.closed_logs] or base.logs
    load = {log: base.partitions_of_log.get(log, 0) for log in logs}
    bounds = [HASH_END * i // count for i in range(count + 1)]
    partitions = []
    for index in range(count):
        log = min(load, key=lambda candidate: (load[candidate], candidate))
        load[log] += 1
        partitions.append(Partition(base.next_partition + index, bounds[index], bounds[index + 1], log))
    return tuple(partitions)


def _missing_columns(table: Table, wanted: Sequence[ColumnSpec], limits: CatalogLimits) -> list[Column]:
    known = dict(table.by_name)
    stored = {c.storage_name.lower() for c in table.columns}
    following = max(c.id for c in table.columns) + 1
    added: list[Column] = []
    for spec in wanted:
        column = known.get(spec.name)
        if column is not None:
            if (column.role, column.kind) != (spec.role, spec.kind):
                raise SchemaConflict(
                    f"column {spec.name!r} of table {table.name!r} is a {column.role} of type {column.kind}, "
                    f"not a {spec.role} of type {spec.kind}"
                )
            continue
        check_name(spec.name, "column")
        column = Column(following, spec.name, _storage_name(spec.name, following, stored), spec.role, spec.kind)
        following += 1
        added.append(column)
        known[spec.name] = column
        stored.add(column.storage_name.lower())
    if limits.columns_max is not None and len(known) - 1 > limits.columns_max:
        raise LimitExceeded(f"Update to schema would exceed number of columns per table limit of {limits.columns_max}")
    return added


def _storage_name(name: str, column_id: int, taken: set[str]) -> str:
    """The display name where other Parquet readers can use it, else a safe one made unique by the id (F19).

    Unique without regard to case, as DuckDB and Spark look names up, and never one of our own columns.
    """
    reserved = name.lower().startswith(RESERVED_PREFIX)
    plain = _PLAIN_NAME.match(name) is not None and len(name) <= STORAGE_NAME_CHARS_MAX
    if plain and not reserved and name.lower() not in taken:
        return name
    safe = f"{_UNSAFE.sub('_', name[:STORAGE_NAME_CHARS_MAX])}_{column_id}"
    if safe.lower().startswith(RESERVED_PREFIX):
        safe = f"column{safe}"
    while safe.lower() in taken:
        safe += "_"
    return safe


def _drop_database(base: CatalogSnapshot, change: DropDatabase, stamp: str) -> list[Effect]:
    """L31: its tables first; one without tables is gone at once."""
    database = _live_database(base, change.name)
    tables = base.tables(change.name, hidden=True)
    if not tables:
        return [_database_gone(base, database, stamp)]
    effects = [] if database.dropping else [database_effect(replace(database, dropping=base.revision + 1))]
    return [*effects, *(_table_dropping(base, table) for table in tables if not table.dropping)]


def _database_gone(base: CatalogSnapshot, database: Database, stamp: str) -> Effect:
    name = _deleted_name(database.name, stamp, base)
    return database_effect(replace(database, deleted=True, dropping=0, name=name))


def _drop_table(base: CatalogSnapshot, change: DropTable) -> list[Effect]:
    _live_database(base, change.database)
    table = base.table(change.database, change.table)
    if table is None:
        raise NoSuchTable(f"table not found: {change.table}")
    if readers := [view.name for view in base.views_of(table) if not view.dropping]:
        raise TableInUse(f"the materialized view {readers[0]!r} reads table {change.table!r}: drop it first")
    return [_table_dropping(base, one) for one in _with_state(base, table) if not one.dropping]


def _table_dropping(base: CatalogSnapshot, table: Table) -> Effect:
    """The drop begins at the Revision of the record that says so."""
    return table_effect(replace(table, dropping=base.revision + 1, version=table.version + 1))


def _finish_drop(base: CatalogSnapshot, change: FinishDrop, stamp: str) -> list[Effect]:
    table = base.tables_by_id.get(change.table_id)
    if table is None or not table.dropping or table.deleted:
        return []
    taken = {t.name for t in base.tables_by_id.values() if t.database_id == table.database_id}
    name, number = f"{table.name}-{stamp}", 1
    while name in taken:
        number += 1
        name = f"{table.name}-{stamp}-{number}"
    effects = [table_effect(replace(table, name=name, deleted=True, dropping=0, version=table.version + 1))]
    database = base.databases_by_id[table.database_id]
    others = base.table_names.get(database.id, {})
    if database.dropping and not database.deleted and all(other.id == table.id for other in others.values()):
        effects.append(_database_gone(base, database, stamp))
    return effects
