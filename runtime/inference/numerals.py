"""Numbers that satisfy bounds and ``multipleOf``."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from runtime.inference import alternatives as alt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.inference.negation import Conjunction

_MOST_MULTIPLES: Final = 64


def numbers(plain: Conjunction, *, whole: bool) -> Iterator[Any]:
    """Numbers at and around the bounds, the shortest first."""
    low = max(
        (Fraction(n) for key in ("minimum", "exclusiveMinimum")
         if (n := alt.bound(plain, key, least=False)) is not None and math.isfinite(n)),
        default=None,
    )  # fmt: skip
    high = min(
        (Fraction(n) for key in ("maximum", "exclusiveMaximum")
         if (n := alt.bound(plain, key, least=True)) is not None and math.isfinite(n)),
        default=None,
    )  # fmt: skip
    seen: set[Fraction] = set()
    tried: list[Fraction] = [Fraction(n) for n in (0, 1, -1, 2)]
    for edge in (low, high):
        if edge is not None:
            tried += [Fraction(math.floor(edge)) + step for step in (0, 1, -1, 2)]
            tried.append(edge)
    if low is not None and high is not None:
        middle = (low + high) / 2
        tried += [Fraction(math.floor(middle)), middle, low + (high - low) / 4]
    steps = [
        Fraction(str(each[key]))
        for each in plain
        for key in ("multipleOf", "divisibleBy")
        if (bound := alt.bound((each,), key, least=True)) and math.isfinite(bound)
    ]
    for unit in steps:
        for edge in (low, high, Fraction(0)):
            if edge is not None:
                near = math.floor(edge / unit)
                tried += [unit * (near + more) for more in (0, 1, -1, 2)]
    if steps:
        unit = _common_multiple(steps)
        near = math.ceil(low / unit) if low is not None else 0
        if low is None and high is not None:
            near = math.floor(high / unit) - _MOST_MULTIPLES
        tried += [unit * (near + more) for more in range(_MOST_MULTIPLES)]
    if not whole:
        tried += [Fraction(1, 2), Fraction(1, 10), Fraction(1, 100)]
    for number in tried:
        if number in seen:
            continue
        seen.add(number)
        if number.denominator == 1:
            yield int(number)
        elif not whole:
            try:
                yield float(number)
            except OverflowError:
                continue


def _common_multiple(numbers: list[Fraction]) -> Fraction:
    """The least number that all of them divide: lcm(a/b, c/d) = lcm(a, c) / gcd(b, d)."""
    numerators = math.lcm(*(abs(each.numerator) for each in numbers))
    return Fraction(numerators, math.gcd(*(each.denominator for each in numbers)))
