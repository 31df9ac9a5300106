"""How many threads of computation this process may keep busy."""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from runtime.hardware.cgroups import groups, read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuBudget:
    """The CPUs of this machine and how many of them this process may use.

    Attributes:
        physical_cores: Cores of the machine.
        logical_cpus: Hardware threads of the machine.
        affinity: Hardware threads this process may run on.
        quota: CPUs' worth of time that the control groups allow, or None for no limit.
        threads: Threads to compute with: the least of all these, at least 1.
        why: Which of them decided, one sentence.
    """

    physical_cores: int
    logical_cpus: int
    affinity: int
    quota: float | None
    threads: int
    why: str


def cpu_budget(root: Path = Path("/")) -> CpuBudget:
    """Looks at cores, affinity mask and control groups below ``root``; a few milliseconds.

    Two threads on one core do not make matrix products faster, so a core counts once.
    """
    online = parse_cpu_list(read_text(root / "sys/devices/system/cpu/online") or "")
    if not online:
        return _portable_budget()
    cores = _cores(root, online)
    allowed = _allowed(root) & online or online
    fast = parse_cpu_list(read_text(root / "sys/devices/cpu_core/cpus") or "") & online
    counted = allowed & fast or allowed
    return _decide(
        physical=len(set(cores.values())),
        performance=len({cores[cpu] for cpu in fast}) if fast else None,
        logical=len(online),
        affinity=len(allowed),
        affinity_cores=len({cores[cpu] for cpu in counted}),
        quota=_quota(root),
    )


def cpu_features(root: Path = Path("/")) -> tuple[str, frozenset[str]]:
    """The kind of processor (``x86_64``, ``aarch64``, ``arm64``) and what it can do.

    The features are the kernel's names (``avx2``, ``asimddp``); empty where it does not tell.
    """
    text = read_text(root / "proc/cpuinfo") or ""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return platform.machine(), frozenset(match[1].split()) if match else frozenset()


def cpu_name() -> str:
    """What the processor calls itself ("AMD EPYC 7763 64-Core Processor"), else its kind."""
    text = read_text(Path("/proc/cpuinfo")) or ""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or platform.machine()


def parse_cpu_list(text: str) -> frozenset[int]:
    """The CPUs of a kernel list such as ``0-3,8``; empty for anything else."""
    cpus: set[int] = set()
    for part in text.replace("\n", "").split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if match is None:
            return frozenset()
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(cpus)


def _decide(
    *,
    physical: int,
    performance: int | None,
    logical: int,
    affinity: int,
    affinity_cores: int,
    quota: float | None,
) -> CpuBudget:
    threads = affinity_cores
    if affinity < logical:
        why = f"the affinity mask leaves {affinity_cores} of {physical} cores"
    elif performance and affinity_cores == performance < physical:
        why = f"{performance} of {physical} cores are fast ones"
    elif logical > physical:
        why = f"{physical} cores with {logical} hardware threads"
    else:
        why = f"{physical} core{'s' if physical != 1 else ''}"
    if quota is not None and quota < threads:
        threads = int(quota)
        why = f"the control group's CPU quota is worth {quota:g} of {physical} cores"
    return CpuBudget(
        physical_cores=physical,
        logical_cpus=logical,
        affinity=affinity,
        quota=quota,
        threads=max(1, threads),
        why=why,
    )


def _portable_budget() -> CpuBudget:
    """Where there is no Linux /sys: what the system's library says."""
    import psutil  # noqa: PLC0415 - not needed on Linux

    logical = os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    performance = _sysctl_number("hw.perflevel0.physicalcpu") if sys.platform == "darwin" else None
    if performance is not None and not 0 < performance < physical:
        performance = None
    return _decide(
        physical=physical,
        performance=performance,
        logical=logical,
        affinity=logical,
        affinity_cores=performance or physical,
        quota=None,
    )


def _sysctl_number(name: str) -> int | None:
    import subprocess  # noqa: PLC0415 - only on a Mac

    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = answer.stdout.strip()
    return int(text) if text.isdigit() else None


def _cores(root: Path, online: frozenset[int]) -> dict[int, str]:
    """Each CPU's core, named by what its hardware threads have in common."""
    cores: dict[int, str] = {}
    for cpu in online:
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        siblings = read_text(topology / "core_cpus_list") or read_text(
            topology / "thread_siblings_list"
        )
        cores[cpu] = siblings or f"cpu{cpu}"
    return cores


def _allowed(root: Path) -> frozenset[int]:
    """The affinity mask of this process, which a cpuset control group narrows too."""
    status = read_text(root / "proc/self/status") or ""
    match = re.search(r"^Cpus_allowed_list:\s*(\S+)", status, re.MULTILINE)
    return parse_cpu_list(match[1]) if match else frozenset()


def _quota(root: Path) -> float | None:
    """The smallest CPU quota of the groups this process is in, in CPUs."""
    quotas: list[float] = []
    for group in groups("cpu", root):
        if group.version == 2:
            limit, _, period = (group.read("cpu.max") or "").partition(" ")
            quota_us = int(limit) if limit.isdecimal() else None
            period_us = int(period) if period.isdecimal() else None
        else:
            quota_us = group.number("cpu.cfs_quota_us")  # -1 for none
            period_us = group.number("cpu.cfs_period_us")
        if quota_us and period_us:
            quotas.append(quota_us / period_us)
    return min(quotas, default=None)
