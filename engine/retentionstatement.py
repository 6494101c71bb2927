"""``ALTER TABLE t SET (retention = '30d', retention_bytes = '10GB')``, ``RESET (...)``, and the same of a DATABASE.

DataFusion never sees them. The backends of `nodes` ask here first; `nodes.retention` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from engine.errors import AmbiguousName, InvalidStatement
from engine.names import Token, first_word, without_end

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

AGE: Final = "retention"
BYTES: Final = "retention_bytes"
USAGE: Final = (
    "write ALTER TABLE name SET (retention = '30d', retention_bytes = '10GB'), with 'none' for no end, or RESET "
    "(retention, retention_bytes); ALTER DATABASE likewise"
)


@dataclass(frozen=True, slots=True)
class Retain:
    """What is asked for: of a setting what is written as its value, or None to take it away."""

    is_table: bool
    name: str
    is_quoted: bool
    settings: Mapping[str, str | None]

    def of(self, names: Iterable[str]) -> str | None:
        """Which of ``names`` is meant: unquoted also in another case. Raises AmbiguousName."""
        known = set(names)
        if self.name in known or self.is_quoted:
            return self.name if self.name in known else None
        alike = sorted(name for name in known if name.lower() == self.name.lower())
        if len(alike) > 1:
            listed = ", ".join(f'"{name}"' for name in alike)
            raise AmbiguousName(f"{self.name} is ambiguous: write one of {listed}")
        return alike[0] if alike else None


def retain_of(statement: str) -> Retain | None:
    """What an ALTER of this kind asks for; None if the statement is another one. Raises InvalidStatement."""
    if first_word(statement) != "alter":
        return None
    found = without_end(statement)
    if len(found) < 5 or found[1].word not in ("table", "database") or found[3].word not in ("set", "reset"):
        return None
    if found[4].text != "(":
        return None
    name = found[2]
    if name.kind not in ("word", "quoted") or found[-1].text != ")":
        raise InvalidStatement(USAGE)
    settings = _settings(found[5:-1], is_set=found[3].word == "set")
    return Retain(found[1].word == "table", name.name, name.kind == "quoted", settings)


def _settings(found: Sequence[Token], *, is_set: bool) -> dict[str, str | None]:
    """Between the parentheses."""
    items: list[list[Token]] = [[]]
    for token in found:
        if token.text == ",":
            items.append([])
        else:
            items[-1].append(token)
    settings: dict[str, str | None] = {}
    for item in items:
        key = item[0].word if item else ""
        if key not in (AGE, BYTES) or key in settings:
            raise InvalidStatement(USAGE)
        if not is_set and len(item) == 1:
            settings[key] = None
        elif is_set and len(item) == 3 and item[1].text == "=":
            settings[key] = _value(item[2])
        else:
            raise InvalidStatement(USAGE)
    return settings


def _value(token: Token) -> str:
    if token.kind == "string" and token.text[0] == "'":
        return token.text[1:-1].replace("''", "'")
    if token.kind in ("word", "number"):
        return token.text
    raise InvalidStatement(USAGE)
