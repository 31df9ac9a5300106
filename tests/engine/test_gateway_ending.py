"""How a gateway begins and ends, seen from outside: drained, cut off, interrupted, failed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import openai
import psutil
import pytest

from runtime.server import registry
from runtime.testing.tiny_model import build_tiny_model
from tests.conftest import is_gone, wait_until
from tests.gateways import Gateway, begun, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.engine, pytest.mark.process]

HELLO: Any = [{"role": "user", "content": "Hello there."}]


class Talk:
    """A stream that is read by a thread of its own.

    Attributes:
        text: What has come.
        reason: Why it ended, if it ended well.
        error: What it ended with otherwise.
    """

    def __init__(self, client: openai.OpenAI, tokens: int) -> None:
        self.text = ""
        self.reason: str | None = None
        self.error: openai.APIError | None = None
        self._client, self._tokens = client, tokens
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        wait_until("it has begun", lambda: bool(self.text) or not self.thread.is_alive())

    def _run(self) -> None:
        try:
            for chunk in self._client.chat.completions.create(
                model="tiny-chat",
                messages=HELLO,
                max_tokens=self._tokens,
                extra_body={"ignore_eos": True},
                stream=True,
            ):
                self.text += chunk.choices[0].delta.content or ""
                self.reason = chunk.choices[0].finish_reason
        except openai.APIError as exc:
            self.error = exc


def test_requests_under_way_are_drained_then_cut_with_an_error(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    """What ends in time is whole; the rest is told why, not dropped; a second signal hurries."""
    options = ("--ctx-size", "8192", "--parallel", "2")
    with (
        serving(tiny_model_path, *options, home=tmp_path) as gateway,
        gateway.client(max_retries=0, timeout=30) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        engine = gateway.engine_pid()
        long, short = Talk(client, 8000), Talk(client, 400)
        waiting = pool.submit(_refused, client)  # in line behind the two, or behind the long one
        wait_until("all are here", lambda: gateway.under_way() + (short.reason is not None) >= 3)
        gateway.process.send_signal(signal.SIGTERM)
        short.thread.join(10)
        assert (short.error, short.reason) == (None, "length")
        wait_until("no new request is taken", lambda: not _listens(gateway))
        came = len(long.text)
        wait_until("the long one goes on", lambda: len(long.text) > came)
        told_at = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        long.thread.join(10)
        assert "was told to end" in str(long.error)
        assert "was told to end" in str(waiting.result(10))
        assert waiting.result().response.headers["retry-after"]
        assert gateway.process.wait(10) == 0
        assert time.monotonic() - told_at < 2.5, "it did not wait for the rest"
        assert is_gone(engine)
        assert gateway.stderr.read_text("utf-8").rstrip().endswith("Ended.")
        assert "Traceback" not in gateway.stderr.read_text("utf-8")


def _listens(gateway: Gateway) -> bool:
    address = urlsplit(gateway.url)
    try:
        with socket.create_connection((address.hostname or "", address.port or 0)):
            return True
    except ConnectionRefusedError:
        return False


def _refused(client: openai.OpenAI) -> openai.APIStatusError:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(
            model="tiny-chat", messages=HELLO, max_tokens=8000, extra_body={"ignore_eos": True}
        )
    assert caught.value.status_code == 503
    return caught.value


@pytest.mark.parametrize("end", ["ctrl-c", pytest.param("stop", marks=pytest.mark.outside)])
def test_a_gateway_that_loads_says_so_and_ends_at_once(
    tiny_model_path: Path, fake_binary: Path, isolated_home: Path, end: str
) -> None:
    engine = {
        "LLAMA_RUNTIME_ENGINE": "llama-server",
        "LLAMA_RUNTIME_ENGINE_PATH": str(fake_binary),
        "LLAMA_RUNTIME_ENV": json.dumps({"FAKE": json.dumps({"never_ready": True})}),
    }
    with (
        begun(tiny_model_path, home=isolated_home, **engine) as (process, stderr),
        ThreadPoolExecutor(1) as pool,
    ):
        wait_until("it listens and loads", lambda: len(_below(process.pid)) >= 2)
        records = registry.running(everything=True)
        (record,) = [each for each in records if each.role == "serve"]
        assert record.state == "loading"
        gateway = Gateway(process, record.base_url or "", stderr)
        health = gateway.get("/health")
        assert (health.status, health.body["status"]) == (503, "loading")
        assert health.body["models"] == {"tiny-chat": "loading"}
        below = _below(process.pid)
        with gateway.client(max_retries=0, timeout=30) as client:
            waiting = pool.submit(_refused, client)
            wait_until("it waits for the model", lambda: _in_flight(gateway) == 1)
            if end == "stop":
                done = subprocess.run(
                    [sys.executable, "-m", "runtime", "stop", str(process.pid)],
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
            else:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole group
            assert process.wait(10) == 130
            assert "was told to end" in str(waiting.result(10))
        assert not psutil.wait_procs(below, timeout=1)[1]
        assert registry.running(everything=True) == ()
        assert "Traceback" not in stderr.read_text("utf-8")


def _below(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def _in_flight(gateway: Gateway) -> int:
    count: int = gateway.get("/snapshot").body["gateway"]["in_flight"]
    return count


def test_health_tells_a_failed_model_and_its_return(tmp_path: Path) -> None:
    """Its file is gone when the engine dies; once it is back, the next request loads it anew."""
    model, away = tmp_path / "tiny-chat.gguf", tmp_path / "away"
    build_tiny_model(model)
    policy = json.dumps({"max_restarts": 1, "backoff_base_s": 0.01})
    home = tmp_path / "home"
    with serving(model, "--ctx-size", "256", home=home, LLAMA_RUNTIME_RESTART=policy) as gateway:
        assert gateway.get("/health").body["status"] == "ready"
        model.rename(away)
        os.kill(gateway.engine_pid(), signal.SIGKILL)
        wait_until("it has failed", lambda: gateway.get("/health").status == 503)
        health = gateway.get("/health").body
        assert (health["status"], health["models"]) == ("failed", {"tiny-chat": "failed"})
        assert health["message"].startswith("tiny-chat: ")
        away.rename(model)
        body = {"messages": HELLO, "max_tokens": 2}
        assert gateway.post("/v1/chat/completions", body).status == 200
        health = gateway.get("/health")
        assert (health.status, health.body["status"]) == (200, "ready")
