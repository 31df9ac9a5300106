"""ServerManager on a real child that misbehaves on request."""

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
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime.errors import (
    ConfigError,
    EngineNotInstalledError,
    EngineNotRunningError,
    EngineStartError,
    LLMCapabilityError,
    LLMProviderError,
    ModelFormatError,
    ModelNotFoundError,
    RequestTimeoutError,
)
from runtime.server import registry
from runtime.server.lifecycle import State
from runtime.settings import RestartPolicy
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from runtime.server.manager import ServerManager
    from tests.conftest import FakeFactory, ManagerFactory

pytestmark = pytest.mark.process


def test_start_serves_and_stop_leaves_nothing(fake_manager: FakeFactory) -> None:
    manager = fake_manager()
    with manager:
        pid, keeper = manager.pid, manager.snapshot().keeper_pid
        assert pid
        assert keeper
        assert manager.health().ok
        assert manager.snapshot().state == "ready"
    assert manager.state is State.STOPPED
    assert not psutil.pid_exists(pid)
    assert not psutil.pid_exists(keeper)
    assert manager.pid is None
    assert "llama-runtime-supervisor" not in {thread.name for thread in threading.enumerate()}


def test_start_twice_is_one_server(fake_manager: FakeFactory) -> None:
    manager = fake_manager().start()
    pid = manager.pid
    assert manager.start().pid == pid


