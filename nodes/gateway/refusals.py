"""Rows that the Catalog refused after they were parsed: turn them into line errors and take them out.

A limit (databases, tables, columns) is found only when the Catalog is asked. Then the lines that need what it
refuses become errors like any bad line, and the others are written. Rare, so it may cost. Driven by
`nodes.gateway.coalesce`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from storage.errors import LimitExceeded
from wire.lineprotocol.model import ORIGINAL_BYTES_MAX, LineError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from storage.errors import StorageError
    from wire.lineprotocol.model import Parsed, ParsedTable

ERRORS_MAX: Final = 1024
"""Reported for one body; all are counted."""


@dataclass(slots=True)
class Refused:
    """Line errors that the Catalog caused, and how many rows of each body it cost."""

    errors: list[LineError] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)
    is_over_limit: bool = False


def refuse_rows(
    parsed: Parsed, errors: Mapping[str, StorageError], bodies: Sequence[bytes], is_all_or_nothing: bool
) -> Refused:
    """Take the rows out of ``parsed`` that need what was refused; ``errors`` maps a table to why.

    With ``is_all_or_nothing`` (one body) every row goes, and only the first error is reported.
    """
    refused = Refused(is_over_limit=any(isinstance(error, LimitExceeded) for error in errors.values()))
    for at, part in enumerate(parsed.tables):
        error = errors.get(part.name)
        if error is not None:
            needing = _needing(part)
            _report(refused, part, needing, str(error), bodies)
            parsed.tables[at] = part if is_all_or_nothing else _without(part, needing)
    if is_all_or_nothing:
        refused.rows = {0: int(parsed.rows[0])}
        refused.errors = sorted(refused.errors, key=lambda error: error.line)[:1]
        parsed.tables.clear()
    return refused


def _needing(part: ParsedTable) -> npt.NDArray[np.bool_]:
    """Which rows use a column that the table does not have; all of them if the table is new."""
    new = {*part.new_tags, *part.new_fields}
    if len(new) == len(part.tags) + len(part.fields):
        return np.ones(part.rows, dtype=np.bool_)
    needing = np.zeros(part.rows, dtype=np.bool_)
    columns = [(tag.name, tag.values) for tag in part.tags] + [(one.name, one.values) for one in part.fields]
    for name, values in columns:
        if name in new:
            needing |= values.is_valid().to_numpy(zero_copy_only=False)
    return needing


def _report(
    refused: Refused, part: ParsedTable, needing: npt.NDArray[np.bool_], message: str, bodies: Sequence[bytes]
) -> None:
    where = np.flatnonzero(needing)
    owners, counts = np.unique(part.body[where], return_counts=True)
    for owner, count in zip(owners.tolist(), counts.tolist(), strict=True):
        refused.rows[owner] = refused.rows.get(owner, 0) + count
    lines = {owner: bodies[owner].split(b"\n") for owner in owners.tolist()}
    for at in where[:ERRORS_MAX].tolist():
        owner, line = int(part.body[at]), int(part.line[at])
        refused.errors.append(LineError(owner, line, message, _original(lines[owner][line - 1])))


def _without(part: ParsedTable, needing: npt.NDArray[np.bool_]) -> ParsedTable:
    """The rows that stay, and the columns that the table has."""
    keep = ~needing
    mask = pa.array(keep)
    new = {*part.new_tags, *part.new_fields}
    return replace(
        part,
        rows=int(keep.sum()),
        time=np.ascontiguousarray(part.time[keep]),
        tags=[tag._replace(values=tag.values.filter(mask)) for tag in part.tags if tag.name not in new],
        fields=[one._replace(values=one.values.filter(mask)) for one in part.fields if one.name not in new],
        new_tags=(),
        new_fields=(),
        body=part.body[keep],
        line=part.line[keep],
        series=None if part.series is None else part.series[keep],
    )


def _original(line: bytes) -> str:
    """The start of a line, as the parser reports it."""
    return line[:ORIGINAL_BYTES_MAX].decode("utf-8", "ignore")
