"""How an answer is obtained: what is sent, when it is sent again, and when that is given up.

Generators of effects (see :mod:`runtime.inference.effects`), shared by every client; no I/O here.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

from runtime.contracts import Provenance
from runtime.errors import (
    ContextOverflowError,
    CutOffError,
    LLMBadResponseError,
    LLMInvalidRequestError,
    ServerStatusError,
    UnreadableAnswerError,
)
from runtime.inference import failures, follow_ups, payload, queueing, reply, wishes
from runtime.inference.attempt import Ask, SilentStreamError, send
from runtime.inference.effects import Emit, Pause
from runtime.inference.recovery import BrokeOffError
from runtime.inference.replay import DivergedError
from runtime.inference.seating import Seating

if TYPE_CHECKING:
    from runtime.contracts import LLMResponse
    from runtime.inference.attempt import Got
    from runtime.inference.clock import Limits
    from runtime.inference.closing import Closed
    from runtime.inference.effects import Flow
    from runtime.inference.places import Places
    from runtime.inference.sessions import Keeping
    from runtime.inference.wishes import Wish

_LONG: Final = 400
"""Characters, some 100 tokens. What shorter prompts gain by turns, the last of them and all tokens
per second lose (docs/performance.md)."""


def converse(
    wish: Wish,
    limits: Limits,
    backend: reply.Backend,
    *,
    emit: bool,
    places: Places | None = None,
    keeping: Keeping | None = None,
) -> Flow[LLMResponse]:
    """Answer a conversation.

    Against llama.cpp every answer is streamed, also when the caller wants it whole: a stall is then
    seen within seconds. An answer that breaks off is asked for again, see
    :mod:`runtime.inference.recovery`.

    Args:
        wish: What is asked.
        limits: Deadlines and bounds.
        backend: Who signs the response, and what its requests know of one another.
        emit: Whether each piece is handed out as it comes. An answer of which a piece was handed
            out is never asked for with another seed.
        places: The slots of the engine, when it is ours alone.
        keeping: The sessions of that engine.
    """
    seating = Seating(wish, places, keeping, backend.pace)
    ask = Ask(wish, seating, limits, backend, emit=emit)
    try:
        place = yield from queueing.take_place(ask.clock.until("total"), long=_is_long(wish))
        response = yield from _answered(ask)
        return queueing.noted(seating.noted(response), place)
    finally:
        seating.leave()
        backend.incidents.leave(ask.ticket)


def _is_long(wish: Wish) -> bool:
    """Whether computing the prompt may take much longer than the fixed costs of a step."""
    sizes = accumulate(len(str(each["content"])) for each in wish.messages)
    return bool(wish.tools) or any(size >= _LONG for size in sizes)


def _answered(ask: Ask) -> Flow[LLMResponse]:
    """Ask until the answer is what was asked for, each time with another seed."""
    wish, emit, course = ask.wish, ask.emit, ask.course
    started_at = Provenance.now_iso()
    first_seed = wishes.new_seed() if wish.seed is None else wish.seed
    number = 0
    asked, blamed = wish, None
    while True:
        seed = wishes.later_seed(first_seed, number)
        try:
            got = yield from _unbroken(ask, asked, seed)
        except ContextOverflowError:
            if blamed is None:
                raise
            raise blamed from None  # there was no room to tell the model what was wrong
        except UnreadableAnswerError as exc:
            delivered = course.delivered or (emit and exc.partial_text)
            if delivered or number >= ask.limits.max_retries:
                raise
            # Calls in a form of ours need no reading by the server.
            wish = asked = follow_ups.telling(wish)
            blamed = None
            number += 1
            course.begin_anew()
            continue
        except (LLMInvalidRequestError, ServerStatusError) as exc:
            if (better := follow_ups.repaired(asked, exc)) is None:
                raise
            asked, wish = better, follow_ups.repaired(wish, exc) or wish
            continue
        answer = got.answer
        ask.seating.landed = answer.slot
        ask.backend.pace.learn_from(answer.timings)
        closed: Closed | None = None
        try:
            room = got.endpoint.context_tokens
            closed = reply.closed(answer, wish, keep_all=emit, context_tokens=room)
            if closed is None:
                reply.check(answer, wish)
        except LLMBadResponseError as exc:
            if (emit and answer.delivered) or number >= ask.limits.max_retries:
                raise
            if told := follow_ups.told(asked, got.endpoint, answer.tool_calls):
                wish = asked = told
                blamed = None
            else:
                corrected = follow_ups.corrected(wish, exc, answer.tool_calls)
                # The same budget would cut it off again, and the same words without chance be
                # repeated.
                if isinstance(exc, CutOffError) or (wish.temperature == 0 and corrected is None):
                    raise
                asked, blamed = (wish, None) if corrected is None else (corrected, exc)
            number += 1
            course.begin_anew()
            continue
        attempt = reply.Attempt(
            endpoint=got.endpoint,
            seed=seed,
            max_tokens=payload.token_bound(wish, got.endpoint),
            sampling=payload.recommended_only(wish),
            enforcement=got.enforcement,
            number=number,
            resends=course.resends,
            started_at=started_at,
            closed=closed,
            tools=payload.tool_path(asked, got.endpoint),
            recovery=course.note(),
            repair=asked.repair,
        )
        if emit and closed and (added := reply.addition(answer, closed)):
            yield Emit(added)
        return reply.response(answer, attempt, ask.backend, latency_ms=ask.clock.elapsed_ms)


def _unbroken(ask: Ask, asked: Wish, seed: int) -> Flow[Got]:
    """A whole answer, over whatever breaks it off."""
    course, clock = ask.course, ask.clock
    while True:
        answer = course.blank()
        try:
            return (yield from send(ask, asked, answer, seed))
        except SilentStreamError:
            course.whole = True
            course.resends += 1
        except DivergedError:
            continue
        except BrokeOffError as exc:
            pause_s = course.broke_off(answer, exc, clock.now)
            if pause_s is None:
                raise failures.with_partial(exc.error, course.partial) from exc.__cause__
            # A dying engine refuses connections a moment before who watches it knows of its end.
            yield Pause(pause_s)
