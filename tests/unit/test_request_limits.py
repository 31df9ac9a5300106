"""What would end an engine, or a compiled library, is refused before it gets there."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.contracts import LLMMessage, LLMRequest, ToolSpec
from runtime.errors import LLMInvalidRequestError
from runtime.inference import request_limits, wishes

LARK = "%llguidance {}\nstart: "


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def wish(**given: Any) -> wishes.Wish:
    given.setdefault("messages", [LLMMessage(role="user", content="x")])
    return wishes.from_request(LLMRequest(**given))


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("root ::= " + "(" * 501 + '"a"' + ")" * 501, "501 groups within one another; at most 500"),
        ("root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000, "60000 groups"),
        (LARK + "(" * 60_000 + '"a"' + ")" * 60_000, "60000 groups"),
        ("root ::= " + '"a"? ' * 501, "501 optional or repeated parts; at most 500"),
        ("root ::= " + "[a]{0,9} " * 501, "501 optional"),
        (LARK + "r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(5000)), "5001 rules"),
        ("".join(f"r{n} ::= r{n + 1}\n" for n in range(6000)), "6000 rules; at most 5000"),
        ('root ::= "' + "a" * 300_000 + '"', "300011 characters; at most 262144"),
    ],
)
def test_a_grammar_that_ends_an_engine_is_refused(grammar: str, said: str) -> None:
    with pytest.raises(LLMInvalidRequestError, match=said):
        wish(provider_options={"grammar": grammar})


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= " + "(" * 500 + '"a"' + ")" * 500,
        'root ::= "' + "(" * 3000 + '"',
        "root ::= [" + "(?*+" * 900 + "]",
        "root ::= r0 # " + "(" * 900 + "\nr0 ::= [a-z]+",
        LARK + '"a" // ' + "(" * 900,
        LARK + "/(a|b)+/",
    ],
)
def test_what_only_looks_like_it_passes(grammar: str) -> None:
    assert wish(provider_options={"grammar": grammar}).options["grammar"] == grammar


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"provider_options": {"junk": nested(600)}}, "provider_options is nested more than 512"),
        ({"response_schema": {"const": nested(600)}}, "response_schema is nested more than 512"),
        (
            {"tools": [ToolSpec(name="f", description="", output_schema={},
                                input_schema={"type": "object", "default": nested(600)})]},
            "tool 'f' is nested more than 512",
        ),
    ],
)  # fmt: skip
def test_what_is_nested_too_deeply_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(LLMInvalidRequestError, match=said):
        wish(**given)
    assert wish(provider_options={"junk": nested(500)})


def test_a_value_within_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(LLMInvalidRequestError, match="nested more than 512"):
        wish(provider_options={"junk": endless})


def test_a_request_of_any_length_is_refused() -> None:
    with pytest.raises(LLMInvalidRequestError, match="at most 67108864"):
        request_limits.check_size(bytes(request_limits.MOST_BODY_BYTES + 1))
    request_limits.check_size(bytes(1000))
