"""A connection of asyncio's: real sockets, and a server that is told what to do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from runtime.contracts import LLMDelta
from runtime.inference.async_transport import Performance
from runtime.inference.async_wire import AsyncWire
from runtime.inference.effects import (
    AbortedError,
    BrokenError,
    Emit,
    ExpiredError,
    HttpRequest,
    Open,
    Read,
    WireError,
    open_,
)
from runtime.inference.loop_stream import LoopStream
from runtime.inference.queueing import SlotQueue
from runtime.inference.switchboard import Switchboard
from tests.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from runtime.engines.base import Endpoint
    from runtime.inference.effects import Flow

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

pytestmark = pytest.mark.alone

PATIENCE_S = 10.0


@asynccontextmanager
async def connected(serve: Serve) -> AsyncGenerator[LoopStream]:
    """A connection to a server that does this for it."""
    done = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()
            done.set()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    async with server:
        stream = await LoopStream.connect(*server.sockets[0].getsockname()[:2])
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield stream
        finally:
            stream.close()
            await done.wait()


def soon(seconds: float = PATIENCE_S) -> float:
    return time.monotonic() + seconds


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def three(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for number in range(3):
        writer.write(b"%d" % number)
        await writer.drain()
        await asyncio.sleep(0.01)  # so that each comes by itself


def test_what_comes_is_given_where_it_comes_and_the_end_too() -> None:
    async def talk() -> list[bytes]:
        got: list[bytes] = []

        def step(data: bytes) -> float | None:
            got.append(data)
            return soon() if data else None

        async with connected(three) as stream:
            await stream.each(step, soon())
        return got

    assert asyncio.run(talk()) == [b"0", b"1", b"2", b""]


def test_what_comes_after_the_last_that_was_wanted_is_kept() -> None:
    async def talk() -> bytes:
        async with connected(three) as stream:
            await stream.each(lambda _: None, soon())
            rest = b""
            while data := await stream.receive(soon()):
                rest += data
            return rest

    assert asyncio.run(talk()) == b"12"


def test_no_task_wakes_for_what_is_given() -> None:
    async def talk() -> int:
        wakes = 0

        async def wait(stream: LoopStream) -> None:
            await stream.each(lambda data: soon() if data else None, soon())

        async with connected(three) as stream:
            waiting = wait(stream)
            future = waiting.send(None)
            while True:
                await asyncio.wait([future])
                wakes += 1
                try:
                    future = waiting.send(None)
                except StopIteration:
                    return wakes

    assert asyncio.run(talk()) == 1


@pytest.mark.parametrize("later", [True, False])
def test_a_deadline_that_is_moved_holds_and_passes(later: bool) -> None:
    """Moved ahead by what comes, its timer rings too early; moved back, it would ring too late."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        writer.write(b"x")
        await reader.read()

    first_s, then_s = (0.1, 0.2) if later else (PATIENCE_S, 0.1)

    async def talk() -> float:
        came = 0.0

        def step(_: bytes) -> float:
            nonlocal came
            came = time.monotonic()
            return came + then_s

        async with connected(once) as stream:
            with pytest.raises(ExpiredError):
                await stream.each(step, soon(first_s))
            return time.monotonic() - came

    assert then_s - 0.01 < asyncio.run(talk()) < 3


@pytest.mark.parametrize("why", [AbortedError("closed"), ZeroDivisionError()])
def test_who_waits_is_told_what_failed(why: Exception) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()

    def step(_: bytes) -> float:
        if isinstance(why, WireError):
            asyncio.get_running_loop().call_soon(streams[0].fail, why)
            return soon()
        raise why

    streams: list[LoopStream] = []

    async def talk() -> None:
        async with connected(once) as stream:
            streams.append(stream)
            with pytest.raises(type(why)):
                await stream.each(step, soon())

    asyncio.run(talk())


