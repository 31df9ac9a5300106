"""What the package imports is what it asks to be installed with."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]

WITH = {"pydantic_core": "pydantic", "llama_cpp": "llama-cpp-python"}
"""What the distribution is called that brings an import: pydantic documents its core as its own,
and the optional engine need not be installed here."""


def _declared(extras: set[str]) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    return {_normal(re.split(r"[^\w.-]", each)[0]) for each in wanted}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    beside = {each.stem for each in path.parent.glob("*.py")}  # scripts that import one another
    return found - set(sys.stdlib_module_names) - beside - {"runtime", "_typeshed"}


def test_every_import_is_a_declared_dependency() -> None:
    """Development tools bring many packages along, so that only a newcomer would miss one."""
    brought_by = packages_distributions()
    declared = _declared({"otel", "testing", "llama-cpp-python"})
    missing: set[str] = set()
    for path in (ROOT / "runtime").rglob("*.py"):
        for name in _imported(path):
            sources = [WITH[name]] if name in WITH else brought_by.get(name, [])
            if not {_normal(source) for source in sources} & declared:
                missing.add(f"{path.relative_to(ROOT)}: {name}")
    assert not missing
