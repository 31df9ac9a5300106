"""The gateway's guard around an application that tells what reached it."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ConfigError
from runtime.gateway.rules import Rules, is_loopback, keys_from_file, rules_for
from runtime.gateway.security import Guard, is_trusted

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CANARY = "canary-5f0e7a"
PLAIN = Rules()
KEYED = Rules(keys=("another-key", CANARY))
PAGE = "http://localhost:3000"


@dataclass
class Exchange:
    """What came of one request."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reached: dict[str, Any] | None = None
    """The scope that the application saw; None when nothing reached it."""
    received: list[Any] = field(default_factory=list)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def ask(
    rules: Rules = PLAIN,
    method: str = "GET",
    path: str = "/v1/models",
    headers: dict[str, str] | Iterable[tuple[str, str]] = (),
    *,
    pieces: tuple[bytes, ...] = (b"",),
    server: tuple[str, int | None] = ("127.0.0.1", 8080),
    scheme: str = "http",
    kind: str = "http",
    endless: bool = False,
) -> Exchange:
    """One request through the guard; its headers get a right Host unless they bring one."""
    given = list(headers.items() if isinstance(headers, dict) else headers)
    if not any(name == "Host" for name, _ in given):
        given.append(("Host", f"{server[0]}:{server[1]}"))
    made = Exchange()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        made.reached = scope
        made.received.append(await receive())
        made.received.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
        await send({"type": "http.response.body", "body": b"fine"})

    waiting = [
        {"type": "http.request", "body": piece, "more_body": endless or at < len(pieces)}
        for at, piece in enumerate(pieces, 1)
    ]

    async def receive() -> Any:
        if waiting:
            return waiting.pop(0)
        if endless:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        made.status = message.get("status", message.get("code", made.status))
        for name, value in message.get("headers", ()):
            made.headers[name.decode()] = value.decode()
        made.body += message.get("body", b"")

    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "scheme": scheme,
        "server": server,
        "headers": [(name.encode(), value.encode()) for name, value in given],
    }
    asyncio.run(Guard(app, rules)(scope, receive, send))
    return made


def post(rules: Rules = PLAIN, *, body: bytes = b"{}", **headers: str) -> Exchange:
    """A POST of JSON; keywords are headers, with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = {"Content-Type": "application/json", "Content-Length": str(len(body)), **named}
    return ask(rules, "POST", "/v1/chat/completions", sent, pieces=(body,))


def test_a_good_request_reaches_the_application_whole() -> None:
    done = ask(
        PLAIN,
        "POST",
        "/v1/chat/completions",
        {"Content-Type": "application/json; charset=utf-8", "Transfer-Encoding": "chunked"},
        pieces=(b'{"a"', b": 1", b"}"),
    )
    assert done.status == 200
    assert done.received == [
        {"type": "http.request", "body": b'{"a": 1}', "more_body": False},
        {"type": "http.disconnect"},
    ]
    assert done.headers["x-app"] == "1"
    assert done.headers["x-content-type-options"] == "nosniff"
    assert done.headers["x-frame-options"] == "DENY"


# --- Host --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("LocalHost:8080", ("127.0.0.1", 8080)),
        ("127.8.9.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:8080", ("::1", 8080)),
        ("localhost", ("127.0.0.1", 80)),
        ("192.168.7.5:8080", ("192.168.7.5", 8080)),  # the address that was connected to
    ],
)
def test_its_own_addresses_are_answered_to(host: str, server: tuple[str, int]) -> None:
    assert ask(headers={"Host": host}, server=server).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8080",
        "evil.example",
        "127.0.0.1:8081",
        "127.0.0.1",
        "localhost.evil.example:8080",
        "127.0.0.1.evil.example:8080",
        "evil.example@127.0.0.1:8080",
        "192.168.7.5:8080",
        "",
        "localhost:8080:8080",
        "localhost:8080\u00e9",
    ],
)
def test_a_foreign_host_is_refused(host: str) -> None:
    """What DNS rebinding looks like: our address under a name of the attacker's."""
    done = ask(headers={"Host": host, "Sec-Fetch-Site": "same-origin"})
    assert done.status == 421
    assert done.reached is None
    assert done.error["code"] == "host_not_allowed"
    assert "--allow-host" in done.error["message"]


def test_two_hosts_are_refused() -> None:
    twice = [("Host", "localhost:8080"), ("Host", "evil.example:8080")]
    assert ask(headers=twice).status == 421


def test_a_host_may_be_allowed_with_or_without_its_port() -> None:
    rules = rules_for("127.0.0.1", allow_hosts=["LLM.example.org", "tunnel.example:9000"])
    assert ask(rules, headers={"Host": "llm.example.org:8443"}).status == 200
    assert ask(rules, headers={"Host": "llm.example.org"}).status == 200
    assert ask(rules, headers={"Host": "tunnel.example:9000"}).status == 200
    assert ask(rules, headers={"Host": "tunnel.example:9001"}).status == 421


def test_health_is_no_exception_to_the_host_rule() -> None:
    assert ask(path="/health", headers={"Host": "evil.example"}).status == 421


