"""What a caller has of an answer that broke off, and what goes beyond it when it comes again."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from runtime.contracts import LLMDelta, ToolCallDelta

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import ToolCall, Usage
    from runtime.inference.stream import Answer


class DivergedError(Exception):
    """What comes is not what the caller was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """What the caller of a stream has.

    Attributes:
        pieces: All of the text, as it came.
        calls: Each tool call as far as it came, by its index.
        usage: The token counts, if those were handed out, too.
        tokens: Pieces in which it came; nearly always one for each token.
    """

    pieces: tuple[str, ...] = ()
    calls: Mapping[int, ToolCall] = field(default_factory=dict)
    usage: Usage | None = None
    tokens: int = 0

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.usage)

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.pieces)

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.text) + sum(
            len(call.name) + len(call.arguments_json) for call in self.calls.values()
        )

    @property
    def partial(self) -> str:
        """What an error shows of it: the text, else the arguments of the last call."""
        calls = list(self.calls.values())
        return self.text or (calls[-1].arguments_json if calls else "")

    @classmethod
    def of(cls, answer: Answer) -> Delivered:
        """What was handed out of an answer, all of whose pieces were."""
        return cls(
            pieces=answer.handed_out,
            calls=answer.calls,
            usage=answer.usage,
            tokens=answer.tokens,
        )


class _Track:
    """A text that is to come again."""

    __slots__ = ("_at", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at == len(self._text)

    def beyond(self, piece: str) -> str:
        """What of the next piece goes beyond the text."""
        left = len(self._text) - self._at
        if not self._text.startswith(piece[:left], self._at):
            raise DivergedError
        self._at += min(left, len(piece))
        return piece[left:]


class Replay:
    """Lets through what goes beyond what was delivered.

    The pieces may be cut elsewhere than they were. A piece that goes beyond, while other parts of
    what was delivered have not come yet, is another answer: the order would not be the same.
    """

    def __init__(self, delivered: Delivered, *, given: int = 0) -> None:
        """Begin.

        Args:
            delivered: What was delivered.
            given: How many pieces of its text are not to come again.
        """
        self._text = _Track("".join(delivered.pieces[given:]))
        self._calls = {
            call.call_id: (_Track(call.name), _Track(call.arguments_json))
            for call in delivered.calls.values()
        }
        self._heads: set[str | None] = set()
        self._usage = delivered.usage

    @property
    def caught_up(self) -> bool:
        """Whether all that was delivered has come again."""
        return (
            self._text.done
            and len(self._heads) == len(self._calls)
            and all(name.done and arguments.done for name, arguments in self._calls.values())
        )

    @property
    def over(self) -> bool:
        """Whether every further piece is a new one."""
        return self._usage is None and self.caught_up

    def passing(self, delta: LLMDelta) -> LLMDelta | None:
        """What of a piece is new; None when nothing is.

        Raises:
            DivergedError: It is not what was delivered.
        """
        if delta.text_delta is not None:
            text = self._text.beyond(delta.text_delta)
            return self._new(replace(delta, text_delta=text)) if text else None
        if delta.tool_call_delta is not None:
            return self._call(delta.tool_call_delta)
        if delta.usage_delta == self._usage or not self.caught_up:
            return None
        return delta

    def _call(self, piece: ToolCallDelta) -> LLMDelta | None:
        if piece.call_id not in self._calls:
            return self._new(LLMDelta(tool_call_delta=piece))
        self._heads.add(piece.call_id)
        names, arguments = self._calls[piece.call_id]
        name = names.beyond(piece.name or "")
        more = arguments.beyond(piece.arguments_json_delta or "")
        if not (name or more):
            return None
        return self._new(
            LLMDelta(
                tool_call_delta=ToolCallDelta(
                    call_id=piece.call_id, name=name or None, arguments_json_delta=more or None
                )
            )
        )

    def _new(self, delta: LLMDelta) -> LLMDelta:
        if not self.caught_up:
            raise DivergedError
        return delta
