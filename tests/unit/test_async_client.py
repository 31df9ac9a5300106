"""AsyncLlamaClient: LlamaClient's surface awaited, and tasks that may be cancelled at any time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import re
import socket
import time
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from runtime import (
    AsyncLlamaClient,
    BackendCapabilities,
    BackendStatus,
    ConfigError,
    ConnectionLostError,
    EmbeddingResult,
    EngineNotRunningError,
    LlamaClient,
    LLMAuthError,
    LLMBadResponseError,
    LLMChatParams,
    LLMDelta,
    LLMError,
    LLMInvalidRequestError,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    LLMStreamEvent,
    ModelNotFoundError,
    RequestTimeoutError,
)
from tests.fakes.openai_server import (
    MODEL,
    FakeServer,
    Stalls,
    byte_by_byte,
    cuts_before_answering,
    refuses,
    says,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from runtime.client._stream import AsyncAnswerStream

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

NOTICED_WITHIN_S = 5.0


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
        return "asyncio", {"use_uvloop": True}
    return str(request.param), {}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[AsyncLlamaClient]:
    async with AsyncLlamaClient(base_url=server.url) as made:
        yield made


async def noticed(stall: Stalls) -> bool:
    return await anyio.to_thread.run_sync(stall.hung_up.wait, NOTICED_WITHIN_S)


async def under_way(stall: Stalls) -> None:
    assert await anyio.to_thread.run_sync(stall.begun.wait, NOTICED_WITHIN_S)


# --- the same surface -------------------------------------------------------------------------


def public(kind: type) -> set[str]:
    members = {name for name, _ in inspect.getmembers(kind)}
    return {name for name in members if not name.startswith("_")}


def test_it_offers_what_the_sync_client_offers_and_a_start() -> None:
    assert public(AsyncLlamaClient) - public(LlamaClient) == {"aclose", "start"}
    assert public(LlamaClient) <= public(AsyncLlamaClient)
    assert inspect.signature(AsyncLlamaClient) == inspect.signature(LlamaClient)


@pytest.mark.parametrize("name", sorted(public(LlamaClient) - {"server"}))
def test_a_method_has_the_sync_ones_signature(name: str) -> None:
    """Names, kinds, defaults and annotations; what that one returns is awaited or iterated."""
    ours, theirs = getattr(AsyncLlamaClient, name), getattr(LlamaClient, name)
    signature, wanted = inspect.signature(ours), inspect.signature(theirs)
    assert signature.parameters == wanted.parameters
    streams = str(wanted.return_annotation).startswith("AnswerStream")
    assert inspect.iscoroutinefunction(ours) is not streams
    assert signature.return_annotation.removeprefix("Async") == wanted.return_annotation


async def test_every_method_answers_in_the_contracts_types(client: AsyncLlamaClient) -> None:
    message = LLMMessage(role="user", content="hi")
    model = await client.default_model()
    assert model == MODEL
    assert type(await client.chat([message], model=model, params=LLMChatParams())) is LLMResponse
    events = [event async for event in client.stream_chat([message], model=model)]
    assert {type(event) for event in events} == {LLMStreamEvent}
    assert [event.kind for event in events] == ["delta"] * 3 + ["completed"]
    last = events[-1].response
    assert last is not None
    assert last.text == "I'm glad" == "".join(event.delta_text or "" for event in events)
    request = LLMRequest(messages=[message])
    assert (await client.generate(request)).text == "I'm glad"
    deltas = [delta async for delta in client.stream(request)]
    assert {type(delta) for delta in deltas} == {LLMDelta}
    assert type(await client.capabilities()) is BackendCapabilities
    assert type(await client.healthcheck()) is BackendStatus
    assert type(await client.embed(["x"])) is EmbeddingResult
    assert await client.count_tokens("a b") == 2
    assert await client.server_snapshot() is None
    assert client.server is None
    described: Any = await client.describe()
    assert described["client_class"] == "AsyncLlamaClient"
    assert described["backend"] == await client.config_snapshot()


async def test_parse_answers_with_an_instance(client: AsyncLlamaClient, server: FakeServer) -> None:
    server.will(says("[1, 2]"))
    assert await client.parse("hi", list[int]) == [1, 2]


async def test_it_sends_what_the_sync_client_sends(
    client: AsyncLlamaClient, server: FakeServer
) -> None:
    params = LLMChatParams(max_tokens=5, provider_options={"seed": 3})
    await client.chat("hi", params=params)

    def the_other() -> None:
        with LlamaClient(base_url=server.url) as other:
            other.chat("hi", params=params)

    await anyio.to_thread.run_sync(the_other)
    ours, *_, theirs = server.chats[-3:]  # between them: a look at the server
    assert ours.body == theirs.body
    dropped = {"accept-encoding"}  # http.client's
    assert ours.headers == {k: v for k, v in theirs.headers.items() if k not in dropped}


# --- starting and ending ----------------------------------------------------------------------


async def test_making_one_opens_no_connection(server: FakeServer) -> None:
    client = AsyncLlamaClient(base_url=server.url)
    assert server.requests == []
    with pytest.raises(ConfigError):
        AsyncLlamaClient(max_retries=-1)
    assert (await client.chat("hi")).text == "I'm glad"
    await client.aclose()
    await client.close()
    with pytest.raises(EngineNotRunningError):
        await client.chat("hi")
    assert not (await client.healthcheck()).ok


async def test_first_requests_at_once_look_at_the_server_once(server: FakeServer) -> None:
    client = AsyncLlamaClient(base_url=server.url)
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(client.chat, "hi")
    assert sum(request.path == "/v1/models" for request in server.requests) == 1
    await client.close()


async def test_a_start_that_failed_may_be_tried_again(server: FakeServer) -> None:
    client = AsyncLlamaClient(base_url=server.url, model="other")
    with pytest.raises(ModelNotFoundError):
        await client.chat("hi")
    server.listed.append("other")
    assert await (await client.start()).default_model() == "other"
    await client.close()


async def test_a_model_that_is_listed_later_is_found(
    client: AsyncLlamaClient, server: FakeServer
) -> None:
    with pytest.raises(ModelNotFoundError):
        await client.chat("hi", model="later")
    server.listed.append("later")
    assert (await client.chat("hi", model="later")).text


async def test_a_start_that_is_cancelled_lets_go_at_once_and_may_be_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        client = AsyncLlamaClient(base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        begun = time.monotonic()
        with anyio.move_on_after(0.1):
            await client.start()
        with anyio.move_on_after(0.1):
            await client.start()
        assert time.monotonic() - begun < 2
        await client.close()


# --- what goes wrong --------------------------------------------------------------------------


async def test_failures_are_the_contracts_errors(
    client: AsyncLlamaClient, server: FakeServer
) -> None:
    with pytest.raises(LLMInvalidRequestError):
        client.stream_chat([])
    server.will(refuses(401))
    with pytest.raises(LLMAuthError):
        await client.chat("hi")
    server.will(*[says()] * 3)
    with pytest.raises(LLMBadResponseError):
        await client.chat("hi")


async def test_a_connection_that_dies_before_the_answer_is_tried_again(
    client: AsyncLlamaClient, server: FakeServer
) -> None:
    server.will(cuts_before_answering)
    reply = await client.chat("hi")
    assert reply.raw is not None
    assert (reply.text, reply.raw["resends"]) == ("I'm glad", 1)


async def test_a_server_may_be_named(server: FakeServer) -> None:
    async with AsyncLlamaClient(base_url=server.url.replace("127.0.0.1", "localhost")) as client:
        assert (await client.chat("hi")).text == "I'm glad"


async def test_a_server_that_went_away_is_named() -> None:
    """A connection that cannot be had at once is waited for."""
    with FakeServer() as server:
        client = AsyncLlamaClient(base_url=server.url, max_retries=1)
        await client.start()
    async with client:
        with pytest.raises(ConnectionLostError, match="Nothing answers at"):
            await client.chat("hi")


async def test_bytes_may_come_one_by_one(client: AsyncLlamaClient, server: FakeServer) -> None:
    server.will(byte_by_byte("zwölf", " 🎈"))
    assert (await client.chat("hi")).text == "zwölf 🎈"


async def test_nobody_there_is_named_with_its_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = AsyncLlamaClient(base_url=url, max_retries=0)
    with pytest.raises(ConnectionLostError, match=re.compile("refused", re.IGNORECASE)):
        await client.chat("hi")
    await client.close()


@pytest.mark.parametrize(
    ("setting", "phase", "stall"),
    [
        ("request_timeout_s", "total", Stalls(pieces=("I",), comment_every_s=0.05)),
        ("first_token_timeout_s", "first_token", Stalls(answers=False)),
        ("first_token_timeout_s", "first_token", Stalls(comment_every_s=0.05)),
        ("stall_timeout_s", "stall", Stalls(pieces=("I",), comment_every_s=0.05)),
    ],
)
async def test_deadlines_are_instants(
    server: FakeServer, setting: str, phase: str, stall: Stalls
) -> None:
    """Comments that keep the line open do not count."""
    limits: Any = {setting: 0.3}
    async with AsyncLlamaClient(base_url=server.url, **limits) as client:
        server.will(stall)
        begun = time.monotonic()
        with pytest.raises(RequestTimeoutError) as caught:
            await client.chat("hi")
        assert caught.value.phase == phase
        assert 0.3 <= time.monotonic() - begun < 2
        assert await noticed(stall)


# --- cancellation -----------------------------------------------------------------------------


async def begun(
    client: AsyncLlamaClient, server: FakeServer
) -> tuple[AsyncAnswerStream[LLMStreamEvent], Stalls]:
    stall = Stalls(pieces=("I",))
    server.will(stall)
    stream = client.stream_chat("hi")
    assert (await anext(stream)).delta_text == "I"
    return stream, stall


async def test_closing_a_stream_hangs_up(client: AsyncLlamaClient, server: FakeServer) -> None:
    stream, stall = await begun(client, server)
    await stream.close()
    assert await noticed(stall)
    assert [event async for event in stream] == []
    await stream.aclose()


async def test_leaving_its_block_hangs_up(client: AsyncLlamaClient, server: FakeServer) -> None:
    stream, stall = await begun(client, server)
    async with stream:
        pass
    assert await noticed(stall)


async def test_breaking_out_of_a_loop_and_forgetting_it_hangs_up(
    client: AsyncLlamaClient, server: FakeServer, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio warns of it, and so it should")
    stall = Stalls(pieces=("a", "b"))
    server.will(stall)
    async for event in client.stream_chat("hi"):
        assert event.delta_text == "a"
        break
    gc.collect()
    assert await noticed(stall)


async def test_a_stream_never_begun_sends_nothing(
    client: AsyncLlamaClient, server: FakeServer
) -> None:
    before = len(server.chats)
    stream = client.stream_chat("hi")
    await stream.close()
    assert [event async for event in stream] == []
    assert len(server.chats) == before


@pytest.mark.parametrize("answers", [True, False])
async def test_cancelling_who_waits_hangs_up(
    client: AsyncLlamaClient, server: FakeServer, answers: bool
) -> None:
    stalls = [Stalls(pieces=("I",), answers=answers) for _ in range(2)]
    server.will(*stalls)

    async def listen() -> None:
        async for _ in client.stream_chat("hi"):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.chat, "hi")
        tasks.start_soon(listen)
        for stall in stalls:
            await under_way(stall)
        tasks.cancel_scope.cancel()
    for stall in stalls:
        assert await noticed(stall)
    assert (await client.chat("hi")).text == "I'm glad"


async def test_another_task_may_close_a_stream_that_waits(
    client: AsyncLlamaClient, server: FakeServer
) -> None:
    stream, stall = await begun(client, server)
    heard = []

    async def listen() -> None:
        heard.extend([event async for event in stream])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        await anyio.wait_all_tasks_blocked()
        await stream.close()
    assert heard == []  # its iteration simply ends
    assert await noticed(stall)


async def test_closing_the_client_ends_every_request_at_once(
    client: AsyncLlamaClient, server: FakeServer
) -> None:
    stalls = [Stalls(answers=answers) for answers in (True, False, True, False)]
    server.will(*stalls)
    ended = []

    async def expect_the_end(wait: Callable[[], Any]) -> None:
        with pytest.raises(EngineNotRunningError) as caught:
            await wait()
        ended.append(caught.value.state)

    async def listen() -> None:
        async for _ in client.stream_chat("hi"):
            pass

    async with anyio.create_task_group() as tasks:
        for wait in (lambda: client.chat("hi"), listen) * 2:
            tasks.start_soon(expect_the_end, wait)
        for stall in stalls:
            await under_way(stall)
        closed_at = time.monotonic()
        await client.close()
    assert ended == ["closed"] * 4
    assert time.monotonic() - closed_at < 1


def test_a_loop_that_ends_leaves_no_connection_and_no_word(server: FakeServer) -> None:
    """Also with a stream left open; warnings are errors here, and the loop tells what it saw."""
    seen: list[dict[str, Any]] = []
    stall = Stalls(pieces=("I",))

    async def leave_it_open() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: seen.append(what))
        client = AsyncLlamaClient(base_url=server.url)
        assert (await client.chat("hi")).text
        server.will(stall)
        stream = client.stream_chat("hi")
        await anext(stream)
        task = asyncio.ensure_future(client.chat("hi"))  # never awaited
        await asyncio.sleep(0)
        task.cancel()
        kept.append((client, stream))

    kept: list[Any] = []
    asyncio.run(leave_it_open())
    assert stall.hung_up.wait(NOTICED_WITHIN_S)
    kept.clear()
    gc.collect()
    assert seen == []


def test_one_client_may_be_used_by_one_loop_after_another(server: FakeServer) -> None:
    client = AsyncLlamaClient(base_url=server.url)
    for _ in range(2):
        assert asyncio.run(client.chat("hi")).text == "I'm glad"
    asyncio.run(client.close())


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_large_schema_does_not_hold_up_the_loop(
    client: AsyncLlamaClient, server: FakeServer, stream: bool
) -> None:
    """Checking it takes more than 0.1 s. A busy machine may hold up the loop, too: best of five."""
    longest: list[float] = []
    for number in range(5):
        fields: dict[str, object] = {
            f"field_{number}_{n}": {"type": "string", "pattern": "^[a-z]{1,9}$", "title": "x" * 150}
            for n in range(1500)
        }
        params = LLMChatParams(response_schema={"type": "object", "properties": fields})
        asked = len(server.requests)
        gap_s = 0.0

        async def ask(params: LLMChatParams = params) -> None:
            with contextlib.suppress(LLMError):  # the fake knows nothing of schemas
                if stream:
                    async for _ in client.stream_chat("hi", params=params):
                        pass
                else:
                    await client.chat("hi", params=params)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            looked_at = time.monotonic()
            while len(server.requests) == asked:
                await anyio.sleep(0.001)
                gap_s = max(gap_s, time.monotonic() - looked_at)
                looked_at = time.monotonic()
            tasks.cancel_scope.cancel()
        longest.append(gap_s)
        if gap_s < 0.05:
            return
    pytest.fail(f"the loop stood still for {longest} s")
