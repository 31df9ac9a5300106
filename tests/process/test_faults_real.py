"""Fault battery: every real engine present, killed, frozen, its model taken away."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime import LlamaClient, LLMChatParams
from runtime.errors import EngineStartError, LLMError, LLMProviderError
from runtime.server.lifecycle import State
from runtime.server.probe import ask
from runtime.store import ModelStore
from tests.conftest import is_gone, wait_until
from tests.process.real_engine import NO_SLOTS, complete, long_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import RealFactory

    Saw = Callable[[object], None]

pytestmark = [pytest.mark.process, pytest.mark.engine]

FREEZE = Path(__file__).parents[1] / "fakes" / "freeze_thread.py"


@pytest.mark.faults("SIGKILL while idle", "ready", "SIGKILL in last_exit, one restart")
def test_killed_while_idle(real: RealFactory, saw: Saw) -> None:
    manager = real().start()
    first = manager.pid
    assert first
    assert complete(manager).status == 200
    began = time.monotonic()
    os.kill(first, signal.SIGKILL)
    wait_until("its death is seen", lambda: manager.pid != first, timeout_s=2)
    assert time.monotonic() - began < 1.0, "13 ms on a quiet machine"
    assert complete(manager).status == 200
    snapshot = manager.snapshot()
    assert snapshot.restarts == 1
    assert snapshot.last_exit
    assert snapshot.last_exit["signal"] == "SIGKILL"
    saw(snapshot.last_exit["reason"])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends it with its keeper: Linux")
@pytest.mark.faults("keeper killed", "ready", "a new keeper and engine")
def test_keeper_killed(real: RealFactory, saw: Saw) -> None:
    manager = real().start()
    engine, keeper = manager.pid, manager.snapshot().keeper_pid
    assert engine
    assert keeper
    os.kill(keeper, signal.SIGKILL)
    wait_until("the engine is gone, too", lambda: is_gone(engine), timeout_s=2)
    wait_until("another serves", lambda: manager.pid not in {None, engine}, timeout_s=30)
    assert complete(manager).status == 200
    snapshot = manager.snapshot()
    assert snapshot.keeper_pid != keeper
    assert snapshot.restarts == 1
    saw(snapshot.last_exit and snapshot.last_exit["reason"])


@pytest.mark.faults("SIGKILL in mid-stream", "ready", "a clean LLMProviderError")
def test_killed_in_mid_stream(real_options: dict[str, Any], saw: Saw) -> None:
    with LlamaClient(max_retries=0, **real_options) as client:
        server = client.server
        assert server is not None
        pid = server.pid
        assert pid
        pieces = client.stream_chat("Tell me more.")
        next(pieces)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LLMProviderError) as caught:
            list(pieces)
        saw(caught.value.message)
        wait_until("its death is seen", lambda: server.pid != pid)
        assert client.chat("Again.", params=LLMChatParams(max_tokens=4)).text
        assert server.snapshot().restarts == 1


@pytest.mark.faults("SIGKILL while loading", "failed", "killed")
def test_killed_while_loading(real: RealFactory, saw: Saw) -> None:
    manager = real()
    failed: list[LLMError] = []

    def start() -> None:
        try:
            manager.start()
        except LLMError as exc:
            failed.append(exc)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until("it is loading", lambda: manager.pid is not None)
    pid = manager.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    thread.join(20)
    assert failed
    assert isinstance(failed[0], EngineStartError)
    assert failed[0].diagnosis == "killed"
    saw(failed[0].message)
    assert is_gone(pid)


@pytest.mark.faults(
    "SIGSTOP in mid-request",
    "ready",
    "no token has moved",
    long=True,
    not_on={"llama-cpp-python": NO_SLOTS},
)
def test_stopped_at_work(real: RealFactory, saw: Saw) -> None:
    manager = real(wedge_timeout_s=2.0).start()
    first = manager.pid
    assert first
    thread = long_request(manager)
    os.kill(first, signal.SIGSTOP)
    wait_until("it is replaced", lambda: manager.pid not in {None, first}, timeout_s=20)
    thread.join(30)
    assert complete(manager).status == 200
    last = manager.snapshot().last_exit
    assert last
    assert last["diagnosis"] == "wedged"
    saw(last["reason"])


def busiest_thread(pid: int) -> int:
    """The thread that computes: the one whose processor time grows most."""
    before = {thread.id: thread.user_time for thread in psutil.Process(pid).threads()}
    until = time.monotonic() + 0.3
    wait_until("a moment passed", lambda: time.monotonic() > until)
    grown = {
        thread.id: thread.user_time - before.get(thread.id, 0.0)
        for thread in psutil.Process(pid).threads()
    }
    return max(grown, key=lambda tid: grown[tid])


@pytest.mark.skipif(sys.platform != "linux", reason="ptrace by thread is Linux's")
@pytest.mark.faults(
    "the inference thread frozen by ptrace",
    "ready",
    "wedged",
    not_on={"llama-cpp-python": NO_SLOTS},
)
def test_one_thread_frozen(real: RealFactory, saw: Saw) -> None:
    """/health and /slots answer 200 all the while."""
    manager = real(wedge_timeout_s=2.0, threads=1).start()
    first, endpoint = manager.pid, manager.endpoint()
    assert first
    thread = long_request(manager)
    with subprocess.Popen(
        [sys.executable, str(FREEZE), str(busiest_thread(first))],
        stdout=subprocess.PIPE,
        text=True,
    ) as freezer:
        assert freezer.stdout
        said = freezer.stdout.readline().strip()
        try:
            if said != "frozen":
                pytest.skip(f"this system lets nobody freeze a thread: {said}")
            answered = ask(endpoint.base_url, "/health", api_key=endpoint.api_key).status
            wait_until("it is replaced", lambda: manager.pid not in {None, first}, timeout_s=30)
        finally:
            freezer.kill()
            thread.join(40)
    assert complete(manager).status == 200
    last = manager.snapshot().last_exit
    assert last
    assert last["diagnosis"] == "wedged"
    saw(f"/health said {answered}; {last['reason']}")


@pytest.mark.faults("model truncated in place", "failed", "SIGBUS, then: cut off")
def test_model_truncated_while_serving(
    real: RealFactory, tiny_model_path: Path, tmp_path: Path, saw: Saw
) -> None:
    model = tmp_path / "mine.gguf"
    model.write_bytes(tiny_model_path.read_bytes())
    manager = real(model=str(model)).start()
    os.truncate(model, 4096)
    reply = complete(manager)
    if reply.status == 200:
        pytest.skip("this system keeps mapped pages of a file that was cut")
    wait_until("it is failed", lambda: manager.state is State.FAILED)
    snapshot = manager.snapshot()
    saw(f"{snapshot.last_exit and snapshot.last_exit['reason']}; {snapshot.error}")
    assert "cut" in str(snapshot.error)


@pytest.mark.faults("model deleted while serving", "ready", "serves on")
def test_model_deleted_while_serving(
    real: RealFactory, tiny_model_path: Path, tmp_path: Path, saw: Saw
) -> None:
    model = tmp_path / "mine.gguf"
    model.write_bytes(tiny_model_path.read_bytes())
    manager = real(model=str(model)).start()
    model.unlink()
    assert complete(manager).status == 200
    assert manager.pid
    os.kill(manager.pid, signal.SIGKILL)
    wait_until("it is failed", lambda: manager.state is State.FAILED)
    saw(manager.snapshot().error)
    assert "mine.gguf" in str(manager.snapshot().error)


@pytest.mark.faults(
    "1 MiB of random bytes in the tensors", "ready", "only the hash tells: verify names the file"
)
def test_random_bytes_in_tensors_are_seen_by_the_hash_alone(
    real: RealFactory, real_options: dict[str, Any], tmp_path: Path, saw: Saw
) -> None:
    """The engine loads it and talks nonsense; a file named after its digest gives it away."""
    plain = Path(real_options["model"])
    sound = tmp_path / f"sha256-{hashlib.sha256(plain.read_bytes()).hexdigest()}"
    sound.write_bytes(plain.read_bytes())
    assert ModelStore().verify(str(sound)).ok
    data = bytearray(sound.read_bytes())
    size = min(1 << 20, len(data) // 2)
    data[-size:] = secrets.token_bytes(size)
    sound.write_bytes(data)

    manager = real(model=str(sound)).start()

    assert manager.state is State.READY
    status = complete(manager).status
    if real_options["engine"] == "llama-cpp-python":
        assert status in {0, 200, 500}, "numpy may stumble over what is no number"
    else:
        assert status == 200
    found = ModelStore().verify(str(sound))
    assert [check.path for check in found.damaged] == [sound]
    saw(f"HTTP {status}; verify: damaged {sound.name[:14]}…")
