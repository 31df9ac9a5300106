"""What the tests of the gateway's parts have in common: answers whole and in pieces, a model."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from runtime.contracts import LLMDelta, LLMResponse, ToolCall, ToolCallDelta, Usage
from runtime.inference.stream import ThoughtDelta

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from runtime.gateway.served import ServedModel


class OneModel:
    """The part of :class:`runtime.gateway.models.Models` that endpoints use."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    @contextlib.asynccontextmanager
    async def lease(self, *_: object) -> AsyncGenerator[ServedModel]:
        yield self._served

    def why(self, exc: Exception) -> Exception:
        return exc


def response(
    text: str = "",
    *calls: ToolCall,
    finish_reason: str | None = None,
    raw: dict[str, object] | None = None,
) -> LLMResponse:
    """An answer of 7 tokens to a prompt of 11, of which 4 were in the cache."""
    return LLMResponse(
        text=text,
        model="tiny",
        finish_reason=finish_reason or ("tool_calls" if calls else "stop"),
        usage=Usage(prompt_tokens=11, completion_tokens=7, total_tokens=18),
        tool_calls=calls,
        raw={"cache": {"reused": 4, "processed": 7}, **(raw or {})},
    )


def call(name: str = "add", arguments: str = '{"x": 1}', call_id: str = "call_1") -> ToolCall:
    """A call of a tool."""
    return ToolCall(name=name, arguments_json=arguments, call_id=call_id)


def pieces(whole: LLMResponse, cuts: Sequence[int] = (3,)) -> list[LLMDelta]:
    """The pieces of an answer, each as long as ``cuts`` say in turn."""
    thought = str((whole.raw or {}).get("reasoning", ""))
    made: list[LLMDelta] = [ThoughtDelta(thought=piece) for piece in _cut(thought, cuts)]
    made += [LLMDelta(text_delta=piece) for piece in _cut(whole.text, cuts)]
    for each in whole.tool_calls:
        first = ToolCallDelta(call_id=each.call_id, name=each.name)
        made.append(LLMDelta(tool_call_delta=first))
        made += [
            LLMDelta(tool_call_delta=ToolCallDelta(call_id=each.call_id, arguments_json_delta=more))
            for more in _cut(each.arguments_json, cuts)
        ]
    usage = whole.usage
    assert not isinstance(usage, dict)
    return [*made, LLMDelta(usage_delta=usage)]


def _cut(text: str, cuts: Sequence[int]) -> list[str]:
    made: list[str] = []
    at = 0
    while at < len(text):
        length = cuts[len(made) % len(cuts)]
        made.append(text[at : at + length])
        at += length
    return made


def events(data: bytes) -> list[Mapping[str, Any]]:
    """Server-sent events; each is named as its type is."""
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        name, _, body = block.partition("\n")
        event = json.loads(body.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


@st.composite
def answers(draw: st.DrawFn) -> LLMResponse:
    """Any answer with thoughts, text, calls or all of these."""
    text, thought = draw(st.text(max_size=20)), draw(st.text(max_size=20))
    arguments = st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5))
    made = [
        call(arguments=json.dumps(given), call_id=f"call_{number}")
        for number, given in enumerate(draw(st.lists(arguments, max_size=3)))
    ]
    return response(text, *made, raw={"reasoning": thought} if thought else {})


CUTS = st.lists(st.integers(min_value=1, max_value=9), min_size=1, max_size=4)
