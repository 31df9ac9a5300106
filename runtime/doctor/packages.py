"""Python, our own package and those that it needs."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.doctor.finding import Finding
from runtime.engines.inspection import ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.doctor.site import Site

_OLDEST_PYTHON: Final = (3, 11)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_AT_LEAST: Final = re.compile(r">=\s*([0-9.]+)")
# Each is imported in a child: what crashes there does not crash here. The name is printed first.
_IMPORTS: Final = """
import importlib, sys
for name in sys.argv[1:]:
    print("trying", name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as exc:  # whatever it is, a package exits or panics: it is told
        print("broken", name, f"{type(exc).__name__}: {exc}".replace(chr(10), " "), flush=True)
print("done", flush=True)
"""


def python(_site: Site) -> Iterator[Finding]:
    """The interpreter and our own version."""
    version = platform.python_version()
    old = sys.version_info < _OLDEST_PYTHON
    yield Finding(
        id="python",
        status="fail" if old else "ok",
        found=f"{version} at {sys.executable}, {platform.platform()}",
        remedy="llama-runtime needs Python 3.11 or newer: install it into one." if old else None,
    )
    folder = Path(__file__).parent.parent
    try:
        installed = importlib.metadata.version("llama-runtime")
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            id="package",
            status="warn",
            found=f"llama-runtime runs from {folder} and is not installed: versions of what it "
            "needs cannot be checked.",
            remedy="pip install llama-runtime",
        )
    else:
        yield Finding(id="package", status="ok", found=f"llama-runtime {installed} at {folder}")


def dependencies(site: Site) -> Iterator[Finding]:
    """Whether what we need is there, new enough, and can be imported."""
    try:
        wanted = importlib.metadata.requires("llama-runtime") or []
    except importlib.metadata.PackageNotFoundError:
        return  # the package's own finding says so
    needed = [
        text for text in wanted if ";" not in text
    ]  # engines and extras have checks of their own
    problems = [problem for text in needed if (problem := _version_problem(text))]
    missing = {problem.split()[0] for problem in problems}
    names = [_NAME.match(text)[0] for text in needed]  # type: ignore[index]
    modules = [name.replace("-", "_") for name in names if name not in missing]
    broken = _broken(modules, timeout_s=site.left_s(spare_s=0.3))
    if not problems and not broken:
        yield Finding(id="packages", status="ok", found=f"{len(needed)} needed packages work")
        return
    again = " ".join(f"'{text}'" for text in needed if _is_named(text, [*problems, *broken]))
    yield Finding(
        id="packages",
        status="fail",
        found="; ".join([*problems, *broken]) + ".",
        remedy=f"{_pip()} install --force-reinstall {again}" if again else None,
    )


def _pip() -> str:
    return f"{sys.executable} -m pip"


def _is_named(requirement: str, problems: Sequence[str]) -> bool:
    name = _NAME.match(requirement)
    words = {problem.split()[0].replace("_", "-") for problem in problems}
    return name is not None and name[0] in words


def _version_problem(requirement: str) -> str | None:
    """What is wrong with the installed version, beginning with the package's name, or None."""
    name = _NAME.match(requirement)
    if name is None:
        return None
    try:
        version = importlib.metadata.version(name[0])
    except importlib.metadata.PackageNotFoundError:
        return f"{name[0]} is not installed"
    least = _AT_LEAST.search(requirement)
    if least and _numbers(version) < _numbers(least[1]):
        return f"{name[0]} is {version}, and {least[1]} or newer is needed"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version, as far as they are numbers."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^0-9.]", version)[0])))


def _broken(modules: Sequence[str], *, timeout_s: float) -> list[str]:
    """What cannot be imported and why; each beginning with the module's name."""
    answer = ask([sys.executable, "-P", "-c", _IMPORTS, *modules], timeout_s=timeout_s)
    lines = answer.output.splitlines()
    found = [
        f"{line.split()[1]} cannot be imported ({line.split(maxsplit=2)[2]})"
        for line in lines
        if line.startswith("broken ")
    ]
    if answer.problem is not None or "done" not in lines:
        tried = [line.split()[1] for line in lines if line.startswith("trying ")]
        at = f"{tried[-1]} cannot be imported" if tried else "Python cannot import them in a child"
        found.append(f"{at} ({answer.problem or 'its import ends the program'})")
    return found
