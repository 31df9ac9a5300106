"""Who listens on a port, so that a key goes to nobody but the engine it was made for."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import psutil

from runtime.server.sockets import TABLES, ask_kernel, parse_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from runtime.server.sockets import Listener

Verdict = Literal["engine", "other", "unknown"]

_MAPPED: Final = bytes(10) + b"\xff\xff"  # an IPv4 address as IPv6 (RFC 4291, section 2.5.5.2)
_ANY: Final = frozenset({bytes(4), bytes(16), _MAPPED + bytes(4)})


def reached(listeners: Iterable[Listener], host: str, port: int) -> Sequence[Listener]:
    """Those that a connection to ``host`` may end at.

    The kernel prefers a socket bound to that very address to one bound to any; several can share
    one by SO_REUSEPORT, which llama.cpp's server sets.
    """
    here = [listener for listener in listeners if listener.port == port]
    target = _packed(host)
    if target is None or target in _ANY:
        return here
    same = {target, _MAPPED + target} if len(target) == 4 else {target}
    anywhere = _ANY if len(target) == 4 else {bytes(16)}
    exact = [listener for listener in here if listener.address in same]
    return exact or [listener for listener in here if listener.address in anywhere]


def _packed(host: str) -> bytes | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, host)
        except OSError:
            continue
    return None  # a name: whatever listens on the port may be meant


def who_listens(base_url: str, *, pid: int) -> Verdict:
    """Whether the process ``pid`` or one below it listens there, and nobody else.

    ``"unknown"`` where the system does not say: another user's process, or no such table.
    """
    parts = urlsplit(base_url)
    host, port = parts.hostname or "", parts.port or 0
    tables = [table for table in TABLES if table.exists()]
    if not tables:
        return _ask_psutil(pid, port)
    try:
        wanted = _listening(host, port) or _in_tables(tables, host, port)
    except OSError:
        return "unknown"
    if not wanted:
        return "unknown"
    found: set[int] = set()
    try:
        found = _sockets(pid)
        if not wanted <= found:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(pid).children(recursive=True):
                    found |= _sockets(child.pid)
    except (OSError, psutil.AccessDenied):
        return "engine" if wanted <= found else "unknown"
    return "engine" if wanted <= found else "other"


def _listening(host: str, port: int) -> set[int]:
    """The sockets that a connection may end at, as the kernel tells; empty where it does not."""
    try:
        found = [*ask_kernel(socket.AF_INET, port), *ask_kernel(socket.AF_INET6, port)]
    except OSError:
        return set()
    return {listener.inode for listener in reached(found, host, port)}


def _in_tables(tables: Iterable[Path], host: str, port: int) -> set[int]:
    """The same out of ``/proc``.

    Raises:
        OSError: A table cannot be read.
    """
    for table in tables:
        # The second is asked only when the first knows of none: each takes the kernel some
        # milliseconds where there are many connections.
        found = reached(parse_table(table.read_text("ascii")), host, port)
        if found:
            return {listener.inode for listener in found}
    return set()


def _sockets(pid: int) -> set[int]:
    """The sockets that a process holds; one that has ended holds none.

    Raises:
        OSError: Its descriptors cannot be read.
    """
    found: set[int] = set()
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - names, not paths
    except OSError:
        if _is_gone(pid):
            return found
        raise
    for descriptor in descriptors:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            # "socket:[4711]" is no path.
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")  # noqa: PTH115
            if target.startswith("socket:["):
                found.add(int(target[len("socket:[") : -1]))
    return found


def _is_gone(pid: int) -> bool:
    """Whether a process has ended, collected or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _ask_psutil(pid: int, port: int) -> Verdict:
    try:
        process = psutil.Process(pid)
        held = [
            at.laddr.port
            for each in (process, *process.children(recursive=True))
            for at in each.net_connections("tcp")
            if at.status == psutil.CONN_LISTEN and at.laddr
        ]
    except (psutil.Error, OSError):
        return "unknown"
    return "engine" if port in held else "unknown"


def holder(port: int) -> str | None:
    """The name and number of a process that listens on a port, where the system lets us see it."""
    try:
        for at in psutil.net_connections("tcp"):
            if at.status == psutil.CONN_LISTEN and at.laddr and at.laddr.port == port and at.pid:
                mine = " (this process)" if at.pid == os.getpid() else ""
                return f"{psutil.Process(at.pid).name()}, process {at.pid}{mine}"
    except (psutil.Error, OSError):
        return None
    return None
