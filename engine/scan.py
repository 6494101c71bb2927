"""What a query reads, as the floors above hand it in: snapshots of tables, and system tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engine import names
from engine.session import SYSTEM_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from storage.schema import Table, TableSnapshot


class SnapshotSource(Protocol):
    """Where snapshots come from: shards in this process, or their owners over the network."""

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        """One snapshot per table, in the order of `tables`, each proved current (LOG L13, L14).

        The table inside a snapshot may be newer than the one asked for.
        """
        ...


@dataclass(frozen=True, slots=True)
class SystemTable:
    """The table ``system.<name>``; ``build`` runs off the event loop for each query that mentions it."""

    name: str
    schema: pa.Schema
    build: Callable[[], pa.Table]


def system_tables(statement: str, system: Sequence[SystemTable]) -> dict[str, pa.Table]:
    """The system tables that the statement may mean; where it is about the schema, the others without rows.

    They have to be asked for by their schema's name: the rows may cost a call to every node, and users have tables
    that are called as these are.
    """
    known = [SYSTEM_SCHEMA, *(table.name for table in system)]
    found = set(names.mentioned(statement, known))
    wanted = found if SYSTEM_SCHEMA in found else set()
    shown = system if names.describes(statement) else [t for t in system if t.name in wanted]
    return {table.name: table.build() if table.name in wanted else table.schema.empty_table() for table in shown}