# --- Origin ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        PAGE,  # another port of this machine is another's page
        "http://localhost:8080",  # which may be another's, on ::1
        "https://127.0.0.1:8080",
        "http://127.0.0.1",
        "http://127.0.0.1:8080.evil.example",
        "",
    ],
)
def test_a_foreign_origin_is_refused_and_cannot_read_why(origin: str) -> None:
    done = post(Origin=origin)
    assert done.status == 403
    assert done.reached is None
    assert "access-control-allow-origin" not in done.headers
    assert "--allow-origin" in done.error["message"]


def test_the_status_page_may_use_its_own_gateway() -> None:
    assert post(Origin="http://127.0.0.1:8080", Sec_Fetch_Site="same-origin").status == 200
    assert ask(headers={"Sec-Fetch-Site": "same-origin"}).status == 200
    typed = {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask(path="/", headers=typed).status == 200
    assert "access-control-allow-origin" not in post(Origin="http://127.0.0.1:8080").headers


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
@pytest.mark.parametrize("dest", ["image", "script", "iframe", "empty"])
def test_a_get_of_another_site_without_origin_is_refused(site: str, dest: str) -> None:
    mode = "navigate" if dest == "iframe" else "no-cors"
    done = ask(headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest})
    assert done.status == 403
    assert done.reached is None


def test_a_link_to_the_page_may_be_followed_and_a_form_may_not_be_sent() -> None:
    followed = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert ask(path="/", headers=followed).status == 200
    assert ask(method="POST", path="/", headers=followed).status == 403


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_page_can_send_without_asking_triggers_nothing(media: str) -> None:
    """Even from a browser so old that it names no origin."""
    done = post(Content_Type=media)
    assert done.status == 415
    assert done.reached is None
    assert "application/json" in done.error["message"]
    assert post(Content_Type=media, Origin="https://evil.example").status == 403


def test_a_post_without_a_body_needs_no_type() -> None:
    assert ask(method="POST", headers={"Content-Length": "0"}).status == 200


def test_an_allowed_origin_gets_its_preflight_and_may_read_answers_and_errors() -> None:
    rules = rules_for("127.0.0.1", keys=[CANARY], allow_origins=[PAGE])
    preflight = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        "Access-Control-Request-Private-Network": "true",
    }
    done = ask(rules, "OPTIONS", "/v1/chat/completions", preflight)
    assert done.status == 204
    assert done.reached is None
    assert done.headers["access-control-allow-origin"] == PAGE
    assert "x-stainless-os" in done.headers["access-control-allow-headers"]
    assert "POST" in done.headers["access-control-allow-methods"]
    assert done.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in done.headers
    asked = post(rules, Origin=PAGE, Sec_Fetch_Site="same-site", Authorization=f"Bearer {CANARY}")
    assert (asked.status, asked.headers["access-control-allow-origin"]) == (200, PAGE)
    assert asked.headers["vary"] == "Origin"
    keyless = post(rules, Origin=PAGE)
    assert (keyless.status, keyless.headers["access-control-allow-origin"]) == (401, PAGE)
    foreign = ask(rules, "OPTIONS", "/v1/models", {**preflight, "Origin": "http://localhost:3001"})
    assert foreign.status == 403
    assert "access-control-allow-origin" not in foreign.headers


def test_options_that_asks_nothing_is_an_ordinary_request() -> None:
    assert ask(KEYED, "OPTIONS", "/v1/models").status == 401


# --- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {CANARY}"},
        {"authorization": f"bearer {CANARY}"},
        {"X-API-Key": CANARY},
        {"X-Api-Key": "another-key"},
        {"Authorization": "Bearer wrong", "x-api-key": CANARY},
    ],
)
def test_any_of_the_keys_opens_in_either_header(headers: dict[str, str]) -> None:
    done = ask(KEYED, headers=headers)
    assert done.status == 200
    assert CANARY not in repr(done.reached), "the application need not know it"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {CANARY}x"},
        {"Authorization": f"Bearer {CANARY[:-1]}"},
        {"Authorization": f"Basic {CANARY}"},
        {"Authorization": CANARY},
        {"Cookie": f"key={CANARY}"},
        {"x-api-key": ""},
        {"x-api-key": f"another-key, {CANARY}"},
    ],
)
def test_without_a_right_key_nothing_is_reached(
    headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    done = ask(KEYED, headers=headers)
    assert done.status == 401
    assert done.reached is None
    assert done.headers["www-authenticate"] == "Bearer"
    assert "LLAMA_RUNTIME_API_KEY" in done.error["message"]
    assert done.error["code"] == "invalid_api_key"
    assert CANARY not in caplog.text + done.body.decode() + repr(done.headers)
    assert "another-key" not in caplog.text + done.body.decode()


def test_only_reading_health_and_the_page_is_open() -> None:
    for path in ("/", "/health", "/favicon.ico", "/page/page.js"):
        assert ask(KEYED, path=path).status == 200
        assert ask(KEYED, "POST", path).status == 401
    for path in ("/v1/models", "/snapshot", "/metrics", "/logs", "/health/x", "/pages", "//"):
        assert ask(KEYED, path=path).status == 401, path


def test_the_application_knows_whom_it_may_tell_everything() -> None:
    """`/health` is open, and says little to who shows no key."""
    shown = {"x-api-key": CANARY}
    told = [
        ask(rules, path="/health", headers=headers).reached
        for rules, headers in (
            (KEYED, {}),
            (KEYED, {"x-api-key": "x"}),
            (KEYED, shown),
            (PLAIN, {}),
        )
    ]
    assert [is_trusted(scope or {}) for scope in told] == [False, False, True, True]


def test_anthropic_clients_get_errors_of_their_own_shape() -> None:
    done = ask(KEYED, "POST", "/v1/messages")
    assert done.status == 401
    answer = json.loads(done.body)
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "authentication_error"


def test_keys_are_in_no_repr() -> None:
    assert CANARY not in repr(KEYED)


def test_keys_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of the team\n\n{CANARY}\n  second-key  \r\n")
    path.chmod(0o600)
    assert keys_from_file(path) == (CANARY, "second-key")
    assert not caplog.text
    path.chmod(0o644)
    keys_from_file(path)
    assert "chmod 600" in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.parametrize("content", [None, b"", b"# nothing\n\n", b"\xff\xfe"])
def test_a_key_file_without_a_key_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="key file"):
        keys_from_file(path)


