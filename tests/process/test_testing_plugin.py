"""The pytest plugin, used as its users do: by pytest in a process of its own."""

from __future__ import annotations

import json
import os
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

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.process, pytest.mark.engine]

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
    made.write("helpers.py", HELPERS)
    return made


HELPERS = """
import os, time
from pathlib import Path
from runtime import LLMChatParams

OUT = Path(os.environ["OUT"])
SHORT = LLMChatParams(max_tokens=12)

def note(name, value):
    draft = OUT / f".{name}.{os.getpid()}"
    draft.write_text(str(value))
    draft.rename(OUT / name)

def wait_for(name):
    until = time.monotonic() + 60
    while not (OUT / name).exists():
        assert time.monotonic() < until, f"no {name}"
        time.sleep(0.01)
"""


def runs_left() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("llama-tests-*"))


# --- the example ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_example_project_passes(workers: int, shared_home: Path) -> None:
    """Twenty tests of an agent, with every part of the plugin."""
    done = Project(EXAMPLE, shared_home).run(workers=workers)

    assert done.counts(passed=20), done.out
    assert done.code == 0


def test_the_package_declares_the_plugin() -> None:
    """Installed, it needs no word from the user; named like its module, -p loads it no twice."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    points = declared["project"]["entry-points"]["pytest11"]

    assert points == {PLUGIN: PLUGIN}
    assert import_module(points[PLUGIN]).llama_client
    assert "runtime" in declared["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_a_project_that_does_not_use_it_pays_nothing(project: Project) -> None:
    """What is imported is the plugin and nothing that is slow."""
    project.write(
        "test_a.py",
        "import sys\n"
        "def test_nothing():\n"
        "    mine = sorted(m for m in sys.modules if m.startswith('runtime'))\n"
        f"    assert mine == ['runtime', 'runtime.testing', '{PLUGIN}', 'runtime.testing.run']\n"
        "    heavy = {'pydantic', 'psutil', 'filelock', 'h11', 'ssl', 'asyncio'}\n"
        "    assert heavy.isdisjoint(sys.modules)\n",
    )
    before = runs_left()

    assert project.run().counts(passed=1)
    assert runs_left() == before


# --- one server -------------------------------------------------------------------------------


def test_all_workers_share_one_engine_that_ends_with_the_run(project: Project) -> None:
    project.write(
        "test_a.py",
        "import os\nfrom helpers import *\n"
        "def test_use(llama_server, llama_client):\n"
        "    assert llama_client.chat('hello', params=SHORT).text\n"
        "    note('pid-' + os.environ['PYTEST_XDIST_WORKER'], llama_server.pid)\n",
    )
    before = runs_left()

    done = project.run("--dist", "each", workers=2)

    assert done.counts(passed=2), done.out
    assert {path.name for path in project.folder.glob("pid-*")} == {"pid-gw0", "pid-gw1"}
    (pid,) = project.noted("pid-*")
    assert is_gone(int(pid))
    assert runs_left() == before


def test_a_worker_that_crashes_takes_nobodys_engine(project: Project) -> None:
    """Also when it is the worker that started the engine."""
    project.write(
        "test_a.py",
        "import os, signal\nfrom helpers import *\n"
        "def test_die(llama_server, llama_client):\n"
        "    if (OUT / 'pid-a').exists(): return\n"
        "    note('pid-a', llama_server.pid)\n"
        "    wait_for('pid-b')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def test_after(llama_server, llama_client):\n"
        "    assert llama_client.chat('hello', params=SHORT).text\n"
        "    note('pid-c', llama_server.pid)\n",
    )
    project.write(
        "test_b.py",
        "import os\nfrom helpers import *\n"
        "def test_live(llama_server, llama_client):\n"
        "    wait_for('pid-a')\n"
        "    note('pid-b', llama_server.pid)\n"
        "    wait_for('pid-c')\n"
        "    assert llama_client.chat('hello', params=SHORT).text\n"
        "    note('pid-d', llama_server.pid)\n",
    )

    done = project.run("--dist", "loadfile", workers=2)

    assert done.counts(passed=3, failed=1), done.out
    assert "crashed while running" in done.out
    assert len(list(project.folder.glob("pid-*"))) == 4
    (pid,) = project.noted("pid-*")
    assert is_gone(int(pid))


def test_a_killed_run_leaves_no_engine(project: Project) -> None:
    project.write(
        "test_a.py",
        "from helpers import *\n"
        "def test_hang(llama_server):\n"
        "    note('pid', llama_server.pid)\n"
        "    wait_for('never')\n",
    )
    before = runs_left()
    with project.start() as process:
        wait_until("the engine runs", (project.folder / "pid").exists, timeout_s=60)
        pid = int((project.folder / "pid").read_text("utf-8"))
        process.kill()
        process.communicate()
        wait_until("the engine is gone", lambda: is_gone(pid), timeout_s=5)
    wait_until("its folder is gone", lambda: runs_left() == before, timeout_s=5)


def test_a_missing_model_is_an_error_or_a_skip_that_says_what_to_do(project: Project) -> None:
    project.write(
        "test_a.py",
        "import pytest\nfrom helpers import *\n"
        "def test_it(llama_client): pass\n"
        "@pytest.mark.llama_model('tiny', ctx_size=256, paralel=2)\n"
        "def test_misspelt(llama_client): pass\n",
    )

    failed = project.run("--llama-model=smollm2-135m")
    skipped = project.run("--llama-model=smollm2-135m", "--llama-missing=skip", "-k", "it")

    for done in (failed, skipped):
        assert "Run `llama-runtime models pull smollm2-135m`." in done.out
    assert failed.counts(error=2), failed.out
    assert "Did you mean 'parallel'?" in failed.out
    assert skipped.code == 0
    assert "1 skipped" in skipped.out


def test_the_marker_chooses_models_and_settings(project: Project) -> None:
    project.write(
        "test_a.py",
        "import pytest\nfrom helpers import *\n"
        "@pytest.mark.llama_model('tiny', 'tiny-embedding')\n"
        "def test_vectors(llama_client, llama_model):\n"
        "    note(llama_client.default_model(), llama_model.name)\n"
        "    assert len(llama_client.embed(['a', 'b']).vectors) == 2\n"
        "@pytest.mark.llama_model(ctx_size=512)\n"
        "def test_small(llama_client):\n"
        "    assert llama_client.capabilities().max_context_tokens == 512\n"
        "def test_usual(llama_client):\n"
        "    assert llama_client.capabilities().max_context_tokens == 4096\n",
    )

    done = project.run()

    assert done.counts(passed=4), done.out
    assert (project.folder / "tiny").read_text("utf-8").startswith("tiny-chat-")
    assert (project.folder / "tiny-embedding").read_text("utf-8").startswith("tiny-embedding-")


# --- faults and the network -------------------------------------------------------------------


def test_faults_end_with_their_test(project: Project) -> None:
    """Whether it passes or not; and a fault that never came is told."""
    project.write(
        "test_a.py",
        "import pytest\nfrom runtime import ConnectionLostError, TooManyRequestsError\n"
        "from helpers import *\n"
        "def test_a_fails(llama_server, llama_faults):\n"
        "    note('shared', llama_server.pid)\n"
        "    llama_faults.crash(at_token=3, restart=False)\n"
        "    note('private', llama_server.pid)\n"
        "    with llama_server.client(max_retries=0) as client:\n"
        "        with pytest.raises(ConnectionLostError) as caught:\n"
        "            list(client.stream_chat('hello', params=SHORT))\n"
        "    note('delivered', len(caught.value.partial_text.split()))\n"
        "    llama_faults.status(503, times=None)\n"
        "    assert False\n"
        "def test_b_is_untouched(llama_server, llama_client):\n"
        "    note('shared-later', llama_server.pid)\n"
        "    assert llama_client.chat('hello', params=SHORT).text\n"
        "def test_c_never_came(llama_client, llama_faults):\n"
        "    llama_faults.cut(at_token=1000)\n"
        "    assert llama_client.chat('hello', params=SHORT).text\n"
        "def test_d_in_order(llama_server, llama_faults):\n"
        "    llama_faults.status(429, retry_after_s=7)\n"
        "    llama_faults.cut(at_token=2)\n"
        "    llama_faults.stall(at_token=2, seconds=0.05)\n"
        "    with llama_server.client() as client:\n"
        "        with pytest.raises(TooManyRequestsError) as caught:\n"
        "            client.chat('hello', params=SHORT)\n"
        "        assert caught.value.retry_after_s == 7\n"
        "        answer = client.chat('hello', params=SHORT)\n"
        "    assert answer.raw['recovery']['interruptions'][0]['token'] == 2\n"
        "    names = ('status(429)', 'cut(at_token=2)', 'stall(at_token=2)')\n"
        "    assert llama_faults.happened == names\n",
    )

    done = project.run()

    assert done.counts(failed=1, passed=3, error=1), done.out
    assert "cut(at_token=1000) happened 0 of 1 times" in done.out
    shared, later, private, delivered = (
        (project.folder / name).read_text("utf-8")
        for name in ("shared", "shared-later", "private", "delivered")
    )
    assert shared == later != private
    assert is_gone(int(private))
    assert delivered == "3"


def test_no_connection_leaves_the_machine_while_a_test_is_guarded(project: Project) -> None:
    project.write(
        "test_a.py",
        "import asyncio, errno, socket\nimport pytest\nfrom helpers import *\n"
        "guarded = pytest.mark.llama_block_network\n"
        "def reach(address, family=socket.AF_INET, kind=socket.SOCK_STREAM):\n"
        "    with socket.socket(family, kind) as sock:\n"
        "        sock.setblocking(False)\n"
        "        return sock.connect_ex(address)\n"
        "@guarded\n"
        "def test_refused():\n"
        "    with pytest.raises(RuntimeError, match=r'test_a.py::test_refused.*192.0.2.1:80;'):\n"
        "        reach(('192.0.2.1', 80))\n"
        "    with pytest.raises(RuntimeError, match='2001:db8::1'):\n"
        "        reach(('2001:db8::1', 80), socket.AF_INET6)\n"
        "    with pytest.raises(RuntimeError, match='example.com'):\n"
        "        socket.getaddrinfo('example.com', 443)\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        "        with pytest.raises(RuntimeError, match='192.0.2.1'):\n"
        "            sock.sendto(b'x', ('192.0.2.1', 53))\n"
        "    with pytest.raises(RuntimeError, match='192.0.2.1'):\n"
        "        asyncio.run(asyncio.open_connection('192.0.2.1', 80))\n"
        "@guarded\n"
        "def test_allowed(llama_client):\n"
        "    assert llama_client.chat('hello', params=SHORT).text\n"
        "    with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "        with socket.create_connection(('localhost', server.getsockname()[1])): pass\n"
        "    assert reach(('::1', 9), socket.AF_INET6) in {errno.ECONNREFUSED,\n"
        "        errno.EINPROGRESS, errno.EADDRNOTAVAIL}\n"
        "    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(FileNotFoundError):\n"
        "        sock.connect('/nowhere/at/all.sock')\n"
        "def test_undone():\n"
        "    assert isinstance(reach(('192.0.2.1', 80)), int)\n",
    )

    done = project.run()
    everywhere = project.run("--llama-block-network", "-k", "undone")

    assert done.counts(passed=3), done.out
    assert everywhere.counts(failed=1, deselected=2), everywhere.out
    assert "test_a.py::test_undone tried to reach 192.0.2.1:80" in everywhere.out


# --- cassettes --------------------------------------------------------------------------------

RECORDED = """
import os, pytest
from runtime import LLMMessage, LLMRequest, ToolSpec
from helpers import *

