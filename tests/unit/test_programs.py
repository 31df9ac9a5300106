"""Programs that are run to their end leave nothing behind, however that comes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from runtime import programs
from tests.conftest import is_gone, wait_until

if TYPE_CHECKING:
    from pathlib import Path

SHELL = "/bin/sh"


def test_what_a_program_says_and_how_it_ends() -> None:
    script = "echo out; echo err >&2; exit 3"
    ran = programs.run([SHELL, "-c", script], env={}, timeout_s=10)
    assert (ran.output, ran.errors, ran.returncode) == ("out\n", "err\n", 3)
    ran = programs.run([SHELL, "-c", script], env={}, timeout_s=10, together=True)
    assert (ran.output, ran.errors) == ("out\nerr\n", "")
    with pytest.raises(FileNotFoundError):
        programs.run(["/nowhere/program"], env={}, timeout_s=10)


def test_time_that_is_up_ends_the_children_too(tmp_path: Path) -> None:
    began_s = time.monotonic()
    script = f"sleep 100 & echo $! > {tmp_path}/pid; wait"
    ran = programs.run([SHELL, "-c", script], env=dict(os.environ), timeout_s=0.3)
    assert ran.returncode is None
    assert time.monotonic() - began_s < 5
    wait_until("it is gone", lambda: is_gone(int((tmp_path / "pid").read_text())))


def test_a_program_that_a_thread_waits_for_ends_with_us(tmp_path: Path) -> None:
    code = f"""
import os, threading, time
from pathlib import Path
from runtime import programs
script = "sleep 100 & echo $! > {tmp_path}/pid; wait"
call = lambda: programs.run(["{SHELL}", "-c", script], env=dict(os.environ), timeout_s=60)
threading.Thread(target=call, daemon=True).start()
while not Path("{tmp_path}/pid").exists() or not Path("{tmp_path}/pid").read_text():
    time.sleep(0.01)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    pid = int((tmp_path / "pid").read_text())
    wait_until("it is gone", lambda: not psutil.pid_exists(pid) or is_gone(pid))
