"""From the events of a streamed answer to its pieces and its whole.

What the events hold is OpenAI's ``chat.completion.chunk``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.contracts import LLMDelta
from runtime.errors import LLMBadResponseError
from runtime.inference import failures
from runtime.inference.alike import Alike
from runtime.inference.growing_calls import GrowingCalls
from runtime.inference.prompted_tools import CallReader
from runtime.inference.thinking import ThoughtReader
from runtime.inference.usage import shifted, usage_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.contracts import ToolCall, Usage
    from runtime.engines.thinking import Thinking

DONE = b"[DONE]"

# Of an event a token: json.loads would look for the encoding first, and SSE is UTF-8.
_READER = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtDelta(LLMDelta):
    """A piece of what the model thinks before it answers; nothing of the contract's is set.

    Attributes:
        thought: The piece.
    """

    thought: str


class Answer:
    """An answer as it grows: feed it events, or a whole completion, then read it.

    Attributes:
        finish_reason: Why it ended, or None while it has not.
        usage: Token counts, once the server told them.
        timings: The server's own timings, once it told them.
        done: Whether the closing ``[DONE]`` arrived.
        progress: Tokens of the prompt that were processed, and all of them, once a slot works on
            it and the server tells.
        prompt_s: Seconds it has been processing them, by its own clock.
        model: The model the server says answered.
        stop_text: Which of the caller's stop texts ended it, if one did and the server tells.
        cached: Tokens of the prompt that were in the engine's cache, once it tells the progress.
        delivered: Whether any piece of text or of a call was returned for the caller.
        slot: The slot it was written in, if the server tells.
    """

    def __init__(self, *, call_ids: Mapping[int, str] | None = None) -> None:
        """An empty answer.

        Args:
            call_ids: The ids by which the caller knows its tool calls, by their index.
        """
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.timings: dict[str, object] | None = None
        self.done = False
        self.model: str | None = None
        self.stop_text: str | None = None
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._thoughts_taken = 0
        self._calls = GrowingCalls(call_ids or {})
        self._logprobs: list[object] = []
        self._logprobs_taken = 0
        self._usage_object: object = None
        self._head: dict[str, object] = {}
        self._raw: dict[str, object] | None = None
        self._reader: CallReader | None = None
        self._held: list[str] | None = None
        self._thoughts: ThoughtReader | None = None
        self.delivered = False
        self.progress: tuple[int, int] | None = None
        self.cached: int | None = None
        self.prompt_s: float = 0.0
        self.slot: int | None = None
        self._given = 0
        self._alike: Alike | None = None

    def go_on_from(self, pieces: Sequence[str]) -> None:
        """Only the rest is to come.

        Args:
            pieces: Its beginning, a token a piece, which the server counts to the prompt.
        """
        self._text.extend(pieces)
        self._given = len(pieces)
        self.delivered = bool(pieces)

    @property
    def touched(self) -> bool:
        """Whether any event arrived, the role alone included."""
        return bool(self._head)

    @property
    def begun(self) -> bool:
        """Whether there is anything of the answer."""
        return bool(self._text or self._reasoning or self._calls)

    @property
    def moves(self) -> bool:
        """Whether anything of what is to come has arrived."""
        return bool(len(self._text) > self._given or self._reasoning or self._calls)

    @property
    def size(self) -> int:
        """Characters that arrived, of whatever kind."""
        calls = sum(len(call.name) + len(call.arguments_json) for call in self.tool_calls)
        return len(self.text) + len(self.reasoning) + calls

    @property
    def tokens(self) -> int:
        """Pieces that arrived, nearly always one for each token."""
        return len(self._text) + len(self._reasoning) + self._calls.pieces

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt, without those of its own that it goes on from; None: not told."""
        return None if self.progress is None else self.progress[1] - self._given

    @property
    def handed_out(self) -> tuple[str, ...]:
        """The pieces of text that were returned so far."""
        return () if self._held is not None else tuple(self._text)

    @property
    def partial(self) -> str | None:
        """What an error shows of the answer: its text, else the arguments of its last call."""
        calls = self.tool_calls
        return self.text or (calls[-1].arguments_json if calls else None)

    @property
    def calls(self) -> dict[int, ToolCall]:
        """The tool calls so far, by their index."""
        return self._calls.so_far

    @property
    def text(self) -> str:
        """The text so far."""
        waiting = self._reader.waiting if self._reader and not self._calls else ""
        return "".join(self._text) + waiting

    @property
    def reasoning(self) -> str:
        """The thoughts so far."""
        return "".join(self._reasoning)

    def take_thought(self) -> str:
        """The thoughts that came since this was last called."""
        fresh = self._reasoning[self._thoughts_taken :]
        self._thoughts_taken += len(fresh)
        return "".join(fresh)

    def take_logprobs(self) -> list[object]:
        """The probabilities of tokens that came since this was last called."""
        fresh = self._logprobs[self._logprobs_taken :]
        self._logprobs_taken += len(fresh)
        return fresh

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, in order."""
        return tuple(self.calls.values())

    @property
    def cache(self) -> dict[str, int] | None:
        """Tokens of the prompt that were in the engine's cache and that were computed, if told."""
        told = self.timings or {}
        reused, processed = told.get("cache_n"), told.get("prompt_n")
        if isinstance(reused, int) and isinstance(processed, int):
            return {"reused": reused, "processed": processed}
        match self._usage_object:  # OpenAI's way to say it
            case {"prompt_tokens": int(whole), "prompt_tokens_details": {"cached_tokens": int(n)}}:
                return {"reused": n, "processed": whole - n}
        return None

    @property
    def raw_output(self) -> dict[str, object]:
        """The server's completion object; put together from its chunks when it was streamed."""
        if self._raw is not None:
            return self._raw
        message: dict[str, object] = {"role": "assistant", "content": self.text}
        if self._reasoning:
            message["reasoning_content"] = self.reasoning
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments_json},
                }
                for call in self.tool_calls
            ]
        choice: dict[str, object] = {
            "index": 0,
            "finish_reason": self.finish_reason,
            "message": message,
        }
        if self._logprobs:
            choice["logprobs"] = {"content": self._logprobs}
        whole: dict[str, object] = {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
        }
        if self._usage_object is not None:
            whole["usage"] = self._usage_object
        if self.timings is not None:
            whole["timings"] = self.timings
        return whole

    def add_event(self, data: bytes) -> list[LLMDelta]:
        """Take the data of one event; returns what it adds for the caller.

        Raises:
            LLMError: The event reports a failure, or is not a completion chunk.
        """
        if data == DONE:
            self.done = True
            return self._end()
        try:
            chunk = _READER.decode(data.decode("utf-8", "surrogatepass"))
        except ValueError as exc:
            raise self._malformed(f"an event is not JSON: {failures.excerpt(data)}") from exc
        if not isinstance(chunk, dict):
            raise self._malformed(f"an event is not an object: {failures.excerpt(data)}")
        if "choices" not in chunk:
            if problem := failures.error_object(chunk):
                raise failures.from_error_object(problem, partial_text=self.text or None)
            raise self._malformed(f"an event has no choices: {failures.excerpt(data)}")
        try:
            deltas = self._add_chunk(chunk)
            passes_on = self._passes_on(deltas)
            self._alike = (Alike.of(data, chunk) or self._alike) if passes_on else None
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise self._malformed(f"an event is out of form: {failures.excerpt(data)}") from exc
        return deltas

    def add_alike(self, packet: bytes) -> LLMDelta | None:
        """Take a packet that differs from the last event in its text alone; None for all others."""
        if self._alike is None or (text := self._alike.text_of(packet)) is None:
            return None
        self._text.append(text)
        return LLMDelta(text_delta=text)

    def _passes_on(self, deltas: Sequence[LLMDelta]) -> bool:
        """Whether what the last event had is handed out as it came, and so will be what follows."""
        if self._reader or self._reasoning or self._held is not None or len(deltas) != 1:
            return False
        return deltas[0].text_delta is not None and deltas[0].text_delta == self._text[-1]

    def add_completion(self, body: bytes, *, continued: str = "") -> list[LLMDelta]:
        """Take a whole answer that was not streamed; returns its pieces.

        Args:
            body: The body of the HTTP answer.
            continued: The assistant message that the request asked to be continued. Engines repeat
                it in front of a whole answer and leave it out of a streamed one; it is taken off.

        Raises:
            LLMBadResponseError: The body is not a chat completion.
        """
        try:
            whole = json.loads(body)
        except ValueError as exc:
            raise self._malformed(f"it is not JSON: {failures.excerpt(body)}") from exc
        try:
            if problem := failures.error_object(whole):
                raise failures.from_error_object(problem)
            choice = whole["choices"][0]
            message = choice.get("message") or {"content": choice["text"]}  # of a text completion
            text = _text(message.get("content"))
            if isinstance(message.get("content"), str):
                message["content"] = text = text.removeprefix(continued)
            delta = {**message, "content": text}
            deltas = self._add_chunk({**whole, "choices": [{**choice, "delta": delta}]})
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as exc:
            raise self._malformed(f"it is no chat completion: {failures.excerpt(body)}") from exc
        self._raw = whole
        self.done = True
        return [*deltas, *self._end()]

    def _add_chunk(self, chunk: Mapping[str, Any]) -> list[LLMDelta]:
        deltas: list[LLMDelta] = []
        if not self._head:
            names = ("id", "created", "model", "system_fingerprint")
            self._head = {name: chunk[name] for name in names if name in chunk}
            self.model = chunk.get("model")
        for choice in chunk["choices"][:1]:
            delta = choice.get("delta") or {"content": choice.get("text")}  # of a text completion
            if thought := _text(delta.get("reasoning_content") or delta.get("reasoning")):
                self._thoughts = None  # the server keeps them apart
                self._reasoning.append(thought)
            if content := _text(delta.get("content")):
                if self._reasoning and not self._text and self._thoughts is None:
                    content = content.lstrip()
                deltas.extend(self._add_content(content))
            for position, piece in enumerate(delta.get("tool_calls") or ()):
                deltas += self._call_deltas(position, piece)
            if logprobs := choice.get("logprobs"):
                self._logprobs.extend(logprobs.get("content") or ())
            if reason := choice.get("finish_reason"):
                self.finish_reason = _text(reason)
        if told := chunk.get("__verbose"):
            match told:
                case {"stop_type": "word", "stopping_word": str(stop_text)}:
                    self.stop_text = stop_text
            match told:
                case {"id_slot": int(slot)}:
                    self.slot = slot
        if isinstance(timings := chunk.get("timings"), dict):
            self.timings = timings
        if isinstance(progress := chunk.get("prompt_progress"), dict):
            self.progress = (int(progress["processed"]), int(progress["total"]))
            self.prompt_s = float(progress.get("time_ms") or 0) / 1000
            self.cached = int(progress.get("cache") or 0)
        if isinstance(usage := chunk.get("usage"), dict):
            if self._given:
                usage = shifted(usage, self._given)
            self._usage_object = usage
            self.usage = usage_of(usage)
            deltas.append(LLMDelta(usage_delta=self.usage))
        return deltas

    def read_calls(self) -> None:
        """Look for tool calls in the text from now on; see :mod:`prompted_tools`."""
        self._reader = CallReader()

    def read_thoughts(self, thinking: Thinking | None) -> None:
        """Keep thoughts in the text apart from now on; see :mod:`thinking`."""
        self._thoughts = ThoughtReader(thinking)

    def hold_text(self) -> None:
        """Return no text before a call has begun: without one, the answer is asked for again."""
        self._held = []

    def _end(self) -> list[LLMDelta]:
        """What had to wait for more, now that there is no more."""
        deltas: list[LLMDelta] = []
        if self._thoughts:
            thought, text = self._thoughts.end()
            self._thoughts = None
            if thought:
                self._reasoning.append(thought)
            deltas = self._add_text(text) if text else []
        waiting = self._reader.waiting if self._reader and not self._calls else ""
        self._reader = None
        return [*deltas, *self._text_deltas(waiting)] if waiting else deltas

    def _add_content(self, content: str) -> list[LLMDelta]:
        if self._thoughts:
            thought, content = self._thoughts.feed(content)
            if thought:
                self._reasoning.append(thought)
        return self._add_text(content) if content else []

    def _add_text(self, content: str) -> list[LLMDelta]:
        pieces = [content] if self._reader is None else self._reader.feed(content)
        deltas: list[LLMDelta] = []
        for piece in pieces:
            if isinstance(piece, str):
                deltas += self._text_deltas(piece)
            else:
                deltas += self._call_deltas(0, piece)
        return deltas

    def _text_deltas(self, text: str) -> list[LLMDelta]:
        self._text.append(text)
        if self._held is not None:
            self._held.append(text)
            return []
        self.delivered = True
        return [LLMDelta(text_delta=text)]

    def _call_deltas(self, position: int, piece: Mapping[str, Any]) -> list[LLMDelta]:
        held, self._held = self._held, None
        self.delivered = True
        before = [LLMDelta(text_delta="".join(held))] if held else []
        index = int(piece.get("index", position))
        function = piece.get("function") or {}
        name, arguments = _text(function.get("name")), _text(function.get("arguments"))
        if index not in self._calls:
            self._calls.begin(index, _text(piece.get("id")))
        added = self._calls.add(index, name=name, arguments=arguments)
        return [*before, LLMDelta(tool_call_delta=added)]

    def _malformed(self, why: str) -> LLMBadResponseError:
        return LLMBadResponseError(
            f"The server's answer is malformed: {why}",
            partial_text=self.text or None,
            hint="Is this an OpenAI-compatible server?",
        )


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"text expected, not {type(value).__name__}")
    return value