@pytest.mark.faults("start from 8 threads at once", "ready", "one engine")
def test_many_threads_that_start_at_once_get_one_server(fake_manager: FakeFactory) -> None:
    manager = fake_manager()
    threads = [threading.Thread(target=manager.start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manager.state is State.READY
    started = [step for step in manager.snapshot().history if step["event"] == "spawned"]
    assert len(started) == 1


def test_stop_before_start_and_twice_is_harmless(fake_manager: FakeFactory) -> None:
    manager = fake_manager()
    manager.stop()
    manager.start()
    manager.stop()
    manager.stop()
    assert manager.start().state is State.READY  # and it can be started again


@pytest.mark.faults("SIGTERM ignored", "stopped", "killed after the grace period")
def test_a_child_deaf_to_sigterm_is_killed(fake_manager: FakeFactory) -> None:
    """No process outlives the grace period."""
    manager = fake_manager(ignore_sigterm=True, options={"stop_grace_s": 0.2})
    pid = manager.start().pid
    assert pid
    began = time.monotonic()

    manager.stop()

    assert not psutil.pid_exists(pid)
    assert 0.2 <= time.monotonic() - began < 2.0


@pytest.mark.faults("engine leaves a grandchild", "stopped", "nothing is left")
def test_what_the_engine_leaves_behind_is_ended_with_it(
    fake_manager: FakeFactory, tmp_path: Path
) -> None:
    """Also a grandchild in a session of its own."""
    manager = fake_manager(grandchild=str(tmp_path / "pid")).start()
    grandchild = int((tmp_path / "pid").read_text())
    assert psutil.pid_exists(grandchild)
    manager.stop()
    wait_until("the grandchild is gone", lambda: is_gone(grandchild))


@pytest.mark.parametrize(
    ("fake", "diagnosis", "exit_code", "signal_name", "in_message"),
    [
        ({"exit": 3}, "unknown", 3, None, "exited with code 3"),
        ({"signal": "SIGILL"}, "illegal_instruction", None, "SIGILL", "processor instructions"),
        ({"signal": "SIGSEGV"}, "crashed", None, "SIGSEGV", "ended by SIGSEGV"),
        ({"signal": "SIGKILL"}, "killed", None, "SIGKILL", "killed"),
        (
            {"say": ["error while loading shared libraries: libx.so: cannot open"], "exit": 127},
            "missing_library",
            127,
            None,
            "library",
        ),
        (
            {"say": ["error: invalid argument: --frobnicate"], "exit": 1},
            "unknown_flag",
            1,
            None,
            "arguments",
        ),
        (
            {"say": ["llama_model_load: error: unknown model architecture: 'x'"], "exit": 1},
            "unsupported_architecture",
            1,
            None,
            "architecture",
        ),
        (
            {"say": ["ggml_aligned_malloc: failed to allocate 99 MB"], "exit": 1},
            "out_of_memory",
            1,
            None,
            "memory",
        ),
        (
            {"say": ["couldn't bind HTTP server socket"], "exit": 1},
            "port_taken",
            1,
            None,
            "port is taken",
        ),
    ],
)
@pytest.mark.faults("engine ends while starting", "failed", "the cause by name, its last words")
def test_a_failed_start_raises_at_once_with_cause_and_last_words(
    fake_manager: FakeFactory,
    fake: dict[str, Any],
    diagnosis: str,
    exit_code: int | None,
    signal_name: str | None,
    in_message: str,
) -> None:
    manager = fake_manager(**{"say": ["last words"], **fake})
    began = time.monotonic()
    with pytest.raises(EngineStartError, match=in_message) as caught:
        manager.start()
    assert time.monotonic() - began < 5.0
    error = caught.value
    assert error.diagnosis == diagnosis
    assert (error.exit_code, error.signal) == (exit_code, signal_name)
    assert error.log_tail
    assert error.log_path is not None
    assert error.log_path.is_file()
    assert error.hint
    assert manager.state is State.FAILED
    assert manager.snapshot().restarts == 0, "a first start that fails is not tried again"


@pytest.mark.faults(
    "hangs before it listens", "failed", "printed nothing and used no processor time"
)
def test_a_silent_hang_ends_by_the_stall_deadline(fake_manager: FakeFactory) -> None:
    manager = fake_manager(hang=True, options={"startup_stall_timeout_s": 0.5})
    with pytest.raises(EngineStartError, match="printed nothing") as caught:
        manager.start()
    assert caught.value.diagnosis == "stalled"


def test_a_slow_start_that_makes_progress_is_waited_for(fake_manager: FakeFactory) -> None:
    """No fixed total: processor time counts as progress."""
    manager = fake_manager(busy_s=2.5, options={"startup_stall_timeout_s": 1.2})
    assert manager.start().state is State.READY


def test_loading_is_not_ready(fake_manager: FakeFactory) -> None:
    """An engine that listens and answers 503 is waited for."""
    began = time.monotonic()
    fake_manager(loading_s=0.8).start()
    assert time.monotonic() - began >= 0.5


@pytest.mark.faults(
    "listens and never gets ready", "failed", "printed nothing and used no processor time"
)
def test_one_that_never_gets_ready_fails(fake_manager: FakeFactory) -> None:
    manager = fake_manager(never_ready=True, options={"startup_stall_timeout_s": 0.5})
    with pytest.raises(EngineStartError):
        manager.start()


@pytest.mark.faults("an impostor on the expected port", "failed", "something else answers")
def test_a_stranger_on_the_port_gets_no_request(fake_manager: FakeFactory) -> None:
    """Whoever answers must know the name that only our instance has."""
    with pytest.raises(EngineStartError, match="Something else answers") as caught:
        fake_manager(stranger=True).start()
    assert caught.value.diagnosis == "stranger"


@pytest.mark.faults("SIGKILL while idle", "ready", "SIGKILL in last_exit, one restart")
def test_kill_9_while_idle_is_seen_and_mended(fake_manager: FakeFactory) -> None:
    manager = fake_manager().start()
    first = manager.pid
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until("a new process is ready", lambda: manager.pid not in {None, first})
    endpoint = manager.endpoint(10)
    snapshot = manager.snapshot()
    assert snapshot.restarts == 1
    assert snapshot.last_exit
    assert snapshot.last_exit["signal"] == "SIGKILL"
    assert endpoint.generation > 1
    assert [step["after"] for step in snapshot.history].count("ready") == 2


def _post(manager: ServerManager) -> None:
    """Ask it for something."""
    endpoint = manager.endpoint(5)
    address = endpoint.base_url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("POST", "/v1/completions", body="{}")
        assert connection.getresponse().status == 200


@pytest.mark.skipif(sys.platform != "linux", reason="counts what a thread waited for in /proc")
def test_the_lines_of_an_engine_that_serves_are_read_together(fake_manager: FakeFactory) -> None:
    """Each wake-up takes the interpreter from the requests of this process."""
    manager = fake_manager(lines_on_post=40).start()
    (thread,) = (each for each in threading.enumerate() if "supervisor" in each.name)
    status = Path(f"/proc/self/task/{thread.native_id}/status")

    def waits() -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith("vol"))
        return int(line.split()[1])

    before = waits()
    _post(manager)
    wait_until("the last line is there", lambda: "line 39" in manager.logs(1))
    assert waits() - before < 20
    assert manager.logs(40) == tuple(f"line {number}" for number in range(40))


def test_the_last_words_of_an_engine_that_served_are_complete(fake_manager: FakeFactory) -> None:
    """Also those that were still to be read when it died."""
    policy = RestartPolicy(enabled=False)
    manager = fake_manager(lines_on_post=5, options={"restart": policy}).start()
    _post(manager)
    assert manager.pid
    os.kill(manager.pid, signal.SIGKILL)
    wait_until("it is failed", lambda: manager.state is State.FAILED)
    with pytest.raises(EngineStartError) as caught:
        manager.endpoint(1)
    written = (caught.value.log_path or Path()).read_text("utf-8").splitlines()
    assert manager.logs(400) == tuple(written[:-1]), "the file ends with how it ended"


@pytest.mark.faults("crash loop", "failed", "died")
def test_a_crash_loop_ends_in_failed_when_the_budget_is_spent(
    fake_manager: FakeFactory,
) -> None:
    policy = RestartPolicy(max_restarts=2, backoff_base_s=0.01)
    manager = fake_manager(die_after_s=0.3, options={"restart": policy}).start()
    wait_until("it is failed", lambda: manager.state is State.FAILED)
    assert manager.snapshot().restarts == 2
    with pytest.raises(EngineStartError, match="died"):
        manager.endpoint(1)


@pytest.mark.faults("model deleted while serving", "failed at the restart", "no such model")
def test_a_model_that_is_gone_at_the_restart_is_noticed(
    fake_manager: FakeFactory, tiny_model_path: Path, tmp_path: Path
) -> None:
    model = tmp_path / "mine.gguf"
    model.write_bytes(tiny_model_path.read_bytes())
    manager = fake_manager(options={"model": str(model)}).start()
    model.unlink()
    assert manager.pid
    os.kill(manager.pid, signal.SIGKILL)
    wait_until("it is failed", lambda: manager.state is State.FAILED)
    with pytest.raises(ModelNotFoundError):
        manager.endpoint(1)


@pytest.mark.faults(
    "model replaced while serving", "ready", "a note: not the file that was started first"
)
def test_a_model_that_was_replaced_is_noticed_at_the_restart(
    fake_manager: FakeFactory, tiny_model_path: Path, tmp_path: Path
) -> None:
    model = tmp_path / "mine.gguf"
    model.write_bytes(tiny_model_path.read_bytes())
    manager = fake_manager(options={"model": str(model)}).start()
    first = manager.pid
    assert first
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_model_path.read_bytes())
    other.replace(model)
    os.kill(first, signal.SIGKILL)
    wait_until("it is ready again", lambda: manager.pid not in {None, first})
    manager.endpoint(10)
    assert any("not the one" in note for note in manager.snapshot().notes)


