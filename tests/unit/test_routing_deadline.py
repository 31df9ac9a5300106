"""The deadline of a routed request is one for the wait for its model and for its answer."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from runtime import QueueFullError, RequestTimeoutError, TaskProfile
from runtime.client._loading import RoutedClient
from runtime.client._pool import ModelPool
from runtime.client._router import Router
from runtime.client._speeds import SpeedBook
from runtime.inference import wishes
from tests.fakes.openai_server import FakeServer, Stalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.alone

LOADING_S = 0.4
TIMEOUT_S = 0.8


class Slow:
    """Loads a client of a server that runs, and takes its time."""

    def __init__(self, address: str) -> None:
        self.address = address

    def prepare(self, name: str) -> int:
        return 1

    def load(self, name: str) -> RoutedClient:
        threading.Event().wait(LOADING_S)
        return RoutedClient(base_url=self.address, request_timeout_s=TIMEOUT_S)

    def unload(self, name: str, loaded: RoutedClient) -> None:
        loaded.close()

    def usable(self, name: str, loaded: RoutedClient) -> bool:
        return True

    def measured_bytes(self, name: str, loaded: RoutedClient) -> int | None:
        return None


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def router(server: FakeServer) -> Iterator[Router]:
    model: Any = SimpleNamespace(name="a", names=("a",), key=None, facts=SimpleNamespace(slots=1))
    pool = ModelPool(Slow(server.url), budget_bytes=1, idle_timeout_s=None)
    yield Router(
        {"a": model},
        pool=pool,
        book=SpeedBook(),
        profile=TaskProfile(),
        budget_bytes=1,
        timeout_s=TIMEOUT_S,
        max_queue=1,
    )
    pool.close()


def whole(router: Router) -> object:
    wish = wishes.from_chat("hi", model="a", params=None)
    return router.answer(wish, None, lambda client: client.chat("hi"))


def streamed(router: Router) -> object:
    wish = wishes.from_chat("hi", model="a", params=None)
    return list(router.stream(wish, None, lambda client: client.stream_chat("hi")))


def embedded(router: Router) -> object:
    return router.use("a", lambda client: client.embed(["hi"]))


def counted(router: Router) -> object:
    return router.use("a", lambda client: client.count_tokens("hi"))


@pytest.mark.parametrize("asked", [whole, streamed, embedded, counted])
def test_an_answer_has_the_time_that_its_model_left(
    router: Router, server: FakeServer, asked: Callable[[Router], object]
) -> None:
    server.will(Stalls(answers=False), Stalls(answers=False))
    server.stalling |= {"/v1/embeddings", "/tokenize"}
    with pytest.raises(RequestTimeoutError) as caught:
        asked(router)
    assert caught.value.phase == "total"
    assert caught.value.after_s <= TIMEOUT_S - LOADING_S + 0.2

    began_at = time.monotonic()
    with pytest.raises(RequestTimeoutError) as caught:
        asked(router)
    assert time.monotonic() - began_at >= TIMEOUT_S, "the client's own deadline is as it was"


def test_who_waits_for_a_load_stands_in_line(router: Router) -> None:
    """One slot and a line of one: the third is refused while the two wait."""
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(whole, router) for _ in range(3)]
        problems = [each.exception() for each in asked]
    (refused,) = filter(None, problems)
    assert isinstance(refused, QueueFullError)
    assert (refused.waiting, refused.running, refused.max_queue) == (2, 0, 2)