@pytest.mark.parametrize("by_step", [True, False])
def test_a_connection_that_is_reset_broke(by_step: bool) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def read_all(stream: LoopStream) -> None:
        while await stream.receive(soon()):
            pass

    async def talk() -> None:
        async with connected(reset) as stream:
            await stream.send(b"x", soon())
            each = stream.each(lambda data: soon() if data else None, soon())
            with pytest.raises(BrokenError):
                await (each if by_step else read_all(stream))
            each.close()

    asyncio.run(talk())


def test_a_server_is_made_to_wait_for_who_does_not_read() -> None:
    sent = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while sent < 64 * 2**20:
                writer.write(b"x" * 2**16)
                sent += 2**16
                async with asyncio.timeout(0.2):
                    await writer.drain()
        except (TimeoutError, ConnectionError):
            return

    async def talk() -> int:
        async with connected(flood) as stream:
            await asyncio.sleep(0.1)  # it does not read
            stuck = sent
            got = 0
            while data := await stream.receive(soon()):
                got += len(data)
            assert got >= stuck, "and gets it all in the end"
            return stuck

    assert asyncio.run(talk()) < 64 * 2**20


def test_who_sends_waits_for_a_server_that_does_not_read() -> None:
    async def talk() -> None:
        async with connected(silent_for_a_while) as stream:
            sending = asyncio.create_task(stream.send(b"x" * 32 * 2**20, soon()))
            done, _ = await asyncio.wait([sending], timeout=0.05)
            assert not done
            reading.set()
            await sending

    reading = asyncio.Event()

    async def silent_for_a_while(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reading.wait()
        while await reader.read(2**20):
            pass

    asyncio.run(talk())


@pytest.mark.parametrize("sends", [True, False])
@pytest.mark.parametrize("why", [ExpiredError, AbortedError])
def test_who_waits_for_the_server_is_told_that_it_is_over(
    sends: bool, why: type[WireError]
) -> None:
    async def deaf(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()
        writer.transport.abort()
        await asyncio.sleep(0)  # it is closed in the next turn

    async def talk() -> None:
        async with connected(deaf) as stream:
            until = soon(0.02) if why is ExpiredError else soon()
            if why is AbortedError:
                asyncio.get_running_loop().call_later(0.02, stream.fail, AbortedError("closed"))
            try:
                with pytest.raises(why):
                    await (
                        stream.send(b"x" * 32 * 2**20, until) if sends else stream.receive(until)
                    )
            finally:
                over.set()

    over = asyncio.Event()
    asyncio.run(talk())


def test_a_server_on_this_machine_is_there_at_once_or_not_at_all() -> None:
    async def talk() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            stream = await LoopStream.connect_here("127.0.0.1", port, b"x")
            assert stream is not None
            stream.close()
        assert await LoopStream.connect_here("127.0.0.1", port, b"x") is None
        assert await LoopStream.connect_here("192.0.2.1", port, b"x") is None

    asyncio.run(talk())


def test_a_server_with_no_room_for_a_connection_is_not_there_at_once() -> None:
    async def talk(port: int) -> None:
        streams: list[LoopStream] = []
        while stream := await LoopStream.connect_here("127.0.0.1", port, b"x"):
            streams.append(stream)
            assert len(streams) < 1000
        for stream in streams:
            stream.close()

    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        asyncio.run(talk(server.getsockname()[1]))


@pytest.mark.parametrize(
    "framed",
    [b"Content-Length: 2\r\n\r\nhi", b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"],
)
def test_who_has_read_all_does_not_wait_for_the_connection_to_close(framed: bytes) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + framed)
        await reader.read()  # it is the client that closes
        writer.close()
        done.set()

    done = asyncio.Event()

    async def talk() -> list[bytes]:
        wire = AsyncWire(SlotQueue())
        got: list[bytes] = []
        async with await asyncio.start_server(once, "127.0.0.1", 0) as server:
            address = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
            wanted = HttpRequest(base_url=address, path="/", method="GET")
            await wire.open(Open(request=wanted, connect_timeout_s=1.0, until=soon()))
            got.append(await wire.read(soon()))
            await wire.each(got.append, soon(0.5))
            await wire.close()
            await done.wait()
        return got

    assert asyncio.run(talk()) == [b"hi", b""]


def test_a_request_is_with_the_server_before_the_next_is_looked_at() -> None:
    """Else requests that come together are all with it only when the last of them is ready."""
    said: list[bytes] = []

    async def ask(server: socket.socket, body: bytes) -> None:
        wire = AsyncWire(SlotQueue())
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        wanted = HttpRequest(base_url=address, path="/", body=body)
        with pytest.raises(WireError):
            await wire.open(Open(request=wanted, connect_timeout_s=1.0, until=soon()))

    async def talk(server: socket.socket) -> None:
        asking = asyncio.create_task(ask(server, b"first"))
        await asyncio.sleep(0)  # one turn of the event loop
        connection, _ = server.accept()
        with connection:
            connection.setblocking(False)
            said.append(connection.recv(2**16))
        await asking

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        asyncio.run(talk(server))
    assert said[0].endswith(b"first")


def test_what_a_server_does_not_take_at_once_follows() -> None:
    first = bytes(range(256)) * 2**16
    got = bytearray()

    def serve(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            while len(got) <= len(first):
                got.extend(connection.recv(2**20))
            connection.sendall(b"done")

    async def talk(server: socket.socket) -> None:
        stream = await LoopStream.connect_here("127.0.0.1", server.getsockname()[1], first)
        assert stream is not None
        await stream.send(b"!", soon())
        assert await stream.receive(soon()) == b"done"
        stream.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=[server])
        thread.start()
        asyncio.run(talk(server))
        thread.join()
    assert bytes(got) == first + b"!"


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts what is put off to its next turn: each is a turn, and a call to the system."""

    put_off = 0

    def call_soon(self, *args: Any, **options: Any) -> asyncio.Handle:  # type: ignore[override]
        self.put_off += 1
        return super().call_soon(*args, **options)


class Taking:
    """A sink that takes everything at once."""

    def __init__(self) -> None:
        self.texts: list[str | None] = []

    def take(self, pieces: Sequence[LLMDelta]) -> bool:
        self.texts += [piece.text_delta for piece in pieces]
        return True

    async def settle(self) -> None:
        raise AssertionError

    def has(self, count: int) -> bool:
        return len(self.texts) >= count


def cost_of(tokens: int) -> int:
    """Callbacks that the loop puts off for an answer of so many tokens, each a packet."""
    loop = CountingLoop()
    sink = Taking()

    def flow(url: str) -> Flow[str]:
        request = HttpRequest(base_url=url, path="/", method="GET")
        yield from open_(request, connect_timeout_s=PATIENCE_S, until=soon())
        while data := (yield Read(soon())):
            yield Emit(LLMDelta(text_delta=data.decode()))
        return "done"

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.recv(2**16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number in range(tokens):
                wait_until("the last was taken", partial(sink.has, number))
                connection.sendall(b"1\r\nx\r\n")
            connection.sendall(b"0\r\n\r\n")

    async def talk(url: str) -> None:
        performance = Performance(
            partial(flow, url), source=_Nowhere(), board=Switchboard(), wire=AsyncWire(SlotQueue())
        )
        async with performance:
            await performance.deliver(sink)
        assert performance.result == "done"

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        asyncio.Runner(loop_factory=lambda: loop) as runner,
    ):
        thread = threading.Thread(target=serve, args=[listening])
        thread.start()
        runner.run(talk(f"http://127.0.0.1:{listening.getsockname()[1]}"))
        thread.join()
    assert sink.texts == ["x"] * tokens
    return loop.put_off


class _Nowhere:
    def endpoint(self, timeout_s: float) -> Endpoint:
        raise AssertionError(timeout_s)


def test_a_token_costs_no_turn_of_the_event_loop_but_its_own() -> None:
    assert cost_of(40) - cost_of(2) <= 4
