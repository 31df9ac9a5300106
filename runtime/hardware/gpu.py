"""The GPUs of this machine: a quick guess without asking anyone, and the tools' own reports."""

from __future__ import annotations

import os
import platform as host
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.hardware.gpu_reports import (
    NVIDIA_SMI_FIELDS,
    Gpu,
    read_amd_smi,
    read_nvidia_smi,
    read_rocm_smi,
    read_system_profiler,
    read_vulkaninfo,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Gpu", "gpu_hint", "gpus"]

TOOL_TIMEOUT_S: Final = 5.0

# Device files that a driver makes when it has found a GPU; dxg is Windows' GPU seen from WSL.
_DEVICE_FILES: Final = ("nvidia[0-9]*", "nvhost-gpu", "kfd", "dri/renderD*", "dxg")


def gpu_hint(
    root: Path = Path("/"), *, platform: str = sys.platform, machine: str | None = None
) -> bool:
    """Whether there may be a GPU, in well under a millisecond and without starting anything.

    True for Macs with Apple's own chip and where a device file of a GPU driver exists. It errs on
    the side of true: whether an engine can use the GPU, only the engine knows.
    """
    if platform == "darwin":
        return (machine or host.machine()) == "arm64"
    return any(True for pattern in _DEVICE_FILES for _ in (root / "dev").glob(pattern))


def gpus(
    *,
    path: str | None = None,
    platform: str = sys.platform,
    timeout_s: float = TOOL_TIMEOUT_S,
    total_s: float = 4 * TOOL_TIMEOUT_S,
) -> tuple[Gpu, ...]:
    """The GPUs that the tools installed here report, unusable ones with their problem.

    Starts up to four programs, each bounded by ``timeout_s``: for ``doctor`` and the like, not for
    a server's start.

    Args:
        path: Where tools are looked for, in the form of ``$PATH``; None for ``$PATH``.
        platform: As in ``sys.platform``.
        timeout_s: Longest time for one tool.
        total_s: Longest time for all of them; one that hangs leaves the others what is left.
    """
    until_s = time.monotonic() + total_s

    def tool(name: str) -> str | None:
        return shutil.which(name, path=path)

    def ask(*command: str) -> _Answer:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return _Answer("", "it was not asked, because others before it took all the time")
        return _ask(command, min(timeout_s, left_s))

    found: list[Gpu] = []
    if platform == "darwin":
        if profiler := tool("system_profiler"):
            answer = ask(profiler, "-json", "SPDisplaysDataType")
            found += _report("system_profiler", "GPU", answer, read_system_profiler)
        return tuple(found)
    if smi := tool("nvidia-smi"):
        fields = ",".join(NVIDIA_SMI_FIELDS)
        answer = ask(smi, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
        found += _report("nvidia-smi", "NVIDIA GPU", answer, read_nvidia_smi)
    found += _amd(tool, ask)
    if not any(gpu.usable for gpu in found) and (vulkan := tool("vulkaninfo")):
        # Only it knows Intel's, and a GPU whose own tool fails may still work with Vulkan.
        answer = ask(vulkan, "--summary")
        found += read_vulkaninfo(answer.output) if answer.problem is None else ()
    return tuple(found)


def _amd(tool: Callable[[str], str | None], ask: Callable[..., _Answer]) -> tuple[Gpu, ...]:
    """By amd-smi, or by the older rocm-smi where there is none or it fails."""
    found: tuple[Gpu, ...] = ()
    if smi := tool("amd-smi"):
        static = ask(smi, "static", "--asic", "--vram", "--json")
        usage = ask(smi, "metric", "--mem-usage", "--json") if static.problem is None else static
        found = _report("amd-smi", "AMD GPU", static, lambda text: read_amd_smi(text, usage.output))
    if not any(gpu.usable for gpu in found) and (smi := tool("rocm-smi")):
        answer = ask(smi, "--showproductname", "--showmeminfo", "vram", "--json")
        older = _report("rocm-smi", "AMD GPU", answer, read_rocm_smi)
        found = older if any(gpu.usable for gpu in older) else found or older
    return found


def _report(
    source: str, name: str, answer: _Answer, read: Callable[[str], tuple[Gpu, ...]]
) -> tuple[Gpu, ...]:
    """The GPUs in a tool's answer, or one that stands for the tool's failure."""
    problem = answer.problem
    if problem is None:
        try:
            found = read(answer.output)
        except ValueError as exc:
            problem = f"its answer cannot be read: {exc}"
        else:
            if found:
                return found
            problem = "it lists none"
    return (Gpu(name=name, source=source, problem=f"{source}: {problem}"),)


@dataclass(frozen=True, slots=True)
class _Answer:
    output: str
    problem: str | None


def _ask(command: Sequence[str], timeout_s: float) -> _Answer:
    """Runs a tool to its end or to the timeout; nothing of it is left running."""
    from runtime import programs  # noqa: PLC0415 - not needed to guess

    try:
        ran = programs.run(command, env={**os.environ, "LC_ALL": "C"}, timeout_s=timeout_s)
    except OSError as exc:
        return _Answer("", f"it cannot be started: {exc.strerror or exc}")
    if ran.returncode is None:
        return _Answer("", f"it gave no answer within {timeout_s:.3g} s")
    if ran.returncode == 0:
        return _Answer(ran.output, None)
    said = (line.strip() for line in f"{ran.output}\n{ran.errors}".splitlines())
    first = next((line for line in said if line), "")
    ending = f"exit code {ran.returncode}"
    return _Answer(ran.output, f"{first[:200]} ({ending})" if first else ending)
