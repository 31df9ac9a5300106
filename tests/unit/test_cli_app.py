"""The table of commands: complete, quick, and helpful with names that are nearly right."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from runtime.cli import exit_codes
from runtime.cli.app import COMMANDS, cli
from runtime.errors import LLMError


def leaves(command: click.Command | None, *words: str) -> dict[tuple[str, ...], click.Command]:
    """Every command that is no group, by its words."""
    assert command is not None
    if not isinstance(command, click.Group):
        return {words: command}
    ctx = click.Context(command)
    found: dict[tuple[str, ...], click.Command] = {}
    for name in command.list_commands(ctx):
        found |= leaves(command.get_command(ctx, name), *words, name)
    return found


def test_every_command_is_where_the_table_says_and_has_an_example() -> None:
    found = leaves(cli)
    assert {words[0] for words in found} == set(COMMANDS)
    for words, command in found.items():
        assert command.name == words[-1]
        shown = CliRunner().invoke(cli, ["help", *words]).output
        assert shown.startswith(f"Usage: cli {' '.join(words)} ")
        body = shown.partition("\n")[2]
        assert f"llama-runtime {' '.join(words)}" in body, f"{words} has no example"


def test_the_list_of_commands_imports_none_of_them() -> None:
    """What the help must not import makes it slow: measured 0.34 s with them, 0.06 without."""
    code = (
        "import sys\n"
        "from runtime.cli.app import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'pydantic', 'rich', 'runtime.settings', 'prompt_toolkit', 'asyncio', 'psutil'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["serv"], "Did you mean 'serve'?"),
        (["dcotor"], "Did you mean 'doctor'?"),
        (["help", "exit-code"], "Did you mean 'exit-codes'?"),
        (["help", "models", "pul"], "Did you mean 'pull'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
    ],
)
def test_a_name_that_is_nearly_right(args: list[str], told: str) -> None:
    done = CliRunner().invoke(cli, args)
    assert done.exit_code == 2
    assert told in done.output


def test_every_exit_code_is_explained() -> None:
    shown = CliRunner().invoke(cli, ["help", "exit-codes"]).output
    codes = {int(line.split()[0]) for line in shown.splitlines()}
    errors = {code for _, code in exit_codes.OF_ERRORS}
    assert codes == {0, 1, 70, 130} | errors
    kinds = {kind for kind, _ in exit_codes.OF_ERRORS}
    assert {
        kind for kind in LLMError.__subclasses__() if kind.__module__ == "runtime.errors"
    } <= kinds
