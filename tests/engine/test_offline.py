"""With the network cable out: a model that is on disk answers, and nobody even looks outside."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import USER_HOME

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine

PROGRAM = """
import sys
attempts = []

def watch(event, args):
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if host not in ("127.0.0.1", "::1", "localhost"):
        attempts.append((event, host))
        raise OSError(f"{event} {host} is forbidden here")

sys.addaudithook(watch)
from runtime import LLMChatParams, LlamaClient, LLMError

with LlamaClient("smollm2-135m", ctx_size=256, parallel=1, offline=True) as client:
    print(client.chat("Say hello.", params=LLMChatParams(max_tokens=8)).text)
    print(len(client.embed(["one"]).vectors))
try:
    LlamaClient("nobody/has-this", offline=True)
except LLMError as exc:
    print(exc)
print("attempts:", attempts)
"""


def test_offline_chats_on_the_cached_model_with_no_attempt_to_connect(
    smollm2_path: Path,
) -> None:
    assert smollm2_path.is_file()
    # The user's own cache has the model; the test's own home is empty.
    env = {name: value for name, value in os.environ.items() if name != "LLAMA_RUNTIME_HOME"}
    if USER_HOME is not None:
        env["LLAMA_RUNTIME_HOME"] = USER_HOME
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=100,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "attempts: []"
    assert "offline" in done.stdout.lower(), "what is not on disk is said to need the network"
