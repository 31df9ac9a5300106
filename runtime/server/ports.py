"""A fixed port: refused beforehand where it cannot be had, with who holds it and what to do."""

from __future__ import annotations

import errno
import shlex
import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import psutil

from runtime.errors import ConfigError, EngineStartError
from runtime.server import registry
from runtime.server.listeners import holder

if TYPE_CHECKING:
    from runtime.server.registry import ServerRecord
    from runtime.settings import ServerConfig

_ROLES: Final = {"serve": "the gateway", "engine": "an engine of a gateway, called"}
_COMMAND_CHARS: Final = 200


def port_of(record: ServerRecord) -> int | None:
    """The port that a managed server listens on, or None while it does not."""
    return urlsplit(record.base_url).port if record.base_url else None


def refuse_shared_port(config: ServerConfig) -> None:
    """Refuse a standby for a server whose engine has a fixed port.

    Raises:
        ConfigError: Both are wanted.
    """
    if config.standby and config.port:
        raise ConfigError(
            f"standby needs port=0: two engines cannot both listen on port {config.port}.",
            hint="Leave port out; `llama-runtime serve --standby` has a fixed address, for it "
            "listens itself.",
        )


def refuse_taken_port(host: str, port: int) -> None:
    """Find out before the launch whether a fixed port is free.

    Raises:
        EngineStartError: It is taken, by whom if that can be seen, or the address is not ours.
    """
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as exc:
            raise unusable(host, port, exc) from exc


def unusable(host: str, port: int, exc: OSError) -> EngineStartError:
    """The error for an address that could not be bound."""
    reason = exc.strerror or str(exc)
    if exc.errno == errno.EADDRINUSE:
        return _taken(host, port, reason)
    hint = "Name an address of this machine with --host."
    if exc.errno in {errno.EACCES, errno.EPERM}:
        hint = "Choose a port from 1024 on with --port: those below are the system's."
    return EngineStartError(
        f"Port {port} on {host} cannot be used: {reason}.", diagnosis="port_taken", hint=hint
    )


def _taken(host: str, port: int, reason: str) -> EngineStartError:
    another = "Choose another with --port (0 for any free one)"
    # A gateway stands before its engine: it is the one to name.
    ours = sorted(
        (record for record in registry.running(everything=True) if port_of(record) == port),
        key=lambda record: record.role != "serve",
    )
    if ours:
        record = ours[0]
        by = f"{_ROLES.get(record.role, 'the server')} {record.name}, which serves {record.model}"
        command = _command(record.owner_pid)
        by += f" (process {record.owner_pid}{f': {command}' if command else ''})"
        hint = f"{another}, or end that one: llama-runtime stop {record.name}"
        if record.role != "serve":
            hint = f"{another}, or end its program, process {record.owner_pid}."
    else:
        seen = holder(port)
        by = seen or "a program that the system does not let us see"
        hint = f"{another}, or end that program."
    return EngineStartError(
        f"Port {port} on {host} cannot be used: {reason}. It is held by {by}.",
        diagnosis="port_taken",
        hint=hint,
    )


def _command(pid: int) -> str | None:
    """The command line of a process of ours; no key is ever on one."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return None
    return shlex.join(words)[:_COMMAND_CHARS] or None