def test_restart_switched_off_fails_at_the_first_crash(fake_manager: FakeFactory) -> None:
    manager = fake_manager(options={"restart": RestartPolicy(enabled=False)}).start()
    assert manager.pid
    os.kill(manager.pid, signal.SIGKILL)
    wait_until("it is failed", lambda: manager.state is State.FAILED)


def test_a_request_waits_while_the_engine_restarts(fake_manager: FakeFactory) -> None:
    manager = fake_manager(loading_s=0.3).start()
    first = manager.pid
    assert first
    os.kill(first, signal.SIGKILL)
    wait_until("the death is seen", lambda: manager.pid != first)
    assert manager.endpoint(10).base_url


def test_a_request_waits_no_longer_than_its_own_deadline(fake_manager: FakeFactory) -> None:
    manager = fake_manager(never_ready=True)
    thread = threading.Thread(target=_start_quietly, args=(manager,))
    thread.start()
    wait_until("it is loading", lambda: manager.state is State.LOADING)
    with pytest.raises(RequestTimeoutError, match="loading"):
        manager.endpoint(0.2)
    manager.stop()
    thread.join(5)


def _start_quietly(manager: ServerManager) -> None:
    with pytest.raises(LLMProviderError):
        manager.start()


@pytest.mark.faults("keeper killed", "ready", "a new keeper and engine")
def test_the_keeper_killed_takes_the_engine_with_it_and_is_replaced(
    fake_manager: FakeFactory,
) -> None:
    manager = fake_manager().start()
    engine, keeper = manager.pid, manager.snapshot().keeper_pid
    assert engine
    assert keeper
    os.kill(keeper, signal.SIGKILL)
    wait_until("the engine is gone", lambda: is_gone(engine), timeout_s=2)
    wait_until("its death is seen", lambda: manager.pid != engine, timeout_s=2)
    assert manager.endpoint(10)
    assert manager.pid != engine


