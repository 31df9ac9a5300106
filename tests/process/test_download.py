"""Pulls in processes of their own: killed, doubled, out of room, offline, damaged."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from runtime.cli.app import cli
from runtime.errors import ConfigError, ModelNotFoundError
from runtime.settings import Directories
from runtime.store import Limits, ModelStore, PullProgress
from runtime.testing.tiny_model import TinyShape, build_tiny_model
from tests.fakes.hub import FakeHub, Fault, model_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.process

_REPO = "maker/Model-7B-GGUF"
_FILE = "model-7b.Q4_K_M.gguf"
_IN_FLIGHT = 3_000_000

# Pulls argv[1] and prints one JSON line for the outcome.
_PULL = """
import json, sys
from runtime.errors import LLMError
from runtime.store import Limits, ModelStore
phases = []
def hear(event):
    if event.phase not in phases:
        phases.append(event.phase)
        print(json.dumps({"phase": event.phase}), flush=True)
try:
    model = ModelStore(limits=Limits(stall_timeout_s=5)).pull(sys.argv[1], progress=hear)
except LLMError as exc:
    print(json.dumps({"error": type(exc).__name__, "message": str(exc)}))
    sys.exit(1)
print(json.dumps({"path": str(model.path)}))
"""

# Runs argv[1:] as Python after forbidding connections to other machines; exits 70 at an attempt.
_FENCED = """
import os, sys
def fence(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "127.0.0.1"
    else:
        return
    if str(host) not in ("127.0.0.1", "localhost", "::1"):
        os.write(2, f"{event} {host}".encode())
        os._exit(70)
sys.addaudithook(fence)
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as fake:
        yield fake


@pytest.fixture
def env(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LLAMA_RUNTIME_"))}
    return {
        **kept,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "LLAMA_RUNTIME_HOME": str(tmp_path / "home"),
        "HOME": str(tmp_path),
    }


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "home" / "cache" / "models"


@contextmanager
def _python(
    code: str, arguments: Sequence[str], env: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def _outcome(child: subprocess.Popen[str]) -> dict[str, str]:
    output, errors = child.communicate(timeout=60)
    assert output, errors
    outcome: dict[str, str] = json.loads(output.splitlines()[-1])
    return outcome


def _wait_for_bytes(hub: FakeHub, count: int, child: subprocess.Popen[str]) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if hub.sent_bytes() >= count or child.poll() is not None:
            return
        pause.wait(0.005)
    raise AssertionError(f"the hub sent {hub.sent_bytes()} bytes, not {count}, within 30 s")


def _wait_for_part(models: Path, size: int, child: subprocess.Popen[str]) -> None:
    pause = threading.Event()
    for _ in range(6000):
        parts = list(models.rglob("*.part"))
        if (parts and parts[0].stat().st_size >= size) or child.poll() is not None:
            return
        pause.wait(0.005)
    raise AssertionError(f"the part did not reach {size} bytes within 30 s")


def test_killed_again_and_again_it_ends_byte_identical_and_hardly_anything_comes_twice(
    hub: FakeHub, env: dict[str, str], models: Path
) -> None:
    """kill -9 at random moments: no byte that was written is fetched again.

    What was on its way in the kernel's buffers is lost with the process, however large the file is:
    a hundredth of 300 MB for each kill bounds it.
    """
    size, kills, kept = 30_000_000, 4, [0]
    data = model_bytes(size)
    hub.add(_REPO, {_FILE: data})
    hub.rate_bytes_s = 40e6
    chance = random.Random()
    for kill in range(kills):
        target = int(size * (kill + chance.uniform(0.1, 0.9)) / kills)
        with _python(_PULL, [_REPO], env) as child:
            _wait_for_part(models, target, child)
            child.send_signal(signal.SIGKILL)
            child.wait(10)
        assert not list(models.rglob("model.json"))
        assert not list(models.rglob("*.gguf"))
        kept.append(next(models.rglob("*.part")).stat().st_size)

    with _python(_PULL, [_REPO], env) as child:
        outcome = _outcome(child)

    assert (models / outcome["path"]).read_bytes() == data
    assert [seen.start for seen in hub.bodies("/cdn/")] == kept
    assert kept == sorted(kept)
    assert kept[1] > 0
    assert hub.sent_bytes() - size < kills * _IN_FLIGHT


def test_two_processes_make_one_transfer_and_the_second_says_that_it_waits(
    hub: FakeHub, env: dict[str, str]
) -> None:
    data = model_bytes(8_000_000)
    hub.add(_REPO, {_FILE: data})
    hub.rate_bytes_s = 1e6  # slow enough for the second to start meanwhile, on any machine
    with _python(_PULL, [_REPO], env) as first:
        _wait_for_bytes(hub, 1, first)
        with _python(_PULL, [f"{_REPO}:Q4_K_M"], env) as second:
            assert second.stdout is not None
            assert json.loads(second.stdout.readline()) == {"phase": "waiting"}
            hub.rate_bytes_s = 100e6
            outcomes = [_outcome(first), _outcome(second)]

    assert outcomes[0] == outcomes[1]
    assert hub.sent_bytes() == len(data)
    assert len(hub.bodies("/cdn/")) == 1


def test_the_one_that_waits_goes_on_where_a_killed_one_stopped(
    hub: FakeHub, env: dict[str, str]
) -> None:
    data = model_bytes(8_000_000)
    hub.add(_REPO, {_FILE: data})
    hub.rate_bytes_s = 1e6  # slow enough for the second to start meanwhile, on any machine
    with _python(_PULL, [_REPO], env) as first:
        _wait_for_bytes(hub, 1_500_000, first)
        with _python(_PULL, [_REPO], env) as second:
            assert second.stdout is not None
            second.stdout.readline()
            first.kill()
            hub.rate_bytes_s = 100e6
            outcome = _outcome(second)

    assert "path" in outcome
    assert hub.bodies("/cdn/")[-1].start > 1_000_000
    assert hub.sent_bytes() < len(data) + _IN_FLIGHT


def test_a_disk_that_fills_midway_is_said_and_nothing_is_registered(
    hub: FakeHub, env: dict[str, str], models: Path
) -> None:
    """A limit on file size stands for the disk: the same write fails, with EFBIG for ENOSPC."""
    data = model_bytes(4_000_000)
    hub.add(_REPO, {_FILE: data})
    limited = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (1500000, r.RLIM_INFINITY))\n"

    with _python(limited + _PULL, [_REPO], env) as child:
        outcome = _outcome(child)

    assert outcome["error"] == "StorageError"
    assert "is kept" in outcome["message"]
    assert not list(models.rglob("model.json"))
    part = next(models.rglob("*.part"))
    assert part.read_bytes() == data[:1_500_000]
    with _python(_PULL, [_REPO], env) as child:
        assert "path" in _outcome(child)
    assert hub.bodies("/cdn/")[-1].start == 1_500_000


def test_offline_no_other_machine_is_even_looked_up(
    hub: FakeHub, env: dict[str, str], models: Path
) -> None:
    hub.add(_REPO, {_FILE: model_bytes(100_000)})
    with _python(_PULL, [_REPO], env) as child:
        assert "path" in _outcome(child)
    far = {**env, "HF_ENDPOINT": "https://hub.invalid"}

    with _python(_FENCED + _PULL, ["other/Model"], far) as child:
        child.communicate(timeout=60)
        assert child.returncode == 70, "the fence does not see attempts"

    for reference, found in [(_REPO, True), ("other/Model", False), ("smollm2-135m", False)]:
        with _python(_FENCED + _PULL, [reference], {**far, "HF_HUB_OFFLINE": "1"}) as child:
            outcome = _outcome(child)
        assert child.returncode == (0 if found else 1)
        assert ("path" in outcome) is found
        assert found or f"models pull {reference}" in outcome["message"]


def test_a_flipped_byte_is_named_by_verify_and_repaired_by_pull(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    data = model_bytes(500_000)
    hub.add(_REPO, {_FILE: data})
    store = ModelStore(Directories(cache=tmp_path / "c", state=tmp_path / "s"), offline=False)
    path = store.pull(_REPO).path
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(400_000)
        file.write(bytes([data[400_000] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a failing disk would

    result = store.verify(_REPO)

    assert not result.ok
    assert [check.path for check in result.damaged] == [path]
    assert result.damaged[0].expected == hub.digest(data)
    with pytest.raises(ModelNotFoundError, match="damaged"):
        store.resolve(_REPO)
    assert store.pull(_REPO).path.read_bytes() == data
    assert store.verify(_REPO).ok


def test_a_written_file_is_noticed_by_pull_itself(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    data = model_bytes(500_000)
    hub.add(_REPO, {_FILE: data})
    store = ModelStore(
        Directories(cache=tmp_path / "c", state=tmp_path / "s"), offline=False, limits=Limits()
    )
    path = store.pull(_REPO).path
    path.touch()
    assert store.pull(_REPO).path == path
    assert hub.sent_bytes() == len(data), "only touched: nothing to fetch"
    with path.open("r+b") as file:
        file.seek(9)
        file.write(b"???")
    heard: list[PullProgress] = []

    assert store.pull(_REPO, progress=heard.append).path.read_bytes() == data

    assert "verifying" in {event.phase for event in heard}
    assert hub.sent_bytes() == 2 * len(data)


def test_a_truncated_file_is_no_model(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    data = model_bytes(500_000)
    hub.add(_REPO, {_FILE: data})
    store = ModelStore(Directories(cache=tmp_path / "c", state=tmp_path / "s"), offline=False)
    path = store.pull(_REPO).path
    os.truncate(path, 1000)

    with pytest.raises(ModelNotFoundError, match="damaged"):
        store.resolve(_REPO)
    hub.faults.append(Fault(path="/cdn/", cut_after=1000))
    assert store.pull(_REPO).path.read_bytes() == data


def test_a_model_comes_with_its_draft_model_if_their_vocabularies_are_one(
    hub: FakeHub, env: dict[str, str], models: Path, tiny_model_path: Path, tmp_path: Path
) -> None:
    target, draft = "Qwen3-1.7B-Q8_0.gguf", "Qwen3-0.6B-Q8_0.gguf"
    other = build_tiny_model(tmp_path / "other.gguf", shape=TinyShape(vocabulary=600))
    pull = ["models", "pull", "--with-draft"]

    refused = CliRunner().invoke(cli, [*pull, "qwen3-0.6b"], env=env)
    assert isinstance(refused.exception, ConfigError)
    assert "names no draft model for qwen3-0.6b" in str(refused.exception)
    assert not hub.seen, "nothing is fetched for what cannot be had"

    hub.add("Qwen/Qwen3-1.7B-GGUF", {target: tiny_model_path.read_bytes()})
    hub.add("Qwen/Qwen3-0.6B-GGUF", {draft: other.read_bytes()})
    refused = CliRunner().invoke(cli, [*pull, "qwen3-1.7b"], env=env)
    assert isinstance(refused.exception, ConfigError)
    assert f"{draft} cannot draft for {target}" in str(refused.exception)

    shutil.rmtree(models / "qwen3-0.6b")
    twin = build_tiny_model(tmp_path / "twin.gguf", seed=2).read_bytes()
    hub.add("Qwen/Qwen3-0.6B-GGUF", {draft: twin})
    pulled = CliRunner().invoke(cli, [*pull, "qwen3-1.7b"], env=env)
    assert pulled.exit_code == 0, pulled.output
    assert pulled.stdout.strip() == str(models / "qwen3-1.7b" / target)
    assert (models / "qwen3-0.6b" / draft).read_bytes() == twin
    assert draft in pulled.stderr.replace("\n", "")
