"""Sizes and durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.units import parse_duration, parse_size, show_duration, show_size, show_size_rounded


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("10485760", 10485760),
        ("64 MiB", 64 * 2**20),
        ("64MiB", 64 * 2**20),
        (" 1.5 gib ", 3 * 2**29),
        ("10 MB", 10_000_000),
        ("0", 0),
        ("1 B", 1),
        ("2 TiB", 2**41),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "64 MBit", "-1", "1e6", "1.00000001 KiB", "64 Mi B", "0x10", "1,000"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"unit|number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5 min", 300), ("1h", 3600), ("250ms", 0.25), ("1.5", 1.5), ("2 days", 172800), ("5m", 300)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 fortnights", "1h30m", "inf", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"unit|number"):
        parse_duration(text)


@given(st.integers(0, 2**50))
def test_a_shown_size_reads_back(size_bytes: int) -> None:
    assert parse_size(show_size(size_bytes)) == size_bytes


@given(st.integers(0, 10**7) | st.sampled_from([0.001, 0.25, 0.5, 1.5]))
def test_a_shown_duration_reads_back(seconds: float) -> None:
    shown = show_duration(seconds)
    assert parse_duration(shown) == pytest.approx(seconds, rel=1e-5)


def test_rounded_sizes_are_for_people() -> None:
    assert [show_size_rounded(n) for n in (0, 1023, 1536, 3 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
