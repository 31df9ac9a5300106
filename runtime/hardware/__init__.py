"""What this machine has: CPU cores and memory as far as this process may use them, and GPUs."""

from runtime.hardware.cpu import CpuBudget, cpu_budget, cpu_features, cpu_name
from runtime.hardware.gpu import Gpu, gpu_hint, gpus
from runtime.hardware.ram import Memory, memory, oom_kills

__all__ = [
    "CpuBudget",
    "Gpu",
    "Memory",
    "cpu_budget",
    "cpu_features",
    "cpu_name",
    "gpu_hint",
    "gpus",
    "memory",
    "oom_kills",
]
