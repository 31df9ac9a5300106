"""Write docs/api.md: every public name of ``runtime``, from its signature and docstring.

``--check`` writes nothing and exits with 1 where the file is not what would be written.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

import runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE: Final = Path(__file__).parent.parent / "docs" / "api.md"

HEAD: Final = """\
# API reference

Every name that `from runtime import …` gives, written by `python scripts/api_reference.py` from the
docstrings. `help(runtime.LlamaClient)` shows the whole of one, arguments and errors included.
"""

GROUPS: Final = (
    ("Clients", ("LlamaClient", "AsyncLlamaClient", "RoutingClient", "RoutedModel", "Bounds",
                 "ThoughtEvent", "TruncatedEmbeddingResult", "TruncatedText")),
    ("Servers and models", ("ServerManager", "ServerConfig", "RestartPolicy", "ServerSnapshot",
                            "ModelStore")),
)  # fmt: skip


def groups() -> Iterator[tuple[str, list[str]]]:
    """The public names under their headings."""
    left = [name for name in runtime.__all__ if name != "__version__"]
    for title, names in GROUPS:
        yield title, list(names)
        left = [name for name in left if name not in names]
    errors = [name for name in left if _is_error(getattr(runtime, name))]
    yield "The contract", [name for name in left if name not in errors]
    yield "Errors", sorted(errors, key=lambda name: _lineage(getattr(runtime, name)))


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _lineage(kind: type) -> list[str]:
    return [each.__name__ for each in reversed(kind.__mro__)]


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in groups():
        parts.append(f"## {title}\n")
        parts += [_entry(name, getattr(runtime, name)) for name in names]
    return "\n".join(parts)


def _entry(name: str, value: object) -> str:
    lines = [f"### `{name}`\n"]
    if _is_error(value):
        bases = [each.__name__ for each in typing.cast("type", value).__bases__]
        lines.append(f"Kind of `{'`, `'.join(bases)}`.\n")
    if not isinstance(value, type):
        lines.append(f"{_said(value) or '`' + _plain(value) + '`'}\n")
        return "\n".join(lines)
    if text := _said(value):
        lines.append(text + "\n")
    if issubclass(value, BaseModel):
        told = dict(_attributes(value))
        lines += [_setting(name, field.description or told[name], field.default)
                  for name, field in value.model_fields.items()]  # fmt: skip
        lines.append("")
    elif attributes := _attributes(value):
        lines += [f"- `{name}`: {text}" for name, text in attributes] + [""]
    elif dataclasses.is_dataclass(value) and not _is_error(value):  # it has its bases' facts, too
        lines += [f"- `{each.name}`: `{each.type}`" for each in dataclasses.fields(value)] + [""]
    elif issubclass(value, Enum):
        lines += [f"- `{each.name}` = `{each.value!r}`" for each in value] + [""]
    methods = list(_methods(value))
    lines += methods + ([""] if methods else [])
    return "\n".join(lines)


def _setting(name: str, description: str, default: object) -> str:
    plain = "" if callable(default) or repr(default) == "PydanticUndefined" else f" = `{default!r}`"
    return f"- `{name}`{plain}: {description}"


def _said(value: object) -> str:
    """The docstring up to its sections, with Sphinx's roles written plainly."""
    text = inspect.getdoc(value) or ""
    text = re.split(r"\n(?:Args|Attributes|Raises|Returns|Yields|Example|Examples):\n", text)[0]
    return _plainly(text.strip())


def _plainly(text: str) -> str:
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`").replace("`runtime.", "`")


def _attributes(value: type) -> list[tuple[str, str]]:
    found = re.search(r"\nAttributes:\n((?:    .*\n?|\n)+)", (inspect.getdoc(value) or "") + "\n")
    if not found:
        return []
    entries = re.findall(r"^(\w+): ((?:.|\n(?! *\w+: ))+)", textwrap.dedent(found[1]), re.MULTILINE)
    return [(name, _plainly(" ".join(text.split()))) for name, text in entries]


def _methods(value: type) -> Iterator[str]:
    """A line for each public method and property that is ours."""
    for name in dir(value):
        member = inspect.getattr_static(value, name)
        home = next(kind for kind in value.__mro__ if name in kind.__dict__)
        if name.startswith("_") or not home.__module__.startswith("runtime"):
            continue
        function = getattr(member, "__func__", member)
        summary = _said(getattr(value, name) if not isinstance(member, property) else member)
        summary = " ".join(summary.partition("\n\n")[0].split())
        if isinstance(member, property):
            yield f"- `.{name}`: {summary}"
        elif inspect.isfunction(function):
            waits = "await " if inspect.iscoroutinefunction(function) else ""
            yield f"- `{waits}.{name}({_arguments(function)})`: {summary}"


def _arguments(function: object) -> str:
    parameters = inspect.signature(typing.cast("typing.Any", function)).parameters.values()
    names: list[str] = []
    starred = False
    for each in parameters:
        if each.name in {"self", "cls"}:
            continue
        if each.kind is each.KEYWORD_ONLY and not starred:
            names.append("*")
        starred = starred or each.kind in {each.KEYWORD_ONLY, each.VAR_POSITIONAL}
        star = "**" if each.kind is each.VAR_KEYWORD else ""
        star = "*" if each.kind is each.VAR_POSITIONAL else star
        given = "" if each.default is each.empty else f"={each.default!r}"
        names.append(star + each.name + given)
    return ", ".join(names)


def _plain(value: object) -> str:
    return str(value).replace("typing.", "")


def main() -> int:
    """Write the page, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    made = page()
    if not parser.parse_args().check:
        PAGE.write_text(made, "utf-8")
        return 0
    if PAGE.read_text("utf-8") == made:
        return 0
    print("docs/api.md is not what `python scripts/api_reference.py` writes.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
