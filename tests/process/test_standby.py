"""The warm standby: it takes over when it is fit to, it is replaced, and nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ConfigError, EngineStartError
from runtime.server import registry
from runtime.server.lifecycle import State
from runtime.settings import RestartPolicy
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.server.manager import ServerManager
    from tests.conftest import FakeFactory

pytestmark = pytest.mark.process


def standby(manager: ServerManager) -> Mapping[str, Any]:
    return manager.snapshot().standby


def until_proven(manager: ServerManager, *, other_than: int | None = None) -> int:
    """Wait for a standby that has computed a token; returns its process id."""
    found: list[int] = []

    def is_proven() -> bool:
        seen = standby(manager)
        if seen["proven_at"] is not None and seen["pid"] not in {None, other_than}:
            found.append(int(seen["pid"]))
        return bool(found)

    wait_until("a standby is proven", is_proven)
    return found[0]


def kill(pid: int | None) -> None:
    assert pid
    os.kill(pid, signal.SIGKILL)


@pytest.mark.faults(
    "kill -9 of an engine with a standby", "ready at once", "the standby takes over"
)
def test_it_takes_over_without_a_load_and_is_replaced(fake_manager: FakeFactory) -> None:
    manager = fake_manager(loading_s=0.7, options={"standby": True}).start()
    first, before = manager.pid, manager.endpoint()
    second = until_proven(manager)
    record = next(each for each in registry.running() if each.engine_pid == first)
    assert record.standby_pid == second
    kill(first)
    began = time.monotonic()
    wait_until("the death is seen", lambda: manager.pid != first)
    after = manager.endpoint(10)
    assert time.monotonic() - began < 0.6, "as long as a load"
    assert manager.pid == second
    assert after.generation > before.generation
    assert after.base_url != before.base_url
    assert after.api_key == before.api_key
    assert manager.health().ok
    assert manager.logs(), "those of the engine that serves now"
    snapshot = manager.snapshot()
    assert snapshot.restarts == 1
    assert snapshot.standby["promotions"] == 1
    assert [step["event"] for step in snapshot.history][-2:] == ["crashed", "promoted"]
    third = until_proven(manager, other_than=second)
    assert third not in {first, second}
    manager.stop()
    assert all(map(is_gone, [second, third]))
    assert standby(manager)["pid"] is None


def test_its_own_death_is_nobodys_loss(fake_manager: FakeFactory) -> None:
    """It is replaced; the death of both is mended by a plain start."""
    manager = fake_manager(options={"standby": True}).start()
    first, endpoint = manager.pid, manager.endpoint()
    second = until_proven(manager)
    kill(second)
    third = until_proven(manager, other_than=second)
    assert manager.endpoint() == endpoint
    assert manager.snapshot().restarts == 0
    kill(third)
    kill(first)
    wait_until("a new process serves", lambda: manager.pid not in {None, first})
    manager.endpoint(10)
    assert manager.pid not in {first, second, third}
    assert manager.snapshot().restarts == 1


@pytest.mark.faults("standby stopped by SIGSTOP", "not promoted", "it did not answer")
def test_one_that_is_stopped_is_not_promoted(fake_manager: FakeFactory) -> None:
    manager = fake_manager(options={"standby": True}).start()
    first, second = manager.pid, until_proven(manager)
    os.kill(second, signal.SIGSTOP)
    kill(first)
    wait_until("a new process serves", lambda: manager.pid not in {None, first})
    manager.endpoint(10)
    assert manager.pid != second
    assert is_gone(second)
    assert standby(manager)["promotions"] == 0


def test_one_that_answers_but_computes_nothing_is_given_up(fake_manager: FakeFactory) -> None:
    """Its health says 200 all the while; in the end there is none, and the server goes on."""
    policy = RestartPolicy(max_restarts=1, backoff_base_s=0.01)
    manager = fake_manager(no_token=True, options={"standby": True, "restart": policy}).start()
    wait_until("it is given up", lambda: standby(manager)["state"] == "failed")
    assert "computed no token" in str(standby(manager)["why"])
    assert standby(manager)["pid"] is None
    assert manager.health().ok
    assert manager.snapshot().restarts == 0


def test_one_that_is_loading_is_waited_for(fake_manager: FakeFactory) -> None:
    """A death meanwhile starts no third process."""
    manager = fake_manager(loading_s=0.5, options={"standby": True}).start()
    first = manager.pid
    wait_until("it is loading", lambda: standby(manager)["pid"] is not None)
    second = standby(manager)["pid"]
    kill(first)
    wait_until("the death is seen", lambda: manager.pid != first)
    assert manager.endpoint(10)
    assert manager.pid == second
    assert standby(manager)["promotions"] == 0
    assert manager.snapshot().restarts == 1


@pytest.mark.faults("crash loop with a standby", "failed", "died", long=True)
def test_taking_over_counts_against_the_restart_budget(fake_manager: FakeFactory) -> None:
    policy = RestartPolicy(max_restarts=1, backoff_base_s=0.01)
    manager = fake_manager(options={"standby": True, "restart": policy}).start()
    second = until_proven(manager)
    kill(manager.pid)
    wait_until("it took over", lambda: manager.pid == second)
    third = until_proven(manager, other_than=second)
    kill(second)
    wait_until("it is failed", lambda: manager.state is State.FAILED)
    assert is_gone(third)
    with pytest.raises(EngineStartError, match="died"):
        manager.endpoint(1)


def test_it_is_refused_beside_a_fixed_port(fake_manager: FakeFactory) -> None:
    with pytest.raises(ConfigError, match="standby needs port=0"):
        fake_manager(options={"standby": True, "port": 8089}).start()


def test_a_changed_model_file_gets_no_standby(
    fake_manager: FakeFactory, tiny_model_path: Path, tmp_path: Path
) -> None:
    """What would take over must be what was started; the running engine is left alone."""
    model = tmp_path / "mine.gguf"
    model.write_bytes(tiny_model_path.read_bytes())
    manager = fake_manager(options={"standby": True, "model": str(model)}).start()
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_model_path.read_bytes())
    other.replace(model)
    wait_until("it is refused", lambda: standby(manager)["state"] == "failed")
    assert "not the one" in str(standby(manager)["why"])
    assert manager.health().ok


OWNER = """
import json, sys, time
from runtime.server.manager import ServerManager
from runtime.settings import ServerConfig
manager = ServerManager(ServerConfig(**json.loads(sys.argv[1]))).start()
while manager.snapshot().standby["state"] != "ready":
    time.sleep(0.01)
snapshot = manager.snapshot()
print(snapshot.pid, snapshot.keeper_pid, snapshot.standby["pid"], flush=True)
time.sleep(60)
"""


def test_both_are_gone_with_their_owner(fake_binary: Path, tiny_model_path: Path) -> None:
    options = {
        "model": str(tiny_model_path),
        "engine": "llama-server",
        "engine_path": str(fake_binary),
        "standby": True,
    }
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, json.dumps(options)], stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout
        pids = [int(word) for word in owner.stdout.readline().split()]
        owner.kill()
        owner.wait(10)
        wait_until("both are gone", lambda: all(map(is_gone, pids)), timeout_s=1.0)
    assert len(pids) == 3
