"""Files whose rows nobody can see any more: of dropped tables (LOG L31), and below a recorded cut-off (L36). Pure.

`nodes.housekeeping` has the shard's owner commit them as changes of its list of files; then they are orphans, which
stay for as long as a reader may need them (L16, L20).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from storage.cutoffs import Cutoffs, higher
from storage.filechange import FileChange

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from storage.catalogstate import CatalogSnapshot
    from storage.schema import DataFile
    from storage.shardstate import ShardState

TIME_END: Final = 2**63
"""Above every time."""


def gone_files(state: ShardState, catalog: CatalogSnapshot, known: Collection[str]) -> list[FileChange]:
    """For each partition the files that go, with nothing in their place.

    ``known`` are the paths of the files that were there before ``catalog`` was proved current: rows that were written
    after a period had been made longer, or cleared, may be in others.
    """
    changes = []
    for (table_id, partition), part in state.partitions.items():
        cutoff = _cutoff_ns(state, catalog, table_id, partition)
        if table_id in state.drops:
            gone = list(part.files)
        elif cutoff is not None:
            gone = _expired(part.files, cutoff, known)
        else:
            continue
        if gone:
            changes.append(FileChange(tuple(gone), ()))
    return changes


def _expired(files: Sequence[DataFile], cutoff_ns: int, known: Collection[str]) -> list[DataFile]:
    """The files that end below the cut-off, without those that have written over rows of an older one that stays.

    Such rows are hidden now, but a period that is made longer shows them again, and then with their newest values:
    that is what L25 says of a layer that is left out. ``files`` are in ascending order.
    """
    gone: list[DataFile] = []
    staying_from = TIME_END
    for file in files:
        if file.time_high < min(cutoff_ns, staying_from) and file.path in known:
            gone.append(file)
        else:  # one that reaches over the cut-off shares its moments with every newer one that ends behind its begin
            staying_from = min(staying_from, file.time_low)
    return gone


def _cutoff_ns(state: ShardState, catalog: CatalogSnapshot, table_id: int, partition: int) -> int | None:
    """Below it rows of the partition are hidden for ever; None if all are kept, or the table is not known yet (L30)."""
    table = catalog.tables_by_id.get(table_id)
    database = None if table is None else catalog.databases_by_id.get(table.database_id)
    if table is None or database is None:
        return None
    recorded = Cutoffs(state.cutoffs, state.table_cutoffs)
    return higher(recorded.by_age(table, database), recorded.by_bytes(table, database, partition))
