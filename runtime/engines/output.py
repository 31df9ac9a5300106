"""Pure readers: what the engines print, as facts."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from runtime.engines.base import Device, LogFacts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Our own host prints facts as one JSON object behind this word.
HOST_MARK = "@llama-runtime "

_LISTENING = re.compile(r"(?:listening on|Uvicorn running on) (https?://\S+?:\d+)/?(?=[\s,)]|$)")
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")


def read_log_line(line: str) -> LogFacts | None:
    """What a line says that any of the engines printed, or None when it says nothing we use."""
    if match := _LISTENING.search(line):
        return LogFacts(base_url=match[1])
    return _offloaded(line)


def read_host_line(line: str) -> LogFacts | None:
    """What a line says that our own host or the library inside it printed.

    The two write to one pipe, and the library in pieces: a line of its may have another's digits
    behind its port. So only the host's own words count, each written at once, wherever they begin.
    """
    _, mark, text = line.partition(HOST_MARK)
    return _host_facts(text) if mark else _offloaded(line)


def _offloaded(line: str) -> LogFacts | None:
    match = _OFFLOADED.search(line)
    if match is None:
        return None
    return LogFacts(layers_offloaded=int(match[1]), layers_total=int(match[2]))


def _host_facts(text: str) -> LogFacts | None:
    try:
        facts = json.loads(text)
    except json.JSONDecodeError:
        return None
    return LogFacts(
        base_url=facts.get("base_url"),
        version=facts.get("version"),
        devices=devices_from(facts.get("devices", ())),
    )


def devices_from(items: Sequence[Mapping[str, object]]) -> tuple[Device, ...]:
    """Devices as our host reports them in JSON."""
    return tuple(
        Device(
            name=str(item["name"]),
            kind="gpu" if item.get("gpu") else "cpu",
            description=str(item.get("description", "")),
            memory_total_bytes=_size(item.get("memory_total")),
            memory_free_bytes=_size(item.get("memory_free")),
        )
        for item in items
    )


def help_flags(text: str) -> frozenset[str]:
    """The long flags that a ``--help`` text lists."""
    return frozenset(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


_DEVICE_LINE = re.compile(
    r"^\s+(?P<name>[A-Za-z]+\d*): (?P<description>.*?)"
    r"(?: \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\))?$"
)


def listed_devices(text: str) -> tuple[Device, ...]:
    """Devices from the output of ``llama-server --list-devices``."""
    return tuple(
        Device(
            name=match["name"],
            kind="cpu" if match["name"].upper() in {"CPU", "BLAS"} else "gpu",
            description=match["description"],
            memory_total_bytes=int(match["total"]) << 20 if match["total"] else None,
            memory_free_bytes=int(match["free"]) << 20 if match["free"] else None,
        )
        for match in map(_DEVICE_LINE.match, text.splitlines())
        if match
    )


def _size(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and value > 0 else None
