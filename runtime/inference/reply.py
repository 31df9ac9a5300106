"""From a complete answer to the contract's response."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.contracts import LLMResponse, Provenance
from runtime.errors import CutOffError, LLMBadResponseError, UnclosableAnswerError
from runtime.inference import schema, tools
from runtime.inference.clock import Pace
from runtime.inference.incidents import Incidents
from runtime.inference.names import public_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engines.base import Endpoint
    from runtime.inference.closing import Closed
    from runtime.inference.payload import Wish
    from runtime.inference.schema import Enforcement
    from runtime.inference.stream import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Who signs the responses.

    Attributes:
        name: The client's name.
        config_hash: Changes when, and only when, the client's configuration does.
        pace: How fast its engine processes prompts, as its requests have seen.
        incidents: What its requests know of one another when the engine dies.
    """

    name: str
    config_hash: str
    pace: Pace = field(default_factory=Pace, compare=False)
    incidents: Incidents = field(default_factory=Incidents, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What is known of the request that brought an answer.

    Attributes:
        endpoint: Who was asked.
        seed: With which seed.
        max_tokens: With which bound.
        sampling: What of the sampling was recommended for the model, not asked for.
        enforcement: How the schema was enforced while decoding, if there was one.
        number: 0 for the first attempt, grows with each new seed.
        resends: How often the request was sent again as it was, because it broke off.
        recovery: Where the answer broke off, and how it went on; None when it did not.
        started_at: When the first attempt began, ISO 8601.
        closed: The answer as it was completed here, if it was cut off.
    """

    endpoint: Endpoint
    seed: int
    max_tokens: int
    sampling: Mapping[str, float]
    enforcement: Enforcement | None
    number: int
    resends: int
    started_at: str
    closed: Closed | None = None
    recovery: Mapping[str, object] | None = None


def check(answer: Answer, wish: Wish) -> None:
    """Refuse an answer that is not what was asked for.

    Raises:
        LLMBadResponseError: It is empty or cut off, or breaks its schema or its tools' rules.
    """
    text, calls = answer.text, answer.tool_calls
    if wish.tools:
        if answer.finish_reason == "length" and calls:
            raise _cut(answer, "A tool call", calls[-1].arguments_json)
        if answer.finish_reason == "length" and wish.tools.call_wanted:
            raise _cut(answer, "The tool call", text)
        tools.check_calls(wish.tools, calls, text=text)
    elif calls:
        raise LLMBadResponseError(
            f"The model called {calls[0].name!r}, but was offered no tools.",
            partial_text=text or None,
        )
    if wish.schema:
        _check_schema(answer, wish.schema, text)
    elif not (answer.begun or _may_be_empty(answer, wish)):
        raise LLMBadResponseError(
            "The model ended its answer without a word.",
            hint="Rephrase the prompt, or raise the temperature.",
        )


def closed(
    answer: Answer, wish: Wish, *, keep_all: bool, context_tokens: int | None = None
) -> Closed | None:
    """The answer that was cut off, completed; None when it was not, or is not to be completed.

    Args:
        answer: What came.
        wish: What was asked for.
        keep_all: Whether the caller has the text already, so that nothing can be taken back.
        context_tokens: The context of one request, which bounds what may be added.

    Raises:
        UnclosableAnswerError: No valid completion was found, or none that is short enough.
    """
    if wish.schema is None or answer.finish_reason != "length":
        return None
    if wish.policy.on_truncation != "close":
        return None
    from runtime.inference import closing  # noqa: PLC0415 - libraries that few answers need

    text = answer.text
    found = closing.close(text, wish.schema, keep_all=keep_all)
    if found is None:
        raise UnclosableAnswerError(
            "The JSON was cut off by the token budget, and no valid completion of it was found.",
            partial_text=text,
            hint="Raise max_tokens, or simplify the schema"
            + (", or do not stream: then what fits nowhere can be left out." if keep_all else "."),
        )
    added, most = len(found.text) - found.start, closing.most_added(context_tokens)
    if added > most:
        raise UnclosableAnswerError(
            "The JSON was cut off by the token budget, and the shortest valid completion that was "
            f"found adds {added} characters; at most {most} are added.",
            partial_text=text,
            hint="Raise max_tokens and ctx_size, or simplify the schema.",
        )
    whole = found.text == text and schema.ends_by_itself(text)
    return None if whole else found


def _may_be_empty(answer: Answer, wish: Wish) -> bool:
    """Whether nothing is an answer: the bound or a stop text of the caller's came first."""
    return answer.finish_reason == "length" or bool(wish.options.get("stop"))


def _check_schema(answer: Answer, wanted: schema.Schema, text: str) -> None:
    if answer.finish_reason == "length":
        try:
            schema.judge(text, wanted)
        except LLMBadResponseError as exc:
            raise _cut(answer, "The JSON", text) from exc
        if not schema.ends_by_itself(text):
            raise _cut(answer, "The JSON", text)
    schema.judge(text, wanted)


def _cut(answer: Answer, what: str, partial: str) -> CutOffError:
    count = answer.usage.completion_tokens if answer.usage else None
    return CutOffError(
        f"{what} was cut off by the token budget{f' after {count} tokens' if count else ''}.",
        partial_text=partial,
        hint="Raise max_tokens (or ctx_size, when the context is full).",
    )


def response(answer: Answer, attempt: Attempt, backend: Backend, *, latency_ms: int) -> LLMResponse:
    """The response that a complete answer makes."""
    calls = answer.tool_calls
    reason = answer.finish_reason
    endpoint = attempt.endpoint
    model = (answer.model if endpoint.kind == "openai" else None) or public_name(endpoint)
    return LLMResponse(
        text=attempt.closed.text if attempt.closed else answer.text,
        model=model,
        provider=backend.name,
        finish_reason="tool_calls" if calls and reason == "stop" else reason,
        usage=answer.usage,
        latency_ms=latency_ms,
        raw_output=answer.raw_output,
        tool_calls=calls,
        raw=_notes(answer, attempt),
        provenance=Provenance(
            backend_name=backend.name,
            backend_kind=endpoint.kind,
            model_id=model,
            base_url=endpoint.base_url,
            started_at=attempt.started_at,
            completed_at=Provenance.now_iso(),
            config_hash=backend.config_hash,
        ),
    )


def _why_empty(answer: Answer) -> str:
    if answer.reasoning:
        cut = answer.finish_reason == "length"
        return "The token budget ended the thinking." if cut else "The model only thought."
    cut = answer.finish_reason == "length"
    return "The token budget was empty." if cut else "A stop text came first."


def _notes(answer: Answer, attempt: Attempt) -> dict[str, object]:
    notes: dict[str, object] = {
        "seed": attempt.seed,
        "max_tokens": attempt.max_tokens,
        "attempts": attempt.number + 1,
        "resends": attempt.resends,
    }
    if timings := answer.timings:
        notes["timings"] = timings
        if "cache_n" in timings and "prompt_n" in timings:
            notes["cache"] = {"reused": timings["cache_n"], "processed": timings["prompt_n"]}
    if attempt.recovery:
        notes["recovery"] = dict(attempt.recovery)
    if attempt.sampling:
        notes["recommended_sampling"] = dict(attempt.sampling)
    if answer.reasoning:
        notes["reasoning"] = answer.reasoning
    if not (answer.text or answer.tool_calls or attempt.closed):
        notes["empty_text"] = _why_empty(answer)
    if enforcement := attempt.enforcement:
        notes["structured_output"] = {
            "attempts": attempt.number + 1,
            "enforcement": enforcement.kind,
            "validated_only": enforcement.validated_only,
            "closed": attempt.closed.note() if attempt.closed else None,
        }
    return notes
