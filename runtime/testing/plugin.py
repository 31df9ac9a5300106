"""The pytest plugin: a real model for tests, recorded answers, faults, and no network.

It is loaded in every project that has this package installed, so nothing but pytest is imported
here: all else comes with the first test that uses it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest

from runtime.testing.run import Run

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from runtime import LlamaClient
    from runtime.testing.faults import Faults
    from runtime.testing.models import Wanted
    from runtime.testing.network import Guard
    from runtime.testing.server import Episode, LlamaServer
    from runtime.testing.tape import Tape

_EPISODE: Final = "_llama_episode"
_DRIFT: Final = "llama_drift"
_MODES: Final = ("none", "new", "all", "check")

_RUN: pytest.StashKey[Run] = pytest.StashKey()
_SERVERS: pytest.StashKey[dict[str, LlamaServer]] = pytest.StashKey()
_GUARD: pytest.StashKey[Guard] = pytest.StashKey()
_PASSED: pytest.StashKey[bool] = pytest.StashKey()

_MARKERS: Final = (
    "llama_model(*references, **settings): models of the llama_* fixtures for this test, which "
    "runs once for each, and settings of their server (ctx_size=8192)\n"
    "llama_cassette: answers are recorded beside the test, and replayed (see --llama-record)\n"
    "llama_block_network(on=True): refuse connections to other machines in this test, or not"
)

_RECORDING: Final = (
    "cassettes: none replays, new also records what is missing, all records everything anew, "
    "check asks everything again and reports what differs"
)

# Name, default, help; each is an option with dashes and an ini setting with underscores.
_SETTINGS: Final = (
    ("llama-model", "tiny", "model of the llama_* fixtures: tiny, or any reference"),
    ("llama-engine", "auto", "engine kind, or the path of a llama-server"),
    ("llama-record", "none", _RECORDING),
    ("llama-missing", "fail", "what becomes of tests whose model is not on this machine"),
)
_FLAGS: Final = (
    ("llama-fail-on-drift", "exit with 1 when answers differ from the recorded ones"),
    ("llama-block-network", "refuse connections to other machines in all tests"),
)
_CHOICES: Final = {"llama-record": _MODES, "llama-missing": ("fail", "skip")}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, and ini settings of the same names."""
    group = parser.getgroup("llama", "llama-runtime: a real model for tests")
    for name, default, text in _SETTINGS:
        choices = _CHOICES.get(name)
        group.addoption(f"--{name}", choices=choices, help=f"{text} (default: {default})")
        parser.addini(name.replace("-", "_"), f"The same as --{name}.", default=default)
    for name, text in _FLAGS:
        group.addoption(f"--{name}", action="store_true", default=None, help=text)
        parser.addini(name.replace("-", "_"), text, type="bool", default=False)
    parser.addini("llama_cassette", "All tests have cassettes.", type="bool", default=False)


def _setting(config: pytest.Config, name: str) -> Any:
    """What the command line says, else the ini file, else the default."""
    given = config.getoption(name)
    if given is not None:
        return given
    value = config.getini(name)
    allowed = _CHOICES.get(name.replace("_", "-"))
    if allowed is not None and value not in allowed:
        raise pytest.UsageError(f"{name} is {value!r}; it is one of {', '.join(allowed)}.")
    return value


def pytest_configure(config: pytest.Config) -> None:
    """Markers; and who owns what the processes of this run share."""
    for marker in _MARKERS.splitlines():
        config.addinivalue_line("markers", marker)
    shared = getattr(config, "workerinput", {}).get("llama_run")
    config.stash[_RUN] = Run.own() if shared is None else Run(name=shared[0], owner_pid=shared[1])
    if shared is None and _setting(config, "llama_record") in {"all", "check"}:
        config.pluginmanager.register(_DriftReport(config), "llama-drift-report")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A worker of pytest-xdist takes part in this run."""
    run = node.config.stash[_RUN]
    node.workerinput["llama_run"] = [run.name, run.owner_pid]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the engines of this run; a worker leaves that to the controlling process."""
    for server in config.stash.get(_SERVERS, {}).values():
        server.close()
    run = config.stash.get(_RUN, None)
    if run is None or not run.folder.exists():
        return
    from runtime.testing import hosting  # noqa: PLC0415 - only where engines were used

    if hasattr(config, "workerinput"):
        hosting.let_go()
    else:
        hosting.end_all(run)


