"""OpenAI's Responses API as a stream of events.

The events and their order: https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from runtime.errors import LLMRateLimitError
from runtime.gateway import openai
from runtime.gateway import responses_items as parts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.contracts import LLMDelta, LLMResponse, ToolCallDelta
    from runtime.errors import LLMError
    from runtime.gateway.responses_items import Item


class Encoder:
    """One answer as a stream of events; see :class:`runtime.gateway.dialect.Encoder`."""

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
        self._open: _OpenItem | None = None

    def begin(self, model: str) -> bytes:
        """What comes before the first piece."""
        self._base["model"] = model
        return self._event("response.created", response=self._base) + self._event(
            "response.in_progress", response=self._base
        )

    def piece(self, delta: LLMDelta) -> bytes:
        """A piece of the answer."""
        made = b""
        if delta.text_delta:
            if self._open is None or self._open.call_id is not None:
                made += self._close() + self._begin_message()
            made += self._add("response.output_text.delta", delta.text_delta)
        if call := delta.tool_call_delta:
            if self._open is None or self._open.call_id != call.call_id:
                made += self._close() + self._begin_call(call)
            if call.arguments_json_delta:
                made += self._add(
                    "response.function_call_arguments.delta", call.arguments_json_delta
                )
        return made

    def end(self, response: LLMResponse) -> bytes:
        """The end of an answer that is complete."""
        made = b""
        if self._open is None and not self._output:
            made += self._begin_message()
        made += self._close(parts.status_of(response))
        if thought := (response.raw or {}).get("reasoning"):
            made += self._thought(str(thought))
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

    def _begin_message(self) -> bytes:
        self._open = opened = _OpenItem(parts.new_id("msg"))
        return self._added(parts.message(opened.item_id, None, parts.IN_PROGRESS)) + self._here(
            "response.content_part.added", content_index=0, part=parts.text_part("")
        )

    def _begin_call(self, call: ToolCallDelta) -> bytes:
        call_id, name = str(call.call_id), call.name or ""
        self._open = opened = _OpenItem(parts.new_id("fc"), call_id=call_id, name=name)
        return self._added(
            parts.function_call(opened.item_id, call_id, name, "", parts.IN_PROGRESS)
        )

    def _add(self, kind: str, text: str) -> bytes:
        opened = self._opened()
        opened.pieces.append(text)
        if opened.call_id is not None:
            return self._here(kind, delta=text)
        return self._here(kind, content_index=0, delta=text, logprobs=[])

    def _close(self, status: str = "completed") -> bytes:
        if self._open is None:
            return b""
        opened, text = self._open, "".join(self._open.pieces)
        if opened.call_id is None:
            item = parts.message(opened.item_id, text, status)
            made = self._here(
                "response.output_text.done", content_index=0, text=text, logprobs=[]
            ) + self._here(
                "response.content_part.done", content_index=0, part=parts.text_part(text)
            )
        else:
            item = parts.function_call(opened.item_id, opened.call_id, opened.name, text, status)
            made = self._here(
                "response.function_call_arguments.done", name=opened.name, arguments=text
            )
        self._open = None
        return made + self._finished(item)

    def _thought(self, text: str) -> bytes:
        """An item with what the model thought, of which streams tell when they are over."""
        self._open = opened = _OpenItem(parts.new_id("rs"))
        made = (
            self._added(parts.reasoning(opened.item_id, None, parts.IN_PROGRESS))
            + self._here("response.reasoning_text.delta", content_index=0, delta=text)
            + self._here("response.reasoning_text.done", content_index=0, text=text)
        )
        self._open = None
        return made + self._finished(parts.reasoning(opened.item_id, text, "completed"))

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

    def _opened(self) -> _OpenItem:
        if self._open is None:
            raise AssertionError("no item is open")
        return self._open

    def _event(self, kind: str, **fields: object) -> bytes:
        data = json.dumps({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return f"event: {kind}\ndata: {data}\n\n".encode()


class _OpenItem:
    """An item whose pieces are arriving; of a tool call when it has a ``call_id``."""

    __slots__ = ("call_id", "item_id", "name", "pieces")

    def __init__(self, item_id: str, *, call_id: str | None = None, name: str = "") -> None:
        self.item_id = item_id
        self.call_id = call_id
        self.name = name
        self.pieces: list[str] = []
