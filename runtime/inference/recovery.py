"""How an answer goes on after its server broke off: pure bookkeeping, no I/O.

The engine's answers are the same to the last bit when prompt and seed are, sampling included. So an
answer that broke is asked for again as it was, what the caller has is compared with what comes and
left out, and what goes beyond it is handed on: no character twice, none missing. Where the two
differ, it is asked for once more: the prompt is in the engine's cache then, as it may have been the
first time, and in large batches a prompt is computed a little differently from single tokens. Where
they differ again (another build, a GPU), plain text is continued from what the caller has, and
marked.

What can be given to the engine instead of being written again is, see
:mod:`runtime.inference.taking_up`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from runtime.inference.replay import Delivered, Replay
from runtime.inference.stream import Answer

if TYPE_CHECKING:
    from runtime.errors import LLMError

How = Literal["resent", "replayed", "continued"]

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 1.0

COMEBACK_S: Final = 15.0
"""How long a server that was there a moment ago may refuse connections before that counts."""


class BrokeOffError(Exception):
    """A request that broke off, and may be asked again.

    Attributes:
        error: What it means for the caller if it is not.
        reached: Whether the server can have begun to work on it.
    """

    def __init__(self, error: LLMError, *, reached: bool) -> None:
        super().__init__(error)
        self.error = error
        self.reached = reached


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """Where an answer broke off, and how it went on.

    Attributes:
        character: Characters of it that had come.
        token: Pieces in which they had come; nearly always one for each token.
        why: What broke it off.
        breaks: How often it broke off before something new came.
        how: ``resent``: nothing had been handed out. ``replayed``: asked for again, and what had
            been handed out came again. ``continued``: it did not, so the engine went on from there.
        given: Tokens that the engine was given as a part of the prompt; those of a replay it would
            have written again with the same bits.
        engine_ms: Milliseconds from the break until there was a server to be asked again.
        pause_ms: Milliseconds from the break until something new came, ``engine_ms`` included.
    """

    character: int
    token: int
    why: str
    breaks: int
    how: How
    given: int
    engine_ms: int
    pause_ms: int


@dataclass(slots=True, kw_only=True)
class _Open:
    """An interruption that is not over yet. Instants are seconds on a steady clock."""

    since: float
    size: int
    tokens: int
    why: str
    breaks: int = 0
    engine_s: float = 0.0


class Course:
    """How one request fares, over all its attempts.

    Attributes:
        resends: How often it was sent again.
        generation: The engine process that works, or worked last, on it; 0 where that is not known.
        continuing: Whether the engine goes on from what was delivered, because it says now
            something else than it did.
        delivered: What the caller has.
        prompt_tokens: Tokens of the prompt, once the engine told.
        given: Tokens of the answer that the engine is given this time as a part of the prompt.
        takes_up: Whether it may be given some, although all of them are to be the same.
        whole: Whether to ask for the whole answer at once.
        thought_size: Characters of its thoughts that were handed out.
        scored: Tokens of which the probabilities were handed out.
    """

    def __init__(self, *, max_retries: int, emit: bool) -> None:
        self.resends = 0
        self.generation = 0
        self.continuing = False
        self.delivered = Delivered()
        self.prompt_tokens: int | None = None
        self.given = 0
        self.takes_up = True
        self.whole = False
        self.thought_size = 0
        self.scored = 0
        self._looked_again = False
        self._max_retries = max_retries
        self._emit = emit
        self._tries = 0
        self._furthest = 0
        self._partial = ""
        self._there_s: float | None = None
        self._open: _Open | None = None
        self._interruptions: list[Interruption] = []

    @property
    def partial(self) -> str | None:
        """What an error shows of the answer."""
        return self.delivered.partial or self._partial or None

    @property
    def interrupted(self) -> bool:
        """Whether it has not got on yet since it broke off."""
        return self._open is not None

    def blank(self) -> Answer:
        """What the next attempt fills."""
        ids = {index: call.call_id for index, call in self.delivered.calls.items()}
        return Answer(call_ids=ids)

    def replay(self) -> Replay | None:
        """What the next attempt's pieces are compared with; None when there is nothing."""
        if self.continuing or not self.delivered:
            return None
        return Replay(self.delivered, given=self.given)

    def begin_anew(self) -> None:
        """Another seed is tried: what came is of no use."""
        self._furthest = 0
        self._partial = ""
        self.thought_size = 0
        self.scored = 0

    def diverged(self, *, can_continue: bool) -> bool:
        """Take down that another answer comes; whether there is still a way on."""
        if self.given and not self.continuing:
            self.takes_up = False
            self.resends += 1
            return True
        if self._looked_again and not can_continue:
            return False
        self.continuing = self._looked_again
        self._looked_again = True
        self.resends += 1
        return True

    def there(self, now: float) -> None:
        """The server answers, or is known to come back."""
        self._there_s = now

    def replaced(self) -> None:
        """The engine process is another one: that counts against its restarts, not the retries."""
        self._tries = max(0, self._tries - 1)

    def located(self, now: float) -> None:
        """There is a server to be asked again."""
        if self._open is not None:
            self._open.engine_s = now - self._open.since

    def broke_off(self, answer: Answer, exc: BrokeOffError, now: float) -> float | None:
        """Take down that an attempt broke off.

        Returns:
            Seconds to wait before the next attempt; None when there is to be none.
        """
        came = Delivered.of(answer)
        self.prompt_tokens = answer.prompt_tokens or self.prompt_tokens
        if answer.size > self._furthest:  # it gets on: what stopped it is not the request
            self._furthest, self._tries = answer.size, 0
            self._partial = came.partial or answer.text
        if self._emit and came.size >= self.delivered.size:
            self.delivered = replace(came, usage=came.usage or self.delivered.usage)
        if exc.reached:
            self._looked_again = False
            if self._open is None:
                why = str(exc.error.args[0])
                self._open = _Open(since=now, size=answer.size, tokens=answer.tokens, why=why)
            self._open.breaks += 1
        if not self._max_retries:
            return None
        patient = self._there_s is not None and now - self._there_s < COMEBACK_S
        if exc.reached or not patient:
            if self._tries >= self._max_retries:
                return None
            self._tries += 1
        pause_s: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** max(0, self._tries - 1))
        self.resends += 1
        return pause_s

    def goes_on(self, now: float) -> None:
        """Something new came."""
        opened, self._open = self._open, None
        if opened is None:
            return
        how: How = "replayed" if self.delivered else "resent"
        self._interruptions.append(
            Interruption(
                character=opened.size,
                token=opened.tokens,
                why=opened.why,
                breaks=opened.breaks,
                how="continued" if self.continuing else how,
                given=self.given,
                engine_ms=round(opened.engine_s * 1000),
                pause_ms=round((now - opened.since) * 1000),
            )
        )

    def note(self) -> dict[str, object] | None:
        """What the response says of it; None when nothing happened."""
        if not self._interruptions:
            return None
        return {
            "count": sum(each.breaks for each in self._interruptions),
            "exact": not self.continuing,
            "interruptions": [
                {name: getattr(each, name) for name in Interruption.__slots__}
                for each in self._interruptions
            ],
        }