# --- tests ------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the marker llama_model runs once for each of its models."""
    marker = metafunc.definition.get_closest_marker("llama_model")
    if marker is None or "_llama_wanted" not in metafunc.fixturenames:
        return
    models = marker.args or (_setting(metafunc.config, "llama_model"),)
    metafunc.parametrize(
        "_llama_wanted",
        [(str(model), tuple(sorted(marker.kwargs.items()))) for model in models],
        indirect=True,
        scope="session",
        ids=[str(model) for model in models],
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test that uses the server begins and ends its time with it, whatever else it uses."""
    names: list[str] = getattr(item, "fixturenames", [])
    if "llama_server" in names and _EPISODE not in names:
        names.insert(0, _EPISODE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Guard the network where that is asked for."""
    marker = item.get_closest_marker("llama_block_network")
    wanted = _setting(item.config, "llama_block_network")
    if marker is not None:
        wanted = marker.args[0] if marker.args else marker.kwargs.get("on", True)
    if not wanted:
        return (yield)
    from runtime.testing.network import Guard  # noqa: PLC0415 - only where it is asked for

    guard = item.config.stash.setdefault(_GUARD, Guard())
    guard.begin(item.nodeid)
    try:
        return (yield)
    finally:
        guard.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember whether the test itself passed."""
    report = yield
    if call.when == "call":
        item.stash[_PASSED] = report.passed
    return report


# --- fixtures ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _llama_wanted(request: pytest.FixtureRequest) -> Wanted:
    from runtime.testing.models import Wanted  # noqa: PLC0415 - slow, as all that is imported below

    config = request.config
    model, options = getattr(request, "param", (_setting(config, "llama_model"), ()))
    return Wanted(model=model, engine=_setting(config, "llama_engine"), options=options)


@pytest.fixture(scope="session")
def llama_model(_llama_wanted: Wanted, pytestconfig: pytest.Config) -> Path:
    """The path of the model's file; nothing is started."""
    with _missing(pytestconfig):
        return _llama_wanted.path()


@pytest.fixture(scope="session")
def llama_server(_llama_wanted: Wanted, pytestconfig: pytest.Config) -> LlamaServer:
    """A server with a real model, one for the whole run; attach any OpenAI client to it."""
    from runtime.testing.server import LlamaServer  # noqa: PLC0415

    servers = pytestconfig.stash.setdefault(_SERVERS, {})
    if _llama_wanted.digest not in servers:
        servers[_llama_wanted.digest] = LlamaServer(_llama_wanted, pytestconfig.stash[_RUN])
    return servers[_llama_wanted.digest]


@pytest.fixture
def llama_client(llama_server: LlamaServer, _llama_episode: Episode) -> Iterator[LlamaClient]:
    """A client of ``llama_server``, new for each test; the same seeds in every run."""
    with llama_server.client() as client:
        yield client


@pytest.fixture
def llama_faults(_llama_episode: Episode) -> Faults:
    """Faults for this test, each in one line, such as ``llama_faults.crash(at_token=5)``."""
    return _llama_episode.inject()


@pytest.fixture
def _llama_episode(llama_server: LlamaServer, request: pytest.FixtureRequest) -> Iterator[Episode]:
    config, item = request.config, request.node
    tape = _tape(item)
    with _missing(config):
        episode = llama_server.begin(tape)
    yield episode
    unmet = episode.faults.unmet if episode.faults is not None else ()
    llama_server.end()
    problems = [f"An armed fault never came: {each}." for each in unmet]
    if tape is not None:
        tape.close()
        problems += tape.misses
        if tape.drifts:
            found = [[drift.request, list(drift.changes)] for drift in tape.drifts]
            item.user_properties.append((_DRIFT, json.dumps(found, ensure_ascii=False)))
    if problems and item.stash.get(_PASSED, False):
        pytest.fail("\n".join(problems), pytrace=False)


def _tape(item: pytest.Item) -> Tape | None:
    marked = item.get_closest_marker("llama_cassette") is not None
    if not marked and not item.config.getini("llama_cassette"):
        return None
    from runtime.testing.tape import Tape  # noqa: PLC0415

    test = item.nodeid.partition("::")[2].replace("::", ".")
    name = re.sub(r"[^\w.=\-\[\]]+", "-", test)
    folder = item.path.parent / "cassettes" / item.path.stem
    return Tape(folder / f"{name}.json", _setting(item.config, "llama_record"))


class _missing:  # noqa: N801 - used like a function
    """Skips the test for a model that is not here, where that is wanted."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is None or _setting(self._config, "llama_missing") != "skip":
            return
        from runtime.errors import (  # noqa: PLC0415
            EngineNotInstalledError,
            LLMCapabilityError,
            ModelNotFoundError,
        )

        if isinstance(exc, EngineNotInstalledError | LLMCapabilityError | ModelNotFoundError):
            pytest.skip(str(exc))


# --- what changed -----------------------------------------------------------------------------


class _DriftReport:
    """Gathers, in the controlling process, what tests in all processes found changed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._found: dict[str, list[tuple[str, list[str]]]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test is over."""
        if report.when == "teardown":
            for name, value in report.user_properties:
                if name == _DRIFT:
                    self._found[report.nodeid] = json.loads(str(value))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tell which answers changed, and how."""
        if not self._found:
            return
        terminalreporter.section("llama drift")
        for test, drifts in self._found.items():
            terminalreporter.line(test)
            for request, changes in drifts:
                terminalreporter.line(f"  {request}")
                for change in changes:
                    terminalreporter.line(f"    {change}")
        count = sum(len(drifts) for drifts in self._found.values())
        tests = len(self._found)
        answers = f"{count} answer{'s are' if count > 1 else ' is'}"
        terminalreporter.line(f"{answers} not as recorded, in {tests} test{'s' * (tests > 1)}.")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the run where that is wanted."""
        wanted = _setting(self._config, "llama_fail_on_drift")
        if self._found and wanted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
