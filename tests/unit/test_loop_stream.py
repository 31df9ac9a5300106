"""A connection of asyncio's: real sockets, and a server that is told what to do."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from runtime.inference.effects import AbortedError, BrokenError, ExpiredError, WireError
from runtime.inference.loop_stream import LoopStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

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
            await stream.aclose()
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
            while data := await stream.receive():
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
        while await stream.receive():
            pass

    async def talk() -> None:
        async with connected(reset) as stream:
            await stream.send(b"x")
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
            while data := await stream.receive():
                got += len(data)
            assert got >= stuck, "and gets it all in the end"
            return stuck

    assert asyncio.run(talk()) < 64 * 2**20


def test_who_sends_waits_for_a_server_that_does_not_read() -> None:
    async def talk() -> None:
        async with connected(silent_for_a_while) as stream:
            sending = asyncio.create_task(stream.send(b"x" * 32 * 2**20))
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