pytestmark = pytest.mark.llama_cassette
TOOL = ToolSpec(name="look", description="Look.", output_schema={}, input_schema={
    "type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]})

def test_words(llama_client):
    streamed = [e.delta_text for e in llama_client.stream_chat("hello", params=SHORT)]
    again = llama_client.chat("hello", params=SHORT).text
    request = LLMRequest(messages=[LLMMessage(role="user", content="look")], tools=[TOOL])
    calls = llama_client.generate(request).tool_calls
    said = "".join(piece for piece in streamed if piece)
    assert len(streamed) > 5 and again and again != said and calls
    secret = llama_client.chat("my key is " + os.environ["SOME_API_KEY"], params=SHORT)
    vector = llama_client.embed(["a text"]).vectors[0]
    print("ANSWERS", repr((said, again, calls[0].arguments_json, secret.text, tuple(vector))))
"""


@pytest.fixture(scope="module")
def first_recording(
    shared_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, Finished]:
    """A project whose test was recorded, and how that went."""
    project = made_project(tmp_path_factory.mktemp("recorded"), shared_home)
    project.write("test_words.py", RECORDED)
    return project, project.run("-s", "--llama-record=new")


@pytest.fixture
def recorded(first_recording: tuple[Project, Finished], tmp_path: Path) -> Project:
    """A copy of it."""
    project, _ = first_recording
    return Project(shutil.copytree(project.folder, tmp_path / "recorded"), project.home)


def answers(done: Finished) -> str:
    return next(line for line in done.out.splitlines() if "ANSWERS" in line)


CASSETTE = Path("cassettes", "test_words", "test_words.json")


def edit(project: Project, change: Callable[[list[Any]], None]) -> None:
    """Change the recorded interactions."""
    path = project.folder / CASSETTE
    cassette = json.loads(path.read_text("utf-8"))
    change(cassette["interactions"])
    path.write_text(json.dumps(cassette), "utf-8")


def test_what_was_recorded_is_replayed_without_an_engine(
    first_recording: tuple[Project, Finished], recorded: Project
) -> None:
    _, live = first_recording
    text = (recorded.folder / CASSETTE).read_text("utf-8")

    replayed = recorded.run("-s", "--llama-engine=/no/such/engine")
    anew = recorded.run("-s", "--llama-record=all")

    for done in (live, replayed, anew):
        assert "1 passed" in done.out, done.out
        assert answers(done) == answers(live)
        assert "drift" not in done.out
    assert (recorded.folder / CASSETTE).read_text("utf-8") == text
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
    project.write(
        "test_a.py",
        "import urllib.request, pytest\n"
        "@pytest.mark.llama_cassette\n"
        "def test_it(llama_server):\n"
        "    with pytest.raises(OSError):\n"
        "        urllib.request.urlopen(urllib.request.Request(\n"
        "            llama_server.base_url + '/v1/models',\n"
        "            headers={'Authorization': 'Bearer ' + llama_server.api_key}))\n"
        "def test_without_the_key(llama_server):\n"
        "    with pytest.raises(OSError, match='401'):\n"
        "        urllib.request.urlopen(llama_server.base_url + '/v1/models')\n",
    )

    done = project.run()

    assert done.counts(passed=2, error=1), done.out
    assert "Not recorded in cassettes/test_a/test_it.json: GET /v1/models" in done.out


def test_drift_is_told_and_may_fail_the_run(recorded: Project) -> None:
    """Text, tool calls and vectors; and through a worker of pytest-xdist too."""

    def other_words(interactions: list[Any]) -> None:
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

    edit(recorded, other_words)
    before = (recorded.folder / CASSETTE).read_text("utf-8")
    told = recorded.run("--llama-record=check", workers=1)
    failed = recorded.run("--llama-record=check", "--llama-fail-on-drift")

    assert told.code == 0
    assert failed.code == 1
    for done in (told, failed):
        assert "1 passed" in done.out
        assert "4 answers are not as recorded, in 1 test." in done.out, done.out
        assert "text from character " in done.out
        assert "tool_calls[0].arguments: from character " in done.out
        assert "vector 0: a number is off by" in done.out
        assert "'an old question'\n    not asked any more" in done.out
    assert (recorded.folder / CASSETTE).read_text("utf-8") == before
