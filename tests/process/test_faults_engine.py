"""Fault battery: an engine that answers wrongly, on the fake that does so on request."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime import LlamaClient
from runtime.errors import EngineStartError, LLMError, LLMProviderError
from runtime.server.lifecycle import State
from runtime.server.probe import ask
from runtime.server.templates import LOOK_S
from runtime.settings import RestartPolicy
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import FakeFactory

    Saw = Callable[[object], None]

pytestmark = pytest.mark.process


def client_of(fake_binary: Path, model: Path, **fake: Any) -> LlamaClient:
    """A client of the fake engine that tries once."""
    return LlamaClient(
        str(model),
        engine="llama-server",
        engine_path=str(fake_binary),
        env={"FAKE": json.dumps(fake)},
        max_retries=0,
        request_timeout_s=20,
        stall_timeout_s=5,
    )


@pytest.mark.parametrize("answer", ["500", "503", "broken", "cut", "html"])
@pytest.mark.faults("a broken answer", "ready", "an LLMError, never half an answer")
def test_a_broken_answer_is_an_error_and_never_half_an_answer(
    fake_binary: Path, tiny_model_path: Path, answer: str, saw: Saw
) -> None:
    with client_of(fake_binary, tiny_model_path, answer=answer) as client:
        with pytest.raises(LLMError) as caught:
            list(client.stream_chat("Hi"))
        saw(caught.value.message)
        assert client.healthcheck().ok, "the engine lives on"
        assert client.server is not None
        assert client.server.snapshot().restarts == 0


@pytest.mark.faults("half a UTF-8 character per chunk", "ready", "the text whole")
def test_half_a_character_per_chunk_is_put_together(
    fake_binary: Path, tiny_model_path: Path
) -> None:
    with client_of(fake_binary, tiny_model_path, answer="half") as client:
        events = list(client.stream_chat("Hi"))
    assert events[-1].response is not None
    assert events[-1].response.text == "naïve 🦙 Straße"
    assert "".join(event.delta_text or "" for event in events) == "naïve 🦙 Straße"


@pytest.mark.faults(
    "the engine dies in the middle of a stream", "ready", "a clean LLMProviderError"
)
def test_an_engine_that_dies_in_the_middle_of_a_stream(
    fake_binary: Path, tiny_model_path: Path, saw: Saw
) -> None:
    with client_of(fake_binary, tiny_model_path, answer="die") as client:
        with pytest.raises(LLMProviderError) as caught:
            list(client.stream_chat("Hi"))
        saw(caught.value.message)
        server = client.server
        assert server is not None
        wait_until("it is ready again", lambda: server.snapshot().restarts == 1)
        assert server.endpoint(10)


@pytest.mark.faults("/slots sends a byte now and then", "stopped", "no thread is held up")
def test_an_engine_that_drips_its_answers_holds_nothing_up(fake_manager: FakeFactory) -> None:
    manager = fake_manager(drip_slots_s=0.2, options={"wedge_timeout_s": 4.0}).start()
    reply = ask(manager.base_url or "", "/slots", api_key=manager.api_key, timeout_s=0.5)
    assert (reply.status, reply.problem) == (0, "timed out")
    began = time.monotonic()
    manager.snapshot()
    assert time.monotonic() - began < 0.5
    manager.stop()
    assert time.monotonic() - began < 4.0


@pytest.mark.faults("/slots never ends", "ready", "its answer is longer than 16 MiB")
def test_an_answer_without_end_is_not_read_to_its_end(fake_manager: FakeFactory, saw: Saw) -> None:
    manager = fake_manager(endless_slots=True).start()
    before = psutil.Process().memory_info().rss
    reply = ask(manager.base_url or "", "/slots", api_key=manager.api_key, timeout_s=20)
    assert reply.status == 0
    saw(reply.problem)
    assert "longer" in str(reply.problem)
    assert psutil.Process().memory_info().rss - before < 200 << 20


@pytest.mark.faults("an impostor answers where the engine should", "failed", "no prompt was sent")
def test_an_impostor_gets_no_prompt(fake_manager: FakeFactory, tmp_path: Path, saw: Saw) -> None:
    posts = tmp_path / "posts"
    manager = fake_manager(stranger=True, record_posts=str(posts))
    with pytest.raises(EngineStartError) as caught:
        manager.start()
    saw(caught.value.message)
    assert not posts.exists()


IMPOSTOR = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        length = int(self.headers.get("Content-Length", 0))
        print(self.requestline, self.headers, self.rfile.read(length), flush=True)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok", "data": [{"id": "m"}]}')
    do_POST = do_GET
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.faults("an impostor on the fixed port", "failed", "names the holder; gets no key")
def test_an_impostor_on_a_fixed_port_gets_neither_prompt_nor_key(
    fake_manager: FakeFactory, saw: Saw
) -> None:
    """It took the port after the look whether it was free, and says yes to everything."""
    with socket.create_server(("127.0.0.1", 0)) as trial:
        port = trial.getsockname()[1]
    manager = fake_manager(takes_anothers_port=True, options={"port": port})
    caught: list[LLMError] = []

    def start() -> None:
        try:
            manager.start()
        except LLMError as exc:
            caught.append(exc)

    starting = threading.Thread(target=start)
    starting.start()
    wait_until("the engine is being started", lambda: manager.state is State.LOADING)
    with subprocess.Popen(
        [sys.executable, "-c", IMPOSTOR, str(port)], stdout=subprocess.PIPE, text=True
    ) as impostor:
        starting.join(20)
        impostor.kill()
        assert impostor.stdout
        heard = impostor.stdout.read()
    assert manager.state is State.FAILED
    error = caught[0]
    assert isinstance(error, EngineStartError)
    saw(error.message)
    assert error.diagnosis == "stranger"
    assert f"process {impostor.pid}" in error.message
    assert manager.api_key
    assert manager.api_key not in heard
    assert "Authorization" not in heard
    assert "POST" not in heard


@pytest.mark.faults("SIGILL while serving", "failed", "illegal instruction, never retried")
def test_an_illegal_instruction_is_never_tried_again(fake_manager: FakeFactory, saw: Saw) -> None:
    manager = fake_manager().start()
    assert manager.pid
    os.kill(manager.pid, signal.SIGILL)
    wait_until("it is failed", lambda: manager.state is State.FAILED)
    snapshot = manager.snapshot()
    assert snapshot.restarts == 0
    saw(snapshot.error)
    assert "processor instructions" in str(snapshot.error)


@pytest.mark.faults("exit 127 at a restart", "failed", "missing library, not retried")
def test_a_restart_that_would_repeat_is_not_repeated(
    fake_manager: FakeFactory, tmp_path: Path, saw: Saw
) -> None:
    manager = fake_manager(exit_once=str(tmp_path / "once"), exit_once_code=127).start()
    assert manager.pid
    os.kill(manager.pid, signal.SIGKILL)
    wait_until("it is failed", lambda: manager.state is State.FAILED)
    snapshot = manager.snapshot()
    saw(snapshot.error)
    assert snapshot.restarts == 1
    assert snapshot.last_exit
    assert snapshot.last_exit["diagnosis"] == "missing_library"


@pytest.mark.faults("a template that loops at load", "failed", "names the template", long=True)
def test_a_template_that_loops_is_found_by_its_processor_time(
    fake_manager: FakeFactory, saw: Saw
) -> None:
    """It burns processor time, which is progress by every other measure."""
    line = "0.0 I srv    load_model: initializing, n_slots = 1, n_ctx_slot = 256"
    manager = fake_manager(say=[line], busy_s=110)
    began = time.monotonic()
    with pytest.raises(EngineStartError) as caught:
        manager.start()
    saw(caught.value.message)
    assert caught.value.diagnosis == "bad_template"
    assert "chat template (sha256 " in caught.value.message
    assert time.monotonic() - began < 90


@pytest.mark.faults(
    "a template that takes all memory at load", "failed", "names the template", long=True
)
def test_a_template_that_takes_memory_is_found_by_its_growth(
    fake_manager: FakeFactory, saw: Saw
) -> None:
    line = "0.0 I srv    load_model: initializing, n_slots = 1, n_ctx_slot = 256"
    with pytest.raises(EngineStartError, match=r"chat template .* memory") as caught:
        fake_manager(say=[line], take_bytes=5 << 29).start()
    saw(caught.value.message)
    assert caught.value.diagnosis == "bad_template"


@pytest.mark.faults("a line of the loading comes after the ready line", "ready", "-", long=True)
def test_a_late_line_about_the_template_condemns_no_engine_that_serves(
    fake_manager: FakeFactory,
) -> None:
    """Two threads print, so lines change places; what a serving engine takes is its own."""
    line = "0.0 I srv    load_model: initializing, n_slots = 1, n_ctx_slot = 256"
    manager = fake_manager(say_late=[line], take_bytes_late=5 << 29).start()
    wait_until("it has taken the memory", lambda: "taken" in str(manager.logs()))
    threading.Event().wait(5 * LOOK_S)
    assert manager.state is State.READY


@pytest.mark.faults("64 threads wait for an endpoint over a crash", "ready", "all get it")
def test_many_threads_get_their_endpoint_over_a_crash(fake_manager: FakeFactory) -> None:
    manager = fake_manager().start()
    problems: list[BaseException] = []
    first = manager.pid
    assert first

    def work() -> None:
        for _ in range(5):
            try:
                assert manager.endpoint(20).base_url
            except (LLMError, AssertionError) as exc:
                problems.append(exc)

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads[:32]:
        thread.start()
    os.kill(first, signal.SIGKILL)
    for thread in threads[32:]:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not problems
    wait_until("it is ready again", lambda: manager.pid not in {None, first})


@pytest.mark.faults(
    "keeper SIGSTOP, then a stop", "stopped", "the keeper is killed, the engine too"
)
def test_a_keeper_that_does_not_obey(fake_manager: FakeFactory) -> None:
    manager = fake_manager(options={"stop_grace_s": 0.3}).start()
    engine, keeper = manager.pid, manager.snapshot().keeper_pid
    assert engine
    assert keeper
    os.kill(keeper, signal.SIGSTOP)
    manager.stop()
    assert manager.state is State.STOPPED
    wait_until("both are gone", lambda: is_gone(engine) and is_gone(keeper))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.faults("another user looks for the key", "ready", "Permission denied")
def test_another_user_cannot_read_the_key(fake_manager: FakeFactory, saw: Saw) -> None:
    """llama-server takes it from its environment, which only its own user may read."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    manager = fake_manager().start()
    seen = subprocess.run(
        ["/bin/cat", f"/proc/{manager.pid}/environ"],
        user=65534,
        capture_output=True,
        text=True,
        env={"LC_ALL": "C"},
        check=False,
    )
    assert seen.stdout == ""
    assert "Permission denied" in seen.stderr
    saw(seen.stderr)
    assert manager.api_key
    assert manager.api_key in psutil.Process(manager.pid).environ().values()


@pytest.mark.parametrize(("fake", "restarts"), [({}, 1), ({"answered_from_s": 0.3}, 3)])
@pytest.mark.faults(
    "crashes after a stable time, without and with an answer", "failed", "budget", long=True
)
def test_only_a_real_answer_makes_the_budget_new(
    fake_manager: FakeFactory, fake: dict[str, Any], restarts: int
) -> None:
    """An engine that is ready for long and dies before it answers anything is a crash loop."""
    policy = RestartPolicy(max_restarts=1, stable_after_s=0.6, backoff_base_s=0.01)
    options = {"restart": policy, "wedge_timeout_s": 0.4}
    manager = fake_manager(die_after_s=1.2, options=options, **fake).start()
    wait_until(
        "it has been restarted so often, or is failed",
        lambda: manager.snapshot().restarts >= restarts or manager.state is State.FAILED,
        timeout_s=20,
    )
    if not fake:
        wait_until("it is failed", lambda: manager.state is State.FAILED)
    assert manager.snapshot().restarts >= restarts
