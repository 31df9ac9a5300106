"""How a server is reached: sockets with one deadline, TLS, and the header fields of a request."""

from __future__ import annotations

import functools
import io
import socket
import ssl
import time
from typing import TYPE_CHECKING

from runtime.inference.effects import ExpiredError, UnreachableError, UntrustedError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from runtime.inference.effects import Open

_PACKET_BYTES = 64 * 1024


class DeadlineSocket:
    """What http.client needs of a socket, with one instant by which everything must be done."""

    def __init__(self, connected: socket.socket, until: float) -> None:
        self.until = until
        self._socket = connected

    def sendall(self, data: bytes) -> None:
        """Send it all."""
        self.hurry()
        self._socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002 - http.client asks for "rb"
        """What the response is read from."""
        return io.BufferedReader(_Packets(self), _PACKET_BYTES)

    def receive_into(self, buffer: WriteableBuffer) -> int:
        """The next bytes; returns how many."""
        self.hurry()
        return self._socket.recv_into(buffer)

    def hurry(self) -> None:
        """Let the next call take no longer than there is time."""
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def shut_down(self) -> None:
        """Wake who reads or writes; any thread may."""
        try:
            # Not SSLSocket's own method, which takes the TLS state away from who reads just now.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        except OSError:
            return  # it ended by itself, or its thread closed it just now

    def close(self) -> None:
        """Not yet: http.client lets go of the socket as soon as it has a response to read from."""

    def hang_up(self) -> None:
        """Close the connection."""
        self._socket.close()


class _Packets(io.RawIOBase):
    """The bytes of a deadline socket, as http.client's reader wants them."""

    def __init__(self, source: DeadlineSocket) -> None:
        super().__init__()
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._source.receive_into(buffer)


def connect(scheme: str, host: str, port: int | None, effect: Open) -> DeadlineSocket:
    """A connection to a server, with TLS where the scheme asks for it.

    Raises:
        WireError: There is none, or not in time.
        TimeoutError: There is no time left at all.
    """
    secure = scheme == "https"
    seconds = min(effect.connect_timeout_s, effect.until - time.monotonic())
    if seconds <= 0:
        raise TimeoutError
    try:
        connected = socket.create_connection((host, port or (443 if secure else 80)), seconds)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except TimeoutError as exc:
        raise ExpiredError(f"no connection to {host}", connecting=True) from exc
    except (OSError, UnicodeError) as exc:  # UnicodeError: a name that IDNA cannot encode
        raise UnreachableError(str(exc)) from exc
    if secure:
        connected = _secured(connected, host)
    return DeadlineSocket(connected, effect.until)


@functools.cache
def tls_context() -> ssl.SSLContext:
    """What TLS connections trust: the system's authorities, read once (some 20 ms)."""
    return ssl.create_default_context()


def _secured(connected: socket.socket, host: str) -> socket.socket:
    """The connection with TLS on it; within what is left of the time to connect."""
    try:
        return tls_context().wrap_socket(connected, server_hostname=host)
    except TimeoutError as exc:
        connected.close()
        raise ExpiredError(f"no TLS with {host}", connecting=True) from exc
    except (OSError, UnicodeError) as exc:
        connected.close()
        raise no_tls(host, exc) from exc


def no_tls(host: str, why: BaseException) -> UnreachableError:
    """What it means that TLS with a host failed."""
    if isinstance(why, ssl.SSLCertVerificationError):
        return UntrustedError(why.verify_message)
    return UnreachableError(f"no TLS with {host}: {why}")


def headers(api_key: str | None, *, has_body: bool) -> dict[str, str]:
    """The header fields of a request, besides those that HTTP itself needs."""
    fields = {"Connection": "close", "User-Agent": "llama-runtime"}
    if has_body:
        fields["Content-Type"] = "application/json"
    if api_key:
        fields["Authorization"] = f"Bearer {api_key}"
    return fields
