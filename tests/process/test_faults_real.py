"""Fault battery: the real engine (xllamacpp) with the tiny model."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime import LlamaClient, LLMChatParams
from runtime.errors import EngineStartError, LLMError, LLMProviderError
from runtime.server.lifecycle import State
from runtime.server.probe import ask
from runtime.testing.tiny_model import build_tiny_model
from runtime.testing.tiny_vocabulary import CHATML
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.server.manager import ServerManager
    from tests.conftest import ManagerFactory

    Saw = Callable[[object], None]

pytestmark = [pytest.mark.process, pytest.mark.engine]

FREEZE = Path(__file__).parents[1] / "fakes" / "freeze_thread.py"
ENGINE: dict[str, Any] = {"engine": "xllamacpp", "ctx_size": 2048, "parallel": 2}


@pytest.fixture
def real(manager_for: ManagerFactory, tiny_model_path: Path) -> Callable[..., ServerManager]:
    """Managers of the real engine."""

    def make(**options: Any) -> ServerManager:
        return manager_for(**{"model": str(tiny_model_path), **ENGINE, **options})

    return make


def complete(manager: ServerManager, *, tokens: int = 4, timeout_s: float = 30) -> Any:
    """One completion, asked for without the client."""
    endpoint = manager.endpoint(30)
    return ask(
        endpoint.base_url,
        "/v1/completions",
        api_key=endpoint.api_key,
        body={"model": endpoint.model, "prompt": "a", "max_tokens": tokens},
        timeout_s=timeout_s,
    )


def long_request(manager: ServerManager) -> threading.Thread:
    """A request that is at work when this returns."""
    thread = threading.Thread(target=complete, args=(manager,), kwargs={"tokens": 1900})
    thread.start()
    endpoint = manager.endpoint(30)
    wait_until(
        "a slot is at work",
        lambda: (
            '"is_processing": true'
            in json.dumps(ask(endpoint.base_url, "/slots", api_key=endpoint.api_key).body)
        ),
    )
    return thread


@pytest.mark.faults("xllamacpp: SIGKILL in mid-stream", "ready", "a clean LLMProviderError")
def test_killed_in_mid_stream(tiny_model_path: Path, saw: Saw) -> None:
    with LlamaClient(str(tiny_model_path), max_retries=0, **ENGINE) as client:
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


@pytest.mark.faults("xllamacpp: SIGKILL while loading", "failed", "killed")
def test_killed_while_loading(real: Callable[..., ServerManager], saw: Saw) -> None:
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


@pytest.mark.faults("xllamacpp: SIGSTOP in mid-request", "ready", "no token has moved", long=True)
def test_stopped_at_work(real: Callable[..., ServerManager], saw: Saw) -> None:
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
@pytest.mark.faults("xllamacpp: the inference thread frozen by ptrace", "ready", "wedged")
def test_one_thread_frozen(real: Callable[..., ServerManager], saw: Saw) -> None:
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


@pytest.mark.faults("xllamacpp: model truncated in place", "failed", "SIGBUS, then: cut off")
def test_model_truncated_while_serving(
    real: Callable[..., ServerManager], tiny_model_path: Path, tmp_path: Path, saw: Saw
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


@pytest.mark.faults("xllamacpp: model deleted while serving", "ready", "serves on")
def test_model_deleted_while_serving(
    real: Callable[..., ServerManager], tiny_model_path: Path, tmp_path: Path, saw: Saw
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
    "xllamacpp: 1 MiB of random bytes in the tensors", "ready", "only the hash tells", long=True
)
def test_random_bytes_in_tensors_are_not_seen_by_the_engine(
    real: Callable[..., ServerManager], tiny_model_path: Path, tmp_path: Path, saw: Saw
) -> None:
    model = tmp_path / "noise.gguf"
    data = bytearray(tiny_model_path.read_bytes())
    data[-100_000:] = secrets.token_bytes(100_000)
    model.write_bytes(data)
    manager = real(model=str(model)).start()
    saw(f"it answers HTTP {complete(manager).status}")
    assert manager.state is State.READY


LIMITED = """
import json, resource, sys
options, cap, group = json.loads(sys.argv[1])
if group:
    open(group + "/cgroup.procs", "w").write("0")
from runtime.errors import LLMError
from runtime.server.manager import ServerManager
from runtime.settings import ServerConfig
if cap:
    resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
manager = ServerManager(ServerConfig(**options))
try:
    manager.start()
    print(json.dumps(["ready", "", ""]))
except LLMError as exc:
    print(json.dumps([manager.state, getattr(exc, "diagnosis", ""), exc.message]))
finally:
    manager.stop()
"""


def under_limit(options: dict[str, Any], *, cap: int = 0, group: Path | None = None) -> list[str]:
    """State, diagnosis and message of a start under a limit of memory."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps([options, cap, str(group) if group else ""])],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.faults("xllamacpp: no memory by rlimit", "failed", "out of memory, not looped")
