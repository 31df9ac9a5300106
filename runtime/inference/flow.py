"""How an answer is obtained: what is sent, when it is sent again, and when that is given up.

Generators of effects (see :mod:`runtime.inference.effects`), shared by every client; no I/O here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.contracts import Provenance
from runtime.errors import (
    ConnectionLostError,
    ContextOverflowError,
    CutOffError,
    EngineNotRunningError,
    LLMBadResponseError,
)
from runtime.inference import failures, payload, queueing, reply
from runtime.inference.clock import Clock
from runtime.inference.effects import (
    AbortedError,
    BrokenError,
    Emit,
    ExpiredError,
    HttpRequest,
    Pause,
    Read,
    UnreachableError,
    WireError,
    locate,
    open_,
    read_all,
)
from runtime.inference.stream import Answer, SseDecoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.contracts import LLMResponse
    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits, Phase
    from runtime.inference.closing import Closed
    from runtime.inference.effects import Flow, HttpHead
    from runtime.inference.payload import Wish
    from runtime.inference.queueing import Place
    from runtime.inference.schema import Enforcement

CHAT_PATH = "/v1/chat/completions"

MAX_BODY_BYTES = 256 * 1024 * 1024
"""Longest answer that is read into memory."""

_FIRST_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request whose answer has begun."""

    endpoint: Endpoint
    head: HttpHead
    resends: int


def converse(
    wish: Wish, limits: Limits, backend: reply.Backend, *, emit: bool
) -> Flow[LLMResponse]:
    """Answer a conversation.

    Against llama.cpp every answer is streamed, also when the caller wants it whole: a stall is then
    seen within seconds, and what had arrived is known when the engine dies.

    Args:
        wish: What is asked.
        limits: Deadlines and bounds.
        backend: Who signs the response.
        emit: Whether each piece is handed out as it comes. An answer of which a piece was handed
            out is never asked for again.
    """
    clock = Clock(limits)
    place = yield from enter(clock)
    started_at = Provenance.now_iso()
    first_seed = payload.new_seed() if wish.seed is None else wish.seed
    resends = number = 0
    whole = False
    asked, blamed = wish, None
    while True:
        answer = Answer()
        seed = payload.later_seed(first_seed, number)
        try:
            ask = _ask(asked, clock, answer, seed=seed, resends=resends, emit=emit, whole=whole)
            sent, enforcement = yield from ask
        except _SilentStreamError as exc:
            whole, resends = True, exc.resends + 1
            continue
        except ContextOverflowError:
            if blamed is None:
                raise
            raise blamed from None  # there was no room to tell the model what was wrong
        closed: Closed | None = None
        try:
            room = sent.endpoint.context_tokens
            closed = reply.closed(answer, wish, keep_all=emit, context_tokens=room)
            if closed is None:
                reply.check(answer, wish)
        except LLMBadResponseError as exc:
            if (emit and answer.delivered) or number >= limits.max_retries:
                raise
            if told := payload.told(asked, sent.endpoint, answer.tool_calls):
                wish = asked = told
                blamed = None
            else:
                corrected = payload.corrected(wish, exc, answer.tool_calls)
                # The same budget would cut it off again, and the same words without chance be
                # repeated.
                if isinstance(exc, CutOffError) or (wish.temperature == 0 and corrected is None):
                    raise
                asked, blamed = (wish, None) if corrected is None else (corrected, exc)
            number += 1
            resends = sent.resends
            continue
        attempt = reply.Attempt(
            endpoint=sent.endpoint,
            seed=seed,
            max_tokens=payload.token_bound(wish, sent.endpoint),
            sampling=payload.recommended_only(wish),
            enforcement=enforcement,
            number=number,
            resends=sent.resends,
            started_at=started_at,
            closed=closed,
            tools=payload.tool_path(wish, sent.endpoint),
        )
        if emit and closed and (added := reply.addition(answer, closed)):
            yield Emit(added)
        response = reply.response(answer, attempt, backend, latency_ms=clock.elapsed_ms)
        return queueing.noted(response, place)


def enter(clock: Clock, *, bounded: bool = True) -> Flow[Place | None]:
    """A slot, waited for in line; what is sent again does not line up again.

    Raises:
        QueueFullError: The line is full, and this request is ``bounded`` by that.
        QueueTimeoutError: None was free before the total deadline.
    """
    try:
        return (yield from queueing.take_place(clock.until("total"), bounded=bounded))
    except AbortedError as exc:
        raise client_closed() from exc


class _SilentStreamError(Exception):
    """A stream that was begun as a success and ended in order without a single event."""

    def __init__(self, resends: int) -> None:
        super().__init__(resends)
        self.resends = resends


