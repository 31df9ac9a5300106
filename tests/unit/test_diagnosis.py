"""Causes, read from what the engines really printed."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest

from runtime.hardware import oom_kills
from runtime.server.diagnosis import diagnose, ending

# What xllamacpp 2026.10, llama-server b11434 and llama-cpp-python 0.3.36 print.
RECORDED = Path(__file__).parents[1] / "fakes" / "recorded" / "last-words.txt"
CASES = [line.split("\t") for line in RECORDED.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(("code", "line"), CASES)
def test_recorded_last_words_name_the_cause(code: str, line: str) -> None:
    tail = ["0.00.000.483 I srv init: initializing ...", line, "exiting due to model loading error"]
    found = diagnose(code=1, signal=None, log_tail=tail, was_ready=False)
    assert found.code == code
    assert found.repeats
    assert found.hint


@pytest.mark.parametrize(
    ("number", "code", "repeats"),
    [
        (signal.SIGILL, "illegal_instruction", True),
        (signal.SIGKILL, "killed", False),
        (signal.SIGBUS, "file_changed", False),
        (signal.SIGSEGV, "crashed", False),
    ],
)
def test_signals_have_meanings(number: signal.Signals, code: str, repeats: bool) -> None:
    found = diagnose(code=None, signal=number, log_tail=[], was_ready=True)
    assert (found.code, found.repeats) == (code, repeats)
    assert number.name in ending(code=None, signal=number)


def test_the_log_of_an_engine_that_served_is_not_taken_for_a_failed_start() -> None:
    """A prompt may have put such words there."""
    found = diagnose(code=1, signal=None, log_tail=["out of memory"], was_ready=True)
    assert found.code == "unknown"
    assert not found.repeats


def test_a_kill_for_want_of_memory_is_named_and_not_tried_again() -> None:
    found = diagnose(
        code=None, signal=signal.SIGKILL, log_tail=[], was_ready=True, out_of_memory=True
    )
    assert found.code == "out_of_memory"
    assert found.repeats


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EAGAIN, "no_process"), (errno.ENOMEM, "no_process"), (errno.ENOENT, "missing_library")],
)
def test_a_refused_process_is_told_from_a_missing_program(number: int, code: str) -> None:
    found = diagnose(code=127, signal=None, log_tail=[], was_ready=False, refused=number)
    assert found.code == code
    assert found.repeats == (code == "missing_library"), "a crowded system may have room again"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({"proc/vmstat": "nr_free_pages 1\noom_kill 4\nfoo 2"}, 4),
        ({"proc/vmstat": "nr_free_pages 1"}, None),
        (
            {
                "proc/vmstat": "oom_kill 9",
                "proc/self/cgroup": "0::/box",
                "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
                "sys/fs/cgroup/box/memory.events": "low 0\noom 1\noom_kill 2\n",
            },
            2,
        ),
    ],
)
def test_the_kernel_s_count_is_read(
    tmp_path: Path, files: dict[str, str], count: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert oom_kills(tmp_path) == count


def test_an_unknown_end_says_so() -> None:
    found = diagnose(code=5, signal=None, log_tail=["bye"], was_ready=False)
    assert found.code == "unknown"
    assert found.repeats
    assert ending(code=5, signal=None) == "exited with code 5"