@pytest.mark.faults(
    "tokens stand still, all endpoints answer", "ready", "wedged: no token has moved"
)
def test_a_request_whose_tokens_stand_still_gets_the_engine_replaced(
    fake_manager: FakeFactory,
) -> None:
    """/health and /slots answer all the time: only the tokens tell."""
    manager = fake_manager(stuck_from_s=0.3, options={"wedge_timeout_s": 1.0}).start()
    first = manager.pid
    wait_until("it is suspected", lambda: manager.state is State.SUSPECT)
    with pytest.raises(RequestTimeoutError):
        manager.endpoint(0.1)  # a suspect takes no new work
    wait_until("it is replaced", lambda: manager.pid not in {None, first})
    snapshot = manager.snapshot()
    assert snapshot.last_exit
    assert snapshot.last_exit["diagnosis"] == "wedged"
    assert "no token has moved" in str(snapshot.last_exit["reason"])


@pytest.mark.faults("tokens stand still and move again", "ready", "no restart")
def test_a_suspect_that_moves_again_is_left_alone(
    fake_manager: FakeFactory, tmp_path: Path
) -> None:
    stuck = tmp_path / "stuck"
    manager = fake_manager(stuck_while=str(stuck), options={"wedge_timeout_s": 4.0}).start()
    first = manager.pid
    stuck.touch()
    wait_until("it is suspected", lambda: manager.state is State.SUSPECT)
    stuck.unlink()
    assert manager.endpoint(10).base_url
    assert manager.pid == first
    assert manager.snapshot().restarts == 0


@pytest.mark.faults("SIGSTOP while idle", "ready", "wedged")
def test_a_stopped_engine_is_found_and_replaced(fake_manager: FakeFactory) -> None:
    """SIGSTOP: it answers nothing and uses no processor time."""
    manager = fake_manager(options={"wedge_timeout_s": 1.0}).start()
    first = manager.pid
    assert first
    os.kill(first, signal.SIGSTOP)
    wait_until("it is replaced", lambda: manager.pid not in {None, first})
    assert manager.endpoint(10)


def test_restart_gives_a_new_process(fake_manager: FakeFactory) -> None:
    manager = fake_manager().start()
    pid = manager.pid
    manager.restart()
    assert manager.pid != pid
    assert manager.state is State.READY


def test_stop_while_loading(fake_manager: FakeFactory) -> None:
    manager = fake_manager(never_ready=True)
    thread = threading.Thread(target=_start_quietly, args=(manager,))
    thread.start()
    wait_until("it is loading", lambda: manager.pid is not None)
    pid = manager.pid
    manager.stop()
    thread.join(5)
    assert not thread.is_alive()
    assert not psutil.pid_exists(pid or 0)


@pytest.mark.faults(
    "os.fork in the owner", "ready", "the child: belongs to the process that started it"
)
def test_a_fork_refuses_and_does_no_harm(fake_manager: FakeFactory) -> None:
    manager = fake_manager().start()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            manager.stop()
            manager.snapshot()
        except LLMProviderError:
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert manager.health().ok


def test_use_after_stop_says_so(fake_manager: FakeFactory) -> None:
    manager = fake_manager()
    with pytest.raises(EngineNotRunningError, match="stopped"):
        manager.endpoint(1)


