"""The command `run`: what goes into the prompt, what comes out, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.conftest import is_gone, wait_until
from tests.fakes.openai_server import FakeServer, Stalls, says
from tests.terminal import CTRL_C, CTRL_D, ENTER, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.outside, pytest.mark.process]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Grace"]}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def run(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", "run", *words],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def prompt_of(server: FakeServer) -> str:
    """The user's message of the last request."""
    content: str = server.chats[-1].body["messages"][-1]["content"]
    return content


def test_words_files_and_a_pipe_make_one_prompt(server: FakeServer, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n```\ncode\n```\n")
    (tmp_path / "b.txt").write_bytes("Grüße".encode("utf-16"))
    a, b = str(tmp_path / "a.md"), str(tmp_path / "b.txt")
    done = run(
        "Compare:", "--file", a, "-f", b, "--base-url", server.url, "--system", "Be brief.",
        "--temperature", "0.5", "--seed", "7", "--max-tokens", "9", stdin=b"piped in\n",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"I'm glad\n"), done.stderr
    fence = "````"
    assert prompt_of(server) == "\n\n".join(
        (
            "Compare:",
            f"File {a}:\n{fence}\n# A\n```\ncode\n```\n{fence}",
            f"File {b}:\n```\nGrüße\n```",
            "piped in",
        )
    )
    body = server.chats[-1].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 7, 9)


def test_a_dash_is_the_pipe(server: FakeServer) -> None:
    done = run("-", "--base-url", server.url, stdin=b"What is piped\n")
    assert done.returncode == 0, done.stderr
    assert prompt_of(server) == "What is piped"


def test_a_dash_reads_the_terminal_to_its_end(server: FakeServer) -> None:
    command = (sys.executable, "-m", "runtime", "run", "-", "--base-url", server.url)
    with Terminal(*command) as terminal:
        terminal.type(f"typed{ENTER}{CTRL_D}")
        terminal.expect("I'm glad")
        assert terminal.ends() == 0
    assert prompt_of(server) == "typed"


def test_a_file_that_is_no_text_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = run("Read:", "--file", str(tmp_path / "picture.png"), "-m", "/no/model.gguf")
    assert done.returncode == 2
    assert b"is not text: byte 0" in done.stderr
    assert done.stdout == b""


def test_files_that_do_not_fit_are_told_with_their_tokens(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    for name, words in (("long.txt", 700), ("short.txt", 3)):
        (tmp_path / name).write_text("word " * words)
    files = [word for name in ("long.txt", "short.txt") for word in ("-f", str(tmp_path / name))]
    done = run("Read:", *files, "-m", str(tiny_model_path), "--ctx-size", "256")
    said = " ".join(done.stderr.decode().split())
    assert done.returncode == 2, said
    assert "256" in said
    assert "Tokens of the files: " in said
    assert "long.txt" in said
    assert "short.txt" in said
    assert "--ctx-size " in said


def test_json_by_a_schema_is_valid_and_alone(tiny_model_path: Path, tmp_path: Path) -> None:
    """From a file and written out; the tiny model says nonsense, the grammar keeps its form."""
    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    for given in (str(tmp_path / "s.json"), json.dumps(SCHEMA)):
        done = run(
            "A person", "--json-schema", given, "-m", str(tiny_model_path), "--ctx-size", "512"
        )
        assert done.returncode == 0, done.stderr
        person = json.loads(done.stdout)
        assert person["name"] in {"Ada", "Grace"}
        assert isinstance(person["age"], int)


def test_an_answer_that_breaks_its_schema_is_not_printed(server: FakeServer) -> None:
    server.will(*[says('{"name": "Eve", "age": 1}')] * 4)
    done = run("A person", "--json-schema", json.dumps(SCHEMA), "--base-url", server.url)
    assert done.returncode == 6
    assert b"Eve" in done.stderr
    assert done.stdout == b""


def test_pieces_come_at_once_or_all_at_the_end(server: FakeServer) -> None:
    stalled = Stalls(("Once",))
    server.will(stalled)
    command = [sys.executable, "-m", "runtime", "run", "hi", "--base-url", server.url]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.read(4) == b"Once"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert stalled.hung_up.wait(5)
    server.will(stalled := Stalls(("Once",)))
    with Terminal(*command, "--no-stream") as terminal:
        wait_until("it is being asked", stalled.begun.is_set)
        terminal.type(CTRL_C)
        assert terminal.ends() == 130
        assert "Once" not in terminal.screen


def test_ctrl_c_ends_the_engine_too(tiny_model_path: Path) -> None:
    command = (sys.executable, "-m", "runtime", "run", "hi", "-m", str(tiny_model_path))
    with Terminal(*command, "--ctx-size", "8192", LLAMA_RUNTIME_THREADS="1") as terminal:
        wait_until("it answers", lambda: terminal.read_now() > 400, timeout_s=30)
        below = psutil.Process(terminal.process.pid).children(recursive=True)
        assert below
        terminal.type(CTRL_C)
        assert terminal.ends() == 130
        assert all(is_gone(process.pid) for process in below)
        assert "Traceback" not in terminal.screen


def test_a_pipe_that_closes_is_no_error(server: FakeServer) -> None:
    server.will(says(*("line\n" for _ in range(20_000))))
    line = f'"{sys.executable}" -m runtime run hi --base-url {server.url} | head -1'
    done = subprocess.run(
        ["sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, check=False,
        timeout=30, env=dict(os.environ),
    )  # fmt: skip
    assert done.stdout == b"line\n"
    assert done.stderr == b""
