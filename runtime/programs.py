"""Running a program to its end: bounded in time, and nothing of it outlives this process."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_RUNNING: Final[set[subprocess.Popen[bytes]]] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How it went.

    Attributes:
        output: What it wrote to standard output.
        errors: What it wrote to standard error.
        returncode: Its exit code, negative for a signal; None when the time was up.
    """

    output: str
    errors: str
    returncode: int | None


def run(
    argv: Sequence[str], *, env: Mapping[str, str], timeout_s: float, together: bool = False
) -> Ran:
    """Run a program; it and what it starts are ended when the time is up.

    Args:
        argv: Program and arguments.
        env: Its environment.
        timeout_s: Seconds it may take.
        together: Write standard error into ``output``, in order.

    Raises:
        OSError: It cannot be started.
    """
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if together else subprocess.PIPE,
        env=env,
        start_new_session=True,  # so that what a script starts can be ended with it
    )
    _RUNNING.add(child)
    with child:
        try:
            output, errors = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            _end(child)
            child.communicate()
            return Ran(output="", errors="", returncode=None)
        except BaseException:  # Ctrl-C
            _end(child)
            raise
        finally:
            _RUNNING.discard(child)
    return Ran(
        output=output.decode("utf-8", "replace"),
        errors=(errors or b"").decode("utf-8", "replace"),
        returncode=child.returncode,
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        child.kill()
        return
    try:
        os.killpg(child.pid, signal.SIGKILL)  # not collected yet: the number is still its own
    except ProcessLookupError:
        return


@atexit.register
def _end_all() -> None:
    """Threads may be left behind in a wait; the programs that they wait for are not."""
    for child in list(_RUNNING):
        _end(child)