@pytest.mark.faults("log flood", "ready", "files and tail bounded")
def test_a_log_flood_neither_blocks_nor_fills(fake_manager: FakeFactory) -> None:
    """64 MB of output: it gets ready all the same, the tail and the files stay bounded."""
    manager = fake_manager(flood_bytes=64 << 20).start()
    log = manager.snapshot().log_path
    assert log
    written = sum(path.stat().st_size for path in Path(log).parent.glob(Path(log).name + "*"))
    assert written < 25 << 20
    assert len(manager.logs(10_000)) <= 400


def test_an_owner_that_does_not_read_loses_the_oldest_lines_not_the_engine(
    fake_manager: FakeFactory,
) -> None:
    """What the engine says last, that it listens, comes after megabytes that nobody read."""
    for _ in range(3):
        manager = fake_manager(flood_bytes=8 << 20, options={"startup_stall_timeout_s": 5.0})
        assert manager.start().health().ok
        manager.stop()


@pytest.mark.faults("log file and folder deleted", "ready", "none")
def test_a_deleted_log_file_and_folder_are_survived(fake_manager: FakeFactory) -> None:
    manager = fake_manager().start()
    log = manager.snapshot().log_path
    assert log
    Path(log).unlink()
    Path(log).parent.rmdir()
    assert manager.health().ok
    assert manager.restart().health().ok


