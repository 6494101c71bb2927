"""What goes into a line protocol parser and what comes out: columns, not rows.

The doors build on these names; both parsers (`reference` and `parser`) produce them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from wire.lineprotocol.errors import InvalidPrecision

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

TIME_COLUMN: Final = "time"
RESERVED_PREFIX: Final = "_runnel_"
"""Names that begin so belong to the store; a line that uses one is refused."""

ORIGINAL_BYTES_MAX: Final = 20
"""How much of a bad line an error repeats, as InfluxDB 3 does."""

Body: TypeAlias = "bytes | tuple[bytes, ...]"
"""A body, whole or in its pieces as they arrived: joining them first would copy each byte once more."""

CALL_BYTES_MAX: Final = (1 << 31) - (1 << 16)
"""Bytes of all bodies of one call together: the kernel's offsets have 31 bits."""


def body_bytes(body: Body) -> int:
    """How many bytes a body has."""
    return len(body) if isinstance(body, bytes) else sum(map(len, body))


def whole(body: Body) -> bytes:
    """A body in one piece."""
    return body if isinstance(body, bytes) else b"".join(body)


class FieldType(enum.IntEnum):
    """The types a field value can have on the wire; also the kernel's codes."""

    INT64 = 0
    UINT64 = 1
    FLOAT64 = 2
    BOOL = 3
    STRING = 4


class Precision(enum.StrEnum):
    """The unit of the timestamps in a body. ``AUTO`` guesses it for each timestamp from its magnitude."""

    AUTO = "auto"
    SECOND = "second"
    MILLISECOND = "millisecond"
    MICROSECOND = "microsecond"
    NANOSECOND = "nanosecond"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """The unit named by ``text``, in any of InfluxDB's spellings.

        Raises:
            InvalidPrecision: no unit has this name.
        """
        found = _SPELLINGS.get(text)
        if found is None:
            known = ", ".join(_SPELLINGS)
            msg = f"unrecognized precision unit: {text} (known: {known})"
            raise InvalidPrecision(msg)
        return found

    @property
    def multiplier(self) -> int:
        """Nanoseconds in one unit; 0 for ``AUTO``."""
        return _MULTIPLIERS[self]

    def now(self, now_ns: int) -> int:
        """``now_ns`` cut down to this unit: the time of a line that brings none. ``AUTO`` cuts nothing."""
        unit = self.multiplier or 1
        return now_ns // unit * unit


_SPELLINGS: Final[dict[str, Precision]] = {
    "auto": Precision.AUTO,
    "s": Precision.SECOND,
    "second": Precision.SECOND,
    "ms": Precision.MILLISECOND,
    "millisecond": Precision.MILLISECOND,
    "us": Precision.MICROSECOND,
    "u": Precision.MICROSECOND,
    "microsecond": Precision.MICROSECOND,
    "ns": Precision.NANOSECOND,
    "n": Precision.NANOSECOND,
    "nanosecond": Precision.NANOSECOND,
}
_MULTIPLIERS: Final[dict[Precision, int]] = {
    Precision.AUTO: 0,
    Precision.SECOND: 1_000_000_000,
    Precision.MILLISECOND: 1_000_000,
    Precision.MICROSECOND: 1_000,
    Precision.NANOSECOND: 1,
}


@dataclass(frozen=True, slots=True)
class ParserLimits:
    """Bounds of one parser. Over a line's bound the line is refused; over a memory bound what was learnt is dropped."""

    series_bytes_max: int = 64 << 20
    """Estimated bytes of everything kept between calls: series, names, tag dictionaries."""
    name_bytes_max: int = 64 << 10
    """A table's, tag's or field's name."""
    string_bytes_max: int = 1 << 20
    """A tag value or a string field."""
    errors_max: int = 1024
    """Errors reported for one body; all further ones are only counted."""
    columns_max: int = 100_000
    """Columns of one table, time included; the catalog may allow fewer."""
    cells_max: int = 16 << 20
    """Rows times columns, over all tables of a call: bounds the memory that a small sparse body can ask for.
    At 8 bytes each twice what one object of a Log can take; the densest body of 10 MiB has a fifth of it."""


@dataclass(frozen=True, slots=True)
class KnownTable:
    """What the catalog already says of a table. Equal ``key`` means equal content."""

    key: Hashable
    tags: tuple[str, ...]
    fields: Mapping[str, FieldType] = field(hash=False)


@dataclass(frozen=True, slots=True)
class LineError:
    """Why a line was refused.

    ``body`` is the body's index in the call. ``line`` is the number, from 1, that a text editor shows for
    the line's first byte: every newline before it counts, in strings, comments and blank lines too.
    (InfluxDB 3 numbers the lines that remain after dropping blank and comment lines and joining lines
    inside strings; the two agree on bodies without any of these.) ``original`` is the start of the line.
    """

    body: int
    line: int
    message: str
    original: str


class TagColumn(NamedTuple):
    """A tag: dictionary<int32, string> of one value a row; ``nullable`` says that some rows lack it."""

    name: str
    values: pa.DictionaryArray
    nullable: bool


class FieldColumn(NamedTuple):
    """A field: one value or null a row, of the Arrow type that belongs to ``type``."""

    name: str
    type: FieldType
    values: pa.Array


class Numbering:
    """Who numbers the series of one table: with the same one, equal numbers mean equal tags, between calls too.

    ``memo`` is for whoever reads the numbers, to keep what it found of series for as long as they mean the same.
    """

    __slots__ = ("memo",)

    def __init__(self) -> None:
        self.memo: dict[Hashable, Any] = {}


@dataclass(frozen=True, eq=False)
class ParsedTable:
    """The accepted rows of one table, in the order of their lines.

    ``time`` is int64 ns. ``tags`` and ``fields`` hold the columns with at least one value here: first
    those that the catalog knows, then the new ones in the order of their first accepted line.
    ``new_tags`` and ``new_fields`` are the names the catalog does not know. ``body`` and ``line`` (int32)
    say where each row came from. ``series`` numbers each row's series, if the parser knows them.
    """

    name: str
    rows: int
    time: npt.NDArray[np.int64]
    tags: list[TagColumn]
    fields: list[FieldColumn]
    new_tags: tuple[str, ...]
    new_fields: tuple[str, ...]
    body: npt.NDArray[np.int32]
    line: npt.NDArray[np.int32]
    series: npt.NDArray[np.int32] | None = None
    numbering: Numbering | None = None


@dataclass(frozen=True, eq=False)
class Parsed:
    """All that one call found: ``tables`` in the order of their first accepted row, errors by body and line.

    ``lines`` and ``rows`` count, for each body, its lines (without blank and comment lines) and those
    of them that became rows. The difference was refused, even where ``errors`` stopped at its limit.
    """

    tables: list[ParsedTable]
    errors: list[LineError]
    lines: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    bytes: int


class LineParser(Protocol):
    """Bytes to columns. Used by one thread at a time; keeps what it learns of series between calls."""

    def parse(
        self,
        bodies: Sequence[Body],
        *,
        precision: Precision,
        now_ns: int,
        known: Callable[[str], KnownTable | None],
        all_or_nothing: Sequence[bool] | None = None,
    ) -> Parsed:
        """Parse all bodies as one, each judged after the ones before it.

        A body for which ``all_or_nothing`` is true gives, if any of its lines is bad, no row and no
        column but its first error, and the others are judged as if it had not been there. ``known`` is
        asked once for each table that has a line.

        Raises:
            BodyTooLarge: the bodies have more than `CALL_BYTES_MAX` bytes.
        """
        ...
