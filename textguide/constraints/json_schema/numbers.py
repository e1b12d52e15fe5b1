"""Which numbers the start of a number may still become."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

EXPONENT_DIGITS = 3
"""Digits of an exponent, at most: values stay small enough for exact arithmetic."""
_PARTS = re.compile(r"(-?)([0-9]*)(?:(\.)([0-9]*))?(?:([eE][+-]?)([0-9]*))?")
MOST_ZEROS = 2
"""Zeros after the last digit that an integer, a multiple or a listed number needs; otherwise ``1.000…`` never ends."""
Interval = tuple[Fraction, Fraction]
"""All numbers from the first, included, to the second, excluded."""


class NumberRange(NamedTuple):
    """Numbers between two bounds that are multiples of a step.

    A number in a range is written as programs write it: an exponent is not negative, and there is one digit other than
    0 before the point if there is an exponent. Otherwise ``500`` could become ``500e-3`` under ``maximum: 1``, and
    hardly any text could be refused before its end.

    Args:
        low: lower bound; None: there is none.
        high: upper bound.
        excludes_low: whether ``low`` itself is outside.
        excludes_high: whether ``high`` itself is outside.
        step: the numbers are multiples of it; None: any number. 1 for integers.
        only_digits: whether neither a point nor an exponent is allowed, as for the integers of draft 4.
    """

    low: Fraction | None = None
    high: Fraction | None = None
    excludes_low: bool = False
    excludes_high: bool = False
    step: Fraction | None = None
    only_digits: bool = False

    @property
    def is_everything(self) -> bool:
        """Whether every number is in the range."""
        return self == NumberRange()

    def both(self, other: NumberRange) -> NumberRange:
        """The numbers that are in two ranges."""
        low, excludes_low = self.low, self.excludes_low
        if other.low is not None and (low is None or (other.low, other.excludes_low) > (low, excludes_low)):
            low, excludes_low = other.low, other.excludes_low
        high, excludes_high = self.high, self.excludes_high
        if other.high is not None and (
            high is None or (other.high, not other.excludes_high) < (high, not excludes_high)
        ):
            high, excludes_high = other.high, other.excludes_high
        step = self.step if other.step is None else other.step
        if self.step is not None and other.step is not None:
            step = _common_multiple(self.step, other.step)
        return NumberRange(low, high, excludes_low, excludes_high, step, self.only_digits or other.only_digits)

    def negated(self) -> NumberRange:
        """The numbers whose negatives are in the range."""
        low = None if self.high is None else -self.high
        high = None if self.low is None else -self.low
        return NumberRange(low, high, self.excludes_high, self.excludes_low, self.step, self.only_digits)

    def has_too_many_zeros(self, decimals: str) -> bool:
        """Whether digits after the point end with more zeros than anyone writes, in a range of countable numbers."""
        unit = self.low if self.low is not None and self.low == self.high else self.step
        if unit is None:
            return False
        needed = 0
        while needed < len(decimals) and (unit * 10**needed).denominator != 1:
            needed += 1
        return len(decimals) > needed + MOST_ZEROS and decimals.endswith("0" * (MOST_ZEROS + 1))

    def without(self, value: Fraction) -> list[NumberRange]:
        """Ranges of the other numbers.

        A range without two bounds is not split, because a number with a bound has fewer spellings, and because such a
        range always has other numbers that start in the same way.
        """
        if self.low is None or self.high is None:
            return [self]
        low, high = self.low, self.high
        if not low <= value <= high:
            return [self]
        below = self._replace(high=value, excludes_high=True)
        above = self._replace(low=value, excludes_low=True)
        return [one for one in (below, above) if one.has_one_in(low, None)]

    def has_one_in(self, start: Fraction, end: Fraction | None) -> bool:
        """Whether a number from ``start``, included, to ``end``, excluded (None: no end), is in the range."""
        least, excludes_least = start, False
        if self.low is not None and self.low >= least:
            least, excludes_least = self.low, self.excludes_low
        if self.step is None:
            is_below = self.high is None or least < self.high
            is_in_range = is_below or (least == self.high and not self.excludes_high and not excludes_least)
            return is_in_range and (end is None or least < end)
        number = math.ceil(least / self.step) * self.step
        if excludes_least and number == least:
            number += self.step
        return self._is_below_high(number) and (end is None or number < end)

    def _is_below_high(self, number: Fraction) -> bool:
        return self.high is None or number < self.high or (number == self.high and not self.excludes_high)


def exactly(value: Fraction) -> NumberRange:
    """The range of one number."""
    return NumberRange(low=value, high=value)


def number_of(text: str) -> int | Decimal:
    """The value of a finished JSON number, without rounding."""
    is_integer = not set(text) & set(".eE") and len(text) < 4000  # Python refuses to read longer integers
    return int(text) if is_integer else Decimal(text)


def fraction_of(value: float | Decimal) -> Fraction:
    """A number of a schema without rounding; a float counts as the decimal number that it is written as."""
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


@lru_cache(maxsize=1 << 16)
def may_become(text: str, range_: NumberRange) -> bool:
    """Whether the start of a JSON number may be continued, or left as it is, to a number in a range.

    Args:
        text: at least one character.
        range_: the numbers that are allowed.
    """
    match = _PARTS.fullmatch(text)
    assert match is not None
    sign, digits, point, decimals, exponent_sign, exponent = match.groups()
    if len(exponent or "") > EXPONENT_DIGITS:
        return False
    if range_.is_everything:
        return True
    if range_.only_digits and (point or exponent_sign):
        return False
    if sign:
        range_ = range_.negated()
    if not digits:
        return range_.has_one_in(Fraction(0), None)
    if exponent_sign is None:
        return _has_extension(range_, digits, decimals)
    if digits not in set("123456789") or exponent_sign.endswith("-"):
        return False
    return _has_power(range_, Fraction(f"{digits}.{decimals or 0}"), exponent or "")


def _has_extension(range_: NumberRange, digits: str, decimals: str | None) -> bool:
    """Whether more digits, or an exponent, may follow these digits; ``decimals`` is None before the point."""
    mantissa = Fraction(f"{digits}.{decimals or 0}")
    if decimals is None:
        return _has_interval(range_, mantissa, Fraction(1), is_scaled=digits != "0")
    if range_.has_too_many_zeros(decimals):
        return False
    return _has_interval(range_, mantissa, Fraction(1, 10 ** len(decimals)), is_scaled=digits in set("123456789"))


def _has_interval(range_: NumberRange, start: Fraction, width: Fraction, is_scaled: bool) -> bool:
    """Whether a number of ``[start, start + width)`` is in the range, or of this interval times a power of ten."""
    for low, high in _scaled(start, width) if is_scaled else [(start, start + width)]:
        if range_.high is not None and low > range_.high:
            return False
        if range_.has_one_in(low, high):
            return True
    return False


def _scaled(start: Fraction, width: Fraction) -> Iterator[Interval]:
    for _ in range(10**EXPONENT_DIGITS):
        yield start, start + width
        start *= 10
        width *= 10


def _has_power(range_: NumberRange, mantissa: Fraction, begun: str) -> bool:
    """Whether ``mantissa`` times ten to an exponent that starts with the digits ``begun`` is in the range."""
    exponents: set[int] = set()
    for length in range(EXPONENT_DIGITS - len(begun) + 1):
        if begun or length:
            first = int(begun or 0) * 10**length
            exponents.update(range(first, first + 10**length))
    for exponent in sorted(exponents):
        value = mantissa * 10**exponent
        if range_.high is not None and value > range_.high:
            return False
        if exactly(value).both(range_).has_one_in(value, None):
            return True
    return False


def _common_multiple(one: Fraction, other: Fraction) -> Fraction:
    denominator = one.denominator * other.denominator
    return Fraction(math.lcm(int(one * denominator), int(other * denominator)), denominator)
