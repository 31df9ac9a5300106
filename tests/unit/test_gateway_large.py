"""Bodies of many megabytes, which must not hold up the streams of others."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.gateway import anthropic, openai
from runtime.gateway.endpoints import Answering, Counting, Embedding, Endpoint, Tokenizing
from runtime.gateway.responses import Responses
from runtime.gateway.served import ServedModel
from runtime.gateway.traffic import Traffic
from runtime.inference import large_json
from runtime.inference.async_transport import Threads
from tests.unit.gateway_answers import OneModel

if TYPE_CHECKING:
    from collections.abc import Callable

BODY_BYTES = 25_000_000
LONGEST_STALL_S = 0.1
HELLO = {"role": "user", "content": "x " * 485}

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=70) | st.dictionaries(st.text(), inner),
    max_leaves=80,
)


@given(plain)
@settings(max_examples=30, deadline=None)
def test_what_is_written_bit_by_bit_is_what_json_writes(value: Any) -> None:
    writer = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
    text = "".join(large_json.pieces(value, writer))
    assert text == writer.encode(value)
    assert large_json.read(text.encode("utf-8", "surrogatepass")) == json.loads(text)


@pytest.mark.parametrize(
    "value",
    [
        'é"\\' * 700_000,
        {"a": ["b", "c" * 1_500_000], 1: [0] * 129, "d": ({"e": '"' * 1_500_000},)},
        {"messages": [{"role": "user", "content": "x" * 2_000_000}] * 2, "n": {}, "l": []},
    ],
)
def test_long_parts_are_written_as_json_writes_them(value: Any) -> None:
    writer = json.JSONEncoder(ensure_ascii=False)
    made = list(large_json.pieces(value, writer))
    assert "".join(made) == writer.encode(value)
    assert len(made) > 1


@pytest.mark.parametrize("text", ["", "{", '{"a": }', "[1,]", '{"a": "b', "[" * 5000, "\xff"])
def test_what_is_no_json_is_refused_as_json_refuses_it(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        large_json.read(text.encode("latin-1"))


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What an engine does with a prompt that is too long, without spending time on it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    left = int(head.partition(b"content-length:")[2].split()[0]) if b"post " in head else 0
    while left:
        left -= len(await reader.read(left))
    said = b'{"error": {"message": "too long", "type": "invalid_request_error"}}'
    status = b"400 Bad Request" if b"post " in head else b"404 Not Found"
    writer.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\n" % status)
    writer.write(b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(said), said))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def longest_stall(kind: type[Endpoint[Any]], body: bytes, *dialect: Any) -> float:
    """Seconds for which the event loop passes nothing on while the body is worked on.

    They are the process's own: what the machine gives to others meanwhile says nothing.
    """
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    served = ServedModel("m", base_url=f"http://127.0.0.1:{port}")
    stalls: list[float] = []

    async def stream() -> None:
        while True:
            before = time.process_time()
            await asyncio.sleep(0.002)
            stalls.append(time.process_time() - before)

    sent: list[Any] = []
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with server:
        await asyncio.to_thread(served.load)
        made: Any = kind
        endpoint = made(OneModel(served), Traffic(), Threads(1), *dialect)
        beat = asyncio.create_task(stream())
        gc.freeze()  # what pytest holds is no part of a gateway's memory, and takes long to look at
        try:
            await endpoint({"type": "http", "path": "/"}, receive, send)
        finally:
            gc.unfreeze()
        beat.cancel()
        await served.close()
    assert sent[0]["status"] == 400
    assert b"too long" in sent[1]["body"]  # the engine said so: the whole way was gone
    return max(stalls)


BODIES: list[tuple[type[Endpoint[Any]], tuple[Any, ...], Callable[[], dict[str, Any]]]] = [
    (Answering, (openai,), lambda: {"messages": [HELLO] * (BODY_BYTES // 1000)}),
    (Answering, (anthropic,), lambda: {"messages": [{**HELLO, "content": "x" * BODY_BYTES}]}),
    (Counting, (Responses(),), lambda: {"input": "x" * BODY_BYTES}),
    (Embedding, (), lambda: {"input": ["x" * 1000] * (BODY_BYTES // 1000)}),
    (Tokenizing, (), lambda: {"content": "x" * BODY_BYTES}),
]


@pytest.mark.parametrize(
    ("kind", "dialect", "body"), BODIES, ids=["chat", "claude", "count", "embed", "tokenize"]
)
def test_a_large_body_stalls_no_stream(
    kind: type[Endpoint[Any]], dialect: tuple[Any, ...], body: Callable[[], dict[str, Any]]
) -> None:
    """Read in one go it takes all streams' time: 0.3 s of it as one text, 0.6 s as messages."""
    data = json.dumps({"model": "m", "max_tokens": 1, **body()}).encode()
    assert asyncio.run(longest_stall(kind, data, *dialect)) < LONGEST_STALL_S
