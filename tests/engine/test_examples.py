"""A foreign framework's agent on this runtime's clients, by the contract alone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime import LlamaClient, RoutingClient
from runtime.testing.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.engine

EXAMPLES = Path(__file__).parents[2] / "examples"
ANSWER: dict[str, object] = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": -99, "maximum": 999}},
    "required": ["sum"],
    "additionalProperties": False,
}
_DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


@pytest.fixture(scope="module")
def foreign() -> Any:
    """The framework, loaded from its file as a package of its own would be."""
    spec = importlib.util.spec_from_file_location("foreign_agent", EXAMPLES / "foreign_agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """It calls a tool whenever it is given some, and speaks once a tool has answered."""
    path = tmp_path_factory.mktemp("model") / "tools.gguf"
    return str(build_tiny_model(path, tools=True))


def test_the_framework_knows_nothing_of_this_runtime() -> None:
    source = (EXAMPLES / "foreign_agent.py").read_text("utf-8")
    assert "import runtime" not in source
    assert "from runtime" not in source


@pytest.mark.parametrize(
    "make",
    [
        lambda model: LlamaClient(model, ctx_size=2048),
        lambda model: RoutingClient([model], ctx_size=2048),
    ],
    ids=["LlamaClient", "RoutingClient"],
)
def test_its_agent_runs_a_whole_loop(make: Callable[[str], Any], model: str, foreign: Any) -> None:
    """Tool calls by look-alike requests, results fed back, words streamed, an answer in JSON."""
    called: list[tuple[int, int]] = []

    def add(x: int, y: int) -> dict[str, int]:
        called.append((x, y))
        return {"sum": x + y}

    schema = {
        "type": "object",
        "properties": {"x": _DIGIT, "y": _DIGIT},
        "required": ["x", "y"],
        "additionalProperties": False,
    }
    tool = foreign.Tool("add", "Adds two digits.", schema, add)
    heard: list[str] = []
    with make(model) as client:
        agent = foreign.Agent(client, [tool], system="You add.", max_rounds=3)
        result = agent.run("Add.", answer_schema=ANSWER, on_text=heard.append, max_tokens=40)
    roles = [turn.role for turn in result.turns]
    assert roles[:4] == ["system", "user", "assistant", "tool"]
    assert called, "the tool was called with arguments that fit its schema"
    first, told = result.turns[2], result.turns[3]
    assert json.loads(first.tool_calls[0].arguments_json) == dict(zip("xy", called[0], strict=True))
    assert json.loads(told.content) == {"sum": sum(called[0])}
    assert told.tool_call_id == first.tool_calls[0].call_id
    spoken = [turn.content for turn in result.turns if turn.role == "assistant"]
    assert "".join(heard) == "".join(spoken)
    assert len(heard) > 3, "piece by piece"
    assert result.pieces >= len(heard)
    assert set(result.answer) == {"sum"}
    assert -99 <= result.answer["sum"] <= 999


def test_the_program_runs_as_it_stands(model: str) -> None:
    run = [sys.executable, str(EXAMPLES / "agent_loop.py"), model]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert set(json.loads(done.stdout)) == {"thing", "euros"}
    assert "tool: " in done.stderr
