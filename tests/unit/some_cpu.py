"""Processors of machines that are not this one."""

from __future__ import annotations

from runtime.hardware import CpuBudget


def budget(cores: int) -> CpuBudget:
    """All of a machine with so many cores of two hardware threads each."""
    return CpuBudget(
        physical_cores=cores,
        logical_cpus=2 * cores,
        affinity=2 * cores,
        quota=None,
        threads=cores,
        why=f"{cores} cores with {2 * cores} hardware threads",
    )
