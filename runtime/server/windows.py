"""Starting an engine where no keeper can be: as a child of the owner, in a job that ends with it.

Nothing here is Windows' own but the job, which is handed in.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections import deque
from typing import TYPE_CHECKING

from runtime.engines.inspection import clean_environment
from runtime.errors import EngineStartError
from runtime.server import registry
from runtime.server.keeper.logfile import Log
from runtime.server.launcher import LOG_MAX_BYTES, ExecFailed, Exited, Spawned

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.engines.base import EngineCommand
    from runtime.server.jobs import Job
    from runtime.server.launcher import ProcessEvent

_CHUNK = 1 << 16
_PATIENCE_S = 2.0


class JobProcess:
    """One engine process in a job; threads read its output and wait for its end."""

    def __init__(
        self, command: EngineCommand, *, log_path: Path | None, name: str, job: Job
    ) -> None:
        """Start it, as :func:`runtime.server.launcher.launch`."""
        self._job = job
        self._log = Log(str(log_path) if log_path else None, LOG_MAX_BYTES)
        self._reason = "by itself"
        self._happened: deque[ProcessEvent] = deque()
        self._events, self._bell = socket.socketpair()
        self._output, self._pipe = socket.socketpair()
        for end in (self._events, self._output, self._pipe):
            end.setblocking(False)
        self.events_fd, self.output_fd = self._events.fileno(), self._output.fileno()
        self.pid: int | None = None
        self._threads: list[threading.Thread] = []
        try:
            self._process = subprocess.Popen(
                list(command.argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env={**clean_environment(command.env), registry.MARK: name},
                creationflags=job.creation_flags,
            )
        except OSError as exc:
            self._tell(ExecFailed(errno=exc.errno or 0, path=command.argv[0]))
            return
        try:
            job.adopt(self._process)
        except OSError as exc:
            self._process.kill()  # it never ran
            self._process.communicate()
            self.close()
            raise EngineStartError(
                f"The system refused to bind the engine to this process: {exc}.",
                diagnosis="no_process",
                hint="A job that this process is in may forget to allow nested jobs.",
            ) from exc
        self._tell(Spawned(pid=self._process.pid))
        copying = threading.Thread(target=self._copy, name="llama-runtime-output", daemon=True)
        self._threads = [
            copying,
            threading.Thread(target=self._feed, args=(command.stdin,), daemon=True),
            threading.Thread(target=self._wait, args=(copying,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # --- threads ------------------------------------------------------------------------------

    def _feed(self, data: bytes) -> None:
        assert self._process.stdin  # noqa: S101 - asked for
        with contextlib.suppress(OSError):  # it ended; the pipe stays open for as long as we are
            self._process.stdin.write(data)

    def _copy(self) -> None:
        assert self._process.stdout  # noqa: S101 - asked for
        while data := self._process.stdout.read(_CHUNK):
            self._log.write(data)
            with contextlib.suppress(OSError):  # an owner that does not read loses lines
                self._pipe.send(data)

    def _wait(self, copying: threading.Thread) -> None:
        code = self._process.wait()
        self._job.terminate()  # what it leaves behind
        copying.join(_PATIENCE_S)
        self._log.note(f"engine process {self._process.pid} ended with code {code}: {self._reason}")
        # Windows has no signals; elsewhere a negative code is one.
        self._tell(Exited(code=code) if code >= 0 else Exited(signal=-code))

    def _tell(self, event: ProcessEvent) -> None:
        self._happened.append(event)
        with contextlib.suppress(OSError):
            self._bell.send(b"x")

    # --- the supervisor's thread --------------------------------------------------------------

    @property
    def keeper_pid(self) -> int | None:
        """There is no keeper."""
        return None

    def terminate(self, reason: str) -> None:
        """End it at once: there is no SIGTERM to be had."""
        self.kill(reason)

    def kill(self, reason: str) -> None:
        """End everything in the job."""
        self._reason = reason
        self._job.terminate()

    def kill_keeper(self) -> None:
        """End everything in the job once more."""
        self._job.terminate()

    def read_events(self) -> list[ProcessEvent]:
        """What happened since the last call."""
        with contextlib.suppress(BlockingIOError):
            self._events.recv(_CHUNK)
        events = []
        while self._happened:
            event = self._happened.popleft()
            if isinstance(event, Spawned):
                self.pid = event.pid
            events.append(event)
        return events

    def read_output(self) -> bytes | None:
        """Output since the last call; None when there is none."""
        try:
            return self._output.recv(_CHUNK)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """End what is still there and let go of everything."""
        if self._threads:
            self._job.terminate()
        self._job.close()
        for thread in self._threads:
            thread.join(_PATIENCE_S)
        if self._threads:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        for end in (self._events, self._bell, self._output, self._pipe):
            end.close()
