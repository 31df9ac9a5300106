"""What the GPU tools print, as facts. Pure: text in, facts out."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from typing import Any, Final

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A graphics processor as its vendor's tool reports it.

    Attributes:
        name: Its name.
        source: The tool that reported it.
        memory_total_bytes: Its own memory; None where it has none or the tool does not say.
        problem: Why it cannot be used, or None. A tool that fails is reported as a GPU with a
            problem: it is there for a reason.
    """

    name: str
    source: str
    memory_total_bytes: int | None = None
    problem: str | None = None

    @property
    def usable(self) -> bool:
        """Whether nothing is known to stand in the way."""
        return self.problem is None


NVIDIA_SMI_FIELDS: Final = ("index", "name", "memory.total")


def read_nvidia_smi(text: str) -> tuple[Gpu, ...]:
    """``nvidia-smi --query-gpu=… --format=csv,noheader,nounits`` with :data:`NVIDIA_SMI_FIELDS`.

    GPUs that share main memory (GB10, Jetson) say ``[N/A]`` for theirs; a GPU in trouble says so in
    the same place (``[GPU is lost]``, ``[Unknown Error]``).
    """
    found: list[Gpu] = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) != len(NVIDIA_SMI_FIELDS) or not row[0].strip().isdigit():
            continue
        _, name, total = (cell.strip() for cell in row)
        trouble = next(
            (
                cell.strip("[]")
                for cell in (total, name)
                if cell.startswith("[") and cell not in {"[N/A]", "[Not Supported]"}
            ),
            None,
        )
        found.append(
            Gpu(
                name="NVIDIA GPU" if name.startswith("[") else name,
                source="nvidia-smi",
                memory_total_bytes=int(total) * _MIB if total.isdigit() else None,
                problem=f"nvidia-smi says: {trouble}" if trouble else None,
            )
        )
    return tuple(found)


def read_rocm_smi(text: str) -> tuple[Gpu, ...]:
    """``rocm-smi --showproductname --showmeminfo vram --json``.

    Raises:
        ValueError: It is no JSON object.
    """
    found: list[Gpu] = []
    for key, card in _json_object(text).items():
        if not re.fullmatch(r"card\d+", key) or not isinstance(card, dict):
            continue
        total = str(card.get("VRAM Total Memory (B)"))
        names = ("Card Series", "Card series", "Device Name", "Card Model", "Card model")
        found.append(
            Gpu(
                name=next((name for key in names if (name := _text(card.get(key)))), "AMD GPU"),
                source="rocm-smi",
                memory_total_bytes=int(total) if total.isdigit() else None,
            )
        )
    return tuple(found)


def read_amd_smi(static: str, metric: str) -> tuple[Gpu, ...]:
    """``amd-smi static --asic --vram --json`` and ``amd-smi metric --mem-usage --json``.

    Raises:
        ValueError: ``static`` is no JSON. Without a ``metric``, the size is that of ``static``.
    """
    try:
        usages = {entry.get("gpu"): entry.get("mem_usage") for entry in _amd_entries(metric)}
    except ValueError:
        usages = {}
    found: list[Gpu] = []
    for entry in _amd_entries(static):
        usage = usages.get(entry.get("gpu"))
        usage = usage if isinstance(usage, dict) else {}
        total = _amd_size(usage.get("total_vram")) or _amd_size(_inner(entry, "vram").get("size"))
        found.append(
            Gpu(
                name=_text(_inner(entry, "asic").get("market_name")) or "AMD GPU",
                source="amd-smi",
                memory_total_bytes=total,
            )
        )
    return tuple(found)


def read_system_profiler(text: str) -> tuple[Gpu, ...]:
    """``system_profiler -json SPDisplaysDataType``.

    Raises:
        ValueError: It is no JSON object.
    """
    displays = _json_object(text).get("SPDisplaysDataType")
    found: list[Gpu] = []
    for entry in displays if isinstance(displays, list) else ():
        if not isinstance(entry, dict):
            continue
        name = _text(entry.get("sppci_model")) or _text(entry.get("_name")) or "GPU"
        metal = entry.get("spdisplays_mtlgpufamilysupport") or entry.get("spdisplays_metal")
        apple = "apple" in f"{entry.get('spdisplays_vendor', '')} {name}".lower()
        shared = apple or "spdisplays_vram_shared" in entry
        found.append(
            Gpu(
                name=name,
                source="system_profiler",
                memory_total_bytes=None if shared else _written_size(entry.get("spdisplays_vram")),
                problem=None if metal else "it does not support Metal",
            )
        )
    return tuple(found)


def read_vulkaninfo(text: str) -> tuple[Gpu, ...]:
    """``vulkaninfo --summary``, without processors that only play a GPU (llvmpipe).

    It does not tell the size of memory. A GPU that two drivers serve is listed twice and kept once.
    """
    found: dict[str, Gpu] = {}
    for block in re.split(r"^GPU\d+:\s*$", text, flags=re.MULTILINE)[1:]:
        facts = dict(re.findall(r"^\s+(\w+)\s+= (.*?)\s*$", block, re.MULTILINE))
        kind = facts.get("deviceType", "").removeprefix("PHYSICAL_DEVICE_TYPE_")
        if kind not in {"DISCRETE_GPU", "INTEGRATED_GPU", "VIRTUAL_GPU"}:
            continue
        name = facts.get("deviceName", "GPU")
        identity = (facts.get("vendorID", ""), facts.get("deviceID", ""), facts.get("deviceUUID"))
        gpu = Gpu(name=name, source="vulkaninfo")
        found.setdefault(repr(identity) if identity[2] else name, gpu)
    return tuple(found.values())


def _json_object(text: str) -> dict[str, Any]:
    """The object in ``text``, which warnings may stand before."""
    start = text.find("{")
    value, _ = json.JSONDecoder().raw_decode(text[start:] if start >= 0 else text)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - one kind of failure for callers
    return value


def _amd_entries(text: str) -> list[dict[str, Any]]:
    """One entry for each GPU; newer versions put the list into ``gpu_data``."""
    starts = [at for at in (text.find("["), text.find("{")) if at >= 0]
    value, _ = json.JSONDecoder().raw_decode(text[min(starts) :] if starts else text)
    if isinstance(value, dict):
        value = value.get("gpu_data", [value])
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _inner(entry: dict[str, Any], key: str) -> dict[str, Any]:
    value = entry.get(key)
    return value if isinstance(value, dict) else {}


def _amd_size(value: object) -> int | None:
    """``{"value": 8176, "unit": "MB"}`` in bytes; amd-smi's MB are mebibytes."""
    if isinstance(value, dict):
        number, unit = value.get("value"), value.get("unit", "MB")
        scale = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}.get(str(unit))
        if isinstance(number, int | float) and scale:
            return int(number * scale)
    return None


def _text(value: object) -> str | None:
    return value.strip() if isinstance(value, str) and value.strip() not in {"", "N/A"} else None


def _written_size(value: object) -> int | None:
    match = re.fullmatch(r"(\d+) ([MG])B", str(value).strip())
    return int(match[1]) * (_MIB if match[2] == "M" else _MIB << 10) if match else None
