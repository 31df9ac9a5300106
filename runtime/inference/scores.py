"""The probabilities of tokens, handed out with the pieces of a streamed answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.contracts import LLMDelta

if TYPE_CHECKING:
    from runtime.inference.recovery import Course


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredDelta(LLMDelta):
    """A piece with the probabilities of its tokens, where they were asked for.

    Attributes:
        logprobs: As OpenAI's ``logprobs.content`` has them, for each token of the piece, and for
            those before it that had none of their own.
    """

    logprobs: tuple[object, ...]


class Scores:
    """Probabilities on their way to the pieces that they belong to.

    Those that were handed out before the answer broke off come again, and are left out: the tokens
    of an answer that is replayed are the same.
    """

    def __init__(self, course: Course) -> None:
        """Those of one attempt at an answer."""
        self._course = course
        # An engine that goes on from what was delivered begins to tell there.
        self._came = course.scored if course.continuing else 0
        self._waiting: list[object] = []

    def take(self, fresh: list[object]) -> None:
        """Take what came."""
        for each in fresh:
            if self._came >= self._course.scored:
                self._waiting.append(each)
            self._came += 1

    def put_on(self, delta: LLMDelta) -> LLMDelta:
        """A piece of text or of a call with what came until now; itself where that is nothing."""
        if not self._waiting or delta.usage_delta is not None:
            return delta
        scored, self._waiting = tuple(self._waiting), []
        self._course.scored += len(scored)
        return ScoredDelta(
            text_delta=delta.text_delta, tool_call_delta=delta.tool_call_delta, logprobs=scored
        )