@pytest.mark.faults("log folder cannot be written", "ready", "a note: no log file")
def test_an_unwritable_log_folder_is_noted_not_fatal(
    fake_manager: FakeFactory, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    manager = fake_manager(options={"log_dir": tmp_path / "file" / "logs"}).start()
    assert any("no log file" in note for note in manager.snapshot().notes)
    assert manager.logs(), "the tail is in memory"


@pytest.mark.faults("canary key", "ready", "in no argv, file, snapshot")
def test_secrets_are_nowhere_but_in_the_environment(
    fake_manager: FakeFactory, isolated_home: Path
) -> None:
    manager = fake_manager(options={"api_key": "canary-key-1234567890"}).start()
    assert manager.pid
    assert "canary-key" not in " ".join(psutil.Process(manager.pid).cmdline())
    assert "canary-key" not in json.dumps(manager.snapshot().to_dict())
    for path in isolated_home.rglob("*"):
        if path.is_file():
            assert b"canary-key" not in path.read_bytes(), path


def test_state_files_are_private(fake_manager: FakeFactory, isolated_home: Path) -> None:
    with fake_manager():
        for path in (isolated_home / "state").rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.faults("LLAMA_* variables set", "ready", "none")
def test_foreign_variables_do_not_reach_the_engine(
    fake_manager: FakeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_SERVER_ROUTER_PORT", "1")
    manager = fake_manager().start()
    assert manager.pid
    assert "LLAMA_SERVER_ROUTER_PORT" not in psutil.Process(manager.pid).environ()


def test_a_busy_engine_does_not_hold_up_the_snapshot(fake_manager: FakeFactory) -> None:
    manager = fake_manager(slots_delay_s=3).start()
    began = time.monotonic()
    snapshot = manager.snapshot()
    assert time.monotonic() - began < 0.2
    assert snapshot.state == "ready"


def test_the_snapshot_is_json_and_has_the_agreed_keys(fake_manager: FakeFactory) -> None:
    manager = fake_manager().start()
    snapshot = json.loads(json.dumps(manager.snapshot().to_dict()))
    assert {
        "host", "port", "base_url", "model", "hf_model_repo_id", "api_model",
        "startup_timeout_seconds", "poll_interval_seconds", "python_executable",
        "extra_server_args", "state", "pid", "started_at", "ready_at", "restarts", "last_exit",
        "engine", "context", "slots", "threads", "device", "memory", "health", "log_path",
    } <= set(snapshot)  # fmt: skip
    assert snapshot["context"]["actual"] == 512, "what the engine says, not what was asked for"
    assert snapshot["memory"]["rss_bytes"] > 0
    assert snapshot["device"]["actual"] == "cpu"


def test_ps_sees_it_and_forgets_it(fake_manager: FakeFactory) -> None:
    manager = fake_manager().start()
    (record,) = registry.running()
    assert record.base_url == manager.base_url
    assert record.engine_pid == manager.pid
    manager.stop()
    assert registry.running() == ()


@pytest.mark.faults(
    "pid reuse: a state file names a live stranger", "unchanged", "the file is removed"
)
def test_a_record_of_a_dead_owner_is_not_believed(isolated_home: Path) -> None:
    """The process id is alive, but it is another process: this one."""
    registry.write(
        registry.ServerRecord(
            name="old", role="client", owner_pid=os.getpid(), owner_birth="1", engine_pid=1,
            model="m", engine="xllamacpp", base_url=None, state="ready", started_at=None,
            log_path=None,
        )
    )  # fmt: skip
    (isolated_home / "state" / "servers" / "corrupt.json").write_text("{")
    assert registry.running() == ()
    assert list((isolated_home / "state" / "servers").iterdir()) == []


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.faults(
    "no model, HTML or text as .gguf, half a file", "failed", "what is wrong with the file"
)
def test_bad_models_are_refused_before_anything_starts(
    manager_for: ManagerFactory, tmp_path: Path, tiny_model_path: Path
) -> None:
    text = tmp_path / "notes.gguf"
    text.write_text("these are my notes, not a model\n" * 50)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_model_path.read_bytes()[: tiny_model_path.stat().st_size // 2])
    with pytest.raises(ModelNotFoundError):
        manager_for(model=str(tmp_path / "missing.gguf")).start()
    with pytest.raises(ModelNotFoundError) as caught:
        manager_for(model="smollm2-153m").start()
    assert "smollm2-135m" in caught.value.nearest
    with pytest.raises(ModelFormatError):
        manager_for(model=str(text)).start()
    with pytest.raises(ModelFormatError, match="cut off"):
        manager_for(model=str(cut)).start()


def test_a_gpu_that_is_not_there_is_an_error(
    manager_for: ManagerFactory, tiny_model_path: Path
) -> None:
    with pytest.raises(LLMCapabilityError, match="GPU"):
        manager_for(model=str(tiny_model_path), device="gpu", gpu_layers="all").start()
    with pytest.raises(ConfigError, match="contradict"):
        manager_for(model=str(tiny_model_path), device="cpu", gpu_layers="all").start()


def test_an_engine_that_is_not_installed_says_how_to_install_it(
    manager_for: ManagerFactory, tiny_model_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineNotInstalledError) as caught:
        manager_for(
            model=str(tiny_model_path), engine="llama-server", engine_path=str(tmp_path / "none")
        ).start()
    assert "install" in str(caught.value)


@pytest.mark.faults("port taken", "failed", "the port and who holds it")
def test_a_taken_port_is_named_with_its_holder(fake_manager: FakeFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        with pytest.raises(EngineStartError, match=str(port)) as caught:
            fake_manager(options={"port": port}).start()
    assert caught.value.diagnosis == "port_taken"
    assert str(os.getpid()) in caught.value.message


def test_a_fixed_port_is_the_one_used(fake_manager: FakeFactory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    manager = fake_manager(options={"port": port}).start()
    assert manager.snapshot().port == port


# --- the owner dies ------------------------------------------------------------------------

OWNER = """
import json, sys, multiprocessing, os, time
from runtime.server.manager import ServerManager
from runtime.settings import ServerConfig
options = json.loads(sys.argv[1])
manager = ServerManager(ServerConfig(**options)).start()
if "fork" in sys.argv[2:]:
    if os.fork() == 0:
        time.sleep(60)
print(manager.pid, manager.snapshot().keeper_pid, flush=True)
if "exit" in sys.argv[2:]:
    raise SystemExit("done")
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["plain", "fork", "exit"])
def test_the_engine_is_gone_within_a_second_of_its_owner(
    fake_binary: Path, tiny_model_path: Path, how: str
) -> None:
    """By kill -9, also with a forked child that holds every pipe open; and by a plain exit."""
    options = {
        "model": str(tiny_model_path),
        "engine": "llama-server",
        "engine_path": str(fake_binary),
    }
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, json.dumps(options), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as owner:
        assert owner.stdout
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) == 2
        if how != "exit":
            os.kill(owner.pid, signal.SIGKILL)
        owner.wait(10)
        wait_until(
            "engine and keeper are gone",
            lambda: all(map(is_gone, pids)),
            timeout_s=1.0,
        )
        try:
            os.killpg(owner.pid, signal.SIGKILL)  # the forked child of our own owner process
        except ProcessLookupError:
            assert how != "fork"
