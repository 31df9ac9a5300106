"""The listening TCP sockets of this machine, as the Linux kernel tells of them."""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTEN: Final = " 0A "

# linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h; sock_diag(7).
_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_REQUEST_DUMP: Final = 0x301
_ERROR: Final = 2
_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_QUESTION: Final = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_SOCKET_ID_BYTES: Final = 48
_ADDRESS_AT: Final = 8
_INODE_AT: Final = 68
_ANSWER_BYTES: Final = 72
_ANSWER_WITHIN_S: Final = 1.0


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


def ask_kernel(family: socket.AddressFamily, port: int) -> list[Listener]:
    """The sockets that listen on a port, asked for by sock_diag(7).

    The kernel looks at listening sockets alone, and takes microseconds; for a table in ``/proc`` it
    walks through all connections, those that have ended within the last minute too.

    Raises:
        OSError: This system does not answer such questions (no Linux, a sandbox, no such module).
    """
    if sys.platform != "linux":
        raise OSError("sock_diag is Linux's")
    name = struct.pack("!H", port).ljust(_SOCKET_ID_BYTES, b"\0")
    question = _QUESTION.pack(family, socket.IPPROTO_TCP, 0, 1 << 10) + name  # state 10: listening
    head = _HEADER.pack(_HEADER.size + len(question), _BY_FAMILY, _REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(_ANSWER_WITHIN_S)
        kernel.sendto(head + question, (0, 0))
        found: list[Listener] = []
        while True:
            data, sender = kernel.recvfrom(1 << 16)
            if sender[0] != 0:  # not the kernel's
                continue
            some, is_last = parse_answer(data)
            found += some
            if is_last:
                return found


def parse_answer(data: bytes) -> tuple[list[Listener], bool]:
    """The sockets in a piece of the kernel's answer, and whether it is the last piece.

    Raises:
        OSError: The kernel refuses.
    """
    found: list[Listener] = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        body = data[at + _HEADER.size : at + length]
        if kind in {_ERROR, _DONE}:
            number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
            if number or kind == _ERROR:
                raise OSError(number, os.strerror(number))
            return found, True
        if len(body) >= _ANSWER_BYTES:
            size = 4 if body[0] == socket.AF_INET else 16
            found.append(
                Listener(
                    address=body[_ADDRESS_AT : _ADDRESS_AT + size],
                    port=int.from_bytes(body[4:6], "big"),
                    inode=struct.unpack_from("=I", body, _INODE_AT)[0],
                )
            )
        at += max((length + 3) & ~3, _HEADER.size)
    return found, False
