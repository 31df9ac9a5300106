"""The spare engine process: a restart takes it, and it never gets in the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from runtime.server.manager import ServerManager
    from tests.conftest import ManagerFactory

pytestmark = pytest.mark.engine


@pytest.fixture
def manager(manager_for: ManagerFactory, tiny_model_path: Path) -> ServerManager:
    options = {"engine": "xllamacpp", "ctx_size": 256, "threads": 1}
    return manager_for(model=str(tiny_model_path), **options).start()


def spare_of(manager: ServerManager, *, other_than: int | None = None) -> int:
    """The process id of the next engine, waited for."""
    found: list[int] = []

    def is_there() -> bool:
        pid = manager.snapshot().spare_pid
        if pid not in {None, other_than}:
            found.append(int(pid))
        return bool(found)

    wait_until("a spare waits", is_there)
    return found[0]


def kill_engine(manager: ServerManager) -> None:
    first = manager.pid
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until("its death is seen", lambda: manager.pid != first)
    manager.endpoint(20)


def test_a_restart_takes_the_spare_and_another_one_follows(manager: ServerManager) -> None:
    first, keeper = manager.pid, manager.snapshot().keeper_pid
    spare = spare_of(manager)
    memory = manager.snapshot().memory
    assert int(str(memory["spare_rss_bytes"])) < 60e6, "an interpreter and a library, no model"
    assert psutil.Process(spare).parent() != psutil.Process(keeper), "it has a keeper of its own"
    kill_engine(manager)
    snapshot = manager.snapshot()
    assert snapshot.pid == spare != first
    assert snapshot.keeper_pid == psutil.Process(spare).ppid()
    assert (snapshot.restarts, snapshot.spare_pid) == (1, None)
    steps = [step["event"] for step in snapshot.history]
    assert steps[-5:] == ["crashed", "retry", "resolved", "spawned", "healthy"]
    assert manager.health().ok
    assert snapshot.log_path
    log = Path(snapshot.log_path).read_text("utf-8")
    assert log.startswith("@llama-runtime "), "what it said while it waited is in the log, too"
    assert "listening" in log or "base_url" in log
    third = spare_of(manager, other_than=spare)
    manager.stop()
    assert is_gone(spare)
    assert is_gone(third)
    assert manager.snapshot().spare_pid is None


def test_without_the_spare_a_restart_is_as_before(manager: ServerManager) -> None:
    """Killed like anything else: it is told, missed by nobody, and not started over and over."""
    spare = spare_of(manager)
    os.kill(spare, signal.SIGKILL)
    wait_until("its end is seen", lambda: manager.snapshot().spare_pid is None)
    assert manager.health().ok
    kill_engine(manager)
    assert manager.pid not in {None, spare}
    assert manager.snapshot().restarts == 1


def test_a_spare_of_another_environment_is_not_used(
    manager: ServerManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = spare_of(manager)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kill_engine(manager)
    assert manager.pid != spare
    wait_until("it is gone", lambda: is_gone(spare))
