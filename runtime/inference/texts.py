"""Short texts that satisfy ``pattern``, ``format``, ``minLength`` and ``maxLength``."""

from __future__ import annotations

import json
from collections import deque
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Final

from llguidance import LLMatcher, LLTokenizer

from runtime.inference import alternatives as alt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.inference.negation import Conjunction

_SAMPLES: Final = {
    "date": ("1970-01-01",),
    "time": ("00:00:00Z",),
    "date-time": ("1970-01-01T00:00:00Z",),
    "duration": ("P0D", "PT0S"),
    "email": ("a@a.aa", "a@example.com"),
    "idn-email": ("a@a.aa", "a@example.com"),
    "hostname": ("a", "a.aa"),
    "idn-hostname": ("a", "a.aa"),
    "ipv4": ("0.0.0.0",),  # noqa: S104 - an example of a text, not an address to listen on
    "ip-address": ("0.0.0.0",),  # noqa: S104 - as above
    "ipv6": ("::",),
    "uri": ("a:", "http://a", "http://a.aa/"),
    "uri-reference": ("", "/", "a"),
    "iri": ("a:", "http://a"),
    "iri-reference": ("", "/"),
    "uri-template": ("", "a"),
    "uuid": ("00000000-0000-0000-0000-000000000000",),
    "json-pointer": ("", "/a"),
    "relative-json-pointer": ("0",),
    "regex": ("", "a"),
}
_COMMON: Final = (
    "a", "A", "0", "1", "-", "/", "Aa", "aa", "AA", "00", "0.0.0", "1.0.0", "1.0", "a.a", "a/a",
    "a-a", "a_a", "a:a", "#", "#000000", "1970-01-01", "1970-01-01T00:00:00Z", "http://a.aa/",
    "https://a.aa/", "a@a.aa", "true", "$", "@a/a", "./a", "x-a",
)  # fmt: skip
_MOST_BYTES: Final = 65_536
_RUN_ON: Final = 400
_QUOTE: Final = 0x22
_SLACKS: Final = (0, 2, 8, 32, 128)
_MOST_STEPS: Final = 3000
_PREFERRED: Final = b'"aA01 -_./:@' + bytes(range(0x62, 0x7B))


def texts(plain: Conjunction, prefix: str) -> Iterator[str]:
    """Texts that begin with ``prefix`` and probably fit; the caller checks them."""
    least = int(alt.bound(plain, "minLength", least=False) or 0)
    patterns = [each["pattern"] for each in plain if isinstance(each.get("pattern"), str)]
    formats = [each["format"] for each in plain if isinstance(each.get("format"), str)]
    if not patterns:
        if least <= 1_000_000:
            yield prefix + "a" * (least - len(prefix))
        for name in formats:
            for sample in _SAMPLES.get(name, ()):
                if sample.startswith(prefix):
                    yield sample
        if formats and prefix:
            yield from (prefix + each for each in ("0", ".aa", "a.aa", "@a.aa", "//a", ":", "a"))
    if patterns or (formats and prefix):
        form = formats[0] if formats else None
        each_alone = [(pattern,) for pattern in patterns] if len(patterns) > 1 else []
        for chosen in (tuple(patterns), *each_alone):
            found = _search(chosen, form, *_lengths(plain), prefix)
            if found is None and form:
                found = _search(chosen, None, *_lengths(plain), prefix)
            if found is not None:
                yield found
    for each in plain:
        listed = each.get("examples")
        given = listed if isinstance(listed, list) else []
        for sample in (*given, each.get("default"), each.get("example")):
            if isinstance(sample, str) and sample.startswith(prefix):
                yield sample
    for more in _COMMON:
        yield prefix + more
        if least > len(prefix) + 1:
            yield prefix + more[-1] * (min(least, 1_000_000) - len(prefix))


def _lengths(plain: Conjunction) -> tuple[int | None, int | None]:
    return (
        alt.bound(plain, "minLength", least=False),
        alt.bound(plain, "maxLength", least=True),
    )


@lru_cache(maxsize=512)
def _search(
    patterns: tuple[str, ...], form: str | None, least: int | None, most: int | None, prefix: str
) -> str | None:
    """A text of a regular language that begins with ``prefix``, by llguidance; None when unknown.

    First the way that closes the text as soon as it may be closed. Where that runs on, the same
    with a bound on the length, which forces an end; at last a search in breadth.
    """
    begun = json.dumps(prefix, ensure_ascii=False)[:-1].encode("utf-8", "surrogatepass")
    least = min(least or 0, _MOST_BYTES // 4)
    shortest = max(least, len(prefix))
    lengths = [most, *(shortest + slack for slack in _SLACKS)]
    for demand, longest in product((least, 0) if least else (0,), lengths):
        if longest is not None and most is not None and longest > most:
            continue
        start = _matcher(patterns, form, demand or None, longest)
        if start is None or start.try_consume_tokens(list(begun)) != len(begun):
            continue
        # Where llguidance cannot count and match at once, the counting is done here.
        within = _MOST_BYTES if longest is not None else least + _RUN_ON
        found = _greedy(start, within, least - len(prefix))
        if found is not None:
            return _text(begun + found)
    start = _matcher(patterns, form, least or None, most)
    if start is None or start.try_consume_tokens(list(begun)) != len(begun):
        return None
    found = _broad(start)
    return None if found is None else _text(begun + found)


def _matcher(
    patterns: tuple[str, ...], form: str | None, least: int | None, most: int | None
) -> LLMatcher | None:
    given = {"format": form, "minLength": least, "maxLength": most}
    schema: dict[str, object] = {"type": "string"}
    schema |= {name: value for name, value in given.items() if value is not None}
    if patterns:
        schema["allOf"] = [{"pattern": pattern} for pattern in patterns]
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    problem = LLMatcher.validate_grammar(grammar)
    if problem and not problem.startswith("WARNING"):
        return None
    return LLMatcher(_tokenizer(), grammar)


def _text(written: bytes) -> str | None:
    try:
        text = json.loads(written)
    except ValueError:
        return None
    return text if isinstance(text, str) else None


def _greedy(matcher: LLMatcher, most_bytes: int, least: int) -> bytes | None:
    made = bytearray()
    while len(made) < most_bytes:
        allowed = _allowed(matcher)
        if len(made) < least:
            allowed.discard(_QUOTE)
        if not allowed:
            return None
        byte = next((each for each in _PREFERRED if each in allowed), min(allowed))
        matcher.consume_token(byte)
        made.append(byte)
        if byte == _QUOTE and matcher.is_accepting():
            return bytes(made)
    return None


def _broad(start: LLMatcher) -> bytes | None:
    waiting = deque([(start, b"")])
    steps = 0
    while waiting and steps < _MOST_STEPS:
        matcher, made = waiting.popleft()
        for byte in _representatives(_allowed(matcher)):
            steps += 1
            following = matcher.deep_copy()
            following.consume_token(byte)
            if byte == _QUOTE and following.is_accepting():
                return made + b'"'
            waiting.append((following, made + bytes([byte])))
    return None


def _representatives(allowed: set[int]) -> list[int]:
    """One byte of each run of neighbours: most classes of a pattern are such runs."""
    return [
        byte
        for byte in sorted(allowed)
        if byte - 1 not in allowed or byte in b'"aA0'
    ]  # fmt: skip


def _allowed(matcher: LLMatcher) -> set[int]:
    mask = matcher.compute_bitmask()
    return {byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1}


@lru_cache(maxsize=1)
def _tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")
