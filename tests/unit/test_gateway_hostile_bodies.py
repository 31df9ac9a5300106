"""Whatever a body holds, it is read or refused; nothing else comes of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import LLMCapabilityError, LLMInvalidRequestError
from runtime.gateway import anthropic, openai
from runtime.gateway.responses import Responses
from runtime.inference import wishes
from runtime.inference.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.gateway.dialect import Dialect

WORDS = ["type", "text", "content", "role", "id", "name", "input", "tools", "arguments", "call_id"]
WORDS += ["user", "assistant", "function", "message", "tool_use", "tool_result", "input_text"]
WORDS += ["function_call", "function_call_output", "tool_use_id", "parameters", "input_schema"]
WORDS += ["json_schema", "schema", "format", "output", "item_reference", "thinking", "auto", "mode"]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(WORDS)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
    ),
    max_leaves=12,
)

MESSAGES: Any = [{"role": "user", "content": "Hi."}]
DIALECTS: list[tuple[Dialect, dict[str, Any], list[str]]] = [
    (
        anthropic,
        {"model": "tiny", "max_tokens": 9, "messages": MESSAGES},
        ["messages", "system", "tools", "tool_choice", "thinking", "output_config", "max_tokens"],
    ),
    (
        Responses(),
        {"input": MESSAGES},
        ["input", "tools", "tool_choice", "text", "reasoning", "previous_response_id", "metadata"],
    ),
    (
        openai,
        {"messages": MESSAGES},
        ["messages", "tools", "tool_choice", "response_format", "stream_options", "n", "stop"],
    ),
]


WRAPS: list[Callable[[Any], Any]] = [
    lambda value: value,
    lambda value: [value],
    lambda value: [{"role": "user", "content": value}],
    lambda value: [{"role": "user", "content": [value]}],
    lambda value: [{"role": "user", "content": [{"type": value}]}],
    lambda value: [{"role": "assistant", "content": [{"type": "tool_use", "input": value}]}],
    lambda value: [{"role": "user", "content": [{"type": "tool_result", "content": value}]}],
    lambda value: [{"type": value, "call_id": "c", "name": "n", "arguments": "{}"}],
    lambda value: [{"type": "function_call_output", "call_id": "c", "output": value}],
    lambda value: [{"type": "function", "name": "n", "parameters": value}],
    lambda value: {"type": "allowed_tools", "mode": "auto", "tools": [{"name": value}]},
    lambda value: {"type": "function", "name": value},
    lambda value: {"format": {"type": "json_schema", "schema": value}},
]


@pytest.mark.parametrize(("dialect", "body", "fields"), DIALECTS, ids=["claude", "resp", "chat"])
def test_a_body_is_read_or_refused(
    dialect: Dialect, body: dict[str, Any], fields: list[str]
) -> None:
    @given(st.sampled_from(fields), values, st.sampled_from(WRAPS))
    @settings(max_examples=200)
    def try_one(field: str, value: Any, wrap: Callable[[Any], Any]) -> None:
        made = wrap(value)
        with contextlib.suppress(LLMInvalidRequestError, LLMCapabilityError):
            asked = dialect.request({**body, field: made})
            wishes.from_request(asked.request, policy=Policy())

    try_one()
