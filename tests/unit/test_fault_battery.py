"""The document on the fault battery names tests that exist and belong to it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "fault-battery.md").read_text("utf-8")


def battery() -> dict[str, bool]:
    """Each test function below tests/process, and whether it is marked as a line of the battery."""
    return {
        node.name: any(
            mark in ast.unparse(decorator)
            for decorator in node.decorator_list
            for mark in ("mark.faults", "a_day")  # the latter makes one
        )
        for path in (ROOT / "tests" / "process").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_what_the_document_names_are_lines_of_the_battery() -> None:
    lines = {name for name, marked in battery().items() if marked}
    named = set(re.findall(r"`(test_\w+)`", DOCUMENT))
    assert len(named) > 60
    assert named - lines == set()
