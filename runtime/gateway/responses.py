"""OpenAI's Responses API: what is asked, and what is answered.

The protocol: https://platform.openai.com/docs/api-reference/responses. What is tolerated, and what
is refused, is said in docs/clients.md.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import Field

from runtime.contracts import LLMRequest, ToolCall, ToolSpec
from runtime.gateway import openai
from runtime.gateway import responses_items as parts
from runtime.gateway.content import unfit
from runtime.gateway.conversations import Conversations, Kept
from runtime.gateway.dialect import (
    Body,
    Call,
    InvalidFieldError,
    Turn,
    keep_alive,
    parsed,
    tools_or_format,
)
from runtime.gateway.responses_request import (
    FunctionCall,
    FunctionOutput,
    Message,
    Reasoning,
    Reference,
    chosen,
    format_of,
    message_of,
    text_in,
    tool_of,
)
from runtime.gateway.responses_stream import Encoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.contracts import LLMMessage, LLMResponse
    from runtime.errors import LLMError

_TOLERATED: Final = (
    "client_metadata",
    "include",
    "max_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "stream_options",
    "user",
)
"""What steers OpenAI's service, or asks for additions to what there is not."""

_REFUSED: Final = {
    "background": "Wait for the answer, or stream it.",
    "conversation": "Use previous_response_id, or send the whole conversation as input.",
    "prompt": "Send what the stored prompt says.",
    "top_logprobs": "Chat completions tell logprobs.",
}


class _Asked(Body):
    model: str | None = None
    input: Any = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    truncation: str | None = None
    metadata: dict[str, str] | None = None


class NotKeptError(InvalidFieldError):
    """There is no such response here, or not any more."""


