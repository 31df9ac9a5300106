"""A small help desk: an agent that looks orders up, takes tickets, and finds passages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from runtime import (
    LlamaClient,
    LLMChatParams,
    LLMMessage,
    LLMProviderError,
    LLMRequest,
    ToolCall,
    ToolSpec,
)

ORDERS = {"A-17": "shipped", "A-18": "waiting for payment"}
SORRY = "Sorry, our assistant is not available."

LOOK_UP = ToolSpec(
    name="order_status",
    description="The status of an order.",
    input_schema={
        "type": "object",
        "properties": {"order": {"type": "string", "enum": sorted(ORDERS)}},
        "required": ["order"],
        "additionalProperties": False,
    },
    output_schema={},
)


@dataclass(frozen=True)
class Ticket:
    """What a complaint is about."""

    subject: Literal["delivery", "payment", "other"]
    urgent: bool


@dataclass(frozen=True)
class Turn:
    """One message of a conversation, in a form of this project's own."""

    role: str
    content: str = ""
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None


@dataclass
class HelpDesk:
    """The agent."""

    client: LlamaClient
    turns: list[Turn] = field(default_factory=list)

    def ask(self, question: str, *, max_turns: int = 4) -> str:
        """Answer a question, with as many look-ups as that takes."""
        self.turns.append(Turn("user", question))
        for _ in range(max_turns):
            request = LLMRequest(messages=self.turns, tools=[LOOK_UP], max_tokens=120)  # type: ignore[arg-type]
            answer = self.client.generate(request)
            self.turns.append(Turn("assistant", answer.text, answer.tool_calls))
            if not answer.tool_calls:
                return answer.text
            for call in answer.tool_calls:
                order = json.loads(call.arguments_json)["order"]
                self.turns.append(Turn("tool", ORDERS[order], (), call.call_id, call.name))
        raise RuntimeError("the model does not come to an end")

    def ticket(self, complaint: str) -> Ticket:
        """File a complaint."""
        prompt = f"File this complaint: {complaint}"
        return self.client.parse(prompt, Ticket, max_tokens=60)

    def greet(self, name: str) -> str:
        """Greet a customer, also when there is no model."""
        try:
            return self.client.chat(
                [LLMMessage(role="user", content=f"Greet {name}.")],
                params=LLMChatParams(max_tokens=12),
            ).text
        except LLMProviderError:
            return SORRY

    def explain(self, subject: str) -> Iterator[str]:
        """Explain something, piece by piece."""
        params = LLMChatParams(max_tokens=24)
        for event in self.client.stream_chat(f"Explain {subject}.", params=params):
            if event.delta_text:
                yield event.delta_text

    def nearest(self, question: str, passages: Sequence[str]) -> str:
        """The passage that is most like a question."""
        asked, *others = self.client.embed([question, *passages]).vectors
        likeness = [sum(a * b for a, b in zip(asked, each, strict=True)) for each in others]
        return passages[likeness.index(max(likeness))]
