"""The commands without what they do: enough to complete them, without importing any of them.

Options are made from the settings, and those take 0.15 s to import: too long for a key. So what the
commands take is written down once and read from then on, until a file of the command line changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
from click.shell_completion import CompletionItem

from runtime.cli.app import COMMANDS, cli
from runtime.cli.help import TOPICS
from runtime.cli.names import model_names, server_names
from runtime.errors import StorageError
from runtime.folders import directories, private_folder

if TYPE_CHECKING:
    from collections.abc import Callable

Outline: TypeAlias = dict[str, Any]
"""A command as JSON values: name, help, params, and commands when it is a group."""

_PACKAGE: Final = Path(__file__).resolve().parent.parent

_KINDS: Final = {
    "model": "model",
    "model_name": "model",
    "models": "model",
    "reference": "model",
    "draft_model": "model",
    "server": "server",
    "words": "help",
    "engine_path": "file",
    "lora": "file",
    "mmproj": "file",
    "json_schema": "file",
    "log_dir": "dir",
}
"""What a parameter of that name takes, where its type does not tell."""

_NAMES: Final[dict[str, Callable[[], list[str]]]] = {
    "model": model_names,
    "server": server_names,
    "help": lambda: [*COMMANDS, *TOPICS],
}


class Named(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A value of which the shell can complete something.

    Args:
        kind: ``model``, ``server``, ``help``, ``file`` or ``dir``.
    """

    name = "named"

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem[str]]:
        """What the value may become; a model may be a file, too."""
        if self.kind not in _NAMES:
            return [CompletionItem(incomplete, type=self.kind)]
        names = [name for name in _NAMES[self.kind]() if name.startswith(incomplete)]
        found = [CompletionItem(name) for name in names]
        path = self.kind == "model" and not found
        return [CompletionItem(incomplete, type="file")] if path else found


def outline() -> click.Group:
    """The commands as they are, read from what was written down where that is still true."""
    known = _remembered()
    if known is None:
        known = described(cli)  # imports every command
        _remember(known)
    group = rebuilt(known)
    assert isinstance(group, click.Group)  # noqa: S101 - what was described is one
    return group


def described(command: click.Command) -> Outline:
    """A command as JSON values."""
    about: Outline = {
        "name": command.name,
        "help": command.get_short_help_str(80),
        "params": [_described(param) for param in command.params],
    }
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        inner = (command.get_command(ctx, name) for name in command.list_commands(ctx))
        about["commands"] = [described(each) for each in inner if each and not each.hidden]
    return about


def _described(param: click.Parameter) -> Outline:
    choices = list(param.type.choices) if isinstance(param.type, click.Choice) else None
    kind = _KINDS.get(param.name or "")
    if isinstance(param.type, click.Path):
        kind = "file" if param.type.file_okay else "dir"
    about: Outline = {
        "words": [*param.opts, *param.secondary_opts],
        "choices": choices,
        "kind": kind,
        "nargs": param.nargs,
    }
    if isinstance(param, click.Option):
        about |= {"flag": param.is_flag, "multiple": param.multiple, "help": param.help or ""}
        about["off"] = list(param.secondary_opts)
    return about


def rebuilt(about: Outline) -> click.Command:
    """The command that was described; it does nothing."""
    params = [_rebuilt(param) for param in about["params"]]
    if "commands" not in about:
        return click.Command(about["name"], params=params, help=about["help"])
    inner = {each["name"]: rebuilt(each) for each in about["commands"]}
    return click.Group(about["name"], commands=inner, params=params, help=about["help"])


def _rebuilt(about: Outline) -> click.Parameter:
    kind: Any = click.Choice(about["choices"]) if about["choices"] else None
    if about["kind"]:
        kind = Named(about["kind"])
    if "flag" not in about:
        return click.Argument(about["words"], nargs=about["nargs"], type=kind, required=False)
    if about["flag"]:
        on = [word for word in about["words"] if word not in about["off"]]
        words = ["/".join([on[0], *about["off"][:1]]), *on[1:]]
        return click.Option(words, is_flag=True, help=about["help"])
    return click.Option(
        about["words"],
        nargs=about["nargs"],
        multiple=about["multiple"],
        type=kind,
        help=about["help"],
    )


def _identity() -> str:
    """Changes with the files that say what the commands take."""
    files = [*sorted((_PACKAGE / "cli").glob("*.py")), _PACKAGE / "settings.py"]
    facts = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _path() -> Path:
    return directories().cache / "completion.json"


def _remembered() -> Outline | None:
    try:
        known = json.loads(_path().read_bytes())
        if known["identity"] == _identity():
            outline: Outline = known["outline"]
            return outline
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return None


def _remember(known: Outline) -> None:
    with contextlib.suppress(OSError, StorageError):
        folder = private_folder(_path().parent)
        handle, partial = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"identity": _identity(), "outline": known}, file)
        Path(partial).replace(_path())
