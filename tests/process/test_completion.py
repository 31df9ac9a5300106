"""Completion of the command line, in the shells that are here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from runtime.cli import outline
from runtime.cli.app import COMMANDS, cli
from runtime.cli.completion import answer
from tests.terminal import ENTER, TAB, Terminal

SHELLS = ("bash", "zsh", "fish")
pytestmark = [pytest.mark.outside, pytest.mark.process]


def script(shell: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "completion", shell],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture(scope="module")
def bash_script() -> str:
    return script("bash")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with `llama-runtime`, as an installation has it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "llama-runtime"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m runtime "$@"\n')
    program.chmod(0o755)
    return folder


def completed(program: Path, source: str, line: str, cwd: Path) -> list[str]:
    """What bash offers for the last word of the line; it does what its Tab key does."""
    words = line.split(" ")
    bash = f"""
{source}
compopt() {{ [[ $2 == default ]] && files=1; return 0; }}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
COMP_LINE='{line}'; COMP_POINT={len(line)}
_llama_runtime_completion llama-runtime '{words[-1]}' '{words[-2]}'
printf '%s\\n' "${{COMPREPLY[@]}}"
[[ $files && ! ${{COMPREPLY[*]}} ]] && compgen -f -- '{words[-1]}'
exit 0
"""
    path = f"{program}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", bash],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stderr == ""
    return [word for word in done.stdout.splitlines() if word]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_completes_commands_options_names_and_files(
    program: Path, bash_script: str, tmp_path: Path, isolated_home: Path
) -> None:
    servers, fetched = isolated_home / "state/servers", isolated_home / "cache/models/x"
    for folder, name in ((servers, "swift-otter"), (fetched, "qwen3:8b")):
        folder.mkdir(parents=True)
        record = "model.json" if folder is fetched else "a.json"
        (folder / record).write_text(json.dumps({"name": name}))
    (servers / "broken.json").write_text("{")
    (tmp_path / "notes.txt").touch()

    def offered(line: str) -> list[str]:
        return completed(program, bash_script, line, tmp_path)

    assert set(offered("llama-runtime ")) == set(COMMANDS)
    assert offered("llama-runtime se") == ["serve", "sessions"]
    assert "--ctx-size" in offered("llama-runtime serve --c")
    assert offered("llama-runtime chat --engine lla") == ["llama-server", "llama-cpp-python"]
    assert offered("llama-runtime models pu") == ["pull"]
    assert offered("llama-runtime models pull smollm2-13") == ["smollm2-135m"]
    assert offered("llama-runtime run -m qwen3:") == ["8b"], "what follows the colon"
    assert offered("llama-runtime run hello --file no") == ["notes.txt"]
    assert offered("llama-runtime chat ./no") == ["./notes.txt"]
    assert offered("llama-runtime stop s") == ["swift-otter"]
    assert offered("llama-runtime help exit") == ["exit-codes"]
    assert offered("llama-runtime xyzzy --a") == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_the_tab_key_of_bash(program: Path, bash_script: str, tmp_path: Path) -> None:
    """In a terminal, with readline and its breaks of words."""
    (tmp_path / "script").write_text(bash_script)
    env = {"PATH": f"{program}:{os.environ['PATH']}", "PS1": "$ ", "INPUTRC": "/dev/null"}
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    with Terminal(str(shutil.which("bash")), "--norc", "--noprofile", "-i", **env) as terminal:
        terminal.type(f". {tmp_path}/script{ENTER}")
        terminal.type(f"llama-runtime models sh{TAB}")
        terminal.expect("models show ")
        terminal.type(f"smollm2-135{TAB}")
        terminal.expect("smollm2-135m ")


def test_a_key_is_answered_without_importing_the_commands(isolated_home: Path) -> None:
    """Measured on a quiet machine: 75 ms, of which Python and click take 42; 400 with the imports.

    The time is bounded loosely here, what is imported strictly.
    """
    code = (
        "import sys\n"
        "from runtime.cli.completion import answer\n"
        "answer('bash_complete')\n"
        "print(*sorted(sys.modules), file=sys.stderr)\n"
    )

    def ask(line: str) -> tuple[str, set[str], float]:
        began_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "COMP_WORDS": line},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout, set(done.stderr.split()), time.monotonic() - began_s

    first, imported, _ = ask("llama-runtime serve --p")
    assert "pydantic" in imported, "what the commands take is not known yet"
    again, imported, took_s = ask("llama-runtime serve --p")
    assert again == first
    assert "plain,--port" in first
    assert not {"pydantic", "rich", "psutil", "runtime.settings", "asyncio"} & imported
    assert took_s < 1.0
    assert (isolated_home / "cache/completion.json").stat().st_mode & 0o777 == 0o600


def test_what_is_remembered_is_not_believed_when_a_file_changed(
    isolated_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = isolated_home / "cache/completion.json"
    outline.outline()
    whole = json.loads(kept.read_text("utf-8"))
    whole["outline"]["commands"] = []
    kept.write_text(json.dumps(whole))
    assert not outline.outline().commands, "it is read"
    kept.write_text(json.dumps({**whole, "identity": "of yesterday"}))
    assert set(outline.outline().commands) == set(COMMANDS)
    kept.write_text("damaged")
    assert set(outline.outline().commands) == set(COMMANDS)


def test_the_outline_takes_what_the_commands_take() -> None:
    def taken(command: click.Command | None) -> dict[str, Any]:
        assert command is not None
        if isinstance(command, click.Group):
            ctx = click.Context(command)
            names = command.list_commands(ctx)
            return {name: taken(command.get_command(ctx, name)) for name in names}
        words = [word for param in command.params for word in (*param.opts, *param.secondary_opts)]
        return dict.fromkeys(words, True)

    assert taken(outline.rebuilt(outline.described(cli))) == taken(cli)


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_right_by_the_shell_itself(shell: str, tmp_path: Path) -> None:
    written = script(shell)
    assert "llama-runtime" in written
    assert f"_LLAMA_RUNTIME_COMPLETE={shell}_complete" in written
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    file = tmp_path / "script"
    file.write_text(written)
    done = subprocess.run([shell, "-n", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("shell", "words", "cword", "told"),
    [
        ("zsh", "llama-runtime chat smollm2-13", "2", ["plain", "smollm2-135m", "_"]),
        ("fish", "llama-runtime chat smollm2-13", "smollm2-13", ["plain,smollm2-135m"]),
    ],
)
def test_the_other_shells_are_answered_in_their_form(
    shell: str,
    words: str,
    cword: str,
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", cword)
    assert answer(f"{shell}_complete") == 0
    assert capsys.readouterr().out.splitlines() == told
