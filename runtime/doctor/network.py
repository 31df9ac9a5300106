"""Proxies between us and ourselves, the loopback, and the gateway's port."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from runtime.doctor.finding import Finding
from runtime.errors import EngineStartError
from runtime.server import registry
from runtime.server.ports import refuse_taken_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.doctor.site import Site

_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_LOCAL: Final = ("127.0.0.1", "localhost")
_SCHEMES: Final = frozenset({"http", "https", "socks4", "socks5", "socks5h"})
_PORTS_TRIED: Final = 50


def proxies(site: Site) -> Iterator[Finding]:
    """Proxy variables, and whether they would catch what goes to this machine."""
    given = {
        name: value
        for name in _PROXIES
        if (value := site.environ.get(name.lower()) or site.environ.get(name))
    }
    if not given:
        yield Finding(id="proxy", status="ok", found="none is set")
        return
    names = ", ".join(given)
    for name, value in given.items():
        if problem := _bad_address(value):
            yield Finding(
                id="proxy.address",
                status="fail",
                found=f"{name} {problem}: downloads will fail.",
                remedy=f"export {name}=http://HOST:PORT, or unset {name} {name.lower()}",
            )
    no_proxy = site.environ.get("no_proxy") or site.environ.get("NO_PROXY") or ""
    exempt = {part.strip().lstrip(".") for part in no_proxy.split(",")}
    missing = [name for name in _LOCAL if name not in exempt and "*" not in exempt]
    local_by_range = any(part.startswith("127.") for part in exempt)
    if local_by_range:
        missing = [name for name in missing if name == "localhost"]
    if missing and set(given) & {"HTTP_PROXY", "ALL_PROXY"}:
        yield Finding(
            id="proxy.loopback",
            status="warn",
            found=f"{names} set, and NO_PROXY lacks {' and '.join(missing)}. The runtime itself "
            "never sends loopback requests to a proxy; curl and other clients of the gateway will.",
            remedy="export NO_PROXY=127.0.0.1,localhost,::1 no_proxy=127.0.0.1,localhost,::1",
        )
    else:
        yield Finding(
            id="proxy", status="ok", found=f"{names} for downloads; this machine is exempt"
        )


def _bad_address(value: str) -> str | None:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port
    except ValueError as exc:
        return f"is no address ({exc})"
    if parts.scheme not in _SCHEMES:
        return f"names a scheme that no client knows ({parts.scheme})"
    if not parts.hostname or port == 0:
        return "names no host"
    return None


def loopback(site: Site) -> Iterator[Finding]:
    """Whether a connection of this machine to itself comes up."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()[:2], timeout=site.left_s(spare_s=0.5)),
        ):
            pass
    except OSError as exc:
        yield Finding(
            id="loopback",
            status="fail",
            found=f"127.0.0.1 cannot be reached: {exc.strerror or exc}. No engine can be used.",
            remedy="sudo ip link set lo up; or take away the firewall rule or sandbox in between.",
        )
    else:
        yield Finding(id="loopback", status="ok", found="127.0.0.1 answers")


def gateway_port(site: Site) -> Iterator[Finding]:
    """Whether `serve` could have its port, or who has it."""
    host = site.config.host
    try:
        refuse_taken_port(host, site.port)
    except EngineStartError as exc:
        ours = next(
            (
                record
                for _, record, _ in registry.survey()
                if record is not None
                and record.owner_lives
                and record.base_url is not None
                and urlsplit(record.base_url).port == site.port
            ),
            None,
        )
        if ours is not None:
            yield Finding(
                id="port", status="ok", found=f"{site.port} is {ours.name}'s, which is ours"
            )
            return
        cause = exc.__cause__
        taken = isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE
        free = _free_port(host, site.port) if taken else None
        yield Finding(
            id="port",
            status="warn",
            found=exc.message,
            remedy=f"llama-runtime serve --port {free}"
            if free
            else f"If {host} is not this machine's: unset LLAMA_RUNTIME_HOST. {exc.hint}",
        )
    else:
        yield Finding(id="port", status="ok", found=f"{site.port} on {host} is free for `serve`")


def _free_port(host: str, above: int) -> int | None:
    for port in range(above + 1, min(above + _PORTS_TRIED, 65536)):
        try:
            refuse_taken_port(host, port)
        except EngineStartError:
            continue
        return port
    return None
