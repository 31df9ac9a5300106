"""What a request may not exceed, checked before an engine or a compiled library sees it.

Parsers recurse: what is nested too deeply ends the process that reads it, with a segmentation
fault and no message. The limits stand well below what was seen to do harm (see each), and well
above what requests are like.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMInvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_NESTED: Final = 512
"""Lists and objects within one another, in anything that is sent. Python's own JSON writer gives up
at about 1,000."""

MOST_VALUES: Final = 5_000_000
"""Lists and objects in one part of a request."""

MOST_BODY_BYTES: Final = 64 * 1024 * 1024
"""Longest request."""

MOST_REFERENCES: Final = 256
"""References of a schema that lead from one to the next; 3,000 overflow the stack of a compiler."""

MOST_GRAMMAR_CHARS: Final = 262_144
"""Longest raw grammar."""

MOST_GROUPS: Final = 500
"""Groups within one another in a raw grammar; xllamacpp dies of 30,000."""

MOST_OPTIONAL: Final = 500
"""Optional or repeated parts of a raw grammar. A row of 500 takes xllamacpp 0.4 s, one of 2,000
14 s in which it serves nobody, and of 10,000 it dies."""

MOST_RULES: Final = 500
"""Rules of a raw grammar in llguidance's notation, which may form a chain; 5,000 overflow the
stack of its compiler."""

MOST_GBNF_RULES: Final = 5_000
"""Rules of a raw grammar in GBNF."""

_CONTAINERS: Final = (dict, list, tuple)

_TOKENS: Final = re.compile(
    r"""//[^\n]*|\#[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|\[(?:\\.|[^\]\\])*\]|[()?*+{]""",
)
_RULE: Final = re.compile(
    r"^\s*[?!]?[\w-]+(?:\.-?\d+)?\s*(?:::=|(?:\[[^\]\n]*\])?\s*:)", re.MULTILINE
)


def check_nesting(value: object, what: str) -> None:
    """Refuse a value that is nested too deeply, or holds too much.

    Raises:
        LLMInvalidRequestError: It does.
    """
    waiting: list[tuple[Any, int]] = [(value, 1)] if isinstance(value, _CONTAINERS) else []
    seen = 0
    while waiting:
        each, depth = waiting.pop()
        seen += 1
        if depth > MOST_NESTED:
            raise LLMInvalidRequestError(
                f"{what} is nested more than {MOST_NESTED} deep.",
                hint=f"Lists and objects may be nested {MOST_NESTED} deep.",
            )
        if seen > MOST_VALUES:
            raise LLMInvalidRequestError(
                f"{what} holds more than {MOST_VALUES} lists and objects.", hint="Send less."
            )
        inner = each.values() if isinstance(each, dict) else each
        depth += 1
        waiting += [(part, depth) for part in inner if isinstance(part, _CONTAINERS)]


def check_size(body: bytes) -> None:
    """Refuse a request that is too long.

    Raises:
        LLMInvalidRequestError: It is.
    """
    if len(body) > MOST_BODY_BYTES:
        raise LLMInvalidRequestError(
            f"The request has {len(body)} bytes; at most {MOST_BODY_BYTES} are sent.",
            hint="Send less.",
        )


def check_raw_grammar(grammar: str, *, lark: bool) -> None:
    """Refuse a raw grammar that may end the engine, or keep it from serving others.

    Raises:
        LLMInvalidRequestError: Names the limit, and by how much it is exceeded.
    """
    _refuse_more(len(grammar), MOST_GRAMMAR_CHARS, "characters")
    depth = deepest = optional = 0
    for sign in _TOKENS.findall(grammar):
        if sign == "(":
            depth += 1
            deepest = max(deepest, depth)
        elif sign == ")":
            depth -= 1
        elif sign in {"?", "*", "+", "{"}:
            optional += 1
    _refuse_more(deepest, MOST_GROUPS, "groups within one another")
    _refuse_more(optional, MOST_OPTIONAL, "optional or repeated parts")
    rules = len(_RULE.findall(grammar))
    _refuse_more(rules, MOST_RULES if lark else MOST_GBNF_RULES, "rules")


def is_bearable(grammar: str) -> bool:
    """Whether a GBNF grammar of our own is no larger than one that a caller may give."""
    return len(grammar) <= MOST_GRAMMAR_CHARS and len(_RULE.findall(grammar)) <= MOST_GBNF_RULES


def _refuse_more(value: int, most: int, what: str) -> None:
    if value > most:
        raise LLMInvalidRequestError(
            f"The grammar has {value} {what}; at most {most} are sent to an engine.",
            hint="Simplify the grammar, or give a JSON Schema instead.",
        )


def check_references(leads_to: Mapping[str, list[str]], start: list[str], what: str) -> None:
    """Refuse a schema whose references lead on and on.

    Args:
        leads_to: Which references stand in what a reference points to.
        start: Where to begin, in order.
        what: What the schema is.

    Raises:
        LLMInvalidRequestError: They do.
    """
    seen: set[str] = set()
    waiting = [(name, 1) for name in reversed(start)]
    while waiting:
        name, depth = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if depth > MOST_REFERENCES:
            raise LLMInvalidRequestError(
                f"{what} has more than {MOST_REFERENCES} references that lead from one to the "
                "next.",
                hint="Write some of them out.",
            )
        waiting.extend((each, depth + 1) for each in leads_to.get(name, ()))
