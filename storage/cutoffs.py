"""Retention: what a table's rows are kept by, and the recorded cut-offs below which they are hidden (LOG L36). Pure.

What a table says of itself replaces what its database says, for the age and for the bytes each by itself. Cut-offs by
age are recorded for a database or a table, those by bytes for each partition. `storage.cutoffrecorder` records them,
`storage.shardstate` holds them, readers and `storage.expiry` ask `Cutoffs` which of them hold under the Catalog they
have.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from storage.schema import TableSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from storage.catalogstate import CatalogSnapshot
    from storage.schema import Database, DataFile, PartitionSnapshot, Table

KEEP: Final = 0
"""As a table's own period or limit: its rows are kept whatever its database says."""
BY_AGE: Final = 0
"""Stands for the partition of a table's cut-off by age, which holds for all of them; partitions count from 1."""

Key = tuple[int, int]
"""(table id, partition id)."""


class Limit(NamedTuple):
    """A limit by bytes, and whose it is: the database's with this id, or, 0, the table's own."""

    database_id: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Cutoff:
    """A recorded retention cut-off (ns) and when it was recorded (ms) (LOG L36).

    One by bytes says under which ``limit`` it was told, and whose that was (as `Limit`).
    """

    time_ns: int
    recorded_ms: int
    limit: int = 0
    database_id: int = 0

    def for_period(self, retention_ns: int) -> int:
        """The cut-off for a retention period; for one made longer since, what it would have been.

        Else rows that are written within the longer period would be acknowledged and never shown.
        """
        return min(self.time_ns, self.recorded_ms * 1_000_000 - retention_ns)

    def for_limit(self, limit: Limit) -> int | None:
        """The cut-off for a limit by bytes; none for one made greater since, or for another's, as for a period."""
        return self.time_ns if limit.database_id == self.database_id and limit.bytes <= self.limit else None

    def replaces(self, known: Cutoff | None) -> bool:
        """L36: never decreasing. One under a greater limit, or another's, begins anew: the old one holds no more."""
        if known is None or self.time_ns > known.time_ns:
            return True
        return self.limit > known.limit or self.database_id != known.database_id


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """What one Log has recorded: by database, and by (table, partition), with `BY_AGE` for all of its partitions."""

    databases: Mapping[int, Cutoff] = field(default_factory=dict)
    tables: Mapping[Key, Cutoff] = field(default_factory=dict)

    def by_age(self, table: Table, database: Database) -> int | None:
        """Rows of the table below this time (ns) are hidden in this Log; None if all are shown."""
        period = period_of(table, database)
        own = table.retention_ns is not None
        known = self.tables.get((table.id, BY_AGE)) if own else self.databases.get(database.id)
        return None if known is None or period is None else known.for_period(period)

    def by_bytes(self, table: Table, database: Database, partition: int) -> int | None:
        """The same of one partition, for its bytes."""
        limit = limit_of(table, database)
        known = self.tables.get((table.id, partition))
        return None if known is None or limit is None else known.for_limit(limit)


def period_of(table: Table, database: Database) -> int | None:
    """How long rows are kept, in ns; None: for ever."""
    if table.retention_ns is None:
        return database.retention_ns
    return None if table.retention_ns == KEEP else table.retention_ns


def limit_of(table: Table, database: Database) -> Limit | None:
    """The limit by bytes that the table counts for; None: there is none."""
    if table.retention_bytes is None:
        return None if database.retention_bytes is None else Limit(database.id, database.retention_bytes)
    return None if table.retention_bytes == KEEP else Limit(0, table.retention_bytes)


def higher(one: int | None, other: int | None) -> int | None:
    """The one below which more is hidden."""
    if one is None or other is None:
        return one if other is None else other
    return max(one, other)


def table_snapshot(
    table: Table, catalog: CatalogSnapshot, logs: Iterable[tuple[Iterable[PartitionSnapshot], Cutoffs]]
) -> TableSnapshot:
    """What a query reads of a table whose partitions are in these Logs, with what each of them has recorded."""
    database = catalog.databases_by_id[table.database_id]
    cutoff: int | None = None
    found: list[PartitionSnapshot] = []
    for parts, recorded in logs:
        cutoff = higher(cutoff, recorded.by_age(table, database))
        for part in parts:
            own = recorded.by_bytes(table, database, part.partition)
            found.append(part if own is None else replace(part, cutoff_ns=own))
    return TableSnapshot(table, tuple(found), cutoff)


# -- by bytes ---------------------------------------------------------------------------------------------


class Share(NamedTuple):
    """Partitions of one Log that may have ``bytes`` of files together, under ``limit``."""

    limit: Limit
    bytes: int
    partitions: tuple[Key, ...]


def shares(catalog: CatalogSnapshot) -> dict[int, list[Share]]:
    """What each Log may hold: of a table's own limit each partition the same part, of a database's each Log the same.

    Only Logs that hold partitions of tables that count for a database's limit have a part of it.
    """
    found: dict[int, list[Share]] = {}
    for database in catalog.names.values():
        counting: dict[int, list[Key]] = {}
        for table in catalog.table_names.get(database.id, {}).values():
            limit = limit_of(table, database)
            for partition in () if limit is None else table.partitions:
                key = (table.id, partition.id)
                if table.retention_bytes is None:
                    counting.setdefault(partition.log_id, []).append(key)
                else:
                    own = Limit(0, table.retention_bytes)
                    share = Share(own, own.bytes // len(table.partitions), (key,))
                    found.setdefault(partition.log_id, []).append(share)
        whole = Limit(database.id, database.retention_bytes or 0)
        for log_id, keys in counting.items():
            share = Share(whole, whole.bytes // len(counting), tuple(keys))
            found.setdefault(log_id, []).append(share)
    return found


def cut(files: Mapping[Key, Sequence[DataFile]], bytes_max: int) -> dict[Key, int]:
    """Where to cut partitions so that what stays has at most ``bytes_max``: the oldest files go, and go whole.

    Files count by their greatest time. Of those that fit all stay from the newest down to the first that does not, and
    of each partition its newest file whatever it has, so that nothing is emptied. A cut-off lies just above the files
    that go: of those that stay it hides only rows that are as old. Partitions that lose nothing are left out.
    """
    newest = {key: max(file.time_high for file in found) for key, found in files.items() if found}
    rest: dict[int, list[tuple[Key, int]]] = {}
    room = bytes_max
    for key, found in files.items():
        for file in found:
            if file.time_high == newest[key]:
                room -= file.bytes
            else:
                rest.setdefault(file.time_high, []).append((key, file.bytes))
    cutoffs: dict[Key, int] = {}
    for time_high in sorted(rest, reverse=True):
        room -= sum(size for _, size in rest[time_high])
        if room < 0:
            for key, _ in rest[time_high]:
                cutoffs.setdefault(key, time_high + 1)
    return cutoffs