def test_address_space_runs_out(tiny_model_path: Path, saw: Saw) -> None:
    """The plan cannot know: a limit on addresses is none on memory."""
    options = {"model": str(tiny_model_path), **ENGINE, "ctx_size": 8192, "parallel": 64}
    state, diagnosis, message = under_limit(options, cap=900 << 20)
    saw(f"{diagnosis}: {message}")
    assert state == "failed"
    assert diagnosis in {"out_of_memory", "no_process"} or "memory" in message


@pytest.mark.faults("xllamacpp: killed by the memory cgroup", "failed", "out of memory, not looped")
def test_the_cgroup_kills_it(tmp_path: Path, saw: Saw) -> None:
    """A template that takes memory, in a group that has little."""
    group = Path("/sys/fs/cgroup/memory") / f"faults-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(300 << 20))
    except OSError as exc:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {exc.strerror}")
    try:
        model = hostile(tmp_path / "greedy.gguf", GREEDY)
        state, diagnosis, message = under_limit({"model": str(model), **ENGINE}, group=group)
        if diagnosis == "bad_template":
            pytest.skip("this system does not enforce the limit of a memory cgroup")
    finally:
        wait_until("the group is empty", lambda: _removed(group))
    saw(f"{diagnosis}: {message}")
    assert (state, diagnosis) == ("failed", "out_of_memory")


def _removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


GREEDY = (
    "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
)


def hostile(path: Path, template: str) -> Path:
    """A tiny model with this chat template."""
    plain = path.with_suffix(".plain")
    build_tiny_model(plain)
    data = plain.read_bytes()
    old, new = CHATML.encode(), template.encode()
    at = data.index(len(old).to_bytes(8, "little") + old)
    # Tensor data starts at a multiple of 32: keep the header's length a multiple longer.
    new += b" " * (-(len(new) - len(old)) % 32)
    path.write_bytes(data[:at] + len(new).to_bytes(8, "little") + new + data[at + 8 + len(old) :])
    plain.unlink()
    return path


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "20,000 nested parentheses"),
        ("{% for m in messages %}{{ m.content }", "syntax"),
        ("{{ raise_exception('no') }}", "raises"),
    ],
    ids=["nested", "syntax", "raises"],
)
@pytest.mark.faults("xllamacpp: a hostile template", "failed", "names the template")
def test_hostile_templates(
    real: Callable[..., ServerManager], tmp_path: Path, template: str, kind: str, saw: Saw
) -> None:
    manager = real(model=str(hostile(tmp_path / "hostile.gguf", template)))
    with pytest.raises(EngineStartError) as caught:
        manager.start()
    saw(caught.value.message)
    assert caught.value.diagnosis == "bad_template"
    assert "template" in caught.value.message
    assert manager.state is State.FAILED
    facts = manager.snapshot().model
    assert len(str(facts["chat_template_sha256"])) == 64


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(1000000000) %}{% set x = i %}{% endfor %}", GREEDY],
    ids=["loop", "memory"],
)
@pytest.mark.faults("xllamacpp: a template without end", "failed", "names the template", long=True)
def test_templates_without_end(
    real: Callable[..., ServerManager], tmp_path: Path, template: str, saw: Saw
) -> None:
    manager = real(model=str(hostile(tmp_path / "hostile.gguf", template)))
    with pytest.raises(EngineStartError, match="sha256") as caught:
        manager.start()
    saw(caught.value.message)
    assert caught.value.diagnosis == "bad_template"


# --- what a stranger can reach -------------------------------------------------------------


def raw(
    manager: ServerManager,
    method: str,
    path: str,
    *,
    key: str | None,
    headers: dict[str, str] | None = None,
    body: str | None = None,
) -> tuple[int, dict[str, str], str]:
    """An HTTP exchange as a stranger or a browser would make it."""
    port = manager.snapshot().port
    with closing(http.client.HTTPConnection("127.0.0.1", port or 0, timeout=10)) as connection:
        sent = {"Connection": "close", **(headers or {})}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        connection.request(method, path, body=body, headers=sent)
        response = connection.getresponse()
        return (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read().decode("utf-8", "replace"),
        )


@pytest.mark.faults("xllamacpp: a web page asks (Origin, foreign Host)", "ready", "nothing matches")
def test_a_web_page_gets_nothing(real: Callable[..., ServerManager], saw: Saw) -> None:
    manager = real().start()
    page = {"Origin": "http://evil.example", "Host": "evil.example"}
    for key in (None, manager.api_key):
        for method, path in (("GET", "/health"), ("GET", "/props"), ("OPTIONS", "/completion")):
            _, headers, _ = raw(manager, method, path, key=key, headers=page)
            allowed = headers.get("access-control-allow-origin", "")
            assert "evil" not in allowed
            assert allowed != "*"
            assert headers.get("access-control-allow-credentials") != "true"
    saw(f"Access-Control-Allow-Origin: {allowed or 'none'}")


