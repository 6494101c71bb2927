"""Files whose rows nobody can see any more: of dropped tables (LOG L31), and below a recorded cut-off (L36). Pure.

`nodes.housekeeping` has the shard's owner commit them as changes of its list of files; then they are orphans, which
stay for as long as a reader may need them (L16, L20).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.filechange import FileChange

if TYPE_CHECKING:
    from storage.catalogstate import CatalogSnapshot
    from storage.shardstate import ShardState


def gone_files(state: ShardState, catalog: CatalogSnapshot) -> list[FileChange]:
    """For each partition the files that go, with nothing in their place. ``catalog`` must be proved current."""
    changes = []
    for (table_id, _), part in state.partitions.items():
        cutoff = _cutoff_ns(state, catalog, table_id)
        if table_id in state.drops:
            gone = part.files
        elif cutoff is not None:
            gone = tuple(file for file in part.files if file.time_high < cutoff)
        else:
            continue
        if gone:
            changes.append(FileChange(gone, ()))
    return changes


def _cutoff_ns(state: ShardState, catalog: CatalogSnapshot, table_id: int) -> int | None:
    """Below it rows of the table are hidden for ever; None if all are kept, or the table is not known yet (L30)."""
    table = catalog.tables_by_id.get(table_id)
    database = None if table is None else catalog.databases_by_id.get(table.database_id)
    if database is None or database.retention_ns is None:
        return None
    recorded = state.cutoffs.get(database.id)
    return None if recorded is None else recorded.for_period(database.retention_ns)
