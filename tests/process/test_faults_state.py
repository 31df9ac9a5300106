"""Fault battery: clocks that jump, and files of ours that were damaged, emptied or removed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import runtime.server
from runtime import LlamaClient, LLMChatParams
from runtime.server import registry
from runtime.server.lifecycle import State
from runtime.settings import directories
from tests.conftest import FAKES, is_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.server.manager import ServerManager
    from tests.conftest import FakeFactory

    Saw = Callable[[object], None]

pytestmark = pytest.mark.process

DAY_S = 86_400

CLOCK_OWNER = """
import json, os, signal, sys, threading, time
from pathlib import Path
from runtime import LlamaClient
options, shift_file, shift_s = json.loads(sys.argv[1])
answers = []
def until(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
def replaced(server, number):
    pid = server.pid
    os.kill(pid, number)
    until(lambda: server.pid not in {None, pid})
    server.endpoint(10)
def jump():
    before = time.time()
    Path(shift_file).write_text(str(shift_s))
    return time.time() - before
with LlamaClient(**options) as client:
    server = client.server
    replaced(server, signal.SIGKILL)
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    asking = threading.Thread(target=lambda: answers.append(client.chat("Hi").text))
    asking.start()
    asking.join(0.2)
    jumped_s = jump()
    asking.join(0.3)
    os.kill(pid, signal.SIGCONT)
    asking.join(10)
    survived = server.pid == pid
    answers.append(client.chat("Hi").text)
    print(json.dumps([jumped_s, answers, survived, server.pid]), flush=True)
    sys.stdin.readline()
    replaced(server, signal.SIGSTOP)
    wedged = server.snapshot().last_exit["diagnosis"]
    replaced(server, signal.SIGKILL)
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: server.state == "failed")
    print(json.dumps([wedged, server.state, server.snapshot().restarts]), flush=True)
