"""The pytest plugin, used as its users do: by pytest in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import is_gone, wait_until
from tests.process import plugin_projects

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.outside, pytest.mark.process, pytest.mark.engine]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "tests" / "example_project"
PLUGIN = "runtime.testing.plugin"
SECRET = "sesame-open-123"


@dataclass(frozen=True)
class Finished:
    """A test run that is over."""

    code: int
    out: str

    def counts(self, **expected: int) -> bool:
        """Whether the last line tells exactly these numbers."""
        last = self.out.strip().splitlines()[-1]
        found = {}
        for part in last.partition(" in ")[0].strip("= ").split(", "):
            number, _, what = part.partition(" ")
            found[what.removesuffix("s") if what == "errors" else what] = int(number)
        return found == expected

    def of(self, test: str) -> set[str]:
        """What became of a test, by the summary that ``-rA`` asks for."""
        return set(re.findall(rf"^([A-Z]+) \S*{re.escape(test)}(?!\w)", self.out, re.MULTILINE))


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all runs, so that the tiny model is built once."""
    return tmp_path_factory.mktemp("home")


@dataclass(frozen=True)
class Project:
    """A user's project in a folder."""

    folder: Path
    home: Path

    def start(self, *args: str, plugins: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        loaded = [word for name in (PLUGIN, *plugins) for word in ("-p", name)]
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *loaded, *args],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "LLAMA_RUNTIME_HOME": str(self.home),
                "PYTHONPATH": str(ROOT),
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
                "OUT": str(self.folder),
                "SOME_API_KEY": SECRET,
            },
        )

    def run(self, *args: str, workers: int = 0) -> Finished:
        plugins = ("xdist.plugin",) if workers else ()
        spread = ("-n", str(workers)) if workers else ()
        with self.start(*spread, *args, plugins=plugins) as process:
            out, _ = process.communicate(timeout=100)
        return Finished(process.returncode, out)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, "utf-8")

    def note(self, name: str) -> str:
        """What a test wrote into a file of the project."""
        return (self.folder / name).read_text("utf-8")

    def noted(self, pattern: str) -> set[str]:
        """What tests wrote into files of the project."""
        return {path.read_text("utf-8") for path in self.folder.glob(pattern)}


@pytest.fixture
def project(tmp_path: Path, shared_home: Path) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    return made_project(folder, shared_home)


def made_project(folder: Path, home: Path) -> Project:
    made = Project(folder, home)
    made.write("pytest.ini", "[pytest]\nfilterwarnings = error\naddopts = --strict-markers -ra\n")
    made.write("helpers.py", plugin_projects.HELPERS)
    return made


@dataclass(frozen=True)
class Live:
    """A project, and a run of it that asked engines and recorded what it had to."""

    project: Project
    done: Finished


@pytest.fixture(scope="module")
def live(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Live:
    project = made_project(tmp_path_factory.mktemp("live"), shared_home)
    project.write("test_words.py", plugin_projects.RECORDED)
    project.write("test_faults.py", plugin_projects.FAULTS)
    project.write("test_network.py", plugin_projects.NETWORK)
    project.write("test_models.py", plugin_projects.MODELS)
    return Live(project, project.run("-s", "-rA", "--llama-record=new"))


@pytest.fixture
def recorded(live: Live, project: Project) -> Project:
    """A project whose answers were recorded."""
    project.write("test_words.py", plugin_projects.RECORDED)
    shutil.copytree(live.project.folder / "cassettes", project.folder / "cassettes")
    return project


def runs_left() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("llama-tests-*"))


# --- the example ------------------------------------------------------------------------------


def test_the_example_project_passes(shared_home: Path) -> None:
    """Twenty tests of an agent, with every part of the plugin; two runs side by side."""
    example = Project(EXAMPLE, shared_home)
    with example.start() as alone:
        spread = example.run(workers=2)
        out, _ = alone.communicate(timeout=100)
        done = Finished(alone.returncode, out)

    for each in (done, spread):
        assert each.counts(passed=20), each.out
        assert each.code == 0