class Responses:
    """The Responses API, with the conversations that may be gone on with.

    A :class:`runtime.gateway.dialect.Dialect`.
    """

    def __init__(self) -> None:
        self._kept = Conversations()

    def request(self, body: Mapping[str, object]) -> Call:
        """What ``POST /v1/responses`` asks for.

        Raises:
            InvalidFieldError: A field is of the wrong type, or asks for what there is not.
        """
        asked = parsed(_Asked, body)
        options = asked.others()
        for name in _TOLERATED:
            options.pop(name, None)
        for name, hint in _REFUSED.items():
            if options.pop(name, None):
                raise unfit(name, "it is not supported.", hint=hint)
        kept_s = keep_alive(options.pop("keep_alive", None))
        # As OpenAI has it: an answer that was cut off says so by its status.
        options.setdefault("on_truncation", "keep")
        if asked.top_p is not None:
            options["top_p"] = asked.top_p
        if asked.parallel_tool_calls is not None:
            options["parallel_tool_calls"] = asked.parallel_tool_calls
        if asked.truncation == "auto":
            options.setdefault("fit", "drop_oldest")
        if parsed(Reasoning, asked.reasoning or {}, at="reasoning").effort == "none":
            options.setdefault("chat_template_kwargs", {"enable_thinking": False})
        said = self._said(asked)
        tools = [tool_of(tool, f"tools[{at}]") for at, tool in enumerate(asked.tools or ())]
        offered, response_format = tools_or_format(
            chosen(tools, asked.tool_choice, options),
            format_of(asked.text),
            options.get("tool_choice"),
        )
        told: list[LLMMessage] = (
            [Turn(role="system", content=asked.instructions)] if asked.instructions else []
        )
        return Call(
            model=asked.model,
            request=LLMRequest(
                messages=[*told, *said],
                temperature=asked.temperature,
                max_tokens=asked.max_output_tokens,
                tools=offered,
                response_format=response_format,
                metadata=dict(asked.metadata or {}),
                provider_options=options,
            ),
            stream=bool(asked.stream),
            keep_alive_s=kept_s,
            echo={"base": _base(asked, tools), "said": tuple(said)},
        )

    def count(self, body: Mapping[str, object]) -> Call:
        """What ``POST /v1/responses/input_tokens`` wants counted.

        Raises:
            InvalidFieldError: As of :meth:`request`.
        """
        return replace(self.request(body), stream=False)

    def counted(self, tokens: int) -> dict[str, object]:
        """The body of the answer to that."""
        return {"object": "response.input_tokens", "input_tokens": tokens}

    def answer(self, response: LLMResponse, call: Call) -> dict[str, object]:
        """The body of a whole answer."""
        whole = parts.completed(_base_of(call), response, parts.items(response))
        self._keep(whole, response, call)
        return whole

    def encoder(self, call: Call) -> Encoder:
        """Who writes a streamed answer."""
        return Encoder(_base_of(call), lambda whole, response: self._keep(whole, response, call))

    def error(self, exc: LLMError) -> tuple[int, dict[str, object]]:
        """The HTTP status and the body of an error."""
        status, body = openai.error(exc)
        return (404 if isinstance(exc, NotKeptError) and exc.param == "id" else status), body

    def kept(self, response_id: str) -> Mapping[str, object]:
        """The response of that id.

        Raises:
            NotKeptError: It is not here.
        """
        return self._find(response_id, "id").response

    def forget(self, response_id: str) -> dict[str, object]:
        """Forget a response; returns the body that says so.

        Raises:
            NotKeptError: It is not here.
        """
        self._find(response_id, "id")
        self._kept.drop(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    def _find(self, response_id: str, param: str) -> Kept:
        kept = self._kept.find(response_id)
        if kept is None:
            raise NotKeptError(
                f"There is no response {response_id!r}.",
                param=param,
                hint="The latest ones are kept, in memory, unless store is false; "
                "send the whole conversation as input.",
            )
        return kept

    def _keep(self, whole: Mapping[str, object], response: LLMResponse, call: Call) -> None:
        if not whole["store"]:
            return
        said = Turn(role="assistant", content=response.text, tool_calls=response.tool_calls)
        before = cast("tuple[LLMMessage, ...]", call.echo["said"])
        self._kept.keep(str(whole["id"]), Kept(response=whole, turns=(*before, said)))

    def _said(self, asked: _Asked) -> list[LLMMessage]:
        turns: list[LLMMessage] = []
        if asked.previous_response_id is not None:
            turns += self._find(asked.previous_response_id, "previous_response_id").turns
        if isinstance(asked.input, str):
            turns.append(Turn(role="user", content=asked.input))
            return turns
        names = {
            call.call_id: call.name for turn in turns for call in getattr(turn, "tool_calls", ())
        }
        if not isinstance(asked.input, list):
            raise unfit("input", "a string or a list of items is expected.")
        for at, item in enumerate(asked.input):
            if not isinstance(item, dict):
                raise unfit(f"input[{at}]", "an object is expected.")
            self._take(turns, item, f"input[{at}]", names)
        return turns

    def _take(
        self,
        turns: list[LLMMessage],
        item: Mapping[str, object],
        at: str,
        names: dict[str, str],
    ) -> None:
        """Add what an item of the input says to the conversation."""
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if kind == "item_reference":
            reference = parsed(Reference, item, at=at)
            found = self._kept.item(reference.id)
            if found is None:
                raise unfit(f"{at}.id", f"there is no item {reference.id!r}.")
            item, kind = found, found["type"]
        match kind:
            case "message":
                turns.append(message_of(parsed(Message, item, at=at), at))
            case "function_call":
                call = parsed(FunctionCall, item, at=at)
                names[call.call_id] = call.name
                made = ToolCall(name=call.name, arguments_json=call.arguments, call_id=call.call_id)
                before = turns[-1] if turns and turns[-1].role == "assistant" else None
                if before is not None:
                    turns.pop()
                turns.append(
                    Turn(
                        role="assistant",
                        content=before.content if before else "",
                        tool_calls=(*getattr(before, "tool_calls", ()), made),
                    )
                )
            case "function_call_output":
                result = parsed(FunctionOutput, item, at=at)
                turns.append(
                    Turn(
                        role="tool",
                        content=text_in(result.output, f"{at}.output"),
                        tool_call_id=result.call_id,
                        tool_name=names.get(result.call_id),
                    )
                )
            case "reasoning":
                pass  # a template leaves out the thoughts of earlier turns, too
            case _:
                raise unfit(
                    f"{at}.type",
                    f"items of type {kind!r} are not supported.",
                    hint="It can be message, function_call, function_call_output or reasoning.",
                )


def _base(asked: _Asked, tools: Sequence[ToolSpec]) -> dict[str, object]:
    """The response before its answer: what it repeats of the request."""
    given = asked.tools or ()
    effort = (asked.reasoning or {}).get("effort")
    return {
        "id": parts.new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": parts.IN_PROGRESS,
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": asked.model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {"effort": effort, "summary": None},
        "store": asked.store is not False,
        "temperature": asked.temperature,
        "text": {"format": {"type": "text"}, **(asked.text or {})},
        "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.input_schema,
                "strict": given_tool.get("strict"),
            }
            for tool, given_tool in zip(tools, given, strict=True)
        ],
        "top_p": asked.top_p,
        "truncation": asked.truncation or "disabled",
        "usage": None,
    }


def _base_of(call: Call) -> Mapping[str, object]:
    return cast("Mapping[str, object]", call.echo["base"])
