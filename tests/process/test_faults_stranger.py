"""Fault battery: what a stranger, a web page or another program can get out of a real engine."""

from __future__ import annotations

import json
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime import LlamaClient, LLMChatParams
from runtime.errors import LLMError
from runtime.server.probe import ask
from tests.process.real_engine import complete, raw

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import RealFactory

    Saw = Callable[[object], None]

pytestmark = [pytest.mark.process, pytest.mark.engine]


PAGE = {"Origin": "http://evil.example", "Host": "evil.example"}


@pytest.mark.faults("a web page asks (Origin, foreign Host)", "ready", "nothing matches")
def test_a_web_page_is_allowed_nothing(real: RealFactory, saw: Saw) -> None:
    manager = real().start()
    for key in (None, manager.api_key):
        for method, path in (
            ("GET", "/health"),
            ("GET", "/props"),
            ("OPTIONS", "/completion"),
            ("OPTIONS", "/v1/chat/completions"),
        ):
            _, headers, _ = raw(manager, method, path, key=key, headers=PAGE)
            allowed = headers.get("access-control-allow-origin", "")
            assert "evil" not in allowed
            assert allowed != "*"
    saw(f"Access-Control-Allow-Origin: {allowed or 'none'}")


@pytest.mark.parametrize("headers", [{}, PAGE], ids=["program", "page"])
@pytest.mark.faults("a stranger without the key", "ready", "401 on everything that tells")
def test_without_the_key_nothing_is_told(
    real: RealFactory, headers: dict[str, str], saw: Saw
) -> None:
    manager = real().start()
    closed = {}
    for method, path in (
        ("GET", "/props"), ("GET", "/slots"), ("GET", "/metrics"), ("POST", "/completion"),
        ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("POST", "/v1/embeddings"),
        ("POST", "/slots/0?action=save"), ("POST", "/tokenize"), ("POST", "/apply-template"),
        ("POST", "/props"), ("POST", "/infill"),
        ("GET", "/docs"), ("GET", "/redoc"), ("GET", "/openapi.json"),
    ):  # fmt: skip
        body = '{"prompt": "a", "filename": "x"}' if method == "POST" else None
        sent = {"Content-Type": "application/json", **headers}
        closed[path] = raw(manager, method, path, key=None, body=body, headers=sent)[0]
    assert set(closed.values()) <= {401, 404}, closed
    assert closed["/v1/chat/completions"] == 401
    saw(closed)


@pytest.mark.faults("page, tools, MCP, foreign files, with the key", "ready", "all off")
def test_what_was_not_asked_for_is_off(
    real: RealFactory, real_options: dict[str, Any], tmp_path: Path, saw: Saw
) -> None:
    manager = real().start()
    key = manager.api_key
    status, _, text = raw(manager, "GET", "/", key=key)
    assert status in {401, 403, 404, 410, 501} or "<script" not in text
    answers = {"/": status}
    for path, body in (
        ("/slots/0?action=save", '{"filename": "stolen"}'),
        ("/slots/0?action=save", '{"filename": "../../stolen"}'),
        ("/slots/0?action=restore", '{"filename": "../../etc/passwd"}'),
        ("/models/load", '{"model": "x"}'),
        ("/models/unload", '{"model": "x"}'),
        ("/props", '{"chat_template": "x"}'),
        ("/tools", '{"tool": "read_file", "params": {"path": "/etc/passwd"}}'),
        ("/cors-proxy?url=http://127.0.0.1:1/", "{}"),
        ("/mcp", "{}"),
    ):
        answers[path] = raw(
            manager, "POST", path, key=key, body=body, headers={"Content-Type": "application/json"}
        )[0]
    saw(answers)
    assert all(status >= 400 for path, status in answers.items() if path != "/"), answers
    # Slots can be saved for sessions: in the folder that is this server's alone and ends with it.
    assert all("slots" in path.parts for path in tmp_path.rglob("stolen"))
    manager.stop()
    assert not list(tmp_path.rglob("stolen"))


@pytest.mark.faults("a request names a file as its image", "ready", "refused, nothing of it told")
def test_no_file_of_this_machine_is_read_for_a_request(real: RealFactory, saw: Saw) -> None:
    manager = real().start()
    endpoint = manager.endpoint()
    said = []
    for url in ("file:///etc/passwd", "file:///proc/self/environ", "http://127.0.0.1:9/x.png"):
        content = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
        reply = ask(
            endpoint.base_url,
            "/v1/chat/completions",
            api_key=endpoint.api_key,
            body={"messages": [{"role": "user", "content": content}], "max_tokens": 1},
            timeout_s=20,
        )
        assert "root:" not in json.dumps(reply.body)
        said.append(reply.status)
    saw(said)
    if endpoint.kind != "llama-cpp-python":  # it drops what is no text, and answers the rest
        assert all(status >= 400 for status in said), said
    assert manager.health().ok


