"""Fault battery: real engines that load with too little memory, no threads, a hostile template."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import EngineStartError
from runtime.server.lifecycle import State
from tests.conftest import wait_until
from tests.process.real_engine import GREEDY, hostile

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.process.conftest import RealFactory

    Saw = Callable[[object], None]

pytestmark = [pytest.mark.process, pytest.mark.engine]

RENDERS_LATER = "it first renders the template with a request, in a sandbox with bounded loops"

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
    """State, diagnosis and message of a start under a limit of memory, or in a cgroup."""
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


@pytest.mark.faults("no memory by rlimit", "failed", "out of memory, not looped")
def test_address_space_runs_out(real_options: dict[str, Any], saw: Saw) -> None:
    """The plan cannot know: a limit on addresses is none on memory."""
    options = {**real_options, "ctx_size": 8192, "parallel": 64}
    cap = 900 << 20
    if options["engine"] == "llama-cpp-python":  # it has one slot, and no more threads than asked
        options, cap = {**options, "ctx_size": 8192 * 64, "parallel": 1}, 260 << 20
    state, diagnosis, message = under_limit(options, cap=cap)
    saw(f"{diagnosis}: {message}")
    assert state == "failed"
    assert diagnosis in {"out_of_memory", "no_process"} or "memory" in message


@pytest.mark.faults(
    "killed by the memory cgroup",
    "failed",
    "out of memory, not looped",
    not_on={"llama-cpp-python": RENDERS_LATER},
)
def test_the_cgroup_kills_it(real_options: dict[str, Any], tmp_path: Path, saw: Saw) -> None:
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
        state, diagnosis, message = under_limit({**real_options, "model": str(model)}, group=group)
        if diagnosis == "bad_template":
            pytest.skip("this system does not enforce the limit of a memory cgroup")
    finally:
        wait_until("the group is empty", lambda: _removed(group))
    saw(f"{diagnosis}: {message}")
    assert (state, diagnosis) == ("failed", "out_of_memory")


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
@pytest.mark.faults("no further thread or process (EAGAIN)", "failed", "names the limit")
def test_threads_run_out(real_options: dict[str, Any], limit: int, saw: Saw) -> None:
    """It fails in the owner, the keeper or the engine, and each time says the same."""
    group = Path("/sys/fs/cgroup/pids") / f"faults-{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text(str(limit))
    except OSError as exc:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no cgroup that counts processes can be made here: {exc.strerror}")
    try:
        state, diagnosis, message = under_limit({**real_options, "threads": 8}, group=group)
    finally:
        wait_until("the group is empty", lambda: _removed(group))
    saw(f"{diagnosis}: {message}")
    assert state in {"failed", "stopped"}
    if "HTTP 500" in message:  # llama-cpp-python listens, and then has no thread to answer with
        assert real_options["engine"] == "llama-cpp-python"
    else:
        assert diagnosis == "no_process" or "Resource temporarily unavailable" in message


def _removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "20,000 nested parentheses"),
        ("{% for m in messages %}{{ m.content }", "syntax"),
        ("{{ raise_exception('no') }}", "raises"),
    ],
    ids=["nested", "syntax", "raises"],
)
@pytest.mark.faults("a hostile template", "failed", "names the template")
def test_hostile_templates(
    real: RealFactory,
    real_options: dict[str, Any],
    tmp_path: Path,
    template: str,
    kind: str,
    saw: Saw,
) -> None:
    if kind == "raises" and real_options["engine"] == "llama-cpp-python":
        pytest.skip(f"not on llama-cpp-python: {RENDERS_LATER}")
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
@pytest.mark.faults(
    "a template without end",
    "failed",
    "names the template",
    long=True,
    not_on={"llama-cpp-python": RENDERS_LATER},
)
def test_templates_without_end(real: RealFactory, tmp_path: Path, template: str, saw: Saw) -> None:
    manager = real(model=str(hostile(tmp_path / "hostile.gguf", template)))
    with pytest.raises(EngineStartError, match="sha256") as caught:
        manager.start()
    saw(caught.value.message)
    assert caught.value.diagnosis == "bad_template"
