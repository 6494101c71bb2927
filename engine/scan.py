"""What a query reads, as the floors above hand it in: snapshots of tables, and system tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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
