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


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there_and_has_help(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    shown = CliRunner().invoke(cli, ["help", name]).output
    assert shown.startswith(f"Usage: cli {name}")
    assert len(shown.split()) > 12


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
