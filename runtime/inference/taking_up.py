"""Giving an engine what an answer had, instead of having it written again: faster, and the same.

A replay decodes again what the caller has. At temperature 0 no chance is in it, and where tokens
computed together have the same bits as one by one (:class:`~runtime.engines.base.SameBits`), the
engine is in the same state when it is given them as a part of the prompt. It is given nearly all: a
few are written again, as in any replay, and compared. What does not fit is replayed from the start.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from runtime.inference import follow_ups, payload
from runtime.inference.effects import BrokenError, read_all
from runtime.inference.exchange import CHAT_PATH, MAX_BODY_BYTES, TEXT_PATH, broken, opened, post

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.engines.base import Endpoint, SameBits
    from runtime.inference.clock import Clock
    from runtime.inference.effects import Flow
    from runtime.inference.recovery import Course
    from runtime.inference.stream import Answer
    from runtime.inference.wishes import Wish

WRITTEN_AGAIN: Final = 4
"""Tokens that the engine is not given, and must come to by itself."""

LEAST: Final = 8
"""Fewer tokens are not worth it."""

_HARMLESS: Final = frozenset(
    {"id_slot", "verbose", "stop", "top_k", "top_p", "min_p", "cache_prompt", "ignore_eos"}
)
"""Options that bring no chance and no memory of their own into an answer at temperature 0."""


def steps(tokens: int, *, prompt_tokens: int, same_bits: SameBits) -> tuple[int, ...]:
    """How many of an answer's tokens to give, in one request after the other; empty: none.

    Each request computes what the one before has not, in one step of the engine, and the first one
    the prompt: with the first tokens where both are few, else by itself, as it was before.

    Args:
        tokens: Those that came.
        prompt_tokens: Of the prompt alone.
        same_bits: What the engine is known to do.
    """
    most = tokens - WRITTEN_AGAIN
    if same_bits.context is not None:
        most = min(most, same_bits.context - prompt_tokens)
    if most < LEAST:
        return ()
    step = same_bits.step
    if step is None:
        return (most,)
    full = range(max(0, step - prompt_tokens), most, step)
    # A few more are written in the time that another request would take.
    return (*full,) if full and most - full[-1] < LEAST else (*full, most)


def take_up(
    course: Course, asked: Wish, endpoint: Endpoint, clock: Clock, *, seed: int
) -> Flow[tuple[str, ...]]:
    """What of an answer that broke off the engine is to go on from; it is made ready for that.

    Args:
        course: How the request has fared.
        asked: The request, with the slot that it names.
        endpoint: Where it goes.
        clock: Its deadlines.
        seed: For sampling, which is none.

    Returns:
        Pieces of text, a token each; empty: all of it is to come again.

    Raises:
        BrokeOffError: The engine is gone again.
        ExpiredError: A deadline passed.
    """
    pieces = course.delivered.pieces
    if not course.continuing:
        pieces = pieces[: (yield from _given(course, asked, endpoint, clock, seed))]
    course.given = len(pieces)
    return pieces


def _given(course: Course, asked: Wish, endpoint: Endpoint, clock: Clock, seed: int) -> Flow[int]:
    pieces, prompt_tokens, same_bits = (
        course.delivered.pieces,
        course.prompt_tokens,
        endpoint.same_bits,
    )
    able = course.takes_up and _is_plain(asked, endpoint)
    if not (able and pieces and prompt_tokens and same_bits):
        return 0
    planned = steps(len(pieces), prompt_tokens=prompt_tokens, same_bits=same_bits)
    for given in planned[:-1]:
        begun = replace(going_on(asked, pieces[:given]), max_tokens=1)
        body, _ = payload.body(begun, endpoint, seed=seed, stream=False)
        path = CHAT_PATH if begun.prompt is None else TEXT_PATH
        head = yield from opened(post(endpoint, path, body), clock, "first_token")
        try:
            said = yield from read_all(clock.until("total"), MAX_BODY_BYTES)
        except BrokenError as exc:
            raise broken(exc, endpoint.base_url) from exc
        counted = _prompt_tokens(said) if head.status == 200 else None
        if counted != prompt_tokens + given:  # it reads the text as other tokens
            return 0
    return planned[-1] if planned else 0


def fits(answer: Answer, course: Course, endpoint: Endpoint) -> bool:
    """Whether the engine has read what it was given as it was meant, and in one step."""
    if course.continuing or not course.given or endpoint.same_bits is None:
        return True
    if answer.progress is None or answer.cached is None:
        return False
    step, (_, whole) = endpoint.same_bits.step, answer.progress
    in_one_step = step is None or whole - answer.cached <= step
    return in_one_step and answer.prompt_tokens == course.prompt_tokens


def going_on(asked: Wish, pieces: Sequence[str]) -> Wish:
    """The request for what comes after the first pieces of its answer."""
    return follow_ups.going_on(asked, "".join(pieces), len(pieces)) if pieces else asked


def _is_plain(asked: Wish, endpoint: Endpoint) -> bool:
    return (
        asked.temperature == 0
        and not asked.continued
        and asked.options.keys() <= _HARMLESS
        and "id_slot" in asked.options  # else the next request may be in another slot
        and follow_ups.can_go_on(asked, endpoint)
        and payload.thinks(asked, endpoint) is None
    )


def _prompt_tokens(body: bytes) -> int | None:
    try:
        said = json.loads(body)
    except ValueError:
        return None
    match said:
        case {"usage": {"prompt_tokens": int(count)}}:
            return count
    return None
