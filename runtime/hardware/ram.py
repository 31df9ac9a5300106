"""How much main memory a new process could take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.hardware.cgroups import groups, read_text

if TYPE_CHECKING:
    from runtime.hardware.cgroups import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Main memory, in bytes.

    Attributes:
        total_bytes: Of the machine.
        available_bytes: What the machine could give without swapping.
        limit_bytes: The tightest limit of the control groups, or None.
        effective_total_bytes: The least of the machine and the limits.
        effective_available_bytes: What a new process of ours could take.
        why: Which of them decided, one sentence.
    """

    total_bytes: int
    available_bytes: int
    limit_bytes: int | None
    effective_total_bytes: int
    effective_available_bytes: int
    why: str


def memory(root: Path = Path("/")) -> Memory:
    """Looks at the machine and at the control groups below ``root``; a few milliseconds."""
    figures = parse_meminfo(read_text(root / "proc/meminfo") or "")
    if "MemTotal" in figures:
        total = figures["MemTotal"]
        # Kernels before 3.14 do not say MemAvailable.
        available = figures.get(
            "MemAvailable", figures.get("MemFree", 0) + figures.get("Cached", 0)
        )
    else:
        import psutil  # noqa: PLC0415 - not needed on Linux

        state = psutil.virtual_memory()
        total, available = state.total, state.available
    levels = [level for group in groups("memory", root) if (level := _limit(group))]
    limits = [(limit, used) for limit, used in levels if limit < total]
    if not limits:
        return Memory(
            total_bytes=total,
            available_bytes=available,
            limit_bytes=None,
            effective_total_bytes=total,
            effective_available_bytes=available,
            why="this machine's memory, no control group limits it",
        )
    tightest = min(limit for limit, _ in limits)
    left, limit = min((limit - used, limit) for limit, used in limits)
    left = max(0, left)
    return Memory(
        total_bytes=total,
        available_bytes=available,
        limit_bytes=tightest,
        effective_total_bytes=tightest,
        effective_available_bytes=min(left, available),
        why=f"a control group allows {limit / 2**30:.2f} GiB"
        if left < available
        else "other processes leave no more of this machine's memory",
    )


def parse_meminfo(text: str) -> dict[str, int]:
    """``/proc/meminfo`` in bytes."""
    return {
        name: int(kibibytes) * 1024
        for name, kibibytes in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    }


def _limit(group: Group) -> tuple[int, int] | None:
    """A group's limit and use in bytes, or None when it has no limit."""
    if group.version == 2:
        # Above memory.high a group is slowed down until it is of no use, so it counts as a limit.
        limits = [group.number("memory.max"), group.number("memory.high")]
        used, names = group.number("memory.current"), ("inactive_file", "active_file")
    else:
        limits = [group.number("memory.limit_in_bytes")]
        used = group.number("memory.usage_in_bytes")
        names = ("total_inactive_file", "total_active_file")
    limit = min((limit for limit in limits if limit is not None), default=None)
    if limit is None:
        return None
    statistics = dict(re.findall(r"^(\w+) (\d+)$", group.read("memory.stat") or "", re.MULTILINE))
    droppable = sum(int(statistics.get(name, 0)) for name in names)
    return limit, max(0, (used or 0) - droppable)


def oom_kills(root: Path = Path("/")) -> int | None:
    """How many processes the kernel has killed for want of memory; None where it does not say.

    Counted in this process's own control group where there is one, else on the whole machine. A
    count that grew while a process died by SIGKILL tells why it died.
    """
    for group in groups("memory", root):
        events = group.read("memory.events" if group.version == 2 else "memory.oom_control")
        if (count := _oom_count(events)) is not None:
            return count
    return _oom_count(read_text(root / "proc/vmstat"))


def _oom_count(text: str | None) -> int | None:
    match = re.search(r"^oom_kill (\d+)$", text or "", re.MULTILINE)
    return int(match[1]) if match else None
