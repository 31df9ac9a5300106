"""``serve --detach``: a gateway in a session of its own, watched until it is ready.

The child is the same command once more. It prints into a log file, which it rotates itself, and
says through a pipe when it is ready: the end of that pipe without a word is the child's end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

import runtime
from runtime.cli import output
from runtime.cli.logs import Followed
from runtime.errors import ConfigError, LLMProviderError, StorageError
from runtime.server import registry
from runtime.server.launcher import LOG_MAX_BYTES
from runtime.server.logs import forget_old_logs
from runtime.settings import directories, private_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOK_AGAIN_S = 0.1
STOP_PATIENCE_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What a gateway says once it is ready.

    Attributes:
        name: As in its record.
        model: Its default model.
        url: Its address.
    """

    name: str
    model: str
    url: str


# --- the parent --------------------------------------------------------------------------------


def serve_detached(line: Sequence[str]) -> None:
    """Start a gateway that outlives this command; returns when it is ready.

    Args:
        line: The command line, which the child gets but for ``--detach``.

    Raises:
        click.exceptions.Exit: It did not come up, with its exit code; it has said why.
        LLMError: It could not be started at all.
    """
    if sys.platform == "win32":
        raise ConfigError(
            "--detach works on Linux and macOS.", hint="Run `llama-runtime serve` as a service."
        )
    path = _log_file()
    telling, told = os.pipe()
    try:
        child = _start(line, path, told)
    finally:
        os.close(told)
    try:
        ready = _watch(child, path, telling)
    except BaseException:  # Ctrl-C: what was not ready is not left behind
        _end(child)
        raise
    finally:
        os.close(telling)
    if ready is None:
        code = child.wait()
        output.note(f"It ended {_how(code)}. Its log: {path}")
        raise click.exceptions.Exit(code if code > 0 else 5)
    # It goes on without us: its end is not ours to collect.
    child.returncode = 0
    output.result(ready.url)
    output.say("process", f"{child.pid} serves {ready.model}")
    output.say("log", f"{path}; llama-runtime logs -f {ready.name}")
    output.say("end it", f"llama-runtime stop {ready.name}")


def _log_file() -> Path:
    folder = private_folder(directories().logs)
    forget_old_logs(folder, spare=registry.logs_in_use())
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    path = folder / f"gateway-{stamp}-{os.getpid()}.log"
    try:
        path.touch(mode=0o600)
    except OSError as exc:
        raise StorageError(
            f"Cannot write to {folder}: {exc.strerror or exc}.", path=folder, hint=None
        ) from exc
    return path


def _start(line: Sequence[str], path: Path, told: int) -> subprocess.Popen[bytes]:
    # A folder called "runtime" where this happens to be run must not be taken for ours.
    here = Path(runtime.__file__ or "").parents[1] == Path.cwd()
    at = line.index("serve") + 1  # what is before it holds for every command
    command = [sys.executable, *([] if here else ["-P"]), "-m", "runtime", *line[1:at]]
    command += ["--detached-log", str(path), "--ready-fd", str(told)]
    command += [word for word in line[at:] if word != "--detach"]
    with path.open("ab") as log:
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(told,),
                start_new_session=True,
            )
        except OSError as exc:
            raise LLMProviderError(
                f"The system refused a new process: {exc.strerror or exc}.",
                hint="Close programs, or raise the limit of processes.",
            ) from exc


def _watch(child: subprocess.Popen[bytes], path: Path, telling: int) -> Ready | None:
    """Repeat what the child prints until it is ready; None when it ended before."""
    followed = Followed(path)
    said = b""
    ended = False
    while not said.endswith(b"\n") and not ended:
        if select.select([telling], [], [], LOOK_AGAIN_S)[0]:
            piece = os.read(telling, 4096)
            said, ended = said + piece, not piece
        if ended:
            child.wait()
        for line in followed.lines():
            output.err.print(line, markup=False, soft_wrap=True)
    followed.close()
    return None if ended else Ready(**json.loads(said))


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _how(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"


# --- the child ---------------------------------------------------------------------------------


class RotatedOutput(logging.Handler):
    """Begins a new file once that which this process prints to is full.

    Looks after each logged line: nothing else prints much in a gateway that runs. Descriptors 1
    and 2 themselves are turned to the new file, so that what libraries print goes along.
    """

    def __init__(self, path: Path, max_bytes: int = LOG_MAX_BYTES) -> None:
        super().__init__()
        self._path = path
        self._max_bytes = max_bytes

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - only that there was one
        """Look at the size of the file."""
        with contextlib.suppress(OSError):  # a disk that refuses does not stop the gateway
            if os.fstat(2).st_size < self._max_bytes:
                return
            self._path.replace(self._path.with_name(f"{self._path.name}.1"))
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            fresh = os.open(self._path, flags, 0o600)
            os.dup2(fresh, 1)
            os.dup2(fresh, 2)
            os.close(fresh)


def rotate_output(path: Path) -> None:
    """Have what this process prints, which goes to ``path``, rotated, and its log lines dated."""
    logging.basicConfig(
        level=logging.getLogger().level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger().addHandler(RotatedOutput(path))


def tell_ready(fd: int, ready: Ready) -> None:
    """Say to the parent that it need not wait any longer; one that is gone does not hear it."""
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(asdict(ready)).encode() + b"\n")
    os.close(fd)