print(json.dumps([server.state]), flush=True)
"""


@pytest.fixture(scope="session")
def shifted_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the wall clock of a process, where there is a compiler to build it."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("it takes a C compiler to shift the clock of one process alone")
    library = tmp_path_factory.mktemp("clock") / "shifted_clock.so"
    source = FAKES / "shifted_clock.c"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True
    )
    return library


def a_day(direction: str, **long: bool) -> pytest.MarkDecorator:
    """The line of the battery for a clock that goes that way."""
    fault = f"wall clock set {direction} by a day in mid-request"
    return pytest.mark.faults(fault, "failed at last", "limits and budget as ever", **long)


@pytest.mark.parametrize(
    "shift_s",
    [
        pytest.param(DAY_S, marks=a_day("forward"), id="tomorrow"),
        pytest.param(-DAY_S, marks=a_day("back", long=True), id="yesterday"),
    ],
)
def test_the_wall_clock_jumps(
    shifted_clock: Path,
    fake_binary: Path,
    tiny_model_path: Path,
    tmp_path: Path,
    shift_s: int,
    saw: Saw,
) -> None:
    """For owner, engine and the libraries they use; another program keeps the old time.

    A short pause across the jump is no stall and no timeout, a long one is found in its time, and
    the restarts before it still count.
    """
    shift_file = tmp_path / "shift"
    options = {
        "model": str(tiny_model_path),
        "engine": "llama-server",
        "engine_path": str(fake_binary),
        "env": {"FAKE": json.dumps({"answer": "half"})},
        "restart": {"backoff_base_s": 0.01, "max_restarts": 3},
        "wedge_timeout_s": 2.0,
        "request_timeout_s": 20,
    }
    task = json.dumps([options, str(shift_file), shift_s])
    with subprocess.Popen(
        [sys.executable, "-c", CLOCK_OWNER, task],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "LD_PRELOAD": str(shifted_clock), "SHIFT_FILE": str(shift_file)},
        text=True,
    ) as owner:
        assert owner.stdin
        assert owner.stdout
        jumped_s, answers, survived, pid = json.loads(owner.stdout.readline())
        assert abs(jumped_s - shift_s) < 60, "the clock did jump"
        assert answers == ["naïve 🦙 Straße"] * 2
        assert survived, "a pause of half a second is none of a day"

        assert registry.reap_leftovers() == (), "neither the owner nor its engine is a leftover"
        assert [record.engine_pid for record in registry.running()] == [pid]
        assert not is_gone(pid)

        owner.stdin.write("\n")
        owner.stdin.flush()
        said = json.loads(owner.stdout.readline())
        assert said == ["wedged", "failed", 3], "found in its time; the budget was not made new"
        assert json.loads(owner.stdout.readline()) == ["failed"]
        assert owner.wait(10) == 0
    assert is_gone(pid)
    assert registry.running() == ()
    saw(f"{jumped_s:+.0f} s: {said}")


@pytest.mark.faults("wall clock: who reads it", "unchanged", "no decision does")
def test_nothing_in_the_supervision_reads_the_wall_clock() -> None:
    """``datetime.now`` names log files and stamps what is shown; ``st_mtime`` orders log files."""
    folder = Path(runtime.server.__file__).parent
    seen = {
        f"{path.name}:{node.lineno}"
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in {("time", "time"), ("time", "time_ns")}
    }
    assert seen == set()


def crash(manager: ServerManager) -> None:
    """Kill the engine and wait until the next one serves."""
    first = manager.pid
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until("another serves", lambda: manager.pid not in {None, first})
    assert manager.endpoint(10)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda _: b"",
    "cut": half,
    "noise": lambda _: b"\xff\xfe\x00" * 99,
    "list": lambda _: b"[]",
    "null": lambda _: b"null",
    "other types": lambda _: json.dumps(
        {
            "name": 5, "role": [], "owner_pid": 2**31 - 1, "owner_birth": None, "engine_pid": [1],
            "model": {}, "engine": None, "base_url": 7, "state": 1, "started_at": 3,
            "log_path": 4, "engine_birth": None, "key": "x", "value": 3,
        }
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.faults("state and cache files corrupt", "ready", "as if they were not there")
def test_corrupt_state_is_survived(
    fake_manager: FakeFactory, isolated_home: Path, damage: str, saw: Saw
) -> None:
    """Every file of ours but the log is damaged while it serves, and once more before a start."""
    manager = fake_manager().start()
    log = manager.snapshot().log_path

    def corrupt() -> int:
        files = [
            path
            for path in isolated_home.rglob("*")
            if path.is_file() and path.suffix == ".json" and str(path) != log
        ]
        for path in files:
            path.write_bytes(DAMAGES[damage](path.read_bytes()))
        return len(files)

    damaged = corrupt()
    assert damaged, "there are records and remembered facts"
    foreign = directories().servers / "foreign.json"
    foreign.write_bytes(DAMAGES[damage](b'{"name": "foreign", "owner_pid": 1}'))
    registry.running()
    assert not is_gone(manager.pid or 0), "nothing that runs is touched"
    crash(manager)
    assert [record.engine_pid for record in registry.running()] == [manager.pid]
    manager.stop()
    corrupt()
    assert fake_manager().start().health().ok
    saw(f"{damaged} files")


@pytest.mark.faults("all state removed while it serves", "ready", "written anew")
def test_removed_state_is_survived(fake_manager: FakeFactory, isolated_home: Path) -> None:
    manager = fake_manager().start()
    shutil.rmtree(isolated_home)
    assert manager.health().ok
    assert registry.running() == ()
    crash(manager)
    assert [record.engine_pid for record in registry.running()] == [manager.pid]
    manager.stop()
    assert manager.state is State.STOPPED


@pytest.mark.parametrize("damage", ["emptied", "noise", "folder"])
@pytest.mark.faults("log file corrupt", "ready", "`logs` reads on, the engine is not held up")
def test_a_corrupt_log_is_survived(fake_manager: FakeFactory, damage: str, saw: Saw) -> None:
    """Emptied as logrotate's copytruncate does, noise written in, a folder in its place."""
    manager = fake_manager(flood_on_post_bytes=1 << 20).start()
    log = Path(manager.snapshot().log_path or "")
    if damage == "folder":
        log.unlink()
        log.mkdir()
    elif damage == "emptied":
        os.truncate(log, 0)
    else:
        with log.open("r+b") as file:
            file.write(b"\xff\x00\xfe" * 400)
    endpoint = manager.endpoint()
    with LlamaClient(
        base_url=endpoint.base_url, api_key=endpoint.api_key, model=endpoint.model
    ) as client:
        assert client.chat("Hi", params=LLMChatParams(max_tokens=1)).text == "Q"
    shown = subprocess.run(
        [sys.executable, "-m", "runtime", "logs"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    if damage == "folder":
        assert shown.returncode == 5
        assert b"Cannot read" in shown.stderr
    else:
        assert shown.returncode == 0
        assert b"xxxx" in shown.stdout, "what came after is there"
    assert b"Traceback" not in shown.stderr
    crash(manager)
    assert manager.logs(), "the tail is in memory"
    saw(f"exit code of logs: {shown.returncode}")
