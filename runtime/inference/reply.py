"""From a complete answer to the contract's response."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from runtime.contracts import LLMDelta, LLMResponse, Provenance, ToolCallDelta
from runtime.errors import CutOffError, LLMBadResponseError, UnclosableAnswerError
from runtime.inference import schema, tools
from runtime.inference.clock import Pace
from runtime.inference.incidents import Incidents
from runtime.inference.names import public_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engines.base import Endpoint
    from runtime.inference.closing import Closed
    from runtime.inference.schema import Enforcement
    from runtime.inference.stream import Answer
    from runtime.inference.wishes import Wish


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
        tools: How tools were offered, if there were any.
        repair: How far the history had to be brought into order; 0 for not at all.
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
    tools: Literal["native", "prompt"] | None = None
    repair: int = 0
    recovery: Mapping[str, object] | None = None


def check(answer: Answer, wish: Wish) -> None:
    """Refuse an answer that is not what was asked for.

    Raises:
        LLMBadResponseError: It is empty or cut off, or breaks its schema or its tools' rules.
    """
    text, calls = answer.text, answer.tool_calls
    kept = answer.finish_reason == "length" and wish.policy.on_truncation == "keep"
    if wish.tools:
        if kept:
            tools.check_calls(wish.tools, calls[:-1], text=text, more=True)
            tools.check_names(wish.tools, calls[-1:])
            return
        if answer.finish_reason == "length":
            _check_last_call(answer, wish.tools)
        tools.check_calls(wish.tools, calls, text=text)
    elif calls:
        raise LLMBadResponseError(
            f"The model called {calls[0].name!r}, but was offered no tools.",
            partial_text=text or None,
        )
    if wish.schema:
        if not kept:
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
    if answer.finish_reason != "length" or wish.policy.on_truncation != "close":
        return None
    cut = _cut_off(answer, wish)
    if cut is None:
        return None
    from runtime.inference import closing  # noqa: PLC0415 - libraries that few answers need

    what, text, wanted = cut
    found = closing.close(text, wanted, keep_all=keep_all)
    if found is None:
        raise UnclosableAnswerError(
            f"{what} cut off by the token budget, and no valid completion was found.",
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


def _cut_off(answer: Answer, wish: Wish) -> tuple[str, str, schema.Schema] | None:
    """What of an answer was cut off and has a schema: the answer, or the arguments of a call."""
    if wish.schema:
        return "The JSON was", answer.text, wish.schema
    if not (wish.tools and answer.tool_calls):
        return None
    *before, last = answer.tool_calls
    tools.check_calls(wish.tools, before, text=answer.text, more=True)
    tools.check_names(wish.tools, [last])
    wanted = wish.tools.arguments[last.name]
    return f"The call to {last.name!r} was", last.arguments_json, wanted


def addition(answer: Answer, closed: Closed) -> LLMDelta | None:
    """What closing added to an answer of which the caller has the rest."""
    added = closed.text[closed.start :]
    if not added:
        return None
    if not answer.tool_calls:
        return LLMDelta(text_delta=added)
    call_id = answer.tool_calls[-1].call_id
    return LLMDelta(tool_call_delta=ToolCallDelta(call_id=call_id, arguments_json_delta=added))


def _may_be_empty(answer: Answer, wish: Wish) -> bool:
    """Whether nothing is an answer: the bound or a stop text of the caller's came first."""
    return answer.finish_reason == "length" or bool(wish.options.get("stop"))


def _check_last_call(answer: Answer, box: tools.ToolBox) -> None:
    """Refuse a call that the token budget cut off; it may have ended in time, too."""
    if not answer.tool_calls:
        if box.call_wanted:
            raise _cut(answer, "The tool call", answer.text)
        return
    last = answer.tool_calls[-1]
    tools.check_names(box, [last])
    try:
        schema.judge(last.arguments_json, box.arguments[last.name])
    except LLMBadResponseError as exc:
        raise _cut(answer, f"The call to {last.name!r}", last.arguments_json) from exc


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
    after = f" after {count} tokens" if count else ""
    only_thought = answer.reasoning and not partial
    not_begun = f"{what[0].lower()}{what[1:]} had not begun"
    return CutOffError(
        f"The token budget ended the model's thinking{after}; {not_begun}."
        if only_thought
        else f"{what} was cut off by the token budget{after}.",
        partial_text=partial,
        hint="Raise max_tokens (or ctx_size, when the context is full).",
    )


def response(answer: Answer, attempt: Attempt, backend: Backend, *, latency_ms: int) -> LLMResponse:
    """The response that a complete answer makes."""
    calls, text = answer.tool_calls, answer.text
    if closed := attempt.closed:
        if calls:
            calls = (*calls[:-1], replace(calls[-1], arguments_json=closed.text))
        else:
            text = closed.text
    reason = answer.finish_reason
    endpoint = attempt.endpoint
    model = (answer.model if endpoint.kind == "openai" else None) or public_name(endpoint)
    return LLMResponse(
        text=text,
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


def _length_limit(answer: Answer, attempt: Attempt) -> str | None:
    """What ended an answer of which more was to come; None where nobody counted its tokens."""
    count = answer.usage.completion_tokens if answer.usage else None
    if count is None:
        return None
    return "max_tokens" if count >= attempt.max_tokens else "context"


def _notes(answer: Answer, attempt: Attempt) -> dict[str, object]:
    notes: dict[str, object] = {
        "seed": attempt.seed,
        "max_tokens": attempt.max_tokens,
        "attempts": attempt.number + 1,
        "resends": attempt.resends,
    }
    if timings := answer.timings:
        notes["timings"] = timings
    notes["cache"] = answer.cache
    if answer.finish_reason == "length":
        notes["length_limit"] = _length_limit(answer, attempt)
    if answer.stop_text:
        notes["stop_text"] = answer.stop_text
    if attempt.repair:
        notes["history"] = "reordered" if attempt.repair == 1 else "flattened"
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
    if attempt.tools:
        last = answer.tool_calls[-1].call_id if answer.tool_calls else None
        closed = {"call_id": last, **attempt.closed.note()} if attempt.closed else None
        notes["tools"] = {"path": attempt.tools, "closed": closed}
    return notes
