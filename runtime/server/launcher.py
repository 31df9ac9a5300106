"""Starting an engine process and holding on to it, through its keeper."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runtime.engines.inspection import clean_environment
from runtime.errors import EngineStartError
from runtime.server import registry

if TYPE_CHECKING:
    from runtime.engines.base import EngineCommand

_KEEPER = Path(__file__).with_name("keeper") / "start.py"
LOG_MAX_BYTES = 10 << 20
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """The engine process exists."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecFailed:
    """The engine's program could not be executed."""

    errno: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The engine process has ended and nothing of it is left.

    Attributes:
        code: Its exit code, or None.
        signal: The number of the signal that ended it, or None.
        keeper_lost: The keeper ended first, by foul play; how the engine ended is not known.
    """

    code: int | None = None
    signal: int | None = None
    keeper_lost: bool = False


ProcessEvent = Spawned | ExecFailed | Exited


class EngineProcess(Protocol):
    """One engine process and what ends it with its owner. The supervisor's thread owns it.

    Attributes:
        events_fd: Readable when :meth:`read_events` has something.
        output_fd: Readable when :meth:`read_output` has something.
        pid: The engine's process id, once it exists.
    """

    events_fd: int
    output_fd: int
    pid: int | None

    @property
    def keeper_pid(self) -> int | None:
        """The keeper's process id, where there is a keeper."""
        ...

    def terminate(self, reason: str) -> None:
        """Ask the engine's process group to end; the log will say why."""
        ...

    def kill(self, reason: str) -> None:
        """End the engine's process group at once; the log will say why."""
        ...

    def kill_keeper(self) -> None:
        """End a keeper that does not obey, and its engine with it."""
        ...

    def read_events(self) -> list[ProcessEvent]:
        """What happened since the last call; :class:`Exited` is the last."""
        ...

    def read_output(self) -> bytes | None:
        """Output since the last call: None when there is none yet, empty at its end."""
        ...

    def close(self) -> None:
        """Let go of the descriptors; ends what is still there."""
        ...


def launch(command: EngineCommand, *, log_path: Path | None, name: str) -> EngineProcess:
    """Start an engine in the way of this platform.

    Args:
        command: How to start the engine.
        log_path: The file for its output.
        name: The server's, as in its record: a mark in the engine's environment.

    Raises:
        EngineStartError: The system allows no further process or descriptor.
    """
    if sys.platform == "win32":
        from runtime.server.jobs import KillOnCloseJob, windows_api  # noqa: PLC0415
        from runtime.server.windows import JobProcess  # noqa: PLC0415

        job = KillOnCloseJob(windows_api())
        return JobProcess(command, log_path=log_path, name=name, job=job)
    process = KeptProcess(command, name=name)
    process.begin(command, log_path=log_path)
    return process


class KeptProcess:
    """One engine process under its keeper."""

    def __init__(self, command: EngineCommand, *, name: str) -> None:
        """Start the keeper, which starts the engine; it waits for its input. As :func:`launch`."""
        self._argv = list(command.argv)
        self._env = {**clean_environment(command.env), registry.MARK: name}
        task = {
            "argv": self._argv,
            "env": self._env,
            "owner_pid": os.getpid(),
            "record_path": str(registry.path_of(name)),
        }
        with contextlib.ExitStack() as undo:
            try:
                owner_fd = os.pidfd_open(os.getpid()) if hasattr(os, "pidfd_open") else -1
                if owner_fd >= 0:
                    undo.callback(os.close, owner_fd)
                control_read, control = os.pipe()
                undo.callback(os.close, control_read)
                failed = undo.enter_context(contextlib.ExitStack())
                failed.callback(os.close, control)
                self.events_fd, events = os.pipe()
                undo.callback(os.close, events)
                failed.callback(os.close, self.events_fd)
                self.output_fd, output = os.pipe()
                undo.callback(os.close, output)
                failed.callback(os.close, self.output_fd)
                self._keeper = subprocess.Popen(
                    # Isolated and without site: it starts in a few milliseconds.
                    [sys.executable, "-I", "-S", "-u", str(_KEEPER)],
                    stdin=control_read,
                    stdout=events,
                    stderr=output,
                    pass_fds=(owner_fd,) if owner_fd >= 0 else (),
                    start_new_session=True,  # a terminal's Ctrl-C is the owner's to handle
                    env={},
                )
            except OSError as exc:
                raise EngineStartError(
                    f"The system refused a new process: {exc.strerror or exc}.",
                    diagnosis="no_process",
                    hint="Close programs, or raise the limits of processes and open files.",
                ) from exc
            failed.pop_all()
        os.set_blocking(self.events_fd, False)
        os.set_blocking(self.output_fd, False)
        self._control = control
        self._pending = b""
        self._ended = False
        self.pid: int | None = None
        self._send(json.dumps({**task, "owner_fd": owner_fd}))

    @property
    def keeper_pid(self) -> int:
        """The keeper's process id."""
        return self._keeper.pid

    def _send(self, line: str) -> None:
        # The keeper reads at once; one that is dead shows as the end of its events.
        data = line.encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._control, data) :]

    def is_for(self, command: EngineCommand) -> bool:
        """Whether starting ``command`` now would start the same program in the same environment."""
        env = {**clean_environment(command.env), registry.MARK: self._env[registry.MARK]}
        return list(command.argv) == self._argv and env == self._env

    def begin(self, command: EngineCommand, *, log_path: Path | None) -> None:
        """Give it the input of ``command``; its output goes to the log and can be read from now."""
        facts = {
            "stdin": command.stdin.decode(),
            "log_path": str(log_path) if log_path else None,
            "log_max_bytes": LOG_MAX_BYTES,
        }
        self._send(f"begin {json.dumps(facts)}")

    def terminate(self, reason: str) -> None:
        """Ask the engine's process group to end (SIGTERM); the log will say why."""
        self._send(f"term {' '.join(reason.split())}")

    def kill(self, reason: str) -> None:
        """End the engine's process group at once (SIGKILL); the log will say why."""
        self._send(f"kill {' '.join(reason.split())}")

    def kill_keeper(self) -> None:
        """End a keeper that does not obey; the kernel then ends its engine."""
        self._keeper.kill()

    def read_events(self) -> list[ProcessEvent]:
        """What the keeper said since the last call; :class:`Exited` is the last thing it says."""
        data = _read(self.events_fd)
        if data is None:
            return []
        *lines, self._pending = (self._pending + data).split(b"\n")
        events = [self._event(json.loads(line)) for line in lines]
        if not data and not self._ended:
            events.append(Exited(keeper_lost=True))
        self._ended = self._ended or any(not isinstance(event, Spawned) for event in events)
        return events

    def _event(self, facts: dict[str, Any]) -> ProcessEvent:
        match facts["event"]:
            case "spawned":
                self.pid = facts["pid"]
                return Spawned(pid=facts["pid"])
            case "exec_failed":
                return ExecFailed(errno=facts["errno"], path=facts["path"])
            case _:
                return Exited(code=facts.get("code"), signal=facts.get("signal"))

    def read_output(self) -> bytes | None:
        """Output since the last call: None when there is none yet, empty at its end."""
        return _read(self.output_fd)

    def close(self) -> None:
        """Let go of the descriptors and collect the keeper; kills what is still there."""
        os.close(self._control)
        try:
            self._keeper.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        os.close(self.events_fd)
        os.close(self.output_fd)


def _read(fd: int) -> bytes | None:
    try:
        return os.read(fd, _CHUNK)
    except BlockingIOError:
        return None
