"""What the documentation tells users of foreign clients to run."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import KEY

if TYPE_CHECKING:
    from tests.gateways import Gateway

pytestmark = [pytest.mark.outside, pytest.mark.engine, pytest.mark.process]

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def name_of(snippet: str) -> str:
    found = re.search(r"^(?:from|import) (\w+)", snippet)
    assert found
    return found[1]


# They leave it to the end of the program to close their connections, as most users do.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("snippet", SNIPPETS, ids=name_of)
def test_a_snippet_of_the_guide_runs(
    snippet: str, gateway_of_tools: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    for told, here in (
        ("http://127.0.0.1:8080", gateway_of_tools.url),
        ("smollm2-135m", "tiny-chat"),
        ('"none"', repr(KEY)),
    ):
        assert told in snippet
        snippet = snippet.replace(told, here)

    if name_of(snippet) == "pydantic_ai":  # its event loop would live on
        ran = subprocess.run(
            [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=False
        )
        said, problem = ran.stdout, ran.stderr
    else:
        exec(compile(snippet, str(PAGE), "exec"), {"__name__": "snippet"})
        gc.collect()
        said, problem = capsys.readouterr()

    assert said.strip(), problem


def test_every_client_has_a_snippet() -> None:
    assert {*map(name_of, SNIPPETS)} == {
        "openai",
        "anthropic",
        "langchain_openai",
        "instructor",
        "pydantic_ai",
    }
