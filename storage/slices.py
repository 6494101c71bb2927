"""Rows of many partitions folded all at once: what makes bundles cheap (FORMAT F11, F18, LOG L24). Pure.

A fold costs a millisecond however few rows there are, so the rows of all tables with the same tags are folded as one
table whose first tag says whose rows they are: the number of a slice. `storage.bundle` drives it for Checkpoints, and
`storage.bundlemerge` for what is merged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pyarrow as pa

from storage.fold import fold_rows
from storage.schema import OFFSET_COLUMN, OP_COLUMN, TIME_COLUMN, Column, Role, Table, TypeKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Tags = tuple[str, ...]

SLICE_COLUMN: Final = "_runnel_slice"
"""int64, in memory only: the number of the slice that a row belongs to."""
COLUMNS_MAX: Final = 512
"""Columns of a bundle: each costs each of its row groups some hundred bytes, whether it has values there or not."""
FOLD_CELLS_MAX: Final = 8 * 2**20
"""Rows times columns that are folded at once: a column of one table takes its room in the rows of all others too."""
BINS_OPEN_MAX: Final = 16
"""Bins that are looked at for a slice; with columns that fit nowhere each look would be at all of them."""
OWN: Final = frozenset({SLICE_COLUMN, OFFSET_COLUMN, OP_COLUMN})


class Slice(NamedTuple):
    """What decides with which others it may share an object.

    Whose it is, the columns that it has, all that its table has, and how many rows there are at most.
    """

    partition: tuple[int, int]
    columns: Sequence[Column]
    known: Sequence[Column]
    rows: int


@dataclass(slots=True)
class Bin:
    """Slices that may share an object: their tables' columns agree, and no two are of one partition (F18).

    Of the tables, not only of the slices: a reader asks for a column of its table by name, and finds another table's.
    """

    numbers: list[int] = field(default_factory=list)
    kinds: dict[str, TypeKind] = field(default_factory=dict)
    """Of the slices' columns, by storage name."""
    _rows: int = 0
    _known: dict[str, tuple[str, TypeKind]] = field(default_factory=dict)
    _partitions: set[tuple[int, int]] = field(default_factory=set)

    def takes(self, number: int, one: Slice) -> bool:
        """Add a slice, if it fits; any fits into an empty bin."""
        if one.partition in self._partitions or not self._agrees(one.known):
            return False
        added = {column.storage_name: column.kind for column in one.columns if column.storage_name not in self.kinds}
        columns = len(self.kinds) + len(added)
        if self.numbers and (columns > COLUMNS_MAX or columns * (self._rows + one.rows) > FOLD_CELLS_MAX):
            return False
        self.kinds |= added
        self._known |= {c.storage_name.lower(): (c.storage_name, c.kind) for c in one.known}
        self._partitions.add(one.partition)
        self._rows += one.rows
        self.numbers.append(number)
        return True

    def _agrees(self, columns: Sequence[Column]) -> bool:
        """Names that differ in case only are no two columns for most who read Parquet."""
        known = self._known
        return all(
            known.get(c.storage_name.lower(), (c.storage_name, c.kind)) == (c.storage_name, c.kind) for c in columns
        )


def binned(slices: Iterable[Slice]) -> list[Bin]:
    """Put slices, numbered from 0, into as few bins as is found at once."""
    numbered = list(enumerate(slices))
    bins = _packed(numbered)
    if len(bins) > BINS_OPEN_MAX:  # of so many kinds by turns the bin that would take a slice is not looked at any more
        bins = min(bins, _packed(sorted(numbered, key=_signature)), key=len)
    for one in bins:
        one.numbers.sort()
    return bins


def _signature(numbered: tuple[int, Slice]) -> list[tuple[str, str]]:
    """Slices of tables with the same columns have the same."""
    return sorted((column.storage_name, column.kind.value) for column in numbered[1].known)


def _packed(numbered: Iterable[tuple[int, Slice]]) -> list[Bin]:
    bins: list[Bin] = []
    for number, one in numbered:
        if not any(found.takes(number, one) for found in bins[-BINS_OPEN_MAX:]):
            bins.append(Bin())
            bins[-1].takes(number, one)
    return bins


def fold_slices(tags: Tags, kinds: dict[str, TypeKind], parts: Sequence[pa.Table]) -> pa.Table:
    """Fold rows of slices whose tables have these tags, in their order, and columns of these kinds.

    ``parts`` have storage-named columns, `_runnel_offset`, perhaps `_runnel_op`, and `SLICE_COLUMN`. The rows of the
    answer are sorted by that, then as `storage.fold` sorts; strings are plain.
    """
    rows = pa.concat_tables([_conform(tags, kinds, part) for part in parts], promote_options="default")
    place = rows.schema.get_field_index(SLICE_COLUMN)
    numbers, codes = np.unique(rows.column(place).to_numpy(), return_inverse=True)
    marks = pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), pa.array(numbers))
    rows = rows.set_column(place, SLICE_COLUMN, marks)
    arrival = np.argsort(rows.column(OFFSET_COLUMN).to_numpy(), kind="stable")  # of each partition by itself: L24
    folded = pa.Table.from_batches([fold_rows(_as_one(tags, kinds), rows, arrival)])
    for place, column in enumerate(folded.schema):
        if pa.types.is_dictionary(column.type):
            folded = folded.set_column(place, column.name, folded.column(place).cast(column.type.value_type))
    return folded


def numbers_of(rows: pa.Table) -> Ints:
    """Whose each row is."""
    numbers: Ints = rows.column(SLICE_COLUMN).to_numpy()
    return numbers


def with_number(rows: pa.Table, numbers: Ints) -> pa.Table:
    """Rows that know whose they are."""
    return rows.append_column(SLICE_COLUMN, pa.array(numbers, pa.int64()))


def tags_of(table: Table) -> Tags:
    """Tables with the same ones sort their rows in the same way."""
    return tuple(tag.storage_name for tag in table.tags)


def _conform(tags: Tags, kinds: dict[str, TypeKind], part: pa.Table) -> pa.Table:
    """The types that a fold wants: those of the tables, tags as dictionaries."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in part.column_names:
        values = part.column(name)
        if name in tags:
            values = values if pa.types.is_dictionary(values.type) else values.cast(pa.string()).dictionary_encode()
        elif name not in OWN:
            values = values.cast(_field(name, kinds).arrow_type)
        columns[name] = values
    return pa.table(columns)


def _field(name: str, kinds: dict[str, TypeKind]) -> Column:
    return Column(0, name, name, Role.TIME if name == TIME_COLUMN else Role.FIELD, kinds[name])


def _as_one(tags: Tags, kinds: dict[str, TypeKind]) -> Table:
    """The table that all of these are for a fold."""
    keys = [Column(0, name, name, Role.TAG, TypeKind.STRING) for name in (SLICE_COLUMN, *tags)]
    fields = [_field(name, kinds) for name in kinds if name not in tags and name != TIME_COLUMN]
    time = _field(TIME_COLUMN, {TIME_COLUMN: TypeKind.TIMESTAMP})
    return Table(0, "", 0, "bundle", 0, (time, *keys, *fields), ())
