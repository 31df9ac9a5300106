"""The rules that requests to the gateway must keep to, made of what a person writes."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from runtime.errors import ConfigError
from runtime.settings import ENV_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

log = logging.getLogger(__name__)

KEY_VARIABLE: Final = ENV_PREFIX + "API_KEY"
MAX_BODY_BYTES: Final = 32 << 20
HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a request must keep to. :func:`rules_for` makes them of what a person writes.

    Attributes:
        keys: Any of them opens every path; without one none is asked for.
        hosts: Names besides loopback and the address that was connected to, in lower case, each
            with its port or, without one, for every port.
        origins: Origins of web pages that may use the API, exactly as browsers send them.
        open_paths: Read without a key; what ends in ``/`` stands for all below it.
        max_body_bytes: Longest body.
        max_header_bytes: Names and values of all headers together.
        body_patience_s: Seconds until a body must be complete.
        write_patience_s: Seconds that a client may leave a piece of an answer unread.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    open_paths: tuple[str, ...] = ("/", "/health", "/favicon.ico", "/page/")
    max_body_bytes: int = MAX_BODY_BYTES
    max_header_bytes: int = 16 << 10
    body_patience_s: float = 60.0
    write_patience_s: float = 60.0


def rules_for(
    host: str,
    *,
    keys: Iterable[str] = (),
    allow_hosts: Iterable[str] = (),
    allow_origins: Iterable[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
) -> Rules:
    """The rules of a gateway that listens on ``host``.

    Raises:
        ConfigError: Others can reach the address and there is no key, or a key, a host or an
            origin cannot be right.
    """
    checked = tuple(dict.fromkeys(keys))
    for number, key in enumerate(checked, 1):
        if not key or not all("!" <= character <= "~" for character in key):
            raise ConfigError(  # says nothing of the key itself
                f"API key number {number} is empty or holds what an HTTP header cannot.",
                hint="A key is made of printable ASCII characters without blanks.",
            )
    if not checked and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and no key is set.",
            hint=f"Set {KEY_VARIABLE} or --api-key-file, or serve on 127.0.0.1.",
        )
    return Rules(
        keys=checked,
        hosts=frozenset(map(_checked_host, allow_hosts)),
        origins=frozenset(map(_checked_origin, allow_origins)),
        max_body_bytes=max_body_bytes,
    )


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def keys_from_file(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; blank lines and those that begin with ``#`` are none.

    Raises:
        ConfigError: It cannot be read, or holds no key.
    """
    try:
        text = path.read_text("utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is no text"
        raise ConfigError(
            f"Cannot read the key file {path}: {reason}.", hint="Check the path."
        ) from exc
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("other users may read the key file %s: chmod 600 %s", path, path)
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"The key file {path} is empty.", hint="Write one key a line into it.")
    return keys


def _checked_host(text: str) -> str:
    if HOST.fullmatch(text) is None:
        raise ConfigError(
            f"The host {text!r} is no name of a machine.",
            hint="It looks like llm.example.org or llm.example.org:8443.",
        )
    return text.lower()


def _checked_origin(text: str) -> str:
    parts = urlsplit(text)
    whole = f"{parts.scheme}://{parts.netloc}"
    if (
        not parts.scheme
        or not parts.netloc
        or whole != text
        or HOST.fullmatch(parts.netloc) is None
    ):
        raise ConfigError(
            f"The origin {text!r} is none that a browser sends.",
            hint="It is exactly scheme://name[:port], such as http://localhost:3000. There is no "
            "wildcard: name each page.",
        )
    return text.lower()