@pytest.mark.faults("variables that steer engines are set", "ready", "none reaches it")
def test_the_surroundings_do_not_steer_the_engine(
    real: RealFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama-cpp-python reads every setting from a variable without a prefix."""
    for name, value in {
        "CONFIG_FILE": "/etc/passwd", "N_CTX": "7", "HOST": "0.0.0.0", "MODEL": "/none.gguf",
        "LLAMA_ARG_CTX_SIZE": "7", "LLAMA_ARG_HOST": "0.0.0.0", "LLAMA_SERVER_ROUTER_PORT": "1",
        "AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    manager = real().start()
    assert complete(manager).status == 200
    assert manager.endpoint().context_tokens == 2048
    assert manager.pid
    listening = psutil.Process(manager.pid).net_connections("inet")
    assert {at.laddr.ip for at in listening if at.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


@pytest.mark.faults("connections half closed and half sent", "ready", "served on")
def test_half_connections_do_no_harm(real: RealFactory) -> None:
    """One that sends no more, one that never sends its whole request, one that goes at once."""
    manager = real().start()
    endpoint = manager.endpoint()
    body = json.dumps({"model": endpoint.model, "prompt": "a", "max_tokens": 4})
    request = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {endpoint.api_key}\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    address = ("127.0.0.1", manager.snapshot().port or 0)
    with (
        socket.create_connection(address, timeout=20) as closed_half,
        socket.create_connection(address, timeout=20) as sent_half,
    ):
        closed_half.sendall(request)
        closed_half.shutdown(socket.SHUT_WR)
        sent_half.sendall(request[: len(request) // 2])
        with socket.create_connection(address, timeout=20) as gone:
            gone.sendall(request)
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with suppress(ConnectionError):
            closed_half.recv(1 << 16)  # an answer or the end: either, but not never
        assert complete(manager).status == 200
    assert complete(manager).status == 200
    assert manager.snapshot().restarts == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.faults("where the key is, who can connect", "ready", "own user only; loopback")
def test_the_key_is_nowhere_and_the_port_on_loopback_only(
    real: RealFactory, isolated_home: Path
) -> None:
    """llama-server gets it in its environment, which others cannot read; the rest on stdin."""
    manager = real().start()
    key, pid = manager.api_key, manager.pid
    keeper = manager.snapshot().keeper_pid
    assert key
    assert pid
    assert keeper
    for process in (pid, keeper):
        assert key.encode() not in Path(f"/proc/{process}/cmdline").read_bytes()
    assert key.encode() not in Path(f"/proc/{keeper}/environ").read_bytes()
    environ = Path(f"/proc/{pid}/environ")
    if manager.endpoint().kind != "llama-server":
        assert key.encode() not in environ.read_bytes()
    assert stat.S_IMODE(environ.stat().st_mode) == 0o400
    for path in isolated_home.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]
    manager.restart()
    assert manager.api_key != key, "a new key for each start"


@pytest.mark.faults(
    "canaries in key, prompt and answer", "ready", "in no file, log, argv, snapshot"
)
def test_a_prompt_is_written_nowhere(
    real_options: dict[str, Any],
    isolated_home: Path,
    caplog: pytest.LogCaptureFixture,
    saw: Saw,
) -> None:
    """Also when the request fails: error messages like to repeat what was sent."""
    caplog.set_level("DEBUG")
    secret, prompt = "canary-key-0123456789abcdef", "canary-prompt-4711"
    with LlamaClient(**{**real_options, "ctx_size": 256}, api_key=secret) as client:
        reply = client.chat(prompt, params=LLMChatParams(max_tokens=32))
        with pytest.raises(LLMError):
            client.chat(f"{prompt} " * 400)
        server = client.server
        assert server is not None
        snapshot = server.snapshot()
        told = {
            "tail": " ".join(server.logs(400)),
            "snapshot": json.dumps(snapshot.to_dict()),
            "client": json.dumps(client.describe(), default=str),
            "our log": caplog.text,
        }
        for pid in (server.pid, snapshot.keeper_pid):
            told[f"argv of {pid}"] = " ".join(psutil.Process(pid).cmdline())
            told[f"environ of {pid}"] = " ".join(
                value
                for name, value in psutil.Process(pid).environ().items()
                if name != "LLAMA_API_KEY"
            )
    for path in isolated_home.rglob("*"):
        if path.is_file():
            told[str(path)] = path.read_text("utf-8", "replace")
    canaries = [secret, prompt, *([reply.text] if len(reply.text) >= 12 else [])]
    found = [
        (where, canary) for where, text in told.items() for canary in canaries if canary in text
    ]
    assert not found
    saw(f"{len(canaries)} canaries in none of {len(told)} places")