def test_a_key_that_no_header_can_hold_is_refused_unseen() -> None:
    for bad in ("canary 1", "canary\u00e9", ""):
        with pytest.raises(ConfigError) as caught:
            rules_for("127.0.0.1", keys=["good", bad])
        assert "number 2" in caught.value.message
        assert "canary" not in str(caught.value)


# --- the door ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_an_open_address_demands_a_key(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rules_for(host)
    assert "LLAMA_RUNTIME_API_KEY" in (caught.value.hint or "")
    assert rules_for(host, keys=["k"]).keys == ("k",)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    assert rules_for(host).keys == ()


@pytest.mark.parametrize(
    "origin", ["*", "localhost:3000", "http://a/", "http://a/b", "http://", "http://u@a", "null"]
)
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="origin"):
        rules_for("127.0.0.1", allow_origins=[origin])


@pytest.mark.parametrize("host", ["*", "http://a", "a/b", ""])
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="host"):
        rules_for("127.0.0.1", allow_hosts=[host])


# --- limits ------------------------------------------------------------------------------------

SMALL = replace(PLAIN, max_body_bytes=10, max_header_bytes=200, body_patience_s=0.05)
JSON = {"Content-Type": "application/json"}


def test_a_declared_body_that_is_too_long_is_not_even_read() -> None:
    done = ask(SMALL, "POST", headers={**JSON, "Content-Length": "11"}, endless=True, pieces=())
    assert done.status == 413
    assert done.error["code"] == "body_too_large"
    assert "10 bytes" in done.error["message"]


def test_a_streamed_body_is_cut_at_the_limit() -> None:
    chunked = {**JSON, "Transfer-Encoding": "chunked"}
    assert ask(SMALL, "POST", headers=chunked, pieces=(b"12345", b"67890")).status == 200
    done = ask(SMALL, "POST", headers=chunked, pieces=(b"12345", b"678901"), endless=True)
    assert done.status == 413
    assert done.reached is None


def test_a_body_that_does_not_come_is_given_up() -> None:
    done = ask(SMALL, "POST", headers={**JSON, "Content-Length": "5"}, pieces=(b"1",), endless=True)
    assert done.status == 408
    assert done.reached is None


def test_a_client_that_leaves_in_its_body_is_not_answered() -> None:
    done = ask(SMALL, "POST", headers={**JSON, "Content-Length": "5"}, pieces=())
    assert done.status == 0
    assert done.reached is None


def test_headers_that_are_too_long_are_refused() -> None:
    assert ask(SMALL, headers={"X-A": "a" * 150}).status == 200
    done = ask(SMALL, headers={"X-A": "a" * 200})
    assert done.status == 431
    assert "200" in done.error["message"]


def test_a_client_that_does_not_read_is_given_up() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        await asyncio.Event().wait()

    scope = {
        "type": "http", "method": "GET", "path": "/", "scheme": "http",
        "server": ("127.0.0.1", 80), "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    guard = Guard(app, replace(PLAIN, write_patience_s=0.02))
    with pytest.raises(TimeoutError):
        asyncio.run(guard(scope, receive, send))


def test_websockets_are_refused_and_the_lifespan_passes() -> None:
    assert ask(kind="websocket").reached is None
    assert ask(kind="lifespan").reached is not None


def test_strangers_words_are_kept_short(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    done = post(Origin="https://" + "a" * 3000)
    assert done.status == 403
    ask(KEYED, path="/" + "b" * 3000)
    assert "refused" in caplog.text
    assert len(caplog.text) < 1000
    assert len(done.body) < 4000
