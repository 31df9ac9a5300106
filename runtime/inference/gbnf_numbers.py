"""GBNF for integers and numbers within bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_DIGITS: Final = 15
"""Most digits before the point, where a schema sets no bound."""

_MOST_MULTIPLES: Final = 500
_FRACTION: Final = '"." [0-9]{0,8} [1-9]'


def integers(schema: Mapping[str, Any]) -> str:
    """Integers by ``minimum``, ``maximum`` and their exclusive forms, small multiples too."""
    low, high = _ends(schema)
    step = schema.get("multipleOf")
    if isinstance(step, int) and step > 1 and math.isfinite(low) and math.isfinite(high):
        first, last = math.ceil(low / step), math.floor(high / step)
        if 0 <= last - first < _MOST_MULTIPLES:
            return _either([f'"{number * step}"' for number in range(first, last + 1)])
    if not (math.isfinite(low) or math.isfinite(high)):
        return "integer"
    return _either(_within(low, high)) or "integer"


def numbers(schema: Mapping[str, Any]) -> str:
    """Numbers by the same bounds, written without exponents."""
    low, high = _ends(schema, whole=False)
    if not (math.isfinite(low) or math.isfinite(high)):
        return "number"
    whole_low, whole_high = _ends(schema)
    # A fraction that ends in no zero lies strictly between two integers.
    first = low if _is_whole(low) else whole_low
    last = high if _is_whole(high) else whole_high
    above = _natural(max(0, first), last - 1)
    below = _natural(max(0, -last), -first - 1)
    forms = _within(whole_low, whole_high)
    forms += [f"({each}) {_FRACTION}" for each in above]
    forms += [f'"-" ({each}) {_FRACTION}' for each in below]
    if not forms and 0 <= low < high <= 1:
        first, last = math.ceil(low * 1000) + 1, math.floor(high * 1000) - 1
        if first <= last:
            forms = [f'"0." {_same_length(f"{first:03}", f"{last:03}")}']
    return _either(forms) or "number"


def _ends(schema: Mapping[str, Any], *, whole: bool = True) -> tuple[float, float]:
    """The least and the greatest value; the integers among them where ``whole``."""
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    exclusive_low = above is True or (_is_number(above) and above >= low)
    exclusive_high = below is True or (_is_number(below) and below <= high)
    low = max(low, above) if _is_number(above) else low
    high = min(high, below) if _is_number(below) else high
    if whole and math.isfinite(low):
        low = math.floor(low) + 1 if exclusive_low else math.ceil(low)
    if whole and math.isfinite(high):
        high = math.ceil(high) - 1 if exclusive_high else math.floor(high)
    return low, high


def _is_whole(value: float) -> bool:
    return math.isinf(value) or value == math.floor(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _within(low: float, high: float) -> list[str]:
    forms = _natural(max(0, low), high)
    return forms + [f'"-" ({each})' for each in _natural(max(1, -high), -low)]


def _natural(low: float, high: float) -> list[str]:
    """Integers from ``low`` to ``high``, neither negative, one form for each length."""
    if high < low:
        return []
    last = int(min(high, 10**_DIGITS - 1))
    first = int(min(low, last))
    forms = []
    for length in range(len(str(first)), len(str(last)) + 1):
        start = max(first, 10 ** (length - 1) if length > 1 else 0)
        forms.append(_same_length(str(start), str(min(last, 10**length - 1))))
    return forms


def _same_length(low: str, high: str) -> str:
    if not low:
        return ""
    rest = len(low) - 1
    if low[0] == high[0]:
        return f'"{low[0]}" {_same_length(low[1:], high[1:])}'.strip()
    if low[1:] == "0" * rest and high[1:] == "9" * rest:
        return f"[{low[0]}-{high[0]}] " + (f"[0-9]{{{rest}}}" if rest else "")
    forms = [f'"{low[0]}" {_same_length(low[1:], "9" * rest)}']
    if int(high[0]) - int(low[0]) > 1:
        forms.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}] [0-9]{{{rest}}}")
    forms.append(f'"{high[0]}" {_same_length("0" * rest, high[1:])}')
    return _either(forms)


def _either(forms: list[str]) -> str:
    return f"({' | '.join(form.strip() for form in forms)})" if forms else ""
