"""Which of several models a request goes to, and why: a pure function of what is known.

Nothing here looks at a machine. Speeds come in as measured or estimated, and are told as such.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from runtime.inference.fitting import room_for_answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.contracts.types import TaskPriority

Basis = Literal["measured", "estimated"]
Lack = Literal["", "answer", "prompt"]

USUAL_ANSWER_TOKENS: Final = 256
"""Length of an answer that nobody bounded and nothing is known of."""

CHARS_PER_TOKEN: Final = 4
"""Of English prose; a prompt is reckoned by it before a model's own tokenizer is at hand."""

_WHOLE_BITS: Final = 4
_BITS: Final = re.compile(r"(?:IQ|TQ|Q)(\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast a model is here.

    Attributes:
        prompt_tokens_per_s: Reading a prompt.
        decode_tokens_per_s: Writing an answer.
        load_s: From nothing to ready.
        answer_tokens: Mean length of its answers so far; None where none was measured.
        basis: Whether real requests told, or it is reckoned from the model's size.
    """

    prompt_tokens_per_s: float
    decode_tokens_per_s: float
    load_s: float
    answer_tokens: float | None
    basis: Basis


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What is known of a model when a request comes.

    Attributes:
        name: Its name in the router.
        tags: What its owner says it is for.
        loaded: Whether it can answer at once.
        answers: Whether it chats at all; embedding models do not.
        parameters: How many weights; None where nothing tells.
        quantization: The usual name (``"Q4_K_M"``), or None.
        needed_bytes: Memory it takes while loaded; None where nothing tells.
        context_tokens: Tokens that one request may hold, answer included; None where nothing tells.
        usd_per_million_tokens: What its owner charges, prompt and answer alike.
        speed: None where nothing tells.
    """

    name: str
    tags: tuple[str, ...] = ()
    loaded: bool = False
    answers: bool = True
    parameters: int | None = None
    quantization: str | None = None
    needed_bytes: int | None = None
    context_tokens: int | None = None
    usd_per_million_tokens: float = 0.0
    speed: Speed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a request wants.

    Attributes:
        prompt_tokens: Length of its prompt, reckoned.
        max_tokens: The bound on its answer, or None.
        priority: What to favour.
        tags: Tags a model must carry.
        max_cost_usd: Most it may cost, or None.
        max_latency_ms: Longest the whole answer may take, or None.
    """

    prompt_tokens: int
    max_tokens: int | None = None
    priority: TaskPriority = "balanced"
    tags: tuple[str, ...] = ()
    max_cost_usd: float | None = None
    max_latency_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """A candidate with the numbers that decide.

    Attributes:
        candidate: The model.
        size_class: Twice the binary logarithm of its effective parameters in billions, rounded:
            models of one class differ by less than about 40 %. None where nothing tells.
        expected_ms: Until the whole answer is there, loading included; None where nothing tells.
        cost_usd: What the answer costs at most.
        lacks: What there is no room for in its context, as far as the prompt can be reckoned.
    """

    candidate: Candidate
    size_class: int | None
    expected_ms: float | None
    cost_usd: float
    lacks: Lack

    def note(self) -> dict[str, object]:
        """The numbers as JSON values."""
        speed = self.candidate.speed
        return {
            "model": self.candidate.name,
            "size_class": self.size_class,
            "loaded": self.candidate.loaded,
            "expected_ms": None if self.expected_ms is None else round(self.expected_ms),
            "cost_usd": self.cost_usd,
            "context_tokens": self.candidate.context_tokens,
            "lacks_room_for": self.lacks or None,
            "basis": speed.basis if speed else None,
            "prompt_tokens_per_s": round(speed.prompt_tokens_per_s, 1) if speed else None,
            "decode_tokens_per_s": round(speed.decode_tokens_per_s, 1) if speed else None,
            "load_s": round(speed.load_s, 2) if speed else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The models that fit, best first, and why the others do not.

    Attributes:
        order: Those that fit.
        excluded: The reason for each of the others.
    """

    order: tuple[Considered, ...]
    excluded: Mapping[str, str]


def rank(candidates: Sequence[Candidate], task: Task, *, budget_bytes: int) -> Ranking:
    """Order the candidates for a task.

    - ``latency``: the least expected time, loading included.
    - ``quality``: the largest size class, then the least time.
    - ``cost``: the least price, then the least memory held times time.
    - ``balanced``: the most parameters per unit of time: twice the model may take twice as long.

    What nothing is known of comes last; among equals the order in which they were listed holds.

    Models whose context has room for prompt and answer come before those that have it for the
    prompt alone, and these before those for which the prompt is too long; of these the largest
    context is first. That orders and excludes nothing: a prompt's length is only reckoned here, and
    the model's own server knows it.
    """
    order: list[Considered] = []
    excluded: dict[str, str] = {}
    for candidate in candidates:
        considered = _considered(candidate, task)
        reason = _unfit(considered, task, budget_bytes)
        if reason is None:
            order.append(considered)
        else:
            excluded[candidate.name] = reason
    order.sort(key=lambda each: (*_room_key(each), *_key(each, task.priority)))
    return Ranking(order=tuple(order), excluded=excluded)


def effective_parameters(parameters: int, quantization: str | None) -> float:
    """Parameters by what is left of them: whole from four bits on, in proportion below.

    Down to about four bits a quantized model answers nearly as the original does; below that it
    loses fast (llama.cpp's ``tools/quantize/README.md`` lists perplexities).
    """
    match = _BITS.search(quantization or "")
    return parameters * (min(1.0, int(match[1]) / _WHOLE_BITS) if match else 1.0)


def _considered(candidate: Candidate, task: Task) -> Considered:
    speed = candidate.speed
    learned = speed.answer_tokens if speed else None
    answer = task.max_tokens if task.max_tokens is not None else learned or USUAL_ANSWER_TOKENS
    expected_s = None
    if speed is not None:
        expected_s = (
            (0.0 if candidate.loaded else speed.load_s)
            + task.prompt_tokens / speed.prompt_tokens_per_s
            + answer / speed.decode_tokens_per_s
        )
    size_class = None
    if candidate.parameters:
        effective = effective_parameters(candidate.parameters, candidate.quantization)
        size_class = round(2 * math.log2(effective / 1e9))
    return Considered(
        candidate=candidate,
        size_class=size_class,
        expected_ms=None if expected_s is None else expected_s * 1000,
        cost_usd=(task.prompt_tokens + answer) * candidate.usd_per_million_tokens / 1e6,
        lacks=_lacks(candidate.context_tokens, task),
    )


def _lacks(context_tokens: int | None, task: Task) -> Lack:
    if context_tokens is None:
        return ""
    if task.prompt_tokens > context_tokens:
        return "prompt"
    room = task.max_tokens if task.max_tokens is not None else room_for_answer(context_tokens)
    return "answer" if task.prompt_tokens + room > context_tokens else ""


def _room_key(considered: Considered) -> tuple[int, int]:
    if considered.lacks != "prompt":
        return (1 if considered.lacks else 0, 0)
    return (2, -(considered.candidate.context_tokens or 0))


def _unfit(considered: Considered, task: Task, budget_bytes: int) -> str | None:
    candidate = considered.candidate
    if not candidate.answers:
        return "it makes embeddings, not answers"
    if missing := [tag for tag in task.tags if tag not in candidate.tags]:
        return f"it does not carry {', '.join(map(repr, missing))}"
    if candidate.needed_bytes is not None and candidate.needed_bytes > budget_bytes:
        needed, budget = candidate.needed_bytes / 2**20, budget_bytes / 2**20
        return f"it needs {needed:,.0f} MiB and the memory budget is {budget:,.0f} MiB"
    if task.max_cost_usd is not None and considered.cost_usd > task.max_cost_usd:
        return f"it may cost {considered.cost_usd:.6f} USD, over {task.max_cost_usd} USD"
    slow = considered.expected_ms
    measured = candidate.speed is not None and candidate.speed.basis == "measured"
    if task.max_latency_ms is not None and slow and measured and slow > task.max_latency_ms:
        return f"by measurement it takes {slow:,.0f} ms, over {task.max_latency_ms:,} ms"
    return None


def _key(considered: Considered, priority: TaskPriority) -> tuple[float, ...]:
    candidate = considered.candidate
    never = math.inf
    time = never if considered.expected_ms is None else considered.expected_ms
    size = -never if considered.size_class is None else considered.size_class
    if priority == "latency":
        return (time, -size)
    if priority == "quality":
        return (-size, time)
    if priority == "cost":
        held = never if candidate.needed_bytes is None else candidate.needed_bytes * time
        return (considered.cost_usd, held)
    if candidate.parameters is None or considered.expected_ms is None:
        return (never,)
    weights = effective_parameters(candidate.parameters, candidate.quantization)
    return (math.log2(max(time, 1.0)) - math.log2(weights),)
