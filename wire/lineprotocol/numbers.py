"""Numbers for the kernel: integers with their ranges, doubles bit for bit, timestamps in every unit.

Doubles take Clinger's fast path, then Eisel and Lemire's ("Number Parsing at a Gigabyte per Second",
2021) with a 128-bit table of powers of ten; what neither can decide (more than 19 digits, a value
halfway between two doubles, subnormals) is left to Python's ``float``.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from wire.lineprotocol.machine import Bytes, UInt64s, float_bits, inlined, leading_zeros, multiply_high, signed

U64 = np.uint64

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1

# Kinds of event: the FieldTypes, and one more that never leaves the scan.
INT64: Final = 0
UINT64: Final = 1
FLOAT64: Final = 2
BOOL: Final = 3
STRING: Final = 4
FLOAT_TEXT: Final = 5
"""A double left to Python: the value is where its text lies (see `pack`)."""
NO_VALUE: Final = -1
"""Returned instead of a kind: no good value stands here."""

_DIGITS_MAX: Final = 19
"""Decimal digits that always fit into 64 bits."""
_POWER_MIN: Final = -348
_POWER_MAX: Final = 347
_EXPONENT_MAX: Final = 100_000
"""Where the exponent's digits stop being added up: far outside what a double can hold."""


def _powers_of_ten() -> tuple[UInt64s, UInt64s]:
    """The upper and the lower 64 bits of 10**e, normalized to 128 bits, for e in [_POWER_MIN, _POWER_MAX]."""
    high, low = [], []
    for exponent in range(_POWER_MIN, _POWER_MAX + 1):
        power = 10 ** abs(exponent)
        if exponent < 0:
            power = (1 << (power.bit_length() + 127)) // power
        shift = power.bit_length() - 128
        power = power >> shift if shift > 0 else power << -shift
        high.append(power >> 64)
        low.append(power & ((1 << 64) - 1))
    return np.array(high, np.uint64), np.array(low, np.uint64)


_HIGH, _LOW = _powers_of_ten()
_EXACT_POWERS = 10.0 ** np.arange(23)
_EXACT_MANTISSA_MAX = U64(1 << 53)
_NEGATIVE_BIT = np.int64(INT64_MIN)


@inlined
def double_bits(mantissa: np.uint64, exponent: int) -> tuple[bool, np.int64]:
    """(decided, bits) of ``mantissa * 10**exponent``; mantissa > 0 and exact."""
    if mantissa <= _EXACT_MANTISSA_MAX and -22 <= exponent <= 22:
        value = np.float64(mantissa)
        if exponent >= 0:
            return True, float_bits(value * _EXACT_POWERS[exponent])
        return True, float_bits(value / _EXACT_POWERS[-exponent])
    if exponent < _POWER_MIN or exponent > _POWER_MAX:
        return False, np.int64(0)
    return _eisel_lemire(mantissa, exponent)


@inlined
def _eisel_lemire(mantissa: np.uint64, exponent: int) -> tuple[bool, np.int64]:
    shift = leading_zeros(mantissa)
    normal = mantissa << U64(shift)
    binary = ((217706 * exponent) >> 16) + 64 + 1023 - shift
    factor = _HIGH[exponent - _POWER_MIN]
    high, low = multiply_high(normal, factor), normal * factor
    if high & U64(0x1FF) == U64(0x1FF) and low + normal < normal:
        factor = _LOW[exponent - _POWER_MIN]
        finer_high, finer_low = multiply_high(normal, factor), normal * factor
        merged = low + finer_high
        if merged < low:
            high += U64(1)
        if high & U64(0x1FF) == U64(0x1FF) and merged + U64(1) == U64(0) and finer_low + normal < normal:
            return False, np.int64(0)
        low = merged
    top = high >> U64(63)
    rounded = high >> (top + U64(9))
    binary -= signed(U64(1) ^ top)
    if low == U64(0) and high & U64(0x1FF) == U64(0) and rounded & U64(3) == U64(1):
        return False, np.int64(0)
    rounded = (rounded + (rounded & U64(1))) >> U64(1)
    if rounded >> U64(53) > U64(0):
        rounded >>= U64(1)
        binary += 1
    if binary < 1 or binary >= 0x7FF:
        return False, np.int64(0)
    return True, np.int64((U64(binary) << U64(52)) | (rounded & U64(0xFFFFFFFFFFFFF)))


@inlined
def pack(start: int, length: int, flag: int) -> np.int64:
    """Where a text lies in the buffer, and one flag, as an event's value."""
    return np.int64((start << 32) | (length << 1) | flag)


@inlined
def scan_digits(buffer: Bytes, at: int, mantissa: np.uint64, digits: int) -> tuple[int, np.uint64, int]:
    """Read decimal digits: (offset after them, mantissa of the first 19 significant, how many were significant)."""
    while True:
        digit = signed(buffer[at]) - 48
        if digit < 0 or digit > 9:
            return at, mantissa, digits
        if digits < _DIGITS_MAX:
            mantissa = mantissa * U64(10) + U64(digit)
        if mantissa != U64(0):
            digits += 1
        at += 1


