"""OpenAI's Responses API as a stream of events.

The events and their order: https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.errors import LLMRateLimitError
from runtime.gateway import openai
from runtime.gateway import responses_items as parts
from runtime.gateway.dialect import COMMENT
from runtime.inference.stream import ThoughtDelta

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.contracts import LLMDelta, LLMResponse, ToolCallDelta
    from runtime.errors import LLMError
    from runtime.gateway.responses_items import Item


@dataclass(frozen=True, slots=True, kw_only=True)
class _TextKind:
    """An item that is made of text: how it, its only part and its events look."""

    prefix: str
    event: str
    item: Callable[[str, str | None, str], Item]
    part: Callable[[str], Item]
    more: Mapping[str, object] = field(default_factory=dict)


_MESSAGE: Final = _TextKind(
    prefix="msg",
    event="response.output_text",
    item=parts.message,
    part=parts.text_part,
    more={"logprobs": []},
)
_REASONING: Final = _TextKind(
    prefix="rs", event="response.reasoning_text", item=parts.reasoning, part=parts.thought_part
)


class _OpenText:
    """An item of text whose pieces are arriving."""

    __slots__ = ("item_id", "kind", "pieces")

    def __init__(self, kind: _TextKind) -> None:
        self.kind = kind
        self.item_id = parts.new_id(kind.prefix)
        self.pieces: list[str] = []


class _OpenCall:
    """A call of a tool whose arguments are arriving."""

    __slots__ = ("call_id", "item_id", "name", "pieces")

    def __init__(self, call_id: str, name: str) -> None:
        self.call_id = call_id
        self.name = name
        self.item_id = parts.new_id("fc")
        self.pieces: list[str] = []

    def item(self, arguments: str, status: str) -> Item:
        return parts.function_call(self.item_id, self.call_id, self.name, arguments, status)


class Encoder:
    """One answer as a stream of events; see :class:`runtime.gateway.dialect.Encoder`."""

    alive = COMMENT

    def __init__(
        self, base: Mapping[str, object], done: Callable[[Item, LLMResponse], None]
    ) -> None:
        """Nothing is said yet.

        Args:
            base: The response as it is before the answer.
            done: Told of the complete response.
        """
        self._base = dict(base)
        self._done = done
        self._number = 0
        self._output: list[Item] = []
        self._open: _OpenText | _OpenCall | None = None

    def begin(self, model: str) -> bytes:
        """What comes before the first piece."""
        self._base["model"] = model
        return self._event("response.created", response=self._base) + self._event(
            "response.in_progress", response=self._base
        )

    def piece(self, delta: LLMDelta) -> bytes:
        """A piece of the answer."""
        if isinstance(delta, ThoughtDelta):
            return self._text(_REASONING, delta.thought)
        if delta.text_delta:
            return self._text(_MESSAGE, delta.text_delta)
        made = b""
        if call := delta.tool_call_delta:
            if not isinstance(self._open, _OpenCall) or self._open.call_id != call.call_id:
                made += self._close() + self._begin_call(call)
            if more := call.arguments_json_delta:
                made += self._add("response.function_call_arguments.delta", more)
        return made

    def end(self, response: LLMResponse) -> bytes:
        """The end of an answer that is complete."""
        made = b""
        if not (response.text or response.tool_calls):
            made += self._text(_MESSAGE, "")  # an answer has one, be it an empty one
        made += self._close(parts.status_of(response))
        whole = parts.completed(self._base, response, self._output)
        self._done(whole, response)
        return made + self._event(f"response.{whole['status']}", response=whole)

    def failed(self, exc: LLMError) -> bytes:
        """The end of one that is not.

        The ``error`` within the first event is what makes OpenAI's clients raise; others look for
        ``response.failed``.
        """
        _, body = openai.error(exc)
        problem: Mapping[str, object] = body["error"]  # type: ignore[assignment]
        named = {name: problem.get(name) for name in ("code", "message", "param")}
        code = "rate_limit_exceeded" if isinstance(exc, LLMRateLimitError) else "server_error"
        whole = {
            **self._base,
            "status": "failed",
            "error": {"code": code, "message": problem["message"]},
            "output": self._output,
        }
        return self._event("error", **named, error=problem) + self._event(
            "response.failed", response=whole
        )

    # --- items ------------------------------------------------------------------------------------

    def _text(self, kind: _TextKind, text: str) -> bytes:
        made = b""
        if not isinstance(self._open, _OpenText) or self._open.kind is not kind:
            made = self._close()
            self._open = opened = _OpenText(kind)
            made += self._added(kind.item(opened.item_id, None, parts.IN_PROGRESS))
            made += self._here("response.content_part.added", content_index=0, part=kind.part(""))
        if text:
            made += self._add(f"{kind.event}.delta", text, content_index=0, **kind.more)
        return made

    def _begin_call(self, call: ToolCallDelta) -> bytes:
        self._open = _OpenCall(str(call.call_id), call.name or "")
        return self._added(self._open.item("", parts.IN_PROGRESS))

    def _add(self, event: str, text: str, **more: object) -> bytes:
        self._opened().pieces.append(text)
        return self._here(event, delta=text, **more)

    def _close(self, status: str = "completed") -> bytes:
        opened = self._open
        if opened is None:
            return b""
        text = "".join(opened.pieces)
        if isinstance(opened, _OpenCall):
            item = opened.item(text, status)
            made = self._here(
                "response.function_call_arguments.done", name=opened.name, arguments=text
            )
        else:
            kind = opened.kind
            item = kind.item(opened.item_id, text, status)
            made = self._here(f"{kind.event}.done", content_index=0, text=text, **kind.more)
            made += self._here("response.content_part.done", content_index=0, part=kind.part(text))
        self._open = None
        return made + self._finished(item)

    def _added(self, item: Item) -> bytes:
        return self._event("response.output_item.added", output_index=len(self._output), item=item)

    def _finished(self, item: Item) -> bytes:
        self._output.append(item)
        return self._event(
            "response.output_item.done", output_index=len(self._output) - 1, item=item
        )

    def _here(self, kind: str, **fields: object) -> bytes:
        """An event about the open item."""
        return self._event(
            kind, item_id=self._opened().item_id, output_index=len(self._output), **fields
        )

    def _opened(self) -> _OpenText | _OpenCall:
        if self._open is None:
            raise AssertionError("no item is open")
        return self._open

    def _event(self, kind: str, **fields: object) -> bytes:
        data = json.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return f"event: {kind}\ndata: {data}\n\n".encode()
