"""Servers behind TLS: what is trusted, and what is said of what is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from runtime import AsyncLlamaClient, ConnectionLostError, LlamaClient
from runtime.inference.connecting import tls_context
from tests.fakes.openai_server import LOOPBACK, FakeServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(tls=True) as running:
        yield running


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server's certificate is an authority, as a program's environment can say."""
    monkeypatch.setenv("SSL_CERT_FILE", str(LOOPBACK))
    tls_context.cache_clear()
    yield
    tls_context.cache_clear()


def ask(address: str) -> tuple[str, str]:
    with LlamaClient(base_url=address) as client:
        whole = client.chat("hi").text
        return whole, "".join(event.delta_text or "" for event in client.stream_chat("hi"))


def ask_async(address: str) -> tuple[str, str]:
    async def both() -> tuple[str, str]:
        async with AsyncLlamaClient(base_url=address) as client:
            whole = (await client.chat("hi")).text
            pieces = [event.delta_text or "" async for event in client.stream_chat("hi")]
            return whole, "".join(pieces)

    return asyncio.run(both())


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("asked", [ask, ask_async])
def test_a_server_with_a_trusted_certificate_answers(
    server: FakeServer, asked: Callable[[str], tuple[str, str]]
) -> None:
    assert asked(server.url) == ("I'm glad", "I'm glad")
    assert server.url.startswith("https:")


@pytest.mark.parametrize("asked", [ask, ask_async])
def test_a_certificate_that_nobody_vouches_for_is_named(
    server: FakeServer, asked: Callable[[str], tuple[str, str]]
) -> None:
    with pytest.raises(ConnectionLostError, match="not trusted: self-signed cert") as caught:
        asked(server.url)
    assert server.url in caught.value.message
    assert "SSL_CERT_FILE" in str(caught.value)
    assert not server.requests


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("asked", [ask, ask_async])
def test_a_certificate_for_another_host_is_named(
    server: FakeServer, asked: Callable[[str], tuple[str, str]]
) -> None:
    with pytest.raises(ConnectionLostError, match="not trusted: Hostname mismatch"):
        asked(server.url.replace("127.0.0.1", "localhost"))
    assert not server.requests


@pytest.mark.usefixtures("trusted")
def test_the_async_driver_names_it_too(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at the server with the sync one's means; so the trust is lost after that."""

    async def trusted_once() -> None:
        async with AsyncLlamaClient(base_url=server.url) as client:
            monkeypatch.delenv("SSL_CERT_FILE")
            tls_context.cache_clear()
            seen = len(server.requests)
            with pytest.raises(ConnectionLostError, match="not trusted: self-signed cert"):
                await client.chat("hi")
            assert len(server.requests) == seen

    asyncio.run(trusted_once())
