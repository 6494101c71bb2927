"""What the line protocol codec raises. A bad line is not here: it is a `model.LineError`, data in the answer."""

from __future__ import annotations

from typing import ClassVar

from wire.errors import WireError


class InvalidPrecision(WireError):
    """The text names no unit of time."""

    code: ClassVar[str] = "invalid_precision"


class BodyTooLarge(WireError):
    """The bodies of one call do not fit into the parser's 32-bit offsets together."""

    code: ClassVar[str] = "body_too_large"


class LineRefused(WireError):
    """One line breaks the grammar. Used between the parts of this package only."""

    code: ClassVar[str] = "line_refused"
