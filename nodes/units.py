"""Sizes and durations as people write them: ``64 MiB``, ``10485760``, ``30s``, ``5 min``.

Pure. Driven by `nodes.settings` and by the command line.
"""

from __future__ import annotations

import re
from typing import Final

SIZE_FACTORS: Final[dict[str, int]] = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
DURATION_FACTORS: Final[dict[str, float]] = {
    "ms": 1e-3,
    "": 1.0,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "seconds": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "minutes": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "hours": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
    "days": 86400.0,
}
_QUANTITY: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of ``64 MiB`` (powers of 1024), ``64 MB`` (powers of 1000) or a bare number; ValueError otherwise."""
    number, unit = _quantity(text)
    factor = SIZE_FACTORS.get(unit.lower())
    if factor is None:
        raise ValueError(f"unknown unit {unit!r}")
    size = float(number) * factor if "." in number else int(number) * factor
    if size != int(size):
        raise ValueError("not a whole number of bytes")
    return int(size)


def parse_duration(text: str) -> float:
    """Seconds of ``30s``, ``5 min``, ``1h``, ``250ms`` or a bare number; ValueError otherwise."""
    number, unit = _quantity(text)
    factor = DURATION_FACTORS.get(unit.lower())
    if factor is None:
        raise ValueError(f"unknown unit {unit!r}")
    return float(number) * factor


def show_size(size_bytes: int) -> str:
    """The shortest exact form: ``64 MiB``, else plain bytes."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = SIZE_FACTORS[unit.lower()]
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return str(size_bytes)


def show_size_rounded(size_bytes: float) -> str:
    """For people: ``64.2 MiB``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        factor = SIZE_FACTORS[unit.lower()]
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def show_duration(seconds: float) -> str:
    """The shortest exact form: ``5 min``, ``30s``, ``250ms``."""
    for unit, factor in (("d", 86400), ("h", 3600), (" min", 60)):
        if seconds >= factor and seconds % factor == 0:
            return f"{int(seconds // factor)}{unit}"
    if 0 < seconds < 1:
        return f"{_plain(seconds * 1000)}ms"
    return f"{_plain(seconds)}s"


def _plain(number: float) -> str:
    """Without an exponent and without zeros at the end."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def _quantity(text: str) -> tuple[str, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("not a number with a unit")
    return match[1], match[2]
