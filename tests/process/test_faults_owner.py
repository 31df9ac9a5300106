"""Fault battery: what becomes of the engine when its owner goes, in every way an owner can go."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime.server import registry
from runtime.server.lifecycle import State
from runtime.settings import directories
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import FakeFactory

    Saw = Callable[[object], None]

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="the keeper's pidfd and subreaper: Linux"),
]

REAP_S = 2.0  # 15 to 60 ms on an idle machine

OWNER = """
import json, logging, multiprocessing, os, signal, sys, threading, time
options, how, client, thread, end = json.loads(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from runtime.server.manager import ServerManager
from runtime.settings import ServerConfig
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
sys.stdout.reconfigure(line_buffering=True)
made = []
def begin():
    if client:
        from runtime import LlamaClient
        made.append(LlamaClient(**options))
    else:
        made.append(ServerManager(ServerConfig(**options)).start())
if thread:
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
else:
    begin()
manager = made[0].server if client else made[0]
if how in {"fork", "spawn", "forkserver"}:
    multiprocessing.get_context(how).Process(target=time.sleep, args=(60,)).start()
if how == "child first":
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    child.start()
    child.join()
pids = f"PIDS {manager.pid} {manager.snapshot().keeper_pid} {manager.snapshot().port}"
if how == "group":
    try:
        print(pids, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("STATE", manager.state, manager.pid, flush=True)
        manager.stop()
        print("STATE", manager.state, flush=True)
        sys.exit(0)
print(pids, flush=True)
if end == "exception":
    raise RuntimeError("nobody caught this")
if end == "exit":
    sys.exit(3)
if how == "stop":
    manager.stop()
while True:
    time.sleep(60)
"""


class Owner:
    """A program that owns a server, in a session of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.pids: list[int] = []
        self.port = 0

    def wait_for(self, text: str) -> str:
        """The first line with ``text`` in it."""
        assert self.process.stdout
        for line in self.process.stdout:
            if text in line:
                return line
        pytest.fail(f"the owner ended before it said {text!r}")

    def wait_ready(self) -> None:
        """Wait until it serves, and learn the ids of engine and keeper."""
        *self.pids, self.port = [int(word) for word in self.wait_for("PIDS").split()[1:]]

    def below(self) -> list[int]:
        """All processes below it now."""
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]

    def expect_gone(self, pids: list[int] | None = None) -> None:
        """Engine and keeper end within the time."""
        pids = self.pids if pids is None else pids
        wait_until("engine and keeper are gone", lambda: all(map(is_gone, pids)), timeout_s=REAP_S)


@pytest.fixture
def own(fake_binary: Path, tiny_model_path: Path) -> Any:
    """Owners of fake engines."""

    @contextmanager
    def make(
        how: str = "plain",
        *,
        before: tuple[str, ...] = (),
        client: bool = False,
        thread: bool = False,
        end: str = "",
        config: Any = None,
        **fake: Any,
    ) -> Iterator[Owner]:
        options = {
            "model": str(tiny_model_path),
            "engine": "llama-server",
            "engine_path": str(fake_binary),
            "env": {"FAKE": json.dumps(fake)},
            **(config or {}),
        }
        with subprocess.Popen(
            [*before, sys.executable, "-c", OWNER, json.dumps([options, how, client, thread, end])],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield Owner(process)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    return make


@pytest.mark.parametrize(
    ("moment", "fake"),
    [
        ("-> resolving", {}),
        ("-> starting", {}),
        ("-> loading", {"never_ready": True}),
        ("-> ready", {}),
        ("-> stopping", {"ignore_sigterm": True}),
    ],
)
@pytest.mark.faults("owner SIGKILL", "nothing left", "no orphan")
def test_owner_killed_in_each_state(own: Any, moment: str, fake: dict[str, Any]) -> None:
    with own("stop" if "stopping" in moment else "plain", **fake) as owner:
        owner.wait_for(moment)
        below = owner.below()
        owner.process.kill()
        owner.process.wait(5)
        owner.expect_gone(below)
        assert registry.reap_leftovers() == (), "the keeper did it"


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver", "child first"])
@pytest.mark.faults("owner forked by multiprocessing, then SIGKILL", "nothing left", "no orphan")
def test_owner_killed_after_a_fork(own: Any, how: str) -> None:
    """A forked child holds every pipe open; one that exits first must not end the engine."""
    with own(how) as owner:
        owner.wait_ready()
        assert not any(map(is_gone, owner.pids))
        owner.process.kill()
        owner.process.wait(5)
        owner.expect_gone()


@pytest.mark.faults("keeper and owner killed together", "nothing left", "no orphan")
def test_keeper_and_owner_killed_together(own: Any) -> None:
    """The kernel ends the engine with its keeper."""
    with own() as owner:
        owner.wait_ready()
        os.kill(owner.pids[1], signal.SIGKILL)
        owner.process.kill()
        owner.process.wait(5)
        owner.expect_gone()


@pytest.mark.faults("owner and keeper stopped, both killed", "nothing left", "no orphan", long=True)
def test_a_stopped_keeper_and_its_owner_killed(own: Any) -> None:
    with own() as owner:
        owner.wait_ready()
        os.kill(owner.pids[1], signal.SIGSTOP)
        owner.process.kill()
        owner.process.wait(5)
        os.kill(owner.pids[1], signal.SIGKILL)
        owner.expect_gone()


@pytest.mark.faults("start from a thread that ends", "ready", "the engine lives on")
def test_the_engine_outlives_the_thread_that_started_it(own: Any) -> None:
    """PR_SET_PDEATHSIG fires with the thread: the keeper has only one."""
    with own(thread=True) as owner:
        owner.wait_ready()
        with pytest.raises(psutil.TimeoutExpired):
            psutil.Process(owner.pids[0]).wait(0.7)
        owner.process.kill()
        owner.process.wait(5)
        owner.expect_gone()


ENDS = {
    # What is done to the program, its exit status, and the reason in the log's last line.
    "SIGTERM": (-signal.SIGTERM, "its owner, process {pid}, is gone"),
    "SIGHUP": (-signal.SIGHUP, "its owner, process {pid}, is gone"),
    "Ctrl-C": (-signal.SIGINT, "the program ends by an unhandled KeyboardInterrupt"),
    "exit": (3, "the program ends"),
    "exception": (1, "the program ends by an unhandled RuntimeError"),
}


@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "short-lived thread"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.faults("a plain program ends without close()", "nothing left", "the log says why")
def test_a_plain_program_ends(
    own: Any, isolated_home: Path, end: str, thread: bool, saw: Saw
) -> None:
    """It has no handlers of its own, and none are put upon it."""
    with own("plain", client=True, thread=thread, end=end) as owner:
        owner.wait_ready()
        assert list(directories().servers.iterdir()), "there is a record to remove"
        number = {"SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP, "Ctrl-C": signal.SIGINT}
        if end in number:
            os.kill(owner.pid, number[end])
        status, reason = ENDS[end]
        assert owner.process.wait(10) == status
        owner.expect_gone()
        assert not list(directories().servers.iterdir())
        (log,) = directories().logs.iterdir()
        last = log.read_text("utf-8").splitlines()[-1]
        saw(last)
        assert last.startswith("[llama-runtime] ")
        assert f"engine process {owner.pids[0]} ended by SIGTERM: " in last
        assert last.endswith(reason.format(pid=owner.pid))


@pytest.mark.faults("owner killed, the engine deaf to SIGTERM", "nothing left", "killed soon after")
def test_an_engine_that_is_deaf_to_sigterm_goes_with_its_owner(own: Any) -> None:
    with own(ignore_sigterm=True) as owner:
        owner.wait_ready()
        began = time.monotonic()
        owner.process.kill()
        owner.process.wait(5)
        owner.expect_gone()
        assert time.monotonic() - began < 1.0
    (log,) = directories().logs.iterdir()
    assert "ended by SIGKILL: its owner" in log.read_text("utf-8").splitlines()[-1]


@pytest.mark.faults("Ctrl-C to the whole terminal group", "stopped", "the owner ends it in order")
def test_ctrl_c_to_the_whole_group(own: Any) -> None:
    """Engine and keeper are in sessions of their own: the owner decides."""
    with own("group") as owner:
        owner.wait_ready()
        os.killpg(owner.pid, signal.SIGINT)
        assert "ready" in owner.wait_for("STATE"), "the engine was not hit"
        assert "stopped" in owner.wait_for("STATE")
        assert owner.process.wait(10) == 0
        owner.expect_gone()


@pytest.mark.faults("log flood while the owner is stopped", "ready", "the engine answers on")
def test_a_stopped_owner_does_not_hold_up_its_engine(own: Any) -> None:
    """Nobody reads what the keeper passes on: it drops the oldest, and reads on itself."""
    with own(flood_on_post_bytes=24 << 20) as owner:
        owner.wait_ready()
        os.kill(owner.pid, signal.SIGSTOP)
        with closing(http.client.HTTPConnection("127.0.0.1", owner.port, timeout=30)) as connection:
            connection.request("POST", "/v1/completions", body="{}")
            assert connection.getresponse().status == 200
        os.kill(owner.pid, signal.SIGCONT)
        owner.process.kill()
        owner.process.wait(5)
        owner.expect_gone()


def _can_unshare() -> bool:
    try:
        done = subprocess.run(
            ["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.parametrize("how", ["plain", "stop", "fork"])
@pytest.mark.faults("owner is process 1 of a container", "as ever", "starts, stops, leaves nothing")
def test_owner_as_process_1(own: Any, how: str) -> None:
    if not _can_unshare():
        pytest.skip("a process namespace needs rights that this user does not have")
    with own(how, before=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")) as owner:
        said = owner.wait_for("PIDS").split()
        assert int(said[1]) > 1
        if how == "stop":
            owner.wait_for("stopping -> stopped")
        below = owner.below()
        owner.process.kill()
        owner.process.wait(5)
        owner.expect_gone(below)


@pytest.mark.faults("a leftover engine of a dead owner", "ended at the next start", "proven first")
def test_a_proven_leftover_is_ended_and_nothing_else(fake_manager: FakeFactory) -> None:
    """Its id, its birth and the mark in its environment must all be those of the record."""
    sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
    children = [
        subprocess.Popen(sleeper, env={**os.environ, registry.MARK: name})
        for name in ("ours", "reborn", "other-mark", "alive-owner")
    ]
    try:
        ours, reborn, unmarked, owned = children
        births = {child.pid: registry.birth(child.pid) for child in children}

        def note(name: str, child: subprocess.Popen[bytes], **facts: Any) -> None:
            values: dict[str, Any] = {
                "name": name, "role": "client", "owner_pid": os.getpid(), "owner_birth": "dead",
                "engine_pid": child.pid, "model": "m", "engine": "xllamacpp", "base_url": None,
                "state": "ready", "started_at": None, "log_path": None,
                "engine_birth": births[child.pid],
            }  # fmt: skip
            registry.write(registry.ServerRecord(**{**values, **facts}))

        note("ours", ours)
        note("reborn", reborn, engine_birth="another boot 1")
        note("not-its-mark", unmarked)
        note("alive-owner", owned, owner_birth=registry.birth(os.getpid()))

        manager = fake_manager().start()

        assert ours.wait(5) == -signal.SIGKILL
        assert [child.poll() for child in (reborn, unmarked, owned)] == [None, None, None]
        assert manager.state is State.READY
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.faults(
    "50 parallel starts while a thread grabs ports", "ready", "50 engines", long=True
)
def test_fifty_parallel_starts(fake_manager: FakeFactory) -> None:
    _parallel_starts(fake_manager, 50)


@pytest.mark.faults("8 parallel starts while a thread grabs ports", "ready", "8 engines")
def test_eight_parallel_starts(fake_manager: FakeFactory) -> None:
    _parallel_starts(fake_manager, 8)


def _parallel_starts(fake_manager: FakeFactory, count: int) -> None:
    over = threading.Event()

    def grab() -> None:
        while not over.wait(0.001):
            with socket.create_server(("127.0.0.1", 0)):
                pass

    grabber = threading.Thread(target=grab)
    grabber.start()
    managers = [fake_manager() for _ in range(count)]
    threads = [threading.Thread(target=manager.start) for manager in managers]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
    finally:
        over.set()
        grabber.join()
    assert {manager.state for manager in managers} == {State.READY}
    assert len({manager.base_url for manager in managers}) == count
    assert len({manager.api_key for manager in managers}) == count
    stops = [threading.Thread(target=manager.stop) for manager in managers]
    for thread in stops:
        thread.start()
    for thread in stops:
        thread.join(60)
    assert registry.running() == ()
