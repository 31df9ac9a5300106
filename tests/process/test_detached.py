"""A detached gateway's life: started, shown, used, followed, killed, started again, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import pytest

from runtime import AsyncLlamaClient, LlamaClient, LLMChatParams, LLMRequest, ToolSpec
from runtime.contracts import LLMMessage
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.outside, pytest.mark.process, pytest.mark.engine]

SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 30, "maximum": 34}},
    "required": ["age"],
    "additionalProperties": False,
}
TOOL = ToolSpec(
    name="get_weather",
    description="The weather of a city.",
    input_schema={
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    output_schema={},
)


@dataclass(frozen=True)
class House:
    """A home with a detached gateway in it.

    Attributes:
        home: Where its files are.
        url: Where the gateway answers.
        pid: Its process id.
        freed_s: Seconds from the kill of the gateway before it to the end of that one's engine.
    """

    home: Path
    url: str
    pid: int
    freed_s: float

    @property
    def port(self) -> str:
        return str(urlsplit(self.url).port)


def llama(home: Path, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=_environment(home, **env),
        check=False,
    )


def _environment(home: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if "LLAMA_RUNTIME" not in name}
    return {**clean, "LLAMA_RUNTIME_HOME": str(home), "LLAMA_RUNTIME_THREADS": "1", **more}


def records(home: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(llama(home, "ps", "--json").stdout)
    return found


def detached(home: Path, model: Path, port: str) -> str:
    """Start one; returns its address."""
    done = llama(home, "serve", model, "--ctx-size", 512, "--port", port, "--detach")
    assert done.returncode == 0, done.stderr
    assert "llama-runtime stop" in done.stderr
    assert "Ready at" in done.stderr, "what it says itself is passed on"
    assert "Ctrl-C" not in done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def house(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The second gateway on its port: the first was killed."""
    home = tmp_path_factory.mktemp("house")
    url = detached(home, tiny_model_path, "0")
    gateway, engine = records(home)
    os.kill(gateway["pid"], signal.SIGKILL)
    began = time.monotonic()
    wait_until("the engine is gone", lambda: is_gone(engine["pid"]), timeout_s=5)
    freed_s = time.monotonic() - began
    assert detached(home, tiny_model_path, str(urlsplit(url).port)) == url
    gateway, engine = records(home)
    yield House(home, url, gateway["pid"], freed_s)
    for pid in (gateway["pid"], engine["pid"]):
        if psutil.pid_exists(pid):  # no test should have left it
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def at_home(house: House, monkeypatch: pytest.MonkeyPatch) -> House:
    """This process lives in the gateway's home, with no settings of a server."""
    monkeypatch.setenv("LLAMA_RUNTIME_HOME", str(house.home))
    monkeypatch.delenv("LLAMA_RUNTIME_THREADS")
    return house


def test_a_killed_gateway_takes_its_engine_along(house: House) -> None:
    """And the next one starts cleanly on the same port."""
    assert house.freed_s < 1.0


def test_ps_shows_the_gateway_and_its_engine(house: House) -> None:
    gateway, engine = records(house.home)
    assert (gateway["kind"], gateway["base_url"], gateway["state"]) == (
        "gateway",
        house.url,
        "ready",
    )
    assert (engine["kind"], engine["owner_pid"]) == ("engine", gateway["pid"])
    assert engine["resident_bytes"] > 0
    table = llama(house.home, "ps").stdout
    assert table.count("tiny-chat") == 2
    assert house.url in table


