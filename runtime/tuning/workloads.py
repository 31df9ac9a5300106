"""The workloads by which engines and settings are compared: requests, all written beforehand.

Every history is fixed: the turns of an agent hold the answers that it should have given, not those
that it gave. So whoever answers has the same contexts before it, and what one competitor says
differently costs it nothing later on. Prompts begin with a number of their own: a workload of
another ``number`` has as many tokens but no prompt in common with this one, so that no cache knows
it from an earlier round.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from runtime.contracts import LLMMessage
from runtime.tuning import material

if TYPE_CHECKING:
    from collections.abc import Mapping

WorkloadName = Literal["free-text", "agent-loop", "json", "code-edit", "long-prompt"]

NAMES: Final[tuple[WorkloadName, ...]] = get_args(WorkloadName)

TITLES: Final[Mapping[WorkloadName, str]] = {
    "free-text": "a story at temperature 0.8",
    "agent-loop": "ten turns of an agent: each answer quotes the last tool result, a JSON record, "
    "and calls the next tool with JSON arguments; the context grows to about 2,300 tokens",
    "json": "three extractions from letters, held to a JSON Schema",
    "code-edit": "a Python file is repeated with one class renamed",
    "long-prompt": "a question about a log of about 2,000 tokens",
}
"""What each one is, for tables."""

SAMPLING: Final[Mapping[str, float]] = {"top_k": 40, "top_p": 0.95, "min_p": 0.05}
"""Sent with every request: left to themselves, engines and model catalogues differ."""

# At scale 1.
_TURNS = 10
_STORY_TOKENS = 160
_TURN_TOKENS = 192
_LETTERS = 3
_JSON_TOKENS = 256
_FILE_LINES = 60
_FILE_TOKENS = 512
_LOG_ENTRIES = 48
_LOG_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request.

    Attributes:
        messages: The whole conversation up to the answer.
        max_tokens: Most tokens of the answer.
        temperature: 0 for the likeliest tokens.
        seed: Of the sampling.
        schema: What the answer has to keep to; None for plain text.
    """

    messages: tuple[LLMMessage, ...]
    max_tokens: int
    temperature: float = 0.0
    seed: int = 1
    schema: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests as they come in real use.

    Attributes:
        name: Which of the workloads.
        conversations: Led at once; the questions of each are asked one after another.
    """

    name: WorkloadName
    conversations: tuple[tuple[Question, ...], ...]

    @property
    def at_once(self) -> int:
        """How many conversations are led side by side."""
        return len(self.conversations)


def workload(
    name: WorkloadName, *, at_once: int = 1, number: int = 0, scale: float = 1.0
) -> Workload:
    """A workload; the same for the same arguments.

    Args:
        name: Which one.
        at_once: Conversations side by side, each with content of its own.
        number: Which of its variants, for rounds that no cache may know.
        scale: Length of everything, up to 1; smaller for a quick look.
    """
    conversations = []
    for place in range(at_once):
        chance = random.Random(f"{name} {number} {place}")  # noqa: S311 - no secret hangs on it
        conversations.append(_MAKERS[name](chance, number, scale))
    return Workload(name=name, conversations=tuple(conversations))


def last_question(of: Workload) -> Workload:
    """A workload whose conversations come with their whole history at once: each its last question.

    Of a ``number`` that was not asked before, it is the prompt of the last turn without a cache.
    """
    return Workload(name=of.name, conversations=tuple(each[-1:] for each in of.conversations))


def _scaled(length: int, scale: float, least: int) -> int:
    return max(least, round(length * scale))


def _system(number: int, text: str) -> LLMMessage:
    return LLMMessage(role="system", content=f"Session {number:04}. {text}")


def _user(text: str) -> LLMMessage:
    return LLMMessage(role="user", content=text)


def _free_text(chance: random.Random, number: int, scale: float) -> tuple[Question, ...]:
    told = f"Tell a story about {chance.choice(material.TOPICS)}."
    return (
        Question(
            messages=(_system(number, "You are a writer."), _user(told)),
            max_tokens=_scaled(_STORY_TOKENS, scale, 8),
            temperature=0.8,
            seed=chance.randint(1, 2**31 - 1),
        ),
    )


def _agent_loop(chance: random.Random, number: int, scale: float) -> tuple[Question, ...]:
    history = [_system(number, material.SHOP)]
    asked = []
    seen = None
    for _ in range(_scaled(_TURNS, scale, 2)):
        record = material.order(chance)
        task = f"Read order {record['order_id']}."
        if seen is not None:
            task = f"Result: {material.compact(seen)}\n{task}"
        history.append(_user(task))
        asked.append(Question(messages=tuple(history), max_tokens=_scaled(_TURN_TOKENS, scale, 16)))
        call = {"tool": "get_order", "arguments": {"order_id": record["order_id"]}}
        answer = material.compact({"seen": seen, **call})
        history.append(LLMMessage(role="assistant", content=answer))
        seen = record
    return tuple(asked)


def _json(chance: random.Random, number: int, scale: float) -> tuple[Question, ...]:
    told = _system(number, "Answer with what the letter says of the order, as JSON.")
    return tuple(
        Question(
            messages=(told, _user(material.letter(chance))),
            max_tokens=_JSON_TOKENS,  # whatever the scale: cut off, it would be no JSON
            schema=material.INVOICE,
        )
        for _ in range(_scaled(_LETTERS, scale, 1))
    )


def _code_edit(chance: random.Random, number: int, scale: float) -> tuple[Question, ...]:
    file = material.module(chance, _scaled(_FILE_LINES, scale, 12))
    told = f"```python\n{file}```\nRename the class to Inventory and repeat the whole file."
    return (
        Question(
            messages=(_system(number, "You are a programmer."), _user(told)),
            max_tokens=_scaled(_FILE_TOKENS, scale, 16),
        ),
    )


def _long_prompt(chance: random.Random, number: int, scale: float) -> tuple[Question, ...]:
    log = material.harbour_log(chance, _scaled(_LOG_ENTRIES, scale, 3))
    told = f"{log}\n\nWhich ship brought the most salt? Answer in one sentence."
    return (
        Question(
            messages=(_system(number, "You read logs."), _user(told)),
            max_tokens=_scaled(_LOG_TOKENS, scale, 8),
        ),
    )


_MAKERS: Final = {
    "free-text": _free_text,
    "agent-loop": _agent_loop,
    "json": _json,
    "code-edit": _code_edit,
    "long-prompt": _long_prompt,
}
