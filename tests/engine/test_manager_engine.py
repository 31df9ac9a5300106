"""ServerManager on every real engine that is present."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime.errors import ConfigError, EngineStartError, ModelTooLargeError
from runtime.server.lifecycle import State
from runtime.server.probe import ask
from runtime.settings import ServerConfig
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.server.manager import ServerManager
    from tests.conftest import ManagerFactory

pytestmark = pytest.mark.engine

CYCLES = int(os.environ.get("TEST_CYCLES", "8"))
OWNER_KILLS = int(os.environ.get("TEST_OWNER_KILLS", "4"))


def chat(manager: ServerManager, **body: object) -> Any:
    """One short answer, asked for without the client."""
    endpoint = manager.endpoint(30)
    reply = ask(
        endpoint.base_url,
        "/v1/chat/completions",
        api_key=endpoint.api_key,
        body={
            "model": endpoint.model,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 4,
            **body,
        },
        timeout_s=60,
    )
    assert reply.status == 200, reply
    return reply.body


def test_start_use_and_stop(
    manager_for: ManagerFactory, tiny_model_path: Path, engine_options: dict[str, Any]
) -> None:
    manager = manager_for(model=str(tiny_model_path), ctx_size=256, parallel=2, **engine_options)
    with manager:
        pid = manager.pid
        assert pid
        assert chat(manager)["usage"]["completion_tokens"] >= 1
        assert manager.health().ok
        snapshot = manager.snapshot().to_dict()
        json.dumps(snapshot)
        facts = snapshot["engine"], snapshot["context"], snapshot["slots"], snapshot["device"]
        engine, context, slots, device = (dict(part) for part in facts)  # type: ignore[call-overload]
        assert engine["kind"] == engine_options["engine"]
        assert context["actual"] == 256, "tokens per request, whatever the number of slots"
        assert slots["total"] == (1 if engine["kind"] == "llama-cpp-python" else 2)
        assert device["actual"] == "cpu"
        assert device["why"]
        assert psutil.Process(pid).environ()["GOMP_SPINCOUNT"] == "1000", "docs/performance.md"
        assert engine["capabilities"]["json_schema"] is True
    wait_until("the engine is gone", lambda: not psutil.pid_exists(pid), timeout_s=1)


@pytest.mark.parametrize("parallel", [3, 7])
def test_any_number_of_slots_serves_chat_and_embeddings(
    manager_for: ManagerFactory,
    tiny_model_path: Path,
    engine_options: dict[str, Any],
    parallel: int,
) -> None:
    """llama.cpp aborts when its batch is no multiple of the slots and it serves embeddings."""
    options = {"model": str(tiny_model_path), "ctx_size": 256, "parallel": parallel}
    with manager_for(**options, **engine_options) as manager:
        assert chat(manager)


def test_the_default_engine_has_what_the_others_may_lack(
    manager_for: ManagerFactory, tiny_model_path: Path
) -> None:
    with manager_for(model=str(tiny_model_path), engine="xllamacpp", ctx_size=256) as manager:
        able = manager.endpoint().capabilities
        assert able.llguidance
        assert able.grammar
        assert able.slots
        assert able.token_counting
        assert able.metrics
        assert able.embeddings


def test_a_wrong_key_is_refused_and_the_right_one_is_secret(
    manager_for: ManagerFactory, tiny_model_path: Path, engine_options: dict[str, Any]
) -> None:
    manager = manager_for(model=str(tiny_model_path), ctx_size=256, **engine_options).start()
    endpoint = manager.endpoint()
    assert endpoint.api_key
    assert len(endpoint.api_key) >= 43, "256 bits"
    assert ask(endpoint.base_url, "/v1/models", api_key="wrong").status in {200, 401}
    refused = ask(
        endpoint.base_url,
        "/v1/chat/completions",
        api_key="wrong",
        body={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    )
    assert refused.status == 401
    assert manager.pid
    for process in (manager.pid, manager.snapshot().keeper_pid):
        assert process
        assert endpoint.api_key not in " ".join(psutil.Process(process).cmdline())
    assert endpoint.api_key not in repr(endpoint)


def test_kill_9_and_ready_again(
    manager_for: ManagerFactory, tiny_model_path: Path, engine_options: dict[str, Any]
) -> None:
    manager = manager_for(model=str(tiny_model_path), ctx_size=256, **engine_options).start()
    first = manager.pid
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until("its death is seen", lambda: manager.pid != first)
    assert chat(manager)
    assert manager.pid != first


def test_a_damaged_model_that_only_the_engine_notices(
    manager_for: ManagerFactory,
    tiny_model_path: Path,
    tmp_path: Path,
    engine_options: dict[str, Any],
) -> None:
    """An architecture that no engine knows passes our own look at the file."""
    data = bytearray(tiny_model_path.read_bytes())
    at = data.index(b"general.architecture") + len("general.architecture") + 4 + 8
    data[at : at + 5] = b"lxama"
    for key in (b"llama.",):
        data = bytearray(bytes(data).replace(key, b"lxama."))
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(data)
    manager = manager_for(model=str(strange), ctx_size=256, **engine_options)
    began = time.monotonic()
    with pytest.raises(EngineStartError) as caught:
        manager.start()
    assert time.monotonic() - began < 20
    assert caught.value.diagnosis == "unsupported_architecture", caught.value.log_tail
    assert manager.state is State.FAILED


def test_an_unknown_parameter_is_named(manager_for: ManagerFactory, tiny_model_path: Path) -> None:
    manager = manager_for(
        model=str(tiny_model_path), engine="xllamacpp", extra_args=("frobnicate=1",)
    )
    with pytest.raises(EngineStartError) as caught:
        manager.start()
    assert caught.value.diagnosis == "unknown_flag"
    assert any("frobnicate" in line for line in caught.value.log_tail)


def test_extra_parameters_reach_the_engine(
    manager_for: ManagerFactory, tiny_model_path: Path
) -> None:
    manager = manager_for(
        model=str(tiny_model_path),
        engine="xllamacpp",
        ctx_size=256,
        extra_args=("sleep_idle_seconds=1", "n_batch=64"),
    ).start()
    assert chat(manager)


def test_cycles_of_start_and_stop_leak_nothing(
    manager_for: ManagerFactory,
    tiny_model_path: Path,
    isolated_home: Path,
    engine_options: dict[str, Any],
) -> None:
    """Processes, threads, descriptors and files are as many after the last as after the first."""
    manager = manager_for(model=str(tiny_model_path), ctx_size=256, **engine_options)
    me = psutil.Process()

    def cycle() -> tuple[int, int, int]:
        with manager:
            pass
        return len(me.children(recursive=True)), me.num_fds(), threading.active_count()

    first = cycle()
    for _ in range(CYCLES):
        last = cycle()
    assert last == first
    kept = [path for path in isolated_home.rglob("*") if path.is_file()]
    logs = [path for path in kept if path.suffix == ".log"]
    assert len(logs) <= 21
    assert not [path for path in kept if path.suffix == ".tmp" or path.parent.name == "servers"]


OWNER = """
import json, sys, time
from runtime.server.manager import ServerManager
from runtime.settings import ServerConfig
print("begin", flush=True)
manager = ServerManager(ServerConfig(**json.loads(sys.argv[1]))).start()
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def test_no_engine_survives_an_owner_killed_at_a_random_moment(
    tiny_model_path: Path, engine_options: dict[str, Any]
) -> None:
    """Resolving, starting, loading or serving: within a second nothing is left."""
    options = json.dumps({"model": str(tiny_model_path), "ctx_size": 256, **engine_options})
    chance = random.Random(20)
    seen = 0
    for _ in range(OWNER_KILLS):
        with subprocess.Popen(
            [sys.executable, "-c", OWNER, options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as owner:
            assert owner.stdout
            assert owner.stdout.readline() == b"begin\n"
            moment = time.monotonic() + chance.uniform(0, 2.0)
            below: set[int] = set()
            while time.monotonic() < moment:
                below |= {p.pid for p in psutil.Process(owner.pid).children(recursive=True)}
            owner.kill()
            owner.wait()
        seen += len(below)
        wait_until(
            "all that was below the owner is gone",
            lambda: all(map(is_gone, below)),  # noqa: B023 - called before the loop goes on
            timeout_s=1.0,
        )
    assert seen, "no engine was ever started: the test saw nothing"


def test_an_impossible_context_is_refused_before_the_launch(
    manager_for: ManagerFactory, smollm2_path: Path
) -> None:
    manager = manager_for(model=str(smollm2_path), ctx_size=8192, parallel=256)
    with pytest.raises(ModelTooLargeError) as caught:
        manager.start()
    assert caught.value.needed_bytes > caught.value.available_bytes


def test_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="ctx_size"):
        ServerConfig(ctx_size=0)
    with pytest.raises(ConfigError, match="Did you mean 'ctx_size'"):
        ServerConfig(ctx_sise=4096)