@inlined
def scan_number(buffer: Bytes, start: int) -> tuple[int, int, np.int64]:
    """(offset after it, kind, value) of the number at ``start``, where a minus sign or a digit stands.

    The kind is `NO_VALUE` if it is no number, or an integer out of range.
    """
    negative = buffer[start] == 45
    digits_at = start + 1 if negative else start
    at, mantissa, digits = scan_digits(buffer, digits_at, U64(0), 0)
    if at == digits_at:
        return start, NO_VALUE, np.int64(0)
    suffix = buffer[at]
    if suffix == 105:
        limit = U64(1 << 63) if negative else U64(INT64_MAX)
        if digits > _DIGITS_MAX or mantissa > limit:
            return at + 1, NO_VALUE, np.int64(0)
        value = np.int64(mantissa)
        return at + 1, INT64, -value if negative else value
    if suffix == 117 and not negative:
        return _scan_unsigned(buffer, digits_at, at, mantissa, digits)
    return _scan_double(buffer, start, at, mantissa, digits)


@inlined
def _scan_unsigned(
    buffer: Bytes, digits_at: int, at: int, mantissa: np.uint64, digits: int
) -> tuple[int, int, np.int64]:
    if digits > _DIGITS_MAX:
        if digits > _DIGITS_MAX + 1:
            return at + 1, NO_VALUE, np.int64(0)
        last = U64(buffer[at - 1] - 48)
        if mantissa > U64(1844674407370955161) or (mantissa == U64(1844674407370955161) and last > U64(5)):
            return at + 1, NO_VALUE, np.int64(0)
        mantissa = mantissa * U64(10) + last
    return at + 1, UINT64, np.int64(mantissa)


@inlined
def _scan_double(buffer: Bytes, start: int, at: int, mantissa: np.uint64, digits: int) -> tuple[int, int, np.int64]:
    """The rest of a double whose integral part ends at ``at``."""
    fraction = 0
    if buffer[at] == 46:
        # A leading zero of the fraction adds no significant digit, yet it scales what follows.
        fraction_end, finer, total = scan_digits(buffer, at + 1, mantissa, digits)
        fraction = fraction_end - at - 1
        if fraction > 0:
            at, mantissa, digits = fraction_end, finer, total
    at, exponent = _scan_exponent(buffer, at)
    sign = _NEGATIVE_BIT if buffer[start] == 45 else np.int64(0)
    if mantissa == U64(0):
        return at, FLOAT64, sign
    if digits <= _DIGITS_MAX:
        decided, bits = double_bits(mantissa, exponent - fraction)
        if decided:
            return at, FLOAT64, bits | sign
    return at, FLOAT_TEXT, pack(start, at - start, 0)


@inlined
def _scan_exponent(buffer: Bytes, at: int) -> tuple[int, int]:
    """(offset after it, value) of the exponent at ``at``; (at, 0) if there is none."""
    if buffer[at] != 101 and buffer[at] != 69:
        return at, 0
    negative = buffer[at + 1] == 45
    digits_at = at + 2 if negative or buffer[at + 1] == 43 else at + 1
    end = digits_at
    exponent = 0
    while 48 <= buffer[end] <= 57:
        if exponent < _EXPONENT_MAX:
            exponent = exponent * 10 + (signed(buffer[end]) - 48)
        end += 1
    if end == digits_at:
        return at, 0
    return end, -exponent if negative else exponent


@inlined
def scan_timestamp(buffer: Bytes, start: int) -> tuple[int, bool, np.int64]:
    """(offset after it, good, value) of the int64 at ``start``; the offset is ``start`` if no digit is there."""
    negative = buffer[start] == 45
    digits_at = start + 1 if negative else start
    at, mantissa, digits = scan_digits(buffer, digits_at, U64(0), 0)
    if at == digits_at:
        return start, False, np.int64(0)
    limit = U64(1 << 63) if negative else U64(INT64_MAX)
    value = np.int64(mantissa)
    return at, bool(digits <= _DIGITS_MAX and mantissa <= limit), -value if negative else value


@inlined
def to_nanoseconds(timestamp: np.int64, multiplier: int) -> tuple[bool, np.int64]:
    """(in range, ns) of a timestamp in units of ``multiplier`` ns; 0 guesses the unit as InfluxDB 3 does."""
    if multiplier == 0:
        multiplier = _guess_multiplier(timestamp)
    if multiplier == 1:
        return True, timestamp
    limit = INT64_MAX // multiplier
    return bool(-limit <= timestamp <= limit), timestamp * multiplier


@inlined
def _guess_multiplier(timestamp: np.int64) -> int:
    if -5_000_000_000 < timestamp < 5_000_000_000:
        return 1_000_000_000
    if -5_000_000_000_000 < timestamp < 5_000_000_000_000:
        return 1_000_000
    if -5_000_000_000_000_000 < timestamp < 5_000_000_000_000_000:
        return 1_000
    return 1
