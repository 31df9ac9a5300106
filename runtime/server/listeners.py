"""Who listens on a port, so that a key goes to nobody but the engine it was made for."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Verdict = Literal["engine", "other", "unknown"]

_TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN: Final = " 0A "
_MAPPED: Final = bytes(10) + b"\xff\xff"  # an IPv4 address as IPv6 (RFC 4291, section 2.5.5.2)
_ANY: Final = frozenset({bytes(4), bytes(16), _MAPPED + bytes(4)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listening TCP socket.

    Attributes:
        address: 4 or 16 bytes in network order.
        port: Its port.
        inode: The socket's number, by which a process's descriptors name it.
    """

    address: bytes
    port: int
    inode: int


def parse_table(text: str) -> Iterator[Listener]:
    """The listening sockets in the text of ``/proc/net/tcp`` or ``tcp6`` (proc_net(5))."""
    for line in text.splitlines()[1:]:
        if _LISTEN not in line:  # most are connections, and there may be many
            continue
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN.strip():
            continue
        address, _, port = fields[1].partition(":")
        raw = bytes.fromhex(address)
        if sys.byteorder == "little":  # the kernel prints words of the host's order
            raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
        yield Listener(address=raw, port=int(port, 16), inode=int(fields[9]))


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
    exact = [listener for listener in here if listener.address in same]
    return exact or [listener for listener in here if listener.address in _ANY]


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
    try:
        texts = [table.read_text("ascii") for table in _TABLES if table.exists()]
    except OSError:
        texts = []
    if not texts:
        return _ask_psutil(pid, port)
    wanted = {at.inode for text in texts for at in reached(parse_table(text), host, port)}
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
