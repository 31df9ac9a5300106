"""A small agent framework, as another package might define it; it imports nothing of ours.

Its messages, tools and requests are its own classes. A client of the provider-neutral contract
reads them by attribute, so they need not be the contract's, only look alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class Model(Protocol):
    """What the framework needs of a client: ``generate`` and ``stream`` of the contract."""

    def generate(self, request: Any) -> Any:
        """A whole answer."""
        ...

    def stream(self, request: Any) -> Iterable[Any]:
        """An answer piece by piece."""
        ...


@dataclass
class Call:
    """A tool call that the model made."""

    name: str
    arguments_json: str
    call_id: str


@dataclass
class Turn:
    """One message; unlike the contract's own it carries the calls that were made in it."""

    role: str
    content: str
    tool_calls: Sequence[Call] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None


@dataclass
class Tool:
    """A Python function that the model may call."""

    name: str
    description: str
    input_schema: dict[str, object]
    function: Callable[..., object]


@dataclass
class Ask:
    """A request, with no more attributes than this framework has a use for."""

    messages: Sequence[Turn]
    tools: Sequence[Tool] = ()
    response_schema: Mapping[str, object] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    provider_options: dict[str, object] = field(default_factory=dict)


@dataclass
class Result:
    """What came of a run."""

    answer: Any
    turns: list[Turn] = field(default_factory=list)
    pieces: int = 0


class Agent:
    """Lets a model call tools until it has nothing more to call, then asks for the answer as JSON.

    Its first turn must be a call: small models would rather talk.
    """

    def __init__(
        self, model: Model, tools: Sequence[Tool], *, system: str, max_rounds: int = 5
    ) -> None:
        self._model = model
        self._tools = {tool.name: tool for tool in tools}
        self._system = system
        self._max_rounds = max_rounds

    def run(
        self,
        question: str,
        *,
        answer_schema: Mapping[str, object],
        on_text: Callable[[str], None] = lambda _: None,
        max_tokens: int = 100,
    ) -> Result:
        """Answer a question; ``on_text`` is told the model's words as they come."""
        result = Result(None, [Turn("system", self._system), Turn("user", question)])
        for number in range(self._max_rounds):
            turn = self._listen(result, on_text, max_tokens, must_call=number == 0)
            result.turns.append(turn)
            if not turn.tool_calls:
                break
            result.turns += [self._call(call) for call in turn.tool_calls]
        result.turns.append(Turn("user", "Now give the answer as JSON."))
        request = Ask(
            result.turns, response_schema=answer_schema, max_tokens=max_tokens, temperature=0.0
        )
        result.answer = json.loads(self._model.generate(request).text)
        return result

    def _listen(
        self, result: Result, on_text: Callable[[str], None], max_tokens: int, *, must_call: bool
    ) -> Turn:
        """One streamed answer, put together from its pieces."""
        words: list[str] = []
        calls: list[Call] = []
        request = Ask(
            result.turns,
            tools=list(self._tools.values()),
            max_tokens=max_tokens,
            temperature=0.0,
            provider_options={"tool_choice": "required" if must_call else "auto"},
        )
        for piece in self._model.stream(request):
            result.pieces += 1
            if piece.text_delta:
                words.append(piece.text_delta)
                on_text(piece.text_delta)
            if (told := piece.tool_call_delta) is not None:
                if told.call_id is not None and all(c.call_id != told.call_id for c in calls):
                    calls.append(Call(told.name or "", "", told.call_id))
                calls[-1].arguments_json += told.arguments_json_delta or ""
        return Turn("assistant", "".join(words), tool_calls=calls)

    def _call(self, call: Call) -> Turn:
        tool = self._tools[call.name]
        try:
            output = tool.function(**json.loads(call.arguments_json))
        except (TypeError, ValueError, ArithmeticError) as exc:
            output = {"error": str(exc)}  # the model is told, and may do better
        return Turn("tool", json.dumps(output), tool_call_id=call.call_id, tool_name=call.name)
