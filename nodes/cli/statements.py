"""SQL text as a prompt needs it: where a statement ends, and which names come next.

Pure. Driven by `nodes.cli.sql` and `nodes.cli.prompt`.
"""

from __future__ import annotations

import re
from typing import Final

_PIECE: Final = re.compile(
    r"""'(?:[^']|'')*'?      # a string; an open one runs to the end
    | "(?:[^"]|"")*"?        # a quoted name
    | --[^\n]*               # a comment to the line's end
    | /\*.*?(?:\*/|\Z)       # a comment over lines
    | ;
    | [^'"\-/;]+ | [-/]      # anything else
    """,
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS: Final = """\
SELECT DISTINCT FROM WHERE GROUP BY HAVING ORDER LIMIT OFFSET JOIN LEFT RIGHT FULL INNER CROSS OUTER ON USING AS
AND OR NOT IN BETWEEN LIKE ILIKE IS NULL TRUE FALSE CASE WHEN THEN ELSE END CAST UNION ALL EXCEPT INTERSECT WITH
RECURSIVE OVER PARTITION ROWS RANGE UNBOUNDED PRECEDING FOLLOWING CURRENT ROW FILTER INTERVAL TIMESTAMP ASC DESC
NULLS FIRST LAST EXPLAIN ANALYZE SHOW TABLES COLUMNS DESCRIBE VALUES EXTRACT count sum avg min max median stddev
first_value last_value date_bin date_trunc now approx_percentile_cont approx_distinct coalesce round abs
row_number rank lag lead regexp_match regexp_replace to_timestamp ALTER TABLE DATABASE SET RESET retention
retention_bytes"""
KEYWORDS: Final = tuple(_KEYWORDS.split())


def split(text: str) -> tuple[list[str], str]:
    """The complete statements, each without its semicolon, and what is left after the last semicolon.

    A semicolon in a string, a quoted name or a comment ends nothing. Pieces of only space and comments are dropped.
    """
    statements: list[str] = []
    current: list[str] = []
    is_empty = True
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece == ";":
            if not is_empty:
                statements.append("".join(current).strip())
            current, is_empty = [], True
            continue
        current.append(piece)
        is_empty = is_empty and (not piece.strip() or piece.startswith(("--", "/*")))
    return statements, "" if is_empty else "".join(current).strip()


def is_complete(text: str) -> bool:
    """Whether Enter runs it: a prompt's own command, nothing at all, or a statement that its semicolon ends."""
    stripped = text.strip()
    return not stripped or stripped.startswith("\\") or (stripped.endswith(";") and not split(text)[1])


def quote_string(text: str) -> str:
    """As an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """As an SQL name: plain where it can be, else in double quotes."""
    is_plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name.upper() not in KEYWORDS
    return name if is_plain else '"' + name.replace('"', '""') + '"'
