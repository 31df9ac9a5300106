"""Fixtures that every test may use: an isolated home, models, engines, managers that are ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import pytest

from runtime.engines.detect import engines
from runtime.server import registry
from runtime.server.manager import ServerManager
from runtime.settings import ENV_PREFIX, RestartPolicy, ServerConfig, directories
from runtime.store import ModelStore
from runtime.testing.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAKES = Path(__file__).parent / "fakes"
collect_ignore = ["example_project"]  # a user's project, run as one by a test

# A shell's background jobs start with SIGINT ignored, those under nohup with SIGHUP, and what is
# ignored here would be ignored in every child of these tests; a handler is not handed down.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, lambda *_: None)

# Taken before any test changes the environment: a native binary may be named by the caller.
_NATIVE = os.environ.get(f"{ENV_PREFIX}ENGINE_PATH")
_USER_DIRECTORIES = directories()
USER_HOME = os.environ.get(f"{ENV_PREFIX}HOME")
"""LLAMA_RUNTIME_HOME as the caller had it; tests get homes of their own."""


def _present_engines() -> list[str]:
    found = engines(ServerConfig(engine_path=_NATIVE))
    return [engine.kind for engine in found if engine.inspect().installed]


ENGINES = _present_engines()


@pytest.fixture(autouse=True)
def isolated_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for each test; nothing of the user's settings gets in."""
    for name in list(os.environ):
        if name.startswith(ENV_PREFIX) or name in {"HF_HUB_OFFLINE", "HF_TOKEN", "HF_ENDPOINT"}:
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    monkeypatch.setenv(f"{ENV_PREFIX}HOME", str(home))
    # llama.cpp's threads wait for each other by spinning: with as many as there are cores, one
    # other busy process makes decoding ten times slower. Tests want answers, not speed.
    monkeypatch.setenv(f"{ENV_PREFIX}THREADS", "1")
    return home


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1, in the user's own cache, so that it is fetched once."""
    return ModelStore(_USER_DIRECTORIES).pull("smollm2-135m").path


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model with random weights: loads in a blink, answers nonsense."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-chat.gguf"
    build_tiny_model(path)
    return path


@pytest.fixture(scope="session")
def tiny_embedding_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedding model with random weights."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-embedding.gguf"
    build_tiny_model(path, kind="embedding")
    return path


@pytest.fixture(params=ENGINES)
def engine_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """ServerConfig fields that name an engine: the test runs once for each engine present."""
    kind: str = request.param
    named = {"engine_path": _NATIVE} if kind == "llama-server" and _NATIVE else {}
    return {"engine": kind, **named}


class ManagerFactory(Protocol):
    """Makes managers that are ended when the test is over."""

    def __call__(self, **options: Any) -> ServerManager: ...


@pytest.fixture
def manager_for() -> Iterator[ManagerFactory]:
    """Managers that are ended when the test is over."""
    made: list[ServerManager] = []

    def make(**options: Any) -> ServerManager:
        manager = ServerManager(ServerConfig(**options))
        made.append(manager)
        return manager

    yield make
    for manager in made:
        manager.stop()


@pytest.fixture(scope="session")
def fake_binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The misbehaving llama-server as an executable file."""
    path = tmp_path_factory.mktemp("bin") / "llama-server"
    path.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" "{FAKES / "fake_llama_server.py"}" "$@"\n', "utf-8"
    )
    path.chmod(0o755)
    return path


class FakeFactory(Protocol):
    """Makes managers of the fake engine."""

    def __call__(self, *, options: dict[str, Any] | None = None, **fake: Any) -> ServerManager: ...


@pytest.fixture
def fake_manager(
    manager_for: ManagerFactory, fake_binary: Path, tiny_model_path: Path
) -> FakeFactory:
    """Managers of the fake: keywords are its misbehaviour, ``options`` are settings."""

    def make(*, options: dict[str, Any] | None = None, **fake: Any) -> ServerManager:
        return manager_for(
            **{
                "model": str(tiny_model_path),
                "engine": "llama-server",
                "engine_path": str(fake_binary),
                "env": {"FAKE": json.dumps(fake)},
                "restart": RestartPolicy(backoff_base_s=0.01),
                "stop_grace_s": 2.0,
                **(options or {}),
            }
        )

    return make


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Whatever a test starts is gone when it is over."""
    before = set(psutil.Process().children(recursive=True))
    yield
    deadline = time.monotonic() + 5
    while (left := _started_since(before)) and time.monotonic() < deadline:
        psutil.wait_procs(list(left), timeout=0.05)
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"


def _started_since(before: set[psutil.Process]) -> set[psutil.Process]:
    """Our children and theirs, but for what a process that outlives the test has started.

    The gateway of a module, say, whose engine is another one after the test; or the spare engine
    process, with its keeper, of a server that was there before.
    """
    started = set(psutil.Process().children(recursive=True)) - before
    if not started:
        return started
    for process in before:
        with contextlib.suppress(psutil.NoSuchProcess):
            started -= set(process.children(recursive=True))
    servers = {_server_of(process) for process in before} - {None}
    for process in [process for process in started if _server_of(process) in servers]:
        with contextlib.suppress(psutil.NoSuchProcess):
            started -= {process, process.parent()}
    return started


def _server_of(process: psutil.Process) -> str | None:
    """The name of the managed server that a process is an engine of; None: of none."""
    try:
        return process.environ().get(registry.MARK)
    except psutil.Error:
        return None


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that its parent has not collected yet has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(what: str, condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Poll to a deadline whose failure says what was awaited."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain until {what}")
        time.sleep(0.005)  # the pace of the polling, not the wait itself
