"""The test run's side of its shared engines: find one, or start it; end all of them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import secrets
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from multiprocessing.connection import Client
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from filelock import FileLock

from runtime.errors import LLMProviderError, StorageError
from runtime.server import registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engines.base import Endpoint
    from runtime.testing.models import Wanted
    from runtime.testing.run import Run

END_PATIENCE_S: Final = 15.0

_started: Final[list[subprocess.Popen[bytes]]] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Host:
    """What is written down of a host, for the other processes of the run."""

    pid: int
    birth: str | None
    address: str
    key: str
    error: str | None = None


class Lease:
    """A shared engine. Any thread may use it."""

    def __init__(self, host: _Host) -> None:
        self._host = host

    def endpoint(self, timeout_s: float) -> Endpoint:
        """Where the engine is now; waits while it is being restarted.

        Raises:
            LLMProviderError: It is not, or not in time.
        """
        endpoint: Endpoint = self._ask("endpoint", float(timeout_s))
        return endpoint

    def snapshot(self) -> Mapping[str, object]:
        """The engine's server, as :meth:`runtime.ServerSnapshot.to_dict` has it."""
        found: Mapping[str, object] = self._ask("snapshot", None)
        return found

    def logs(self, n: int = 100) -> tuple[str, ...]:
        """The last lines the engine printed, oldest first."""
        lines: tuple[str, ...] = self._ask("logs", n)
        return lines

    def _ask(self, what: str, value: object) -> Any:
        host = self._host
        try:
            with Client(host.address, "AF_UNIX", authkey=bytes.fromhex(host.key)) as connection:
                connection.send((what, value))
                answer = connection.recv()
        except (OSError, EOFError) as exc:
            raise LLMProviderError(
                f"The process {host.pid}, which owns the test run's engine, is gone ({exc}).",
                hint="Was it killed? Run the tests again.",
            ) from exc
        if isinstance(answer, BaseException):
            raise answer
        return answer


def lease(wanted: Wanted, run: Run) -> Lease:
    """The run's engine for a wish; started when it is not there yet.

    Raises:
        LLMError: It cannot be started; the same for every process of the run that asks.
    """
    folder = _own_folder(run.folder)
    record = folder / f"{wanted.digest}.json"
    with FileLock(folder / f"{wanted.digest}.lock"):
        if record.exists():
            host = _Host(**json.loads(record.read_text("utf-8")))
        else:
            host = _start(wanted, run, folder)
            record.write_text(json.dumps({name: getattr(host, name) for name in _Host.__slots__}))
    if host.error is not None:
        raise pickle.loads(base64.b64decode(host.error))  # noqa: S301 - our own, in our own folder
    return Lease(host)


def end_all(run: Run) -> None:
    """End the engines of a run."""
    if not run.folder.is_dir():
        return
    found = [_Host(**json.loads(path.read_text("utf-8"))) for path in run.folder.glob("*.json")]
    living = [host for host in found if registry.birth(host.pid) == host.birth is not None]
    for host in living:
        with contextlib.suppress(ProcessLookupError):
            os.kill(host.pid, signal.SIGTERM)
    let_go(wait_s=END_PATIENCE_S)
    for host in living:
        with contextlib.suppress(psutil.Error):
            psutil.Process(host.pid).wait(END_PATIENCE_S)
    for path in run.folder.iterdir():
        path.unlink(missing_ok=True)
    run.folder.rmdir()


def let_go(*, wait_s: float | None = None) -> None:
    """Forget the hosts that this process started, after waiting for their end when asked to."""
    while _started:
        process = _started.pop()
        if wait_s is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait_s)
        process.returncode = process.returncode or 0  # it outlives a worker, and may


def _own_folder(path: Path) -> Path:
    """The folder, made with mode 0700; of nobody else, for a key is written into it."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as exc:
        raise StorageError(f"Cannot make {path}: {exc.strerror}.", path=path) from exc
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise StorageError(f"{path} is another user's, or open to others.", path=path)
    return path


def _start(wanted: Wanted, run: Run, folder: Path) -> _Host:
    config = wanted.config()
    address = str(folder / wanted.digest)
    key = secrets.token_hex(32)
    task = {
        # What was said, without the defaults: the environment's word counts for the rest.
        "config": config.model_dump(mode="json"),
        "address": address,
        "key": key,
        "owner_pid": run.owner_pid,
        "owner_birth": registry.birth(run.owner_pid) or "",
    }
    with (folder / f"{wanted.digest}.log").open("wb") as log:
        process = subprocess.Popen(
            # -P: a folder of the project's may have the name of a module.
            [sys.executable, "-P", "-m", "runtime.testing.host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # a terminal's Ctrl-C is for the tests to handle
        )
    _started.append(process)
    if process.stdin is None or process.stdout is None:  # pipes were asked for
        raise LLMProviderError("The process for the engine has no pipes.")
    with process.stdin, process.stdout:
        process.stdin.write(json.dumps(task).encode())
        process.stdin.close()
        said = process.stdout.readline()
    if not said:
        tail = Path(log.name).read_text("utf-8", "replace")[-2000:]
        raise LLMProviderError(f"The process for the engine ended at once: {tail}")
    error = pickle.loads(base64.b64decode(said))  # noqa: S301 - our own child's word
    return _Host(
        pid=process.pid,
        birth=registry.birth(process.pid),
        address=address,
        key=key,
        error=said.decode().strip() if error is not None else None,
    )
