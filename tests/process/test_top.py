"""`top`: the terminal's view of a gateway that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from runtime.cli import top
from runtime.errors import LLMAuthError, LLMError, LLMInvalidRequestError, LLMProviderError
from tests.gateways import serving
from tests.terminal import CTRL_C, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.gateways import Gateway

pytestmark = [pytest.mark.outside, pytest.mark.process]

KEY = "canary-9876543210"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway's and the command's."""
    return tmp_path_factory.mktemp("top")


@pytest.fixture(scope="module")
def gateway(home: Path, tiny_model_path: Path, fake_binary: Path) -> Iterator[Gateway]:
    """A gateway that asks for a key, in front of a fake engine."""
    options = ("--engine", "llama-server", "--engine-path", fake_binary, "--alias", "tiny")
    with serving(tiny_model_path, *options, home=home, LLAMA_RUNTIME_API_KEY=KEY) as running:
        yield running


@pytest.fixture
def home_of_its_own(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """The command finds the gateway by its record, in the gateway's home."""
    monkeypatch.setenv("LLAMA_RUNTIME_HOME", str(home))


def run_top(*args: str, key: str | None = KEY) -> subprocess.CompletedProcess[str]:
    with_key = {"LLAMA_RUNTIME_API_KEY": key} if key else {}
    return subprocess.run(
        [sys.executable, "-m", "runtime", "top", *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **with_key},
        check=False,
    )


def test_without_a_gateway_it_says_what_to_do() -> None:
    done = run_top("--once")
    assert done.returncode == 2
    assert "llama-runtime serve" in done.stderr
    assert done.stdout == ""


@pytest.mark.usefixtures("home_of_its_own")
def test_it_finds_the_gateway_and_shows_it_once(gateway: Gateway, tmp_path: Path) -> None:
    shown = run_top("--once")
    assert shown.returncode == 0, shown.stderr
    for fact in ("tiny", "ready", gateway.url, "tokens/s", "slots busy"):
        assert fact in shown.stdout
    assert "\x1b" not in shown.stdout, "no commands to what is no terminal"
    (model,) = json.loads(run_top("tiny", "--json").stdout)["models"]
    assert model["state"] == "ready"
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    by_file = run_top("--url", gateway.url + "/v1", "--api-key-file", str(key), key=None)
    assert by_file.returncode == 0, by_file.stderr


@pytest.mark.usefixtures("home_of_its_own")
@pytest.mark.parametrize(
    ("args", "key", "kind", "said"),
    [
        (("--once",), "", LLMAuthError, "LLAMA_RUNTIME_API_KEY"),
        (("--once",), "wrong", LLMAuthError, "refuses this key"),
        (("nobody",), KEY, LLMInvalidRequestError, "tiny"),
        (("--url", "http://127.0.0.1:9"), KEY, LLMProviderError, "does not answer"),
        (("--url", "ftp://x"), KEY, LLMInvalidRequestError, "http://127.0.0.1:8080"),
        (("--api-key-file", "/nowhere/key"), KEY, LLMInvalidRequestError, "/nowhere/key"),
    ],
)
def test_what_goes_wrong_is_named(
    gateway: Gateway, args: tuple[str, ...], key: str, kind: type[LLMError], said: str
) -> None:
    ended = CliRunner().invoke(top.top, args, env={"LLAMA_RUNTIME_API_KEY": key})
    assert isinstance(ended.exception, kind)
    assert said in str(ended.exception)


@pytest.mark.usefixtures("home_of_its_own")
def test_on_a_terminal_it_is_live_until_q_or_ctrl_c(gateway: Gateway) -> None:
    """The last test of the gateway, which is killed while it is watched."""
    command = (sys.executable, "-m", "runtime", "top", "--every", "0.2")
    with Terminal(*command, LLAMA_RUNTIME_API_KEY=KEY) as terminal:
        terminal.expect("q ends")
        terminal.type(CTRL_C)
        assert terminal.ends() == 0
    with Terminal(*command, LLAMA_RUNTIME_API_KEY=KEY) as terminal:
        for fact in ("tiny", "ready", "q ends"):
            terminal.expect(fact)
        gateway.process.kill()
        terminal.expect("does not answer")
        terminal.expect("tiny")  # what it said last stays on view
        terminal.type("q")
        assert terminal.ends() == 0
        assert terminal.raw.rstrip().endswith(("\x1b[?1049l", "\x1b[?25h")), (
            "the screen is given back"
        )
