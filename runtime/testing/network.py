"""No connection leaves this machine while a test runs that must not make one.

A Python audit hook (PEP 578) sees every use of a socket by Python code, whichever library makes it.
Such a hook cannot be taken away again: it is installed when it is first needed, and does nothing
while no test is guarded. What native code or child processes do, it does not see.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any, Final

_NAMED: Final = ("socket.connect", "socket.sendto", "socket.sendmsg")
_LOOKED_UP: Final = ("socket.getaddrinfo", "socket.gethostbyname")


class BlockedConnectionError(RuntimeError):
    """A test tried to reach another machine, and may not.

    Not an OSError: what means to deal with a network that fails is not to deal with this.

    Attributes:
        test: The test's id.
        address: Where it wanted to go.
    """

    def __init__(self, test: str, address: str) -> None:
        super().__init__(
            f"{test} tried to reach {address}; only this machine is allowed "
            "(--llama-block-network, or the marker llama_block_network)."
        )
        self.test = test
        self.address = address


class Guard:
    """Refuses, from :meth:`begin` to :meth:`end`, what leaves this machine.

    Attributes:
        attempts: What was refused since :meth:`begin`.
    """

    def __init__(self) -> None:
        self._test: str | None = None
        self._installed = False
        self.attempts: list[BlockedConnectionError] = []

    def begin(self, test: str) -> None:
        """Guard a test."""
        if not self._installed:
            sys.addaudithook(self._audit)
            self._installed = True
        self.attempts = []
        self._test = test

    def end(self) -> None:
        """Guard no longer."""
        self._test = None

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._test is None or not event.startswith("socket."):
            return
        if event in _NAMED:
            family, address = args[0].family, args[1]
            if family not in {socket.AF_INET, socket.AF_INET6} or address is None:
                return
            host, port = address[0], address[1]
        elif event in _LOOKED_UP:
            host, port = args[0], args[1] if len(args) > 1 else None
        else:
            return
        if not _is_here(host):
            shown = _text(host) if port is None else f"{_text(host)}:{port}"
            error = BlockedConnectionError(self._test, shown)
            self.attempts.append(error)
            raise error


def _text(host: object) -> str:
    return host.decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)


def _is_here(host: object) -> bool:
    """Whether a name or an address is this machine's own."""
    name = "" if host is None else _text(host).rstrip(".").lower()
    if name in {"", "localhost"} or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)
