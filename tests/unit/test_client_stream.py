"""Streams end when they are left, from wherever, and their server notices at once."""

from __future__ import annotations

import gc
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime import EngineNotRunningError, LlamaClient, LLMError, LLMInvalidRequestError
from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.inference import wishes
from runtime.inference.clock import Limits
from runtime.inference.effects import (
    BrokenError,
    Emit,
    Enter,
    HttpHead,
    Locate,
    Open,
    Pause,
    Read,
    UnreachableError,
)
from runtime.inference.flow import converse
from runtime.inference.reply import Backend
from tests.fakes.openai_server import FakeServer, Stalls, events_of, says

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime import LLMStreamEvent
    from runtime.client._stream import AnswerStream

pytestmark = pytest.mark.alone

NOTICED_WITHIN_S = 5.0


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[LlamaClient]:
    with LlamaClient(base_url=server.url) as made:
        yield made


def begun(client: LlamaClient, server: FakeServer) -> tuple[AnswerStream[LLMStreamEvent], Stalls]:
    """A stream of which one piece was heard and more would come."""
    stall = Stalls(pieces=("I",))
    server.will(stall)
    stream = client.stream_chat("hi")
    assert next(stream).delta_text == "I"
    return stream, stall


def test_nothing_is_sent_before_the_first_piece_is_asked_for(
    client: LlamaClient, server: FakeServer
) -> None:
    before = len(server.chats)
    stream = client.stream_chat("hi")
    stream.close()
    assert list(stream) == []
    assert len(server.chats) == before


def test_what_cannot_be_right_is_refused_before_iterating(client: LlamaClient) -> None:
    with pytest.raises(LLMInvalidRequestError):
        client.stream_chat([])


def test_closing_a_stream_hangs_up(client: LlamaClient, server: FakeServer) -> None:
    stream, stall = begun(client, server)
    stream.close()
    assert stall.hung_up.wait(NOTICED_WITHIN_S)
    assert list(stream) == []
    stream.close()


def test_leaving_its_block_hangs_up(client: LlamaClient, server: FakeServer) -> None:
    stream, stall = begun(client, server)
    with stream:
        pass
    assert stall.hung_up.wait(NOTICED_WITHIN_S)


def test_breaking_out_of_a_loop_and_forgetting_it_hangs_up(
    client: LlamaClient, server: FakeServer
) -> None:
    stall = Stalls(pieces=("a", "b"))
    server.will(stall)
    for event in client.stream_chat("hi"):
        assert event.delta_text == "a"
        break
    gc.collect()
    assert stall.hung_up.wait(NOTICED_WITHIN_S)


def test_an_error_in_the_loop_hangs_up(client: LlamaClient, server: FakeServer) -> None:
    stall = Stalls(pieces=("a", "b"))
    server.will(stall)

    def fails() -> None:
        for _ in client.stream_chat("hi"):
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    gc.collect()
    assert stall.hung_up.wait(NOTICED_WITHIN_S)


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except LLMError as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def test_another_thread_may_close_a_stream_that_waits(
    client: LlamaClient, server: FakeServer
) -> None:
    stream, stall = begun(client, server)
    thread, outcome = in_thread(lambda: list(stream))
    assert stall.begun.wait(NOTICED_WITHIN_S)
    stream.close()
    thread.join(NOTICED_WITHIN_S)
    assert not thread.is_alive()
    assert outcome == [[]]  # its iteration simply ends
    assert stall.hung_up.wait(NOTICED_WITHIN_S)


@pytest.mark.parametrize("answers", [True, False])
def test_closing_the_client_ends_every_request_at_once(
    client: LlamaClient, server: FakeServer, answers: bool
) -> None:
    stalls = [Stalls(answers=answers) for _ in range(4)]  # two more wait for a slot
    server.will(*stalls)
    threads = [in_thread(lambda: client.chat("hi")) for _ in range(3)]
    threads += [in_thread(lambda: list(client.stream_chat("hi"))) for _ in range(3)]
    for stall in stalls:
        assert stall.begun.wait(NOTICED_WITHIN_S)
    closed_at = time.monotonic()
    client.close()
    for thread, outcome in threads:
        thread.join(NOTICED_WITHIN_S)
        assert isinstance(outcome[0], EngineNotRunningError), outcome
        assert outcome[0].state == "closed"
    assert time.monotonic() - closed_at < 1


def test_a_finished_stream_stays_finished(client: LlamaClient) -> None:
    stream = client.stream_chat("hi")
    assert [each.kind for each in stream][-1] == "completed"
    assert list(stream) == []
    stream.close()


def test_a_failed_stream_stays_ended(client: LlamaClient, server: FakeServer) -> None:
    server.will(*[says()] * 3)
    stream = client.stream_chat("hi")
    with pytest.raises(LLMError):
        next(stream)
    assert list(stream) == []


# --- the flow, driven by hand -----------------------------------------------------------------

BACKEND = Backend(name="n", config_hash="h")


def script(
    endpoint: Endpoint, *answers: Any, limits: Limits | None = None
) -> tuple[list[Any], Any]:
    """Drive a conversation with prepared answers; what it asked for, and what it returned."""
    wish = wishes.from_chat("hi", model=None, params=None)
    flow = converse(wish, limits or Limits(), BACKEND, emit=True)
    asked: list[Any] = []
    queue = list(answers)
    result: Any = None
    while True:
        try:
            effect = flow.throw(result) if isinstance(result, Exception) else flow.send(result)
        except StopIteration as stop:
            return asked, stop.value
        asked.append(effect)
        if isinstance(effect, Locate):
            result = endpoint
        elif isinstance(effect, Open | Read):
            result = queue.pop(0)
        else:
            result = None


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint(
        base_url="http://127.0.0.1:1",
        api_key=None,
        kind="xllamacpp",
        model="m",
        capabilities=EngineCapabilities(),
        context_tokens=64,
    )


HEAD = HttpHead(status=200, headers={"content-type": "text/event-stream; charset=utf-8"})


def test_the_server_is_looked_for_anew_before_a_request_is_sent_again(endpoint: Endpoint) -> None:
    """It may be elsewhere by then: a restarted engine has another port."""
    asked, reply = script(
        endpoint, UnreachableError("refused"), BrokenError("gone"), HEAD, *events_of(["x"])
    )
    assert [type(each) for each in asked if not isinstance(each, Read | Emit)] == [
        Enter, Locate, Open, Pause, Locate, Open, Pause, Locate, Open,
    ]  # fmt: skip
    pauses = [each.seconds for each in asked if isinstance(each, Pause)]
    assert pauses == [0.1, 0.2]
    assert reply.raw["resends"] == 2


def test_after_the_closing_mark_nothing_is_read(endpoint: Endpoint) -> None:
    """The connection need not be drained: it is closed."""
    _, reply = script(endpoint, HEAD, b"".join(events_of(["x"])))
    assert reply.text == "x"


def test_deadlines_are_instants_that_move_with_events_only(endpoint: Endpoint) -> None:
    limits = Limits(first_token_timeout_s=100, stall_timeout_s=10, request_timeout_s=1000)
    first, *rest = events_of(["x", "y"])
    asked, _ = script(endpoint, HEAD, b": ping\n\n", first, b": ping\n\n", *rest, limits=limits)
    now = time.monotonic()
    untils = [each.until - now for each in asked if isinstance(each, Open | Read)]
    opened, silent, pinged, role, *others = untils
    assert opened == silent == pinged  # a comment moves nothing
    assert 99 < opened <= 100
    assert 99 < role <= 100  # the role alone is no token
    assert all(9 < until <= 10 for until in others[1:])
