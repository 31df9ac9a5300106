"""More requests than slots wait in order, within a bound, and none costs another its turn."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import (
    AsyncLlamaClient,
    ConfigError,
    EngineNotRunningError,
    LlamaClient,
    LLMMessage,
    LLMRateLimitError,
    LLMRequest,
    QueueFullError,
    QueueTimeoutError,
    ToolSpec,
)
from runtime.inference import flow, wishes
from runtime.inference.clock import Limits
from runtime.inference.effects import Enter
from runtime.inference.policy import Policy
from runtime.inference.queueing import Place, SlotQueue, take_place
from runtime.inference.reply import Backend
from tests.conftest import wait_until
from tests.fakes.openai_server import FakeServer, Peer, Request, cuts_before_answering, says

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime import LLMResponse

pytestmark = pytest.mark.alone

SLOTS = 2
FIND = ToolSpec(name="find", description="", input_schema={"type": "object"}, output_schema={})


@dataclass
class Desk:
    """Answers when it is told to, and counts who is there at once."""

    open: threading.Event = field(default_factory=threading.Event)
    order: list[str] = field(default_factory=list)
    at_once: int = 0
    most: int = 0
    work_s: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, peer: Peer, request: Request) -> None:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            self.order.append(request.body["messages"][-1]["content"])
        while not self.open.wait(0.02):
            if peer.closing.is_set() or peer.hangs_up_within(0.001):
                break
        peer.closing.wait(self.work_s)  # what decoding takes
        with self._lock:
            self.at_once -= 1
        says("I", "'m", " glad")(peer, request)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(slots=SLOTS) as running:
        yield running


def counts(client: LlamaClient | AsyncLlamaClient) -> tuple[int, int]:
    queue = client._source.queue.counts
    return queue.running, queue.waiting


# --- the queue by itself ----------------------------------------------------------------------


@given(st.integers(1, 4), st.lists(st.integers(0, 12), max_size=60))
def test_whatever_comes_and_goes_the_line_keeps_its_order(slots: int, steps: list[int]) -> None:
    """0 to 3: somebody comes; else the one of that number leaves, in line or at work."""
    queue = SlotQueue(1000)
    queue.resize(slots)
    granted: list[int] = []
    places: dict[int, Place] = {}
    came: list[int] = []
    for number, step in enumerate(steps):
        if step < 4:
            places[number] = place = queue.enter(partial(granted.append, number))
            came.append(number)
            if place.granted:
                assert place.ahead is None
                granted.append(number)
        elif places:
            gone = list(places)[step % len(places)]
            queue.leave(places.pop(gone))
        at_work = [number for number, place in places.items() if place.granted]
        in_line = [number for number, place in places.items() if not place.granted]
        assert queue.counts.running == len(at_work) <= slots
        assert queue.counts.waiting == len(in_line)
        assert not in_line or len(at_work) == slots, "nobody waits while a slot is free"
        assert not in_line or max(at_work) < min(in_line), "nobody overtakes"
    assert granted == sorted(granted)


def test_a_full_line_says_when_there_will_be_room() -> None:
    queue = SlotQueue(0)
    queue.resize(2)

    def refused() -> float | None:
        with pytest.raises(QueueFullError) as caught:
            queue.enter(lambda: None)
        return caught.value.retry_after_s

    places = [queue.enter(lambda: None) for _ in range(2)]
    assert refused() is None, "none has ended yet"
    places[0].granted_at -= 8.0
    queue.leave(places[0])
    places[0] = queue.enter(lambda: None)
    assert refused() == pytest.approx(4.0, abs=0.1), "two slots, eight seconds each"
    places[0].granted_at -= 3.0
    queue.leave(places[0])
    queue.enter(lambda: None)
    assert refused() == pytest.approx(3.5, abs=0.1), "the latest counts for a fifth"


def test_nobody_waits_for_a_server_whose_slots_are_not_known() -> None:
    queue = SlotQueue(0)
    assert all(queue.enter(lambda: None).granted for _ in range(100))


def test_slots_that_come_to_be_let_the_line_move_up() -> None:
    queue = SlotQueue(10)
    queue.resize(1)
    places = [queue.enter(lambda: None) for _ in range(4)]
    queue.resize(3)
    assert [place.granted for place in places] == [True, True, True, False]


def test_long_prompts_are_begun_a_few_at_a_time() -> None:
    queue = SlotQueue(0)
    queue.resize(4, prompts_at_once=2)
    woken: list[int] = []
    places = [queue.enter(partial(woken.append, n), long=True) for n in range(4)]

    def at_work() -> list[bool]:
        return [place.granted for place in places]

    assert at_work() == [True, True, False, False]
    assert (queue.counts.running, queue.counts.waiting) == (4, 0), "each of them has a slot"
    assert {place.ahead for place in places} == {None}, "and none has to be told of a line"
    with pytest.raises(QueueFullError) as caught:
        queue.enter(lambda: None, long=True)
    assert (caught.value.running, caught.value.waiting) == (4, 0)
    places[0].begun()
    places[0].begun()
    assert (at_work(), woken) == ([True, True, True, False], [2])
    queue.leave(places[1])  # given up before it was begun
    assert (at_work(), woken) == ([True, True, True, True], [2, 3])
    later = queue.enter(lambda: None)
    assert later.granted, "what brings none needs a slot alone"
    for place in (*places[2:], places[0], later):
        queue.leave(place)
    assert (queue.counts.running, queue.counts.waiting) == (0, 0)
    assert [queue.enter(int, long=True).granted for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("said", "tools", "long"),
    [("x" * 399, [], False), ("x" * 400, [], True), ("x", [FIND], True)],
)
def test_only_long_prompts_wait_for_their_turn(
    said: str, tools: list[ToolSpec], *, long: bool
) -> None:
    request = LLMRequest(messages=[LLMMessage(role="user", content=said)], tools=tools)
    wish = wishes.from_request(request, policy=Policy())
    backend = Backend(name="test", config_hash="")
    with contextlib.closing(flow.converse(wish, Limits(), backend, emit=True)) as steps:
        entering = next(steps)
    assert isinstance(entering, Enter)
    assert entering.long is long


def test_a_turn_that_never_comes_is_told_as_that() -> None:
    queue = SlotQueue()
    queue.resize(4, prompts_at_once=1)
    queue.enter(lambda: None, long=True)
    second = queue.enter(lambda: None, long=True)
    taking = take_place(0.0, long=True)
    next(taking)
    with pytest.raises(QueueTimeoutError, match="prompts before it") as caught:
        taking.throw(queue.still_queued(second))
    assert "every slot" not in str(caught.value.doing)


def test_one_that_gives_up_while_others_begin_holds_up_nobody() -> None:
    queue = SlotQueue(10)
    queue.resize(4, prompts_at_once=1)
    first, second, third = (queue.enter(lambda: None, long=True) for _ in range(3))
    fourth = queue.enter(lambda: None)
    queue.leave(second)
    assert [third.granted, fourth.granted] == [False, False], "nobody overtakes"
    queue.leave(third)
    assert fourth.granted
    assert queue.counts.running == 2
    first.begun()
    queue.leave(first)
    queue.leave(fourth)
    assert queue.counts.running == 0


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(0, 12), max_size=60))
def test_whatever_begins_and_ends_no_turn_is_lost(slots: int, most: int, steps: list[int]) -> None:
    """0 to 3: somebody comes; 4 to 8: a prompt is begun; else somebody leaves."""
    queue = SlotQueue(1000)
    queue.resize(slots, most)
    places: list[Place] = []
    for step in steps:
        if step < 4:
            places.append(queue.enter(lambda: None, long=True))
        elif places and step < 9:
            places[step % len(places)].begun()
        elif places:
            queue.leave(places.pop(step % len(places)))
        at_work = [place for place in places if place.granted]
        beginning = [place for place in at_work if place.begins]
        assert len(at_work) <= slots
        assert len(beginning) <= most
        idle = len(at_work) < slots and len(beginning) < most
        assert len(at_work) == len(places) or not idle, "nobody waits for nothing"
        assert [place.granted for place in places] == sorted(
            (place.granted for place in places), reverse=True
        ), "nobody overtakes"


def test_a_free_slot_costs_microseconds() -> None:
    queue = SlotQueue(10)
    queue.resize(4)

    def seconds() -> float:
        begun = time.perf_counter()
        for _ in range(1000):
            queue.leave(queue.enter(int))
        return (time.perf_counter() - begun) / 1000

    assert min(seconds() for _ in range(5)) < 50e-6


# --- threads ----------------------------------------------------------------------------------


def test_64_threads_on_4_slots_all_finish_and_none_starves() -> None:
    """Each waits for its turn and not longer: the longest wait is that of the last in line."""
    desk = Desk(work_s=0.01)
    desk.open.set()
    with FakeServer(slots=4) as server, LlamaClient(base_url=server.url) as client:
        rounds = 3
        server.will(*[desk] * 64 * rounds)
        waited_ms: list[int] = []

        def ask(name: int) -> None:
            for turn in range(rounds):
                reply = client.chat(f"{name}/{turn}")
                queue: Any = (reply.raw or {}).get("queue", {"waited_ms": 0})
                waited_ms.append(queue["waited_ms"])

        begun = time.monotonic()
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(ask, range(64)))
        took_ms = (time.monotonic() - begun) * 1000
    assert desk.most == 4
    assert len(waited_ms) == 64 * rounds
    # 64 askers take turns, so a fair wait is one round's time; twice that is starving.
    assert max(waited_ms) < 2 * took_ms / rounds + 100


def is_so(client: LlamaClient, desk: Desk, there: tuple[int, int]) -> bool:
    return counts(client) == there and len(desk.order) == there[0]


def asking(
    client: LlamaClient, desk: Desk, names: list[str]
) -> list[tuple[threading.Thread, list[Any]]]:
    """Requests that came one after another: the first are at work, the others in line."""
    begun: list[tuple[threading.Thread, list[Any]]] = []
    for number, name in enumerate(names, 1):
        outcome: list[Any] = []

        def work(name: str = name, outcome: list[Any] = outcome) -> None:
            try:
                outcome.append(client.chat(name))
            except Exception as exc:  # noqa: BLE001 - the top of a thread
                outcome.append(exc)

        thread = threading.Thread(target=work)
        thread.start()
        begun.append((thread, outcome))
        there = (min(number, SLOTS), max(0, number - SLOTS))
        wait_until(f"{name} is there", partial(is_so, client, desk, there))
    return begun


def test_the_line_is_served_in_order_and_says_how_long_it_took(server: FakeServer) -> None:
    desk = Desk(work_s=0.25)  # so that no thread comes late by the time another takes to be done
    with LlamaClient(base_url=server.url) as client:
        server.will(*[desk] * 6)
        threads = asking(client, desk, list("abcdef"))
        described: Any = client.describe()
        assert described["queue"] == {"slots": 2, "running": 2, "waiting": 4, "max_queue": 1024}
        desk.open.set()
        replies: list[LLMResponse] = []
        for thread, outcome in threads:
            thread.join(10)
            replies += outcome
        assert counts(client) == (0, 0)
    assert desk.order[:2] == ["a", "b"]
    assert sorted(desk.order[2:4]) + sorted(desk.order[4:]) == list("cdef"), "two at a time"
    notes = [(reply.raw or {}).get("queue") for reply in replies]
    assert notes[:2] == [None, None]
    assert [note["ahead"] for note in notes[2:]] == [0, 1, 2, 3]  # type: ignore[index]
    assert all(note["waited_ms"] > 0 for note in notes[2:])  # type: ignore[index]


@pytest.mark.parametrize("max_queue", [0, 1])
def test_past_the_bound_a_request_is_refused_at_once_with_the_length(
    server: FakeServer, max_queue: int
) -> None:
    desk = Desk()
    with LlamaClient(base_url=server.url, max_queue=max_queue) as client:
        server.will(*[desk] * 3)
        threads = asking(client, desk, list("abc")[: SLOTS + max_queue])
        begun = time.monotonic()
        with pytest.raises(QueueFullError, match=f"{max_queue} requests wait") as caught:
            client.chat("one too many")
        assert time.monotonic() - begun < 0.5
        error = caught.value
        assert isinstance(error, LLMRateLimitError)
        assert (error.running, error.waiting, error.max_queue) == (2, max_queue, max_queue)
        desk.open.set()
        for thread, outcome in threads:
            thread.join(10)
            assert outcome[0].text == "I'm glad"


def test_a_bound_below_zero_is_refused(server: FakeServer) -> None:
    with pytest.raises(ConfigError):
        LlamaClient(base_url=server.url, max_queue=-1)


def test_the_total_deadline_counts_the_wait_and_says_who_was_ahead(server: FakeServer) -> None:
    desk = Desk()
    with (
        LlamaClient(base_url=server.url, request_timeout_s=20) as client,
        LlamaClient(base_url=server.url, request_timeout_s=1) as hasty,
    ):
        hasty._source.queue = client._source.queue
        server.will(*[desk] * 3)
        threads = asking(client, desk, list("abc"))
        with pytest.raises(QueueTimeoutError, match="1 ahead") as caught:
            hasty.chat("hi")
        assert (caught.value.phase, caught.value.ahead) == ("queue", 1)
        assert "at work on another" in str(caught.value.doing)
        assert 0.99 <= caught.value.after_s < 3
        assert counts(client) == (2, 1)  # it left the line
        desk.open.set()
        for thread, outcome in threads:
            thread.join(10)
            assert outcome[0].text == "I'm glad"


def test_waiting_in_line_does_not_take_from_the_time_for_the_first_token() -> None:
    desk = Desk(work_s=0.4)
    desk.open.set()
    with (
        FakeServer(slots=1) as narrow,
        LlamaClient(base_url=narrow.url, first_token_timeout_s=0.8) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        narrow.will(*[desk] * 3)
        replies = list(pool.map(client.chat, "abc"))
    assert max(int(reply.latency_ms or 0) for reply in replies) > 800


def test_closing_the_client_ends_who_waits_in_line(server: FakeServer) -> None:
    desk = Desk()
    client = LlamaClient(base_url=server.url)
    server.will(*[desk] * 2)
    threads = asking(client, desk, list("abcd"))
    client.close()
    for thread, outcome in threads:
        thread.join(10)
        assert isinstance(outcome[0], EngineNotRunningError), outcome
    assert counts(client) == (0, 0)


def test_closing_a_stream_in_line_leaves_the_others_their_order(server: FakeServer) -> None:
    desk = Desk()
    with LlamaClient(base_url=server.url) as client:
        server.will(*[desk] * 4)
        threads = asking(client, desk, list("ab"))
        stream = client.stream_chat("left")
        waiting = threading.Thread(target=list, args=(stream,))
        waiting.start()
        wait_until("it is in line", lambda: counts(client) == (2, 1))
        stream.close()
        waiting.join(10)
        assert counts(client) == (2, 0)
        desk.open.set()
        for thread, _ in threads:
            thread.join(10)
        assert client.chat("c").text
    assert "left" not in desk.order


def test_a_request_that_is_sent_again_keeps_its_place() -> None:
    desk = Desk()
    desk.open.set()
    with FakeServer(slots=1) as narrow, LlamaClient(base_url=narrow.url) as client:
        before = len(narrow.chats)
        narrow.will(cuts_before_answering, desk, desk)
        first = threading.Thread(target=client.chat, args=("a",))
        first.start()
        wait_until("it was cut off", lambda: len(narrow.chats) > before)
        assert client.chat("b").text
        first.join(10)
    assert desk.order == ["a", "b"]


def test_texts_to_embed_let_others_in_between_and_are_refused_only_at_first() -> None:
    """Each of their requests is a turn of its own."""
    texts = ["text"] * 300  # several requests
    with FakeServer(slots=1) as narrow, LlamaClient(base_url=narrow.url, max_queue=1) as client:
        desk = Desk()
        narrow.will(desk)
        with ThreadPoolExecutor(2) as pool:
            chat = pool.submit(client.chat, "a")
            wait_until("it is at work", lambda: desk.at_once == 1)
            vectors = pool.submit(client.embed, texts)
            wait_until("the texts are in line", lambda: counts(client) == (1, 1))
            with pytest.raises(QueueFullError):
                client.embed(texts)
            desk.open.set()
            assert chat.result().text
            assert len(vectors.result().vectors) == 300
        assert counts(client) == (0, 0)


def test_a_server_that_does_not_tell_its_slots_gets_every_request() -> None:
    desk = Desk()
    with FakeServer(llama_cpp=False) as server, LlamaClient(base_url=server.url) as client:
        server.will(*[desk] * 8)
        with ThreadPoolExecutor(8) as pool:
            replies = [pool.submit(client.chat, "hi") for _ in range(8)]
            wait_until("all are there", lambda: desk.most == 8)
            desk.open.set()
            assert all(reply.result().text for reply in replies)


# --- tasks ------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_tasks_wait_in_the_same_order_and_may_be_cancelled_there(
    server: FakeServer,
) -> None:
    desk = Desk()
    done: list[str] = []
    scopes: dict[str, anyio.CancelScope] = {}
    async with AsyncLlamaClient(base_url=server.url, max_queue=4) as client:
        server.will(*[desk] * 6)

        async def ask(name: str) -> None:
            with anyio.CancelScope() as scopes[name]:
                await client.chat(name)
                done.append(name)

        async with anyio.create_task_group() as tasks:
            for name in "abcdef":
                tasks.start_soon(ask, name)
                await anyio.wait_all_tasks_blocked()
            await anyio.to_thread.run_sync(
                wait_until, "two are there", lambda: len(desk.order) == 2
            )
            assert counts(client) == (2, 4)
            with pytest.raises(QueueFullError):
                await client.chat("one too many")
            for name in "cea":  # in line, in line, and at work: the next moves up
                scopes[name].cancel()
            await anyio.to_thread.run_sync(wait_until, "d is there", lambda: "d" in desk.order)
            assert counts(client) == (2, 1)
            desk.open.set()
        assert counts(client) == (0, 0)
    assert sorted(done) == ["b", "d", "f"]
    assert desk.order[2:] == ["d", "f"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_in_line_has_a_deadline(server: FakeServer) -> None:
    desk = Desk()
    async with (
        AsyncLlamaClient(base_url=server.url, request_timeout_s=20) as client,
        AsyncLlamaClient(base_url=server.url, request_timeout_s=1) as hasty,
    ):
        hasty._source.queue = client._source.queue
        server.will(*[desk] * 2)
        async with anyio.create_task_group() as tasks:
            for name in "ab":
                tasks.start_soon(client.chat, name)
            await anyio.to_thread.run_sync(
                wait_until, "two are there", lambda: len(desk.order) == 2
            )
            with pytest.raises(QueueTimeoutError) as caught:
                await hasty.chat("hi")
            assert 0.99 <= caught.value.after_s < 3
            assert counts(client) == (2, 0)  # it left the line
            desk.open.set()
