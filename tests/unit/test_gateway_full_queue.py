"""The official clients of OpenAI and Anthropic before a gateway whose line is full."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anthropic as anthropic_client
import openai as openai_client
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from runtime.gateway import anthropic, openai
from runtime.gateway.endpoints import Answering
from runtime.gateway.served import ServedModel
from runtime.gateway.traffic import Traffic
from runtime.inference.async_transport import Threads
from tests.conftest import wait_until
from tests.fakes.openai_server import FakeServer, Peer, Request, says
from tests.unit.gateway_answers import OneModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.alone

HELLO: Any = [{"role": "user", "content": "Hello."}]
ASKED: Any = {"model": "m", "max_tokens": 5, "messages": HELLO}


class Full:
    """A gateway of one slot, which is taken, and one place in line, which is taken, too.

    Attributes:
        url: Where it is.
        answered: The path and status of each answer, and when it began.
    """

    def __init__(self, server: FakeServer) -> None:
        self.answered: list[tuple[str, int, float]] = []
        self._drained = threading.Event()
        self._server = server
        self._served = ServedModel(base_url=server.url, max_queue=1)
        self._served.load()

    def app(self) -> Any:
        models: Any = OneModel(self._served)
        reader, traffic = Threads(1), Traffic()
        dialects: list[tuple[str, Any]] = [("chat/completions", openai), ("messages", anthropic)]
        app = Starlette(
            routes=[
                Route(f"/v1/{path}", Answering(models, traffic, reader, each), methods=["POST"])
                for path, each in dialects
            ]
        )

        async def noting(scope: Any, receive: Any, send: Any) -> None:
            async def noted(message: Any) -> None:
                if message["type"] == "http.response.start":
                    self.answered.append((scope["path"], message["status"], time.monotonic()))
                await send(message)

            await app(scope, receive, noted)

        return noting

    def fill(self, url: str) -> list[threading.Thread]:
        self.url = url
        self._server.will(self._held, self._held)
        threads = [threading.Thread(target=self.ask_openai) for _ in range(2)]
        for thread, waiting in zip(threads, (0, 1), strict=True):
            thread.start()
            wait_until("it has its place", lambda: self._places == (1, waiting))  # noqa: B023
        return threads

    @property
    def _places(self) -> tuple[int, int]:
        counts = self._served.queue
        return counts.running, counts.waiting

    def _held(self, peer: Peer, request: Request) -> None:
        while not self._drained.wait(0.02) and not peer.closing.is_set():
            pass
        says("I", "'m", " glad")(peer, request)

    def drain(self) -> None:
        self._drained.set()

    def ask_openai(self, **options: Any) -> str:
        with openai_client.OpenAI(base_url=f"{self.url}/v1", api_key="none", **options) as client:
            said: Any = client.chat.completions.create(**ASKED).choices[0].message
            return str(said.content)

    def ask_anthropic(self, **options: Any) -> str:
        with anthropic_client.Anthropic(base_url=self.url, api_key="none", **options) as client:
            said: Any = client.messages.create(**ASKED).content[0]
            return str(said.text)


@pytest.fixture
def full() -> Iterator[Full]:
    with FakeServer(slots=1) as engine:
        made = Full(engine)
        config = uvicorn.Config(made.app(), port=0, lifespan="off", log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until("it serves", lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        held = made.fill(f"http://127.0.0.1:{port}")
        yield made
        made.drain()
        for each in held:
            each.join(10)
        server.should_exit = True
        thread.join(10)


def test_clients_try_again_when_they_are_told_to_and_get_through(full: Full) -> None:
    asking: list[Callable[[], str]] = [full.ask_openai, full.ask_anthropic]
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(ask) for ask in asking]
        wait_until("both were refused", lambda: len(full.answered) == 2)
        full.drain()
        assert [answer.result(10) for answer in answers] == ["I'm glad", "I'm glad"]
    for path in ("/v1/chat/completions", "/v1/messages"):
        first, *others = [(status, at) for where, status, at in full.answered if where == path]
        after_s = [at - first[1] for status, at in others if status == 200][-1]
        assert first[0] == 429
        assert after_s >= 1.0, "by themselves they would come back after half a second"


def test_without_retries_the_error_names_cause_and_remedy(full: Full) -> None:
    cause = "All 1 slots are busy, and 1 requests wait already"
    with pytest.raises(openai_client.RateLimitError, match=cause) as caught:
        full.ask_openai(max_retries=0)
    assert caught.value.code == "queue_full"
    assert "try again later" in caught.value.message
    assert caught.value.response.headers["retry-after"] == "1"
    with pytest.raises(anthropic_client.RateLimitError, match=cause) as told:
        full.ask_anthropic(max_retries=0)
    assert told.value.type == "rate_limit_error"
    assert "try again later" in told.value.message
    assert told.value.response.headers["retry-after"] == "1"
