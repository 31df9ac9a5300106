"""Which server is meant, logs that are rotated while they are read, and output that is rotated."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from runtime.cli.logs import Followed
from runtime.cli.selection import groups, pick
from runtime.errors import LLMInvalidRequestError
from runtime.server.logs import forget_old_logs
from runtime.server.registry import ServerRecord

if TYPE_CHECKING:
    from pathlib import Path


def record(name: str, role: str = "serve", owner_pid: int = 1, port: int = 0) -> ServerRecord:
    return ServerRecord(
        name=name,
        role=role,
        owner_pid=owner_pid,
        owner_birth="",
        engine_pid=owner_pid + 1000,
        model=f"model-{name[0]}",
        engine="xllamacpp",
        base_url=f"http://127.0.0.1:{port}" if port else None,
        state="ready",
        started_at=None,
        log_path=None,
    )


A, A_ENGINE = record("a", port=8080), record("a2", "engine", port=40001)
B, B_ENGINE = record("b", owner_pid=2, port=9090), record("b2", "engine", owner_pid=2)
PROGRAM = record("p", "client", owner_pid=3, port=40003)
ALL = (PROGRAM, A_ENGINE, A, B_ENGINE, B)


def test_engines_stand_behind_their_gateway() -> None:
    assert groups(ALL) == ((A, A_ENGINE), (B, B_ENGINE), (PROGRAM,))


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("a", A),
        ("a2", A),
        ("model-a", A),
        ("1", A),
        ("1001", A),
        ("8080", A),
        (":8080", A),
        ("40001", A),
        ("9090", B),
        ("p", PROGRAM),
        ("40003", PROGRAM),
    ],
)
def test_a_server_is_meant_by_what_is_known_of_it(wanted: str, meant: ServerRecord) -> None:
    assert pick(wanted, ALL)[0] is meant


def test_without_a_word_the_only_gateway_is_meant() -> None:
    assert pick(None, (PROGRAM, A, A_ENGINE))[0] is A
    assert pick(None, (PROGRAM,))[0] is PROGRAM


@pytest.mark.parametrize(("wanted", "said"), [(None, "a (model-a), b (model-b)"), ("x", "'x'")])
def test_what_is_not_clear_is_asked_for(wanted: str | None, said: str) -> None:
    with pytest.raises(LLMInvalidRequestError) as caught:
        pick(wanted, ALL)
    assert said in caught.value.message
    assert caught.value.hint


def test_a_log_is_followed_through_rotation_emptying_and_removal(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    followed = Followed(path)
    assert list(followed.lines()) == [], "it is not there yet"
    path.write_text("one\ntw")
    assert list(followed.lines()) == ["one"]
    with path.open("a") as file:
        file.write("o\nthree\n")
    path.rename(tmp_path / "x.log.1")
    path.write_text("four\n")
    assert list(followed.lines()) == ["two", "three", "four"]
    os.truncate(path, 0)
    assert list(followed.lines()) == []
    path.write_text("5\n")
    assert list(followed.lines()) == ["5"]
    path.unlink()
    assert list(followed.lines()) == []
    path.write_text("six\n")
    assert list(followed.lines()) == ["six"]
    followed.close()


def test_output_is_rotated_with_all_that_the_process_prints(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    code = """
import logging, os, sys
from pathlib import Path
from runtime.cli.detached import RotatedOutput
logging.basicConfig(stream=sys.stderr)
logging.getLogger().addHandler(RotatedOutput(Path(sys.argv[1]), max_bytes=100))
logging.warning("first %s", "x" * 100)
os.write(1, b"from the library\\n")
logging.warning("second")
"""
    with path.open("ab") as log:
        subprocess.run(
            [sys.executable, "-c", code, str(path)], stdout=log, stderr=log, check=True, timeout=20
        )
    before, after = path.with_name("gateway.log.1").read_text(), path.read_text()
    assert "first" in before
    assert after == "from the library\nWARNING:root:second\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_logs_that_are_written_to_are_not_forgotten(tmp_path: Path) -> None:
    old = [tmp_path / f"{number}.log" for number in range(4)]
    for number, path in enumerate(old):
        path.touch()
        os.utime(path, (number, number))
    forget_old_logs(tmp_path, keep=1, spare={old[0]})
    assert [path.exists() for path in old] == [True, False, False, True]