def _ask(
    wish: Wish,
    clock: Clock,
    answer: Answer,
    *,
    seed: int,
    resends: int,
    emit: bool,
    whole: bool,
) -> Flow[tuple[_Sent, Enforcement | None]]:
    """Fill ``answer`` with what the server says this time, streamed unless asked for ``whole``."""
    enforcement: Enforcement | None = None

    def request(endpoint: Endpoint) -> tuple[HttpRequest, Phase]:
        nonlocal enforcement
        stream = not whole and (emit or endpoint.kind in payload.LLAMA_CPP_KINDS)
        body, enforcement = payload.body(wish, endpoint, seed=seed, stream=stream)
        if wish.tools and wish.tools.choice != "none" and payload.prompts_tools(wish, endpoint):
            answer.read_calls()
        if wish.tools and wish.tools.call_wanted:
            answer.hold_text()
        return post(endpoint, CHAT_PATH, body), "first_token" if stream else "total"

    sent = yield from send(request, clock, resends)
    try:
        if sent.head.status != 200:
            body = yield from read_all(clock.until("total"), MAX_BODY_BYTES)
            raise failures.from_answer(sent.head, body, model=wish.model or sent.endpoint.model)
        if sent.head.content_type == "text/event-stream":
            yield from _stream(clock, answer, emit=emit)
        else:
            yield from _whole(sent.head, clock, answer, wish, emit=emit)
    except WireError as exc:
        raise _lost(exc, clock, phase="total", partial_text=answer.text) from exc
    except ConnectionLostError:
        # llama-cpp-python begins to stream before it looks at the request, and refuses it by
        # hanging up in order. Asked for the whole answer, it says why.
        if answer.touched or whole or sent.endpoint.kind in payload.LLAMA_CPP_KINDS:
            raise
        raise _SilentStreamError(sent.resends) from None
    return sent, enforcement


def _stream(clock: Clock, answer: Answer, *, emit: bool) -> Flow[None]:
    decoder = SseDecoder()
    while not answer.done:
        phase: Phase = "stall" if answer.begun else "first_token"
        try:
            data: bytes = yield Read(clock.until(phase))
        except ExpiredError as exc:
            raise clock.timeout(phase, partial_text=answer.text) from exc
        if not data:
            raise ConnectionLostError(
                "The stream ended before its answer was complete.",
                partial_text=answer.text or None,
                hint="Send the request again; the server's log may say why it ended.",
            )
        for event in decoder.feed(data):
            clock.mark()  # bytes alone do not count: a server may send comments to keep a line open
            for delta in answer.add_event(event):
                if emit:
                    yield Emit(delta)
    if answer.finish_reason is None:
        raise LLMBadResponseError(
            "The stream was closed without a reason for its end.",
            partial_text=answer.text or None,
            hint="Send the request again.",
        )


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


def send(
    request: Callable[[Endpoint], tuple[HttpRequest, Phase]], clock: Clock, resends: int = 0
) -> Flow[_Sent]:
    """Send a request until its answer begins.

    What failed before a byte of an answer came back is sent again, to wherever the server is by
    then, at most ``max_retries`` times.

    Args:
        request: Makes the request for an endpoint, and says which deadline its answer's head has.
        clock: The deadlines.
        resends: How often it was sent again already.
    """
    limits = clock.limits
    while True:
        endpoint = yield from locate(clock.left_s)
        wanted, phase = request(endpoint)
        clock.mark()
        try:
            head = yield from open_(
                wanted, connect_timeout_s=limits.connect_timeout_s, until=clock.until(phase)
            )
        except (UnreachableError, BrokenError) as exc:
            if resends >= limits.max_retries:
                raise _lost(exc, clock, phase=phase, address=endpoint.base_url) from exc
        except WireError as exc:
            raise _lost(exc, clock, phase=phase, address=endpoint.base_url) from exc
        else:
            return _Sent(endpoint, head, resends)
        # A dying engine refuses connections a moment before its end is known to who watches it.
        yield Pause(_FIRST_PAUSE_S * 2**resends)
        resends += 1


def fetch(
    request: Callable[[Endpoint], HttpRequest], clock: Clock
) -> Flow[tuple[Endpoint, HttpHead, bytes]]:
    """A whole small answer, whatever its status."""
    sent = yield from send(lambda endpoint: (request(endpoint), "total"), clock)
    try:
        body = yield from read_all(clock.until("total"), MAX_BODY_BYTES)
    except WireError as exc:
        raise _lost(exc, clock, phase="total", address=sent.endpoint.base_url) from exc
    return sent.endpoint, sent.head, body


def post(endpoint: Endpoint, path: str, body: object) -> HttpRequest:
    """A JSON request to an endpoint."""
    return HttpRequest(
        base_url=endpoint.base_url,
        path=path,
        body=payload.encode(body),
        api_key=endpoint.api_key,
    )


def _lost(
    exc: WireError,
    clock: Clock,
    *,
    phase: Phase,
    partial_text: str = "",
    address: str = "the server",
) -> Exception:
    match exc:
        case ExpiredError():
            return clock.timeout("connect" if exc.connecting else phase, partial_text=partial_text)
        case AbortedError():
            return client_closed()
        case UnreachableError():
            return ConnectionLostError(
                f"Nothing answers at {address}: {exc}.",
                hint="Is the server running, and is its address right?",
            )
    return ConnectionLostError(
        f"The connection to {address} broke before the answer was complete: {exc}.",
        partial_text=partial_text or None,
        hint="Send the request again; the server's log may say why it ended.",
    )


def client_closed() -> EngineNotRunningError:
    """The error for a request that its client's end ended."""
    return EngineNotRunningError(
        "The client is closed.", state="closed", hint="Make a new LlamaClient."
    )
