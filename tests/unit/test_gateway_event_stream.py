"""A streamed answer gives signs of life while there is nothing to say."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from runtime.contracts import LLMDelta
from runtime.errors import ConnectionLostError
from runtime.gateway import anthropic, openai, openai_text
from runtime.gateway.event_stream import EventStream
from runtime.gateway.responses import Responses
from tests.unit.gateway_answers import response
from tests.unit.test_gateway_anthropic import ASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.gateway.dialect import Encoder

HELLO = LLMDelta(text_delta="Hello.")
PATIENCE_S = 10.0


class Reply:
    """Writes down what is sent; sending the head takes as long as ``slow`` says."""

    def __init__(self, slow: asyncio.Event | None = None) -> None:
        self.sent: list[str] = []
        self.late: list[str] = []
        self._slow = slow
        self._heard = asyncio.Event()

    async def begin(self) -> None:
        self._note("head")
        if self._slow is not None:
            await self._slow.wait()

    async def piece(self, data: bytes) -> None:
        self.late.append(data.decode())
        self._note(data.decode())

    def piece_now(self, data: bytes) -> bool:
        self._note(data.decode())
        return True

    async def end(self, data: bytes) -> None:
        self._note(data.decode() + "end")

    def _note(self, sent: str) -> None:
        self.sent.append(sent)
        self._heard.set()

    async def until(self, condition: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition(self.sent):
                await self._heard.wait()
                self._heard.clear()


async def say(events: EventStream, *pieces: LLMDelta) -> None:
    """Send pieces as an answer under way does."""
    if not events.take(pieces):
        await events.settle()


def encoder() -> Encoder:
    return anthropic.encoder(anthropic.request(ASK))


def kinds(sent: list[str]) -> list[str]:
    """What was sent, told by the first word that says it."""
    words = ("message_start", "Hello.", "ping", "message_stop", "error", "head")
    return [next(word for word in words if word in each) for each in sent]


def test_a_quick_answer_is_left_alone() -> None:
    async def talk() -> list[str]:
        reply = Reply()
        events = EventStream(reply, encoder(), "tiny")
        with events.alive():
            assert not events.begun
            await say(events, HELLO)
            await say(events, HELLO)
            assert not reply.late  # the first, too, leaves before another request has its turn
        await events.end(response("Hello.Hello."))
        return reply.sent

    sent = asyncio.run(talk())
    assert kinds(sent) == ["head", "message_start", "Hello.", "message_stop"]
    assert "Hello." in sent[1]  # the first token waits for no packet of its own


def test_silence_is_broken_before_the_first_piece_and_after() -> None:
    async def talk() -> list[str]:
        reply = Reply()
        events = EventStream(reply, encoder(), "tiny", silence_s=0.01)
        with events.alive():
            await reply.until(lambda sent: len(sent) > 3)
            assert events.begun
            await say(events, HELLO)
            at = len(reply.sent)
            await reply.until(lambda sent: len(sent) > at)
        last = len(reply.sent)
        await asyncio.sleep(0.05)  # a sign that came after the end would come now
        assert len(reply.sent) == last
        await events.end(response("Hello."))
        return reply.sent

    sent = asyncio.run(talk())
    told = kinds(sent)
    assert told[:3] == ["head", "message_start", "ping"]
    assert told.count("message_start") == 1
    assert told.index("Hello.") > 2
    assert told[-2:] == ["ping", "message_stop"]


@pytest.mark.parametrize("what", ["piece", "end", "failed"])
def test_what_comes_does_not_overtake_the_beginning(what: str) -> None:
    async def talk() -> list[str]:
        slow = asyncio.Event()
        reply = Reply(slow)
        events = EventStream(reply, encoder(), "tiny", silence_s=0.01)
        said: Any = {
            "piece": lambda: say(events, HELLO),
            "end": lambda: events.end(response("Hello.")),
            "failed": lambda: events.failed(ConnectionLostError("Gone.")),
        }
        with events.alive():
            await reply.until(bool)
            saying = asyncio.create_task(said[what]())
            await asyncio.sleep(0)
            assert reply.sent == ["head"]
            slow.set()
            await saying
        return reply.sent

    assert kinds(asyncio.run(talk()))[:2] == ["head", "message_start"]


def test_a_client_that_is_gone_is_no_failure() -> None:
    class Gone(Reply):
        async def begin(self) -> None:
            await super().begin()
            raise TimeoutError

    async def talk() -> None:
        reply = Gone()
        events = EventStream(reply, encoder(), "tiny", silence_s=0.01)
        with events.alive():
            await reply.until(bool)

    asyncio.run(talk())


def test_every_dialect_has_a_sign_that_says_nothing() -> None:
    responses = Responses()
    chat = {"messages": [{"role": "user", "content": "Hi."}]}
    made: list[Encoder] = [
        encoder(),
        responses.encoder(responses.request({"input": "Hi."})),
        openai.encoder(openai.request(chat)),
        openai_text.encoder(openai_text.request({"prompt": "Hi."})),
    ]

    for each in made:
        assert each.alive.endswith(b"\n\n")
        assert each.alive.startswith(b":") or b'"ping"' in each.alive
