"""`import runtime` costs next to nothing, and offers every public name."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

import runtime

HEAVY = (
    "click", "httpcore2", "httpx2", "huggingface_hub", "jsonschema_rs", "llguidance", "numpy",
    "psutil", "pydantic", "rich", "xllamacpp",
)  # fmt: skip


def loaded_by(statement: str, *, whole_names: bool = False) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = [sys.executable, "-c", code]
    out = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    return {name if whole_names else name.partition(".")[0] for name in out.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_by("import runtime").isdisjoint(HEAVY)


def test_importing_a_contract_type_loads_nothing_heavy() -> None:
    loaded = loaded_by("from runtime import LLMMessage, LLMError")
    assert loaded.isdisjoint(HEAVY)


COMMAND_LINE = {"click", "prompt_toolkit", "rich"}
WEB = {"anyio", "httpx2", "huggingface_hub", "starlette", "uvicorn"}
ENGINES = {"llama_cpp", "llguidance", "numpy", "xllamacpp"}
SELDOM = {"runtime.inference.sessions", "runtime.server.standby", "runtime.store.sessions"}


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        (
            "from runtime import LlamaClient",
            {*COMMAND_LINE, *WEB, *ENGINES, *SELDOM, "jsonschema_rs", "runtime.store"},
        ),
        (  # what a start of an engine needs
            "from runtime import LlamaClient, ModelStore, ServerManager",
            {*COMMAND_LINE, *WEB, *ENGINES, *SELDOM, "jsonschema_rs", "runtime.store.pulling"},
        ),
        (
            "import runtime.cli.running, runtime.cli.detached",
            {"prompt_toolkit", *WEB, *ENGINES, "runtime.client", "runtime.inference"},
        ),
        (
            "import runtime.cli.servers, runtime.gateway.models, runtime.gateway.running",
            {"httpx2", "huggingface_hub", "prompt_toolkit", *ENGINES, *SELDOM},
        ),
    ],
    ids=["client", "managed", "ps", "serve"],
)
def test_nothing_is_imported_that_the_first_request_does_not_need(
    statement: str, unwanted: set[str]
) -> None:
    assert not loaded_by(statement, whole_names=True) & unwanted


def test_importing_the_package_takes_under_100_ms() -> None:
    """Measured against an interpreter that imports nothing; the best of several counts."""

    def best(code: str) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - begun)
        return min(times)

    assert best("import runtime") - best("pass") < 0.1


def test_public_names_are_sorted_and_all_there() -> None:
    assert runtime.__all__ == sorted(runtime.__all__)
    assert len(set(runtime.__all__)) == len(runtime.__all__)
    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    assert set(runtime.__all__) <= set(dir(runtime))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Llama'"):
        _ = runtime.Llama


def test_telemetry_is_not_looked_for_by_an_import() -> None:
    for statement in ("import runtime", "from runtime import LlamaClient, LLMMessage"):
        assert "opentelemetry" not in loaded_by(statement)


@pytest.mark.parametrize(("provider", "times"), [("", 0), ("sdk_tracer_provider", 1)])
def test_opentelemetry_is_looked_for_once_and_only_where_it_is_named(
    provider: str, times: int
) -> None:
    """A finder that refuses the package counts how often it is asked."""
    code = """
import importlib.abc, sys

class Refuses(importlib.abc.MetaPathFinder):
    asked = 0

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            Refuses.asked += 1
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuses())
from runtime.inference.observation import Asked, Observer

def flow():
    return 1
    yield

for _ in range(3):
    observer = Observer()
    for _ in range(100):
        list(observer.watch(flow(), Asked(operation="chat", model="m", backend="b")))
print(Refuses.asked, observer.counters()["answered"])
"""
    run = [sys.executable, "-c", code]
    named = {**os.environ, "OTEL_PYTHON_TRACER_PROVIDER": provider}
    done = subprocess.run(run, check=True, capture_output=True, text=True, env=named)
    assert done.stdout == f"{times} 100\n"
