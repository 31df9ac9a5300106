"""One sending of a request: where to, what comes back, and what it means that nothing does.

Generators of effects (see :mod:`runtime.inference.effects`), shared by every client; no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.errors import (
    ConnectionLostError,
    LLMBadResponseError,
    LLMError,
    RequestTimeoutError,
    UnreadableAnswerError,
)
from runtime.inference import failures, follow_ups, payload
from runtime.inference.clock import Clock
from runtime.inference.effects import (
    BrokenError,
    Emit,
    ExpiredError,
    Pause,
    Read,
    Taken,
    read_all,
)
from runtime.inference.exchange import (
    CHAT_PATH,
    MAX_BODY_BYTES,
    TEXT_PATH,
    broken,
    late,
    located,
    opened,
    post,
)
from runtime.inference.recovery import BrokeOffError, Course
from runtime.inference.replay import DivergedError
from runtime.inference.scores import Scores
from runtime.inference.sse import SseDecoder
from runtime.inference.stream import ThoughtDelta
from runtime.inference.taking_up import fits, going_on, take_up

if TYPE_CHECKING:
    from runtime.contracts import LLMDelta
    from runtime.engines.base import Endpoint
    from runtime.inference import reply
    from runtime.inference.clock import Limits, Phase
    from runtime.inference.effects import Flow, HttpHead
    from runtime.inference.schema import Enforcement
    from runtime.inference.seating import Seating
    from runtime.inference.stream import Answer
    from runtime.inference.wishes import Wish

_TURN_LOOK_S = 0.05


class Ask:
    """One conversation under way, over all that is sent for it.

    Attributes:
        wish: What is asked.
        seating: Where it sits.
        limits: Deadlines and bounds.
        backend: Who signs the response, and what its requests know of one another.
        emit: Whether each piece is handed out as it comes.
        clock: Its deadlines, as instants.
        course: How it fares.
        ticket: By which the engine's deaths are told to be of it or of others.
    """

    def __init__(
        self, wish: Wish, seating: Seating, limits: Limits, backend: reply.Backend, *, emit: bool
    ) -> None:
        self.wish = wish
        self.seating = seating
        self.limits = limits
        self.backend = backend
        self.emit = emit
        self.clock = Clock(limits)
        self.course = Course(max_retries=limits.max_retries, emit=emit)
        self.ticket = backend.incidents.enter()


@dataclass(frozen=True, slots=True)
class Got:
    """A whole answer, and what is known of the request that brought it."""

    answer: Answer
    endpoint: Endpoint
    enforcement: Enforcement | None


class SilentStreamError(Exception):
    """A stream that was begun as a success and ended in order without a single event."""


def send(ask: Ask, asked: Wish, answer: Answer, seed: int) -> Flow[Got]:
    """Send a request once, and fill ``answer`` with what comes of it.

    Args:
        ask: The conversation.
        asked: What is asked this time.
        answer: An empty answer, or one that goes on.
        seed: For sampling.

    Raises:
        BrokeOffError: It broke off, and may be sent again.
        DivergedError: It was to come again as it had begun, and does not.
        SilentStreamError: See there.
        LLMError: Anything that sending it again would not change.
    """
    clock, course, emit = ask.clock, ask.course, ask.emit
    endpoint = yield from _located(ask)
    asked = yield from ask.seating.seated(asked, endpoint)
    stream = not course.whole and (emit or endpoint.kind in payload.LLAMA_CPP_KINDS)
    incidents = ask.backend.incidents
    course.generation = endpoint.generation
    if endpoint.generation:
        incidents.sent(ask.ticket, endpoint.generation)
    phase: Phase = "first_token" if stream else "total"
    try:
        given = yield from take_up(course, asked, endpoint, clock, seed=seed)
        asked = going_on(asked, given)
        answer.go_on_from(given)
        _prepare(answer, asked, endpoint)
        body, enforcement = payload.body(asked, endpoint, seed=seed, stream=stream)
        path = CHAT_PATH if asked.prompt is None else TEXT_PATH
        head = yield from opened(post(endpoint, path, body), clock, phase)
    except BrokeOffError as exc:
        if not exc.reached:
            incidents.never_reached(ask.ticket, endpoint.generation)
        raise
    except ExpiredError as exc:
        raise (yield from _late(exc, ask, answer, phase, endpoint)) from exc
    course.there(clock.now)
    try:
        if head.status != 200:
            said = yield from read_all(clock.until("total"), MAX_BODY_BYTES)
            error = failures.from_answer(head, said, model=asked.model or endpoint.model)
            if head.status == 503 and course.interrupted:  # it is back, and loads its model
                raise BrokeOffError(error, reached=False)
            if isinstance(error, ConnectionLostError):  # it ends, and says so
                raise BrokeOffError(error, reached=True)
            raise error
        if head.content_type == "text/event-stream":
            yield from _stream(ask, answer, endpoint)
        else:
            yield from _whole(head, clock, answer, asked, emit=emit)
            course.goes_on(clock.now)
    except DivergedError:
        can_continue = not answer.reasoning and follow_ups.can_go_on(asked, endpoint)
        if not course.diverged(can_continue=can_continue):
            raise failures.diverged(partial_text=course.partial) from None
        raise
    except ExpiredError as exc:
        raise (yield from _late(exc, ask, answer, "total", endpoint)) from exc
    except BrokenError as exc:
        raise broken(exc, endpoint.base_url) from exc
    return Got(answer, endpoint, enforcement)


def _prepare(answer: Answer, asked: Wish, endpoint: Endpoint) -> None:
    """Have an answer read as what was asked for makes it necessary."""
    if asked.tools and asked.tools.choice != "none" and payload.prompts_tools(asked, endpoint):
        answer.read_calls()
    if asked.tools and asked.tools.call_wanted:
        answer.hold_text()
    thinking = payload.thinks(asked, endpoint)
    own_words = asked.continued or asked.prompt is not None
    if not (own_words or (thinking and thinking.separated)):
        answer.read_thoughts(thinking)


def _located(ask: Ask) -> Flow[Endpoint]:
    """Where to send the request now; waits while the engine is started again.

    Raises:
        CrashingRequestError: The engine died because of this request.
    """
    clock, course, incidents = ask.clock, ask.course, ask.backend.incidents
    endpoint = yield from _located_once(ask)
    if endpoint.generation != course.generation:
        if endpoint.generation:
            course.there(clock.now)
        if course.generation:
            course.replaced()
            died_of = endpoint.predecessor_died_of
            if endings := incidents.died(ask.ticket, course.generation, died_of):
                raise failures.crashing_request(endings, partial_text=course.partial)
    while not incidents.may_send(ask.ticket):
        if not clock.left_s:
            doing = "it waited for other requests, of which one may be what the engine crashes on"
            raise clock.timeout("total", partial_text=course.partial, doing=doing)
        yield Pause(_TURN_LOOK_S)
        endpoint = yield from _located_once(ask)
    course.located(clock.now)
    return endpoint


def _located_once(ask: Ask) -> Flow[Endpoint]:
    try:
        return (yield from located(ask.clock, partial_text=ask.course.partial))
    except RequestTimeoutError:
        raise
    except LLMError as exc:  # also that its model's file is gone
        if partial := ask.course.partial:
            raise failures.did_not_come_back(exc, partial_text=partial) from exc
        raise


def _late(
    exc: ExpiredError, ask: Ask, answer: Answer, phase: Phase, endpoint: Endpoint
) -> Flow[RequestTimeoutError]:
    return late(
        exc,
        ask.clock,
        phase,
        address=endpoint.base_url,
        doing=_doing(answer, phase, told=endpoint.kind in payload.LLAMA_CPP_KINDS),
        partial_text=answer.text or ask.course.partial,
    )


def _doing(answer: Answer, phase: Phase, *, told: bool) -> str:
    if answer.moves:
        return f"the engine had given {answer.tokens:,} token{'s' * (answer.tokens != 1)}"
    if answer.progress is None:
        return "no slot of the engine had taken it up" if told and phase != "total" else ""
    done, total = answer.progress
    if done < total:
        return f"the engine was processing the prompt, {done:,} of {total:,} tokens"
    return f"the engine had processed the prompt of {total:,} tokens"


def _stream(ask: Ask, answer: Answer, endpoint: Endpoint) -> Flow[None]:
    clock, course, emit = ask.clock, ask.course, ask.emit
    replay = course.replay() if emit else None
    interrupted = course.interrupted
    moving = False
    decoder = SseDecoder()
    thought_size = 0
    scores = Scores(course)

    def shortcut(packet: bytes) -> Taken | None:
        """What the loop below does with a token like the one before."""
        if (delta := answer.add_alike(packet)) is None:
            return None
        clock.mark()
        return Taken([scores.put_on(delta)] if emit else (), clock.until("stall"))

    while not answer.done:
        phase: Phase = "stall" if moving else "first_token"
        plain = moving and replay is None and not (interrupted or decoder.amid_event)
        try:
            data: bytes = yield Read(clock.until(phase), shortcut if plain else None)
        except ExpiredError as exc:
            raise (yield from _late(exc, ask, answer, phase, endpoint)) from exc
        if not data:
            # llama-cpp-python begins to stream before it looks at the request, and refuses it by
            # hanging up in order. Asked for the whole answer, it says why.
            refused = not (answer.touched or endpoint.kind in payload.LLAMA_CPP_KINDS)
            if refused and not course.whole:
                raise SilentStreamError
            raise BrokeOffError(failures.unfinished(), reached=True)
        for event in decoder.feed(data):
            try:
                deltas = answer.add_event(event)
            except ConnectionLostError as exc:  # it says itself that it failed
                raise BrokeOffError(exc, reached=True) from exc
            except UnreadableAnswerError as exc:
                exc.partial_text = answer.partial
                raise
            if not moving and answer.moves and not fits(answer, course, endpoint):
                raise DivergedError
            moving = moving or answer.moves
            if moving:
                clock.mark()  # comments and progress do not count: no token came
            elif answer.progress is not None:
                _expect_prompt(ask, answer)
            if not emit:
                if interrupted and moving:
                    interrupted = False
                    course.goes_on(clock.now)
                continue
            scores.take(answer.take_logprobs())
            if thought := answer.take_thought():
                thought_size += len(thought)
                new_size = thought_size - course.thought_size
                if new_size > 0:  # else it came before the answer broke off
                    course.thought_size = thought_size
                    yield Emit(ThoughtDelta(thought=thought[-new_size:]))
            for delta in deltas:
                if replay is None:
                    new: LLMDelta | None = delta
                else:
                    new = replay.passing(delta)
                    replay = None if replay.over else replay
                if new is not None:
                    if interrupted:
                        interrupted = False
                        course.goes_on(clock.now)
                    yield Emit(scores.put_on(new))
    if replay is not None and not replay.caught_up:
        raise DivergedError
    if interrupted:
        course.goes_on(clock.now)
    if answer.finish_reason is None:
        raise LLMBadResponseError(
            "The stream was closed without a reason for its end.",
            partial_text=answer.text or None,
            hint="Send the request again.",
        )


def _expect_prompt(ask: Ask, answer: Answer) -> None:
    """Give the first token the time that a prompt of this length takes here."""
    if answer.progress is not None:
        done, total = answer.progress
        pace = ask.backend.pace
        expected_s = pace.seconds(total)
        if done and answer.prompt_s:
            expected_s = max(expected_s, answer.prompt_s * total / done)
        ask.clock.expect(expected_s)


def _whole(head: HttpHead, clock: Clock, answer: Answer, wish: Wish, *, emit: bool) -> Flow[None]:
    try:
        body = yield from read_all(clock.until("total"), MAX_BODY_BYTES)
    except ExpiredError as exc:
        raise clock.timeout("total") from exc
    if head.content_type != "application/json" or not body.strip():
        raise failures.not_a_completion(head, body)
    deltas = answer.add_completion(body, continued=wish.continued)
    if emit:  # a server that does not stream although asked to
        for delta in deltas:
            yield Emit(delta)
