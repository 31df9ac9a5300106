"""The fault battery's table: what was done, what should come of it, what was said, the verdict."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from runtime.server.manager import ServerManager
    from tests.conftest import ManagerFactory

WHOLE = os.environ.get("FAULTS") == "all"
_ROWS: list[tuple[str, str, str, str]] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long faults to `make test-faults`, and out what an engine makes impossible."""
    for item in items:
        kind = _engine(item)
        if kind and (reason := _fault(item).get("not_on", {}).get(kind)):
            item.add_marker(pytest.mark.skip(reason=f"not on {kind}: {reason}"))
    if WHOLE:
        return
    kept = [item for item in items if not _fault(item).get("long")]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def _fault(item: pytest.Item) -> dict[str, Any]:
    marker = item.get_closest_marker("faults")
    if marker is None:
        return {}
    fault, state, message = marker.args
    return {"fault": fault, "state": state, "message": message, **marker.kwargs}


def _engine(item: pytest.Item) -> str | None:
    """The engine kind that a test on real engines runs with."""
    callspec = getattr(item, "callspec", None)
    kind = callspec.params.get("engine_options") if callspec else None
    return str(kind) if kind else None


@pytest.fixture
def real_options(tiny_model_path: Path, engine_options: dict[str, Any]) -> dict[str, Any]:
    """The tiny model on a real engine: the test runs once for each engine present."""
    return {"model": str(tiny_model_path), "ctx_size": 2048, "parallel": 2, **engine_options}


class RealFactory(Protocol):
    """Makes managers of a real engine; keywords are settings."""

    def __call__(self, **options: Any) -> ServerManager: ...


@pytest.fixture
def real(manager_for: ManagerFactory, real_options: dict[str, Any]) -> RealFactory:
    """Managers of each real engine present, with the tiny model."""

    def make(**options: Any) -> ServerManager:
        return manager_for(**{**real_options, **options})

    return make


@pytest.fixture
def saw(record_property: Callable[[str, object], None]) -> Callable[[object], None]:
    """Put what was really said into the table's column."""
    return lambda said: record_property("said", " ".join(str(said).split()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """One row for each line of the battery."""
    report = yield
    fault = _fault(item)
    if fault and (report.when == "call" or not report.passed):
        callspec = getattr(item, "callspec", None)
        name = fault["fault"] + (f" [{callspec.id}]" if callspec else "")
        said = [str(value) for key, value in report.user_properties if key == "said"]
        verdict = "holds" if report.passed else "FAILS"
        if report.skipped:
            verdict = "not run"
            said = [str(report.longrepr[2])] if isinstance(report.longrepr, tuple) else said
        _ROWS.append((name, fault["state"], (said or [fault["message"]])[-1], verdict))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, when the whole battery was asked for."""
    if not WHOLE or not _ROWS:
        return
    terminalreporter.section("fault battery")
    for name, state, message, verdict in (("FAULT", "EXPECTED", "SAID", "VERDICT"), *_ROWS):
        terminalreporter.write_line(f"{verdict:8} {name[:60]:60} {state[:22]:22} {message[:110]}")
