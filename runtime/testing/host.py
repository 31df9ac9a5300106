"""The process that owns the engine which all processes of a test run share.

It is started by the first of them that needs the engine and ends with the run: when it is told to,
or when the process that runs the tests (with pytest-xdist the one that controls the workers) ends,
however that comes about. Should it be killed itself, the engine's keeper ends the engine.

Started with its task as JSON on standard input; says on standard output, in one line, where it
listens, or the error that kept the engine from starting.
"""

from __future__ import annotations

import base64
import os
import pickle
import shutil
import signal
import sys
import threading
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from runtime.errors import LLMError
from runtime.server import registry
from runtime.server.manager import ServerManager
from runtime.settings import ServerConfig


class Task(BaseModel):
    """What a host is told.

    Attributes:
        config: Fields of the server's configuration.
        address: The socket to listen on.
        key: Proves to the host that a caller belongs to the run, and the other way round.
        owner_pid: The process to end with.
        owner_birth: What tells it from a later one with the same id.
    """

    config: dict[str, Any]
    address: str
    key: str
    owner_pid: int
    owner_birth: str


def main() -> None:
    """Run a host."""
    task = Task.model_validate_json(sys.stdin.buffer.read())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    manager = ServerManager(ServerConfig(**task.config), offline=True)
    threading.Thread(target=_end_with_owner, args=(task, manager), daemon=True).start()
    try:
        manager.start()
        with Listener(task.address, "AF_UNIX", authkey=bytes.fromhex(task.key)) as listener:
            _say(None)
            while True:
                _serve_next(listener, manager)
    except LLMError as exc:
        _say(exc)
    finally:
        manager.stop()


def _say(error: LLMError | None) -> None:
    sys.stdout.buffer.write(base64.b64encode(pickle.dumps(error)) + b"\n")
    sys.stdout.buffer.flush()
    os.close(1)  # nobody reads on


def _end_with_owner(task: Task, manager: ServerManager) -> None:
    try:
        if registry.birth(task.owner_pid) == task.owner_birth:
            psutil.Process(task.owner_pid).wait()
    except psutil.NoSuchProcess:
        pass  # it ended just now
    manager.stop()
    # Nobody else is left who would; other hosts of the run may be about it as well.
    shutil.rmtree(Path(task.address).parent, ignore_errors=True)
    os._exit(0)


def _serve_next(listener: Listener, manager: ServerManager) -> None:
    try:
        connection = listener.accept()
    except (OSError, EOFError, AuthenticationError):  # a caller that left, or a stranger
        return
    threading.Thread(target=_serve, args=(connection, manager), daemon=True).start()


def _serve(connection: Connection, manager: ServerManager) -> None:
    answer: object
    with connection:
        try:
            match connection.recv():
                case ("endpoint", float(timeout_s)):
                    answer = manager.endpoint(timeout_s)
                case ("snapshot", _):
                    answer = manager.snapshot().to_dict()
                case ("logs", int(count)):
                    answer = manager.logs(count)
                case unknown:
                    answer = ValueError(f"no such request: {unknown!r}")
        except LLMError as exc:
            answer = exc
        connection.send(answer)


if __name__ == "__main__":
    main()
