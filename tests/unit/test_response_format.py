"""OpenAI's response_format: the schema in it, and what ``strict`` makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.contracts import LLMMessage, LLMRequest
from runtime.errors import LLMInvalidRequestError
from runtime.inference import wishes
from runtime.inference.policy import EnforcementLevel, Policy

DOCUMENT: dict[str, Any] = {"type": "array"}


def wish(form: dict[str, Any], policy: Policy | None = None, **options: Any) -> wishes.Wish:
    request = LLMRequest(
        messages=[LLMMessage(role="user", content="x")],
        response_format=form,
        provider_options=options,
    )
    return wishes.from_request(request, policy=policy or Policy())


def named(**more: Any) -> dict[str, Any]:
    inner = {"name": "n", "description": "d", "schema": DOCUMENT, **more}
    return {"type": "json_schema", "json_schema": inner}


@pytest.mark.parametrize(
    ("strict", "of_the_client", "level"),
    [
        ({"strict": True}, "best", "strict"),
        ({"strict": False}, "best", "best"),
        ({"strict": False}, "strict", "best"),
        ({"strict": None}, "strict", "strict"),
        ({}, "strict", "strict"),
        ({}, "best", "best"),
    ],
)
def test_strict_says_how_it_is_enforced(
    strict: dict[str, Any], of_the_client: EnforcementLevel, level: str
) -> None:
    made = wish(named(**strict), Policy(enforcement=of_the_client))
    assert made.policy.enforcement == level
    assert made.schema is not None
    assert made.schema.document == DOCUMENT


def test_an_option_of_the_request_has_the_last_word() -> None:
    assert wish(named(strict=True), enforcement="best").policy.enforcement == "best"


def test_any_object_is_one() -> None:
    made = wish({"type": "json_object"})
    assert made.schema is not None
    assert made.schema.document == {"type": "object"}


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (named(strict="yes"), "strict is 'yes'"),
        (named(schema=[]), "json_schema.schema is list"),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, "holds the schema in"),
        ({"type": "json_schema"}, "holds the schema in"),
        ({"type": "xml"}, 'Its type is "text"'),
    ],
)
def test_what_cannot_be_right_is_refused(form: dict[str, Any], said: str) -> None:
    with pytest.raises(LLMInvalidRequestError, match=said):
        wish(form)