@pytest.mark.faults(
    "xllamacpp: a stranger without the key", "ready", "401 on everything that tells"
)
def test_without_the_key_nothing_is_told(real: Callable[..., ServerManager], saw: Saw) -> None:
    manager = real().start()
    closed = {}
    for method, path in (
        ("GET", "/props"), ("GET", "/slots"), ("GET", "/metrics"), ("POST", "/completion"),
        ("POST", "/v1/chat/completions"), ("POST", "/slots/0?action=save"), ("POST", "/tokenize"),
        ("POST", "/apply-template"), ("POST", "/props"), ("POST", "/infill"),
    ):  # fmt: skip
        body = '{"prompt": "a", "filename": "x"}' if method == "POST" else None
        closed[path] = raw(manager, method, path, key=None, body=body)[0]
    assert set(closed.values()) <= {401, 404}, closed
    saw(closed)


@pytest.mark.faults("xllamacpp: page, tools, slot files, media with the key", "ready", "all off")
def test_what_was_not_asked_for_is_off(real: Callable[..., ServerManager], saw: Saw) -> None:
    manager = real().start()
    key = manager.api_key
    status, _, text = raw(manager, "GET", "/", key=key)
    assert status in {401, 403, 404, 410, 501} or "<script" not in text
    answers = {"/": status}
    for path, body in (
        ("/slots/0?action=save", '{"filename": "../../stolen"}'),
        ("/slots/0?action=restore", '{"filename": "../../etc/passwd"}'),
        ("/models/load", '{"model": "x"}'),
        ("/props", '{"chat_template": "x"}'),
        ("/tools", "{}"),
        ("/mcp", "{}"),
    ):
        answers[path] = raw(
            manager, "POST", path, key=key, body=body, headers={"Content-Type": "application/json"}
        )[0]
    saw(answers)
    assert all(status >= 400 for path, status in answers.items() if path != "/"), answers


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.faults("xllamacpp: where the key is, who can connect", "ready", "stdin only; loopback")
def test_the_key_is_nowhere_and_the_port_on_loopback_only(
    real: Callable[..., ServerManager], isolated_home: Path
) -> None:
    manager = real().start()
    key, pid = manager.api_key, manager.pid
    keeper = manager.snapshot().keeper_pid
    assert key
    assert pid
    assert keeper
    for process in (pid, keeper):
        for name in ("cmdline", "environ"):
            assert key.encode() not in Path(f"/proc/{process}/{name}").read_bytes(), name
    for path in isolated_home.rglob("*"):
        if path.is_file():
            assert key.encode() not in path.read_bytes(), path
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == ["127.0.0.1"]
    manager.restart()
    assert manager.api_key != key, "a new key for each start"


@pytest.mark.faults("xllamacpp: a canary in prompt and answer", "ready", "in no file, in no log")
def test_a_prompt_is_written_nowhere(
    tiny_model_path: Path, isolated_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with LlamaClient(str(tiny_model_path), **ENGINE) as client:
        client.chat("canary-prompt-4711", params=LLMChatParams(max_tokens=4))
        client.count_tokens("canary-prompt-4711")
        server = client.server
        assert server is not None
        assert "canary" not in " ".join(server.logs(400))
        assert "canary" not in json.dumps(server.snapshot().to_dict())
    for path in isolated_home.rglob("*"):
        if path.is_file():
            assert b"canary" not in path.read_bytes(), path
    assert "canary" not in caplog.text


# --- the world -----------------------------------------------------------------------------


@pytest.mark.faults("xllamacpp: proxies set", "ready", "loopback does not go through them")
def test_proxies_do_not_come_between(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with LlamaClient(str(tiny_model_path), **ENGINE) as client:
        assert client.chat("Hi", params=LLMChatParams(max_tokens=4)).text


@pytest.mark.faults("xllamacpp: two owners start the same model at once", "ready", "both serve")
def test_two_owners_start_the_same_model(tiny_model_path: Path) -> None:
    options = json.dumps([{"model": str(tiny_model_path), **ENGINE}, 0, ""])
    owners = [
        subprocess.Popen([sys.executable, "-c", LIMITED, options], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [json.loads(owner.communicate(timeout=60)[0].splitlines()[-1]) for owner in owners]
    assert [state for state, _, _ in said] == ["ready", "ready"]


@pytest.mark.faults(
    "xllamacpp: 5,000 requests from 64 threads", "ready", "5,000 answers", long=True
)
def test_five_thousand_requests_from_64_threads(
    real: Callable[..., ServerManager], saw: Saw
) -> None:
    manager = real(parallel=8, ctx_size=256).start()
    statuses: list[int] = []
    work = iter(range(5000))
    lock = threading.Lock()

    def ask_on() -> None:
        while True:
            with lock:
                if next(work, None) is None:
                    return
            statuses.append(complete(manager, tokens=1, timeout_s=60).status)

    threads = [threading.Thread(target=ask_on) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
    saw(f"{statuses.count(200)} answers, {len(statuses) - statuses.count(200)} others")
    assert statuses == [200] * 5000
    assert manager.snapshot().restarts == 0