def test_the_package_declares_the_plugin() -> None:
    """Installed, it needs no word from the user; named like its module, -p loads it no twice."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    points = declared["project"]["entry-points"]["pytest11"]

    assert points == {PLUGIN: PLUGIN}
    assert import_module(points[PLUGIN]).llama_client
    assert "runtime" in declared["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_a_project_that_does_not_use_it_pays_nothing(project: Project) -> None:
    """What is imported is the plugin and nothing that is slow."""
    project.write("test_a.py", plugin_projects.UNUSED)
    before = runs_left()

    assert project.run().counts(passed=1)
    assert runs_left() == before


# --- one server -------------------------------------------------------------------------------


def test_workers_share_one_engine_also_when_one_crashes(recorded: Project) -> None:
    """The one that started it, for instance. And what others find changed is told by the whole."""
    recorded.write("test_a.py", plugin_projects.CRASHING_WORKER)
    recorded.write("test_b.py", plugin_projects.OTHER_WORKER)
    edit(recorded, other_words)
    before = runs_left()

    done = recorded.run("--dist", "loadfile", "--llama-record=check", workers=2)

    assert done.counts(passed=4, failed=1), done.out
    assert "crashed while running" in done.out
    assert len(list(recorded.folder.glob("pid-*"))) == 4
    (pid,) = recorded.noted("pid-*")
    assert is_gone(int(pid))
    assert runs_left() == before
    assert "4 answers are not as recorded, in 1 test." in done.out


def test_a_killed_run_leaves_no_engine(project: Project) -> None:
    project.write("test_a.py", plugin_projects.HANGING)
    before = runs_left()
    with project.start() as process:
        wait_until("the engine runs", (project.folder / "pid").exists, timeout_s=60)
        pid = int(project.note("pid"))
        process.kill()
        process.communicate()
        wait_until("the engine is gone", lambda: is_gone(pid), timeout_s=5)
    wait_until("its folder is gone", lambda: runs_left() == before, timeout_s=5)


def test_the_marker_chooses_models_and_settings(live: Live) -> None:
    for name in ("test_vectors[tiny]", "test_vectors[tiny-embedding]", "test_small", "test_usual"):
        assert live.done.of(name) == {"PASSED"}, live.done.out
    assert live.project.note("tiny").startswith("tiny-chat-")
    assert live.project.note("tiny-embedding").startswith("tiny-embedding-")
    assert live.done.of("test_misspelt") == {"ERROR"}
    assert "Did you mean 'parallel'?" in live.done.out


def test_a_missing_model_is_an_error_or_a_skip_that_says_what_to_do(
    live: Live, project: Project
) -> None:
    project.write("test_models.py", plugin_projects.MODELS)

    skipped = project.run("--llama-missing=skip", "-k", "missing")

    command = "Run `llama-runtime models pull smollm2-135m`."
    assert live.done.of("test_missing") == {"ERROR"}
    assert command in live.done.out
    assert command in skipped.out
    assert skipped.counts(skipped=1, deselected=5), skipped.out


# --- faults and the network -------------------------------------------------------------------


def test_faults_end_with_their_test(live: Live) -> None:
    """Whether it passes or not; and a fault that never came is told."""
    done, note = live.done, live.project.note

    assert done.of("test_a_fails") == {"FAILED"}, done.out
    assert done.of("test_b_is_untouched") == {"PASSED"}
    assert done.of("test_c_never_came") == {"PASSED", "ERROR"}
    assert "cut(at_token=1000) happened 0 of 1 times" in done.out
    assert done.of("test_d_in_order") == {"PASSED"}
    assert done.of("test_e_without_the_key") == {"PASSED"}
    assert note("shared") == note("shared-later") != note("private")
    assert is_gone(int(note("private")))
    assert note("delivered") == "3"


def test_no_connection_leaves_the_machine_while_a_test_is_guarded(
    live: Live, project: Project
) -> None:
    project.write("test_network.py", plugin_projects.NETWORK)

    everywhere = project.run("--llama-block-network", "-k", "undone")

    for name in ("test_refused", "test_allowed", "test_undone"):
        assert live.done.of(name) == {"PASSED"}, live.done.out
    assert everywhere.counts(failed=1, deselected=2), everywhere.out
    assert "test_network.py::test_undone tried to reach 192.0.2.1:80" in everywhere.out


# --- cassettes --------------------------------------------------------------------------------

CASSETTE = Path("cassettes", "test_words", "test_words.json")


def answers(done: Finished) -> str:
    return done.out.partition("ANSWERS ")[2].splitlines()[0]


def edit(project: Project, change: Callable[[list[Any]], None]) -> None:
    """Change the recorded interactions."""
    path = project.folder / CASSETTE
    cassette = json.loads(path.read_text("utf-8"))
    change(cassette["interactions"])
    path.write_text(json.dumps(cassette), "utf-8")


def test_what_was_recorded_is_replayed_without_an_engine(live: Live, recorded: Project) -> None:
    text = recorded.note(str(CASSETTE))

    replayed = recorded.run("-s", "--llama-engine=/no/such/engine")

    assert live.done.of("test_words") == {"PASSED"}, live.done.out
    assert replayed.counts(passed=1), replayed.out
    assert answers(replayed) == answers(live.done)
    assert SECRET not in text
    assert "Bearer" not in text
    assert text.count('"seed": ') == 5  # one is the client's own trial of the engine


def test_a_request_that_was_not_recorded_fails_with_the_nearest(recorded: Project) -> None:
    def another_question(interactions: list[Any]) -> None:
        for each in interactions:
            if messages := each["request"].get("body", {}).get("messages"):
                messages[-1]["content"] = messages[-1]["content"].replace("hello", "hallo")

    edit(recorded, another_question)
    done = recorded.run()

    assert done.counts(failed=1), done.out
    assert f"Not recorded in {CASSETTE}: POST /v1/chat/completions 'hello'." in done.out
    assert "messages[0].content: from character 1: recorded 'hallo', asked 'hello'" in done.out
    assert "--llama-record=new" in done.out


def test_an_unrecorded_request_fails_the_test_that_swallows_its_error(project: Project) -> None:
    project.write("test_a.py", plugin_projects.SWALLOWING)

    done = project.run()

    assert done.counts(passed=1, error=1), done.out
    assert "Not recorded in cassettes/test_a/test_it.json: GET /v1/models" in done.out


def other_words(interactions: list[Any]) -> None:
    """Another text, other arguments, another vector, and a question that is not asked."""
    spoken = [each["answer"] for each in interactions if "stream" in each["answer"]]
    spoken[0]["stream"][2] = " other"
    for piece in spoken[2]["stream"]:
        if "call" in piece and piece["arguments"].isalpha():
            piece["arguments"] = "X"
    for each in interactions:
        match each["answer"].get("body"):
            case {"data": [{"embedding": str(text)} as vector]}:
                vector["embedding"] = "AACAPw" + text[6:]
    old = json.loads(json.dumps(interactions[-1]))
    old["request"]["body"]["input"] = ["an old question"]
    interactions.append(old)


def test_drift_is_told_and_may_fail_the_run(recorded: Project) -> None:
    """Unless that is wanted, it does not; and recording anew mends the cassette."""
    text = (recorded.folder / CASSETTE).read_text("utf-8")
    edit(recorded, other_words)
    edited = (recorded.folder / CASSETTE).read_text("utf-8")

    checked = recorded.run("--llama-record=check", "--llama-fail-on-drift")
    assert (recorded.folder / CASSETTE).read_text("utf-8") == edited
    anew = recorded.run("--llama-record=all")

    assert checked.code == 1
    assert anew.code == 0
    for done in (checked, anew):
        assert "1 passed" in done.out
        assert "text from character " in done.out
        assert "tool_calls[0].arguments: from character " in done.out
        assert "vector 0: a number is off by" in done.out
    assert "'an old question'\n    not asked any more" in checked.out
    assert "4 answers are not as recorded, in 1 test." in checked.out
    assert (recorded.folder / CASSETTE).read_text("utf-8") == text
