"""Durations as clients write them: humantime's (``30d``, ``1h 30m``) on v3, InfluxQL's (``1w``, ``INF``) on 1.x."""

from __future__ import annotations

import re
from typing import Final

NS: Final = 1
US: Final = 1_000
MS: Final = 1_000_000
SECOND: Final = 1_000_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
WEEK: Final = 7 * DAY
MONTH: Final = 2_630_016 * SECOND
"""30.44 days, as humantime has it."""
YEAR: Final = 31_557_600 * SECOND
"""365.25 days."""
NS_MAX: Final = 2**63 - 1

HUMAN_UNITS: Final[dict[str, int]] = {
    **dict.fromkeys(("nanos", "nsec", "ns"), NS),
    **dict.fromkeys(("usec", "us", "µs"), US),
    **dict.fromkeys(("millis", "msec", "ms"), MS),
    **dict.fromkeys(("seconds", "second", "secs", "sec", "s"), SECOND),
    **dict.fromkeys(("minutes", "minute", "mins", "min", "m"), MINUTE),
    **dict.fromkeys(("hours", "hour", "hrs", "hr", "h"), HOUR),
    **dict.fromkeys(("days", "day", "d"), DAY),
    **dict.fromkeys(("weeks", "week", "wks", "wk", "w"), WEEK),
    **dict.fromkeys(("months", "month", "M"), MONTH),
    **dict.fromkeys(("years", "year", "yrs", "yr", "y"), YEAR),
}
INFLUXQL_UNITS: Final[dict[str, int]] = {
    "ns": NS, "u": US, "µ": US, "ms": MS, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": WEEK,
}  # fmt: skip
INFINITE: Final = frozenset({"inf", "0", "0s"})

_PART: Final = re.compile(r"\s*([0-9]+)\s*([^\W\d_]*)")
_INFLUXQL: Final = re.compile(r"(?:[0-9]+(?:ns|ms|u|µ|s|m|h|d|w))+")
_INFLUXQL_PART: Final = re.compile(r"([0-9]+)(ns|ms|u|µ|s|m|h|d|w)")


def parse_human(text: str) -> int:
    """Nanoseconds. ValueError in humantime's words."""
    if not text.strip():
        raise ValueError("value was empty")
    total, at = 0, 0
    while at < len(text.rstrip()):
        part = _PART.match(text, at)
        if part is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            raise ValueError(f"expected number at {start}" if total == 0 else f"invalid character at {start}")
        total += int(part[1]) * _human_unit(part[2], part[1])
        at = part.end()
    if total > NS_MAX:
        raise ValueError("number is too large")
    return total


def _human_unit(unit: str, number: str) -> int:
    if not unit:
        raise ValueError(f"time unit needed, for example {number}sec or {number}ms")
    found = HUMAN_UNITS.get(unit)
    if found is None:
        raise ValueError(
            f'unknown time unit "{unit}", supported units: ns, us, ms, sec, min, hours, days, weeks, months, years '
            "(and few variations)"
        )
    return found


def parse_influxql(text: str) -> int | None:
    """Nanoseconds, or None for ever (``INF``, ``0s``). ValueError in 1.x's words."""
    if text.lower() in INFINITE:
        return None
    if not _INFLUXQL.fullmatch(text):
        raise ValueError("invalid duration")
    total = sum(int(number) * INFLUXQL_UNITS[unit] for number, unit in _INFLUXQL_PART.findall(text))
    if total > NS_MAX:
        raise ValueError("invalid duration")
    return total or None