def test_all_files_of_state_are_private(house: House) -> None:
    state = house.home / "state"
    for path in (state, *state.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_it_is_in_a_session_of_its_own(house: House) -> None:
    assert os.getsid(house.pid) == house.pid


def test_a_second_serve_is_told_who_holds_the_port(house: House, tiny_model_path: Path) -> None:
    done = llama(house.home, "serve", tiny_model_path, "--port", house.port)
    assert done.returncode == 5
    for fact in (house.port, "tiny-chat", f"process {house.pid}", "runtime serve"):
        assert fact in done.stderr
    assert "--port" in done.stderr
    assert "llama-runtime stop" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_detached_start_that_fails_says_why(house: House) -> None:
    done = llama(house.home, "serve", "/nowhere/model.gguf", "--port", "0", "--detach")
    assert done.returncode == 2
    assert "/nowhere/model.gguf" in done.stderr
    assert "ended with code 2" in done.stderr
    assert done.stdout == ""
    assert len(records(house.home)) == 2, "the other one is as it was"


def test_logs_tell_whose_line_it_is(house: House) -> None:
    shown = llama(house.home, "logs", house.port, "-n", 3).stdout.splitlines()
    assert [line.partition(" | ")[0] for line in shown] == ["gateway"] * 3 + ["tiny-chat"] * 3


def test_logs_are_followed_through_a_restart(house: House) -> None:
    def asked(word: str) -> None:
        body = {"messages": [{"role": "user", "content": word}], "max_tokens": 1}
        with LlamaClient(base_url=house.url) as client:
            client.chat(str(body), params=LLMChatParams(max_tokens=1))

    out = house.home / "followed"
    with out.open("wb") as file:
        follower = subprocess.Popen(
            [sys.executable, "-m", "runtime", "logs", "-f", "-n", "0", house.port],
            stdout=file,
            stderr=subprocess.DEVNULL,
            env=_environment(house.home),
        )
    try:
        log = Path(records(house.home)[1]["log_path"])
        wait_until("it reads", lambda: _holds(follower.pid, log))
        asked("before")
        wait_until("it shows what comes", lambda: b"stop processing" in out.read_bytes())
        os.kill(records(house.home)[1]["pid"], signal.SIGKILL)
        wait_until("it tells the end", lambda: b"ended by SIGKILL" in out.read_bytes())
        wait_until("it shows the next", lambda: b"listening on" in out.read_bytes())
        follower.send_signal(signal.SIGINT)
        assert follower.wait(5) == 0
    finally:
        follower.kill()
        follower.wait()


def _holds(pid: int, path: Path) -> bool:
    return str(path) in {file.path for file in psutil.Process(pid).open_files()}


# --- clients -----------------------------------------------------------------------------------


def test_a_client_without_settings_uses_the_gateway(at_home: House) -> None:
    """Schema, tools, streams and counts hold through both layers."""
    with LlamaClient("tiny-chat") as client:
        described = client.describe()
        json.dumps(described)
        gateway: Any = described["gateway"]
        assert (gateway["pid"], gateway["base_url"]) == (at_home.pid, at_home.url)
        assert described["server"] is None
        assert client.server is None
        assert described["default_model"] == "tiny-chat"
        assert client.capabilities().json_mode == "native"
        assert client.capabilities().max_context_tokens == 512
        reply = client.chat("Hi", params=LLMChatParams(max_tokens=100, response_schema=SCHEMA))
        assert 30 <= json.loads(reply.text)["age"] <= 34
        ask = [LLMMessage(role="user", content="Weather in Rome?")]
        options: dict[str, object] = {"tool_choice": "required"}
        request = LLMRequest(messages=ask, tools=[TOOL], max_tokens=100, provider_options=options)
        (call,) = client.generate(request).tool_calls
        assert json.loads(call.arguments_json)["city"] in {"Rome", "Oslo"}
        seeded = LLMChatParams(max_tokens=20, provider_options={"seed": 7})
        whole = client.chat("Say something.", params=seeded)
        events = list(client.stream_chat("Say something.", params=seeded))
        assert "".join(event.delta_text or "" for event in events) == whole.text
        assert whole.usage == events[-1].response.usage  # type: ignore[union-attr]
        ask = [LLMMessage(role="user", content="Say something.")]
        assert client.count_tokens(ask) == whole.usage.prompt_tokens  # type: ignore[union-attr]
        assert 0 < client.count_tokens("Say something.") < client.count_tokens(ask)
        (vector,) = client.embed(["a text"]).vectors
        assert abs(sum(x * x for x in vector) - 1) < 1e-3
        assert client.healthcheck().ok
    assert not is_gone(at_home.pid), "it is not the client's to end"


def test_a_stream_of_a_client_survives_the_engine_behind_the_gateway(at_home: House) -> None:
    seeded = LLMChatParams(max_tokens=300, provider_options={"seed": 7})
    with LlamaClient("tiny-chat") as client:
        whole = client.chat("Say something.", params=seeded).text
        said = ""
        for event in client.stream_chat("Say something.", params=seeded):
            if not said:
                os.kill(records(at_home.home)[1]["pid"], signal.SIGKILL)
            said += event.delta_text or ""
    assert said == whole


def test_an_async_client_uses_it_too(at_home: House) -> None:
    async def ask() -> tuple[Any, str]:
        async with AsyncLlamaClient("tiny-chat") as client:
            reply = await client.chat("Hi", params=LLMChatParams(max_tokens=2))
            return (await client.describe())["gateway"], reply.text

    gateway, text = asyncio.run(ask())
    assert gateway["pid"] == at_home.pid
    assert text


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ({"use_gateway": False}, {}),
        ({"ctx_size": 256}, {}),
        ({}, {"LLAMA_RUNTIME_USE_GATEWAY": "0"}),
        ({}, {"LLAMA_RUNTIME_CTX_SIZE": "256"}),
        ({"on_truncation": "close"}, {}),
    ],
)
def test_a_client_with_wishes_of_its_own_does_not(
    at_home: House,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    env: dict[str, str],
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    client = AsyncLlamaClient("tiny-chat", **options)  # which starts nothing yet
    assert client.server is not None
    assert client._shared is None
    asyncio.run(client.close())


@pytest.mark.parametrize(("option", "used"), [((), True), (("--ctx-size", "256"), False)])
def test_the_command_line_uses_it_unless_it_has_settings(
    at_home: House, tiny_model_path: Path, option: tuple[str, ...], used: bool
) -> None:
    model = "tiny-chat" if used else str(tiny_model_path)  # a name that the gateway alone knows
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "run", "hi", "-m", model, "--max-tokens", "2", *option],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert (f"at {at_home.url}" in " ".join(done.stderr.split())) is used


# --- the end -----------------------------------------------------------------------------------


def test_stop_ends_it(at_home: House) -> None:
    """The last one. What becomes of its clients: tests/engine/test_gateway_lost.py."""
    engine = records(at_home.home)[1]["pid"]
    assert llama(at_home.home, "stop", "9" * 9).returncode == 2
    done = llama(at_home.home, "stop", at_home.port)
    assert done.returncode == 0, done.stderr
    assert "Ended" in done.stderr
    assert is_gone(at_home.pid)
    assert is_gone(engine)
    assert llama(at_home.home, "stop", "--all").returncode == 0
