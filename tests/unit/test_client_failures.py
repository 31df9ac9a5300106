"""What goes wrong reaches the caller by name, with facts and a next step, and as nothing else."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime import (
    ConnectionLostError,
    ContextOverflowError,
    EngineNotRunningError,
    LlamaClient,
    LLMAuthError,
    LLMBadResponseError,
    LLMCapabilityError,
    LLMChatParams,
    LLMError,
    LLMInvalidRequestError,
    LLMMessage,
    LLMProviderError,
    LLMRateLimitError,
    LLMRequest,
    ModelNotFoundError,
    RequestTimeoutError,
    ServerStatusError,
    TooManyRequestsError,
)
from runtime.inference import failures
from runtime.inference.effects import HttpHead
from tests.fakes.openai_server import (
    MODEL,
    FakeServer,
    Peer,
    Stalls,
    byte_by_byte,
    cuts_after,
    cuts_before_answering,
    event,
    events_of,
    piece,
    refuses,
    says,
    sends,
    streams,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.openai_server import Behaviour


@pytest.fixture(params=["llama.cpp", "openai"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    """A server that is streamed from always, and one that is not."""
    with FakeServer(llama_cpp=request.param == "llama.cpp") as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[LlamaClient]:
    with LlamaClient(base_url=server.url) as made:
        yield made


def streamed(client: LlamaClient) -> str:
    return "".join(each.delta_text or "" for each in client.stream_chat("hi"))


def whole(client: LlamaClient) -> str:
    return client.chat("hi").text


BOTH = pytest.mark.parametrize("asked", [whole, streamed])

# Status, body, error, words of its message; the bodies are recorded, from llama.cpp unless said.
REFUSALS: list[tuple[int, Any, type[LLMError], str]] = [
    (
        401,
        {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}},
        LLMAuthError,
        "Invalid API Key",
    ),
    (403, {"detail": "Forbidden"}, LLMAuthError, "Forbidden"),
    (
        404,
        {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}},
        LLMInvalidRequestError,
        "File Not Found",
    ),
    (
        404,  # vLLM
        {"message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404},
        ModelNotFoundError,
        "does not exist",
    ),
    (
        422,  # FastAPI
        {"detail": [{"loc": ["body", "messages"], "msg": "field required"}]},
        LLMInvalidRequestError,
        "field required",
    ),
    (
        400,
        {
            "error": {
                "code": 400,
                "message": "Field 'temperature': type must be number, but is string",
                "type": "invalid_request_error",
            }
        },
        LLMInvalidRequestError,
        "type must be number",
    ),
    (429, {"error": {"message": "queue is full"}}, LLMRateLimitError, "queue is full"),
    (500, {"error": {"message": "boom", "code": 500}}, ServerStatusError, "boom"),
    (502, None, ServerStatusError, "HTTP 502"),
    (503, {"error": {"message": "Loading model", "code": 503}}, ServerStatusError, "Loading"),
    (
        501,
        {
            "error": {
                "code": 501,
                "message": "This server does not support embeddings. Start it with `--embeddings`",
                "type": "not_supported_error",
            }
        },
        LLMCapabilityError,
        "embeddings",
    ),
    (
        500,
        {"error": {"code": 500, "message": "tools param requires --jinja flag"}},
        LLMCapabilityError,
        "--jinja",
    ),
    (418, {"error": "teapot"}, LLMInvalidRequestError, "teapot"),
]


@BOTH
@pytest.mark.parametrize(("status", "body", "error", "said"), REFUSALS)
def test_a_refusal_is_the_contracts_error(
    client: LlamaClient,
    server: FakeServer,
    asked: Callable[[LlamaClient], str],
    status: int,
    body: Any,
    error: type[LLMError],
    said: str,
) -> None:
    before = len(server.chats)
    server.will(refuses(status, body))
    with pytest.raises(error, match=said) as caught:
        asked(client)
    assert type(caught.value) in {error, TooManyRequestsError}
    assert f"HTTP {status}" in caught.value.message or "model" in caught.value.message
    assert len(server.chats) - before == 1  # a server that answered is not asked again


def test_a_rate_limit_says_how_long_to_wait(client: LlamaClient, server: FakeServer) -> None:
    server.will(refuses(429, {"error": "slow down"}, "Retry-After: 2.5"), refuses(429))
    with pytest.raises(TooManyRequestsError, match=r"wait 2\.5 s") as caught:
        client.chat("hi")
    assert caught.value.retry_after_s == 2.5
    with pytest.raises(TooManyRequestsError) as caught:
        client.chat("hi")
    assert caught.value.retry_after_s is None


def test_a_server_failure_tells_its_status(client: LlamaClient, server: FakeServer) -> None:
    server.will(refuses(503, {"error": "Loading model"}))
    with pytest.raises(ServerStatusError) as caught:
        client.chat("hi")
    assert caught.value.status == 503
    assert "loading" in str(caught.value.hint)


def test_a_redirect_is_not_followed_with_the_key(client: LlamaClient, server: FakeServer) -> None:
    server.will(refuses(307, None, "Location: http://elsewhere/v1"))
    with pytest.raises(LLMInvalidRequestError, match="redirects to http://elsewhere/v1"):
        client.chat("hi")


OVERFLOWS = [
    (
        400,
        {
            "error": {
                "code": 400,
                "message": "request (12031 tokens) exceeds the available context size "
                "(2048 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 12031,
                "n_ctx": 2048,
            }
        },
        12031,
        2048,
    ),
    (  # llama-cpp-python
        400,
        {
            "error": {
                "message": "This model's maximum context length is 512 tokens. However, you "
                "requested 700 tokens (600 in the messages, 100 in the completion).",
                "type": "invalid_request_error",
                "code": "context_length_exceeded",
            }
        },
        600,
        512,
    ),
    (
        500,  # the embeddings of llama.cpp
        {
            "error": {
                "code": 500,
                "message": "input (6001 tokens) is too large to process. increase the physical "
                "batch size (current batch size: 512)",
                "type": "server_error",
            }
        },
        6001,
        512,
    ),
    (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, None, None),
]


@pytest.mark.parametrize(("status", "body", "prompt", "context"), OVERFLOWS)
def test_a_prompt_that_does_not_fit_is_named_with_both_numbers(
    client: LlamaClient,
    server: FakeServer,
    status: int,
    body: Any,
    prompt: int | None,
    context: int | None,
) -> None:
    server.will(refuses(status, body))
    with pytest.raises(ContextOverflowError) as caught:
        client.chat("hi")
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (prompt, context)
    if prompt:
        assert f"{prompt} tokens" in caught.value.message
        assert f"hold {context}" in caught.value.message
    assert isinstance(caught.value, LLMInvalidRequestError)


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"<html>", b"3", b"[]", b"{}", b'{"error": 3}', b'{"error": {}}']
)
def test_every_refusal_is_an_error_of_the_contract(body: bytes) -> None:
    for status in (*range(201, 210), *range(300, 309), *range(400, 430), *range(500, 530), 600):
        error = failures.from_answer(HttpHead(status=status, headers={}), body, model="m")
        assert isinstance(error, LLMError)
        assert error.message.strip()
        assert type(error) is not LLMError


# --- connections ------------------------------------------------------------------------------


@BOTH
def test_a_request_that_died_before_its_answer_began_is_sent_again(
    client: LlamaClient, server: FakeServer, asked: Callable[[LlamaClient], str]
) -> None:
    before = len(server.chats)
    server.will(cuts_before_answering, cuts_before_answering)
    assert asked(client) == "I'm glad"
    sent = [each.body for each in server.chats[before:]]
    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2]  # the same request, seed included


def test_an_answer_tells_how_often_its_request_was_sent_again(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(cuts_before_answering)
    reply = client.chat("hi")
    assert reply.raw is not None
    assert (reply.raw["resends"], reply.raw["attempts"]) == (1, 1)


@pytest.mark.parametrize("retries", [0, 2])
def test_sending_again_is_bounded(server: FakeServer, retries: int) -> None:
    with LlamaClient(base_url=server.url, max_retries=retries) as client:
        before = len(server.chats)
        server.will(*[cuts_before_answering] * 9)
        with pytest.raises(ConnectionLostError, match="broke"):
            client.chat("hi")
        assert len(server.chats) - before == retries + 1


def test_sending_again_is_bounded_over_retries_of_the_schema_too(server: FakeServer) -> None:
    """Each of the two kinds of retries has its bound; together they cannot run away."""
    with LlamaClient(base_url=server.url, max_retries=1) as client:
        before = len(server.chats)
        server.will(cuts_before_answering, says("no"), cuts_before_answering, says("{}"))
        user = LLMMessage(role="user", content="hi")
        with pytest.raises(ConnectionLostError):
            client.generate(LLMRequest(messages=[user], response_schema={"type": "object"}))
        assert len(server.chats) - before == 3


@BOTH
def test_a_stream_that_breaks_is_an_error_with_what_had_come(
    asked: Callable[[LlamaClient], str],
) -> None:
    with FakeServer() as server, LlamaClient(base_url=server.url, max_retries=0) as client:
        before = len(server.chats)
        server.will(cuts_after("I", "'m"))
        with pytest.raises(ConnectionLostError, match="broke") as caught:
            asked(client)
        assert caught.value.partial_text == "I'm"
        assert caught.value.hint
        assert len(server.chats) - before == 1


@BOTH
@pytest.mark.parametrize("kept", [2, 3, 5, 6])
def test_a_stream_without_its_closing_mark_is_not_complete(
    asked: Callable[[LlamaClient], str], kept: int
) -> None:
    """Its finish_reason is in event 4 and its usage in event 5."""
    with FakeServer() as server, LlamaClient(base_url=server.url, max_retries=0) as client:
        server.will(streams(*events_of(["I", "'m", " glad"])[:kept]))
        with pytest.raises(ConnectionLostError, match="ended before") as caught:
            asked(client)
        assert caught.value.partial_text == "I'm glad"[: [1, 3, 8, 8][[2, 3, 5, 6].index(kept)]]


def test_a_stream_without_a_reason_for_its_end_is_not_complete() -> None:
    with FakeServer() as server, LlamaClient(base_url=server.url) as client:
        server.will(streams(event(piece({"content": "x"})), b"data: [DONE]\n\n"))
        with pytest.raises(LLMBadResponseError, match="without a reason") as caught:
            client.chat("hi")
        assert caught.value.partial_text == "x"


@pytest.mark.parametrize("asked", [whole, streamed])
def test_a_server_that_is_gone_is_named_by_its_address(
    asked: Callable[[LlamaClient], str],
) -> None:
    with FakeServer() as server:
        client = LlamaClient(base_url=server.url)
    with client, pytest.raises(ConnectionLostError, match=f"Nothing answers at {server.url}"):
        asked(client)


def test_attaching_to_nothing_fails_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(LLMProviderError, match="Nothing answers"):
        LlamaClient(base_url=f"http://127.0.0.1:{port}")
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 70 + ".invalid", "a..b"])
def test_a_host_that_does_not_exist_is_a_provider_error(host: str) -> None:
    with pytest.raises(LLMProviderError, match="Nothing answers"):
        LlamaClient(base_url=f"http://{host}:8080", max_retries=0)


def test_attaching_with_the_wrong_key_is_refused() -> None:
    with FakeServer(api_key="k") as server:
        with pytest.raises(LLMAuthError, match="Invalid API Key"):
            LlamaClient(base_url=server.url, api_key="wrong")
        with pytest.raises(LLMAuthError):
            LlamaClient(base_url=server.url)


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b"", b"[]", b'{"data": 3}'])
def test_attaching_to_something_else_is_a_bad_response(answer: bytes) -> None:
    def web(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=web, args=(listener,))
        thread.start()
        with pytest.raises(LLMBadResponseError, match=r"base_url|empty body") as caught:
            LlamaClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert caught.value.hint
        thread.join()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x00", b"SSH-2.0-OpenSSH\r\n", b""])
def test_attaching_to_what_speaks_no_http_is_a_provider_error(garbage: bytes) -> None:
    def other(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            sock.sendall(garbage)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=other, args=(listener,))
        thread.start()
        with pytest.raises(ConnectionLostError):
            LlamaClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", max_retries=0)
        thread.join()


# --- deadlines --------------------------------------------------------------------------------


def timed_out(client: LlamaClient, asked: Callable[[LlamaClient], str]) -> RequestTimeoutError:
    begun = time.monotonic()
    with pytest.raises(RequestTimeoutError) as caught:
        asked(client)
    assert caught.value.after_s <= time.monotonic() - begun + 0.05
    assert caught.value.phase in caught.value.message
    assert caught.value.hint
    return caught.value


@BOTH
def test_no_first_token_in_time(asked: Callable[[LlamaClient], str]) -> None:
    with (
        FakeServer() as server,
        LlamaClient(base_url=server.url, first_token_timeout_s=0.3) as client,
    ):
        stall = Stalls(answers=False)
        server.will(stall)
        error = timed_out(client, asked)
        assert stall.hung_up.wait(5)
    assert error.phase == "first_token"
    assert 0.3 <= error.after_s < 1
    assert error.partial_text is None
    assert "first_token_timeout_s" in str(error.hint)


@BOTH
@pytest.mark.parametrize("comments", [None, 0.05])
def test_an_answer_that_stands_still(
    asked: Callable[[LlamaClient], str], comments: float | None
) -> None:
    """Comments keep the line open; they are no sign that the engine lives."""
    with FakeServer() as server, LlamaClient(base_url=server.url, stall_timeout_s=0.3) as client:
        stall = Stalls(pieces=("I", "'m"), comment_every_s=comments)
        server.will(stall)
        error = timed_out(client, asked)
        assert stall.hung_up.wait(5)
    assert error.phase == "stall"
    assert 0.3 <= error.after_s < 1
    assert error.partial_text == "I'm"
    assert "stall_timeout_s" in str(error.hint)


@BOTH
def test_a_whole_request_that_takes_too_long(
    client: LlamaClient, server: FakeServer, asked: Callable[[LlamaClient], str]
) -> None:
    with LlamaClient(base_url=server.url, request_timeout_s=0.4) as hasty:
        stall = Stalls(answers=False)
        server.will(stall)
        error = timed_out(hasty, asked)
        assert stall.hung_up.wait(5)
    assert error.phase == "total"
    assert 0.4 <= error.after_s < 1
    assert "request_timeout_s" in str(error.hint)


def test_the_deadline_of_the_whole_holds_while_pieces_come() -> None:
    def forever(peer: Any, request: Any) -> None:
        peer.open_stream()
        while not peer.hangs_up_within(0.02):
            peer.chunk(event(piece({"content": "x"})))

    with FakeServer() as server, LlamaClient(base_url=server.url, request_timeout_s=0.5) as client:
        server.will(forever)
        error = timed_out(client, streamed)
    assert error.phase == "total"
    assert str(error.partial_text).startswith("xx")


def test_a_deadline_that_passes_while_the_caller_is_busy_is_one_too() -> None:
    stall = Stalls(pieces=("x",))
    with FakeServer() as server, LlamaClient(base_url=server.url, request_timeout_s=0.2) as client:
        server.will(stall)
        stream = client.stream_chat("hi")
        assert next(stream).delta_text == "x"
        assert not stall.hung_up.wait(0.4)  # the caller's own work
        with pytest.raises(RequestTimeoutError, match="total deadline"):
            next(stream)


def test_timeouts_are_not_sent_again() -> None:
    with (
        FakeServer() as server,
        LlamaClient(base_url=server.url, first_token_timeout_s=0.2) as client,
    ):
        before = len(server.chats)
        server.will(Stalls(answers=False))
        timed_out(client, whole)
        assert len(server.chats) - before == 1


# --- odd but right ----------------------------------------------------------------------------


@BOTH
def test_characters_cut_between_packets_are_whole(asked: Callable[[LlamaClient], str]) -> None:
    with FakeServer() as server, LlamaClient(base_url=server.url) as client:
        server.will(byte_by_byte("né", "👍🏽", "日本"))
        assert asked(client) == "né👍🏽日本"


@BOTH
def test_comments_between_events_are_not_part_of_the_answer(
    asked: Callable[[LlamaClient], str],
) -> None:
    with FakeServer() as server, LlamaClient(base_url=server.url) as client:
        chunks = [b": ping\n\n" + chunk for chunk in events_of(["a", "b"])]
        server.will(streams(*chunks))
        assert asked(client) == "ab"


@pytest.mark.parametrize(
    "behaviour",
    [
        sends(b"<html>", "text/html"),
        sends(b"", "text/event-stream"),
        streams(b"data: {\n\n"),
        streams(b"data: <html>\n\n"),
        streams(b"data: [DONE]\n\n"),
        streams(),
    ],
)
@BOTH
def test_what_is_no_answer_is_an_error_by_name(
    asked: Callable[[LlamaClient], str], behaviour: Behaviour
) -> None:
    with FakeServer() as server, LlamaClient(base_url=server.url, max_retries=0) as client:
        server.will(behaviour)
        with pytest.raises((LLMBadResponseError, ConnectionLostError)):
            asked(client)


def test_a_stream_refused_in_silence_is_asked_for_as_a_whole_to_learn_why() -> None:
    """As llama-cpp-python does: 200, no event, and an orderly end."""
    refusal = refuses(*OVERFLOWS[1][:2])
    with (
        FakeServer(llama_cpp=False) as server,
        LlamaClient(base_url=server.url, max_retries=0) as client,
    ):
        server.will(streams(), refusal)
        with pytest.raises(ContextOverflowError):
            streamed(client)
        assert [each.body.get("stream") for each in server.chats] == [True, None]
        server.will(streams(), says("after all"))
        assert streamed(client) == "after all"
        before = len(server.chats)
        server.will(streams(), streams())
        with pytest.raises(ConnectionLostError, match="ended before"):
            streamed(client)
        assert len(server.chats) - before == 2
        server.will(streams(events_of(["x"])[0]))  # not a refusal: it had begun
        with pytest.raises(ConnectionLostError, match="ended before"):
            streamed(client)
        assert len(server.chats) - before == 3


def test_a_whole_answer_that_is_cut_is_a_lost_connection() -> None:
    def cut(peer: Peer, request: Any) -> None:
        peer.head(200, "application/json", "Content-Length: 1000")
        peer.send(b'{"choices": [')

    with (
        FakeServer(llama_cpp=False) as server,
        LlamaClient(base_url=server.url, max_retries=0) as client,
    ):
        server.will(cut)
        with pytest.raises(ConnectionLostError, match="987 bytes are missing"):
            client.chat("hi")


# --- empty answers ----------------------------------------------------------------------------


@BOTH
def test_an_empty_answer_is_asked_for_again_with_another_seed(
    client: LlamaClient, server: FakeServer, asked: Callable[[LlamaClient], str]
) -> None:
    before = len(server.chats)
    server.will(says(), says("yes"))
    assert asked(client) == "yes"
    first, second = (each.body["seed"] for each in server.chats[before:])
    assert first != second


@BOTH
def test_an_answer_that_stays_empty_is_never_a_success(
    client: LlamaClient, server: FakeServer, asked: Callable[[LlamaClient], str]
) -> None:
    server.will(*[says()] * 3)
    with pytest.raises(LLMBadResponseError, match="without a word"):
        asked(client)


def test_nothing_is_an_answer_where_a_stop_text_or_the_bound_came_first(
    client: LlamaClient, server: FakeServer
) -> None:
    server.will(says(), says(reason="length"))
    stop = LLMChatParams(provider_options={"stop": ["x"]})
    assert client.chat("hi", params=stop).text == ""
    assert client.chat("hi").finish_reason == "length"


# --- closed clients ---------------------------------------------------------------------------


def test_a_closed_client_says_so(server: FakeServer) -> None:
    client = LlamaClient(base_url=server.url)
    client.close()
    client.close()
    before = len(server.requests)
    for call in (
        lambda: client.chat("hi"),
        lambda: list(client.stream_chat("hi")),
        lambda: client.embed(["x"]),
        lambda: client.count_tokens("x"),
    ):
        with pytest.raises(EngineNotRunningError, match="client is closed") as caught:
            call()
        assert caught.value.state == "closed"
    assert len(server.requests) == before
    assert client.config_snapshot()["default_model"] == MODEL
    json.dumps(client.describe())


def test_https_to_a_server_that_speaks_http_is_a_provider_error(server: FakeServer) -> None:
    with pytest.raises(ConnectionLostError, match=r"no TLS with 127\.0\.0\.1"):
        LlamaClient(base_url=server.url.replace("http:", "https:"), max_retries=0)


def test_a_server_that_does_not_shake_hands_is_a_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RequestTimeoutError) as caught:
            LlamaClient(base_url=address, request_timeout_s=0.3)
    assert caught.value.phase == "connect"
