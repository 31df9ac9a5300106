"""CPU and memory budgets, read from trees of real files as /proc and /sys have them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest

from runtime.hardware import cpu_budget, cpu_features, memory
from runtime.hardware.cpu import parse_cpu_list

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30

MOUNT_V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_V1 = (
    "33 24 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 24 0:31 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


class Machine:
    """A folder that looks like the root of a machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file("proc/self/mountinfo", "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
        self.file("proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\n")

    def file(self, path: str, text: str) -> Machine:
        """Writes one file."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return self

    def cpus(self, siblings: list[str], *, allowed: str | None = None) -> Machine:
        """One CPU for each entry, which lists the CPUs of its core."""
        everything = f"0-{len(siblings) - 1}"
        self.file("sys/devices/system/cpu/online", everything + "\n")
        for cpu, of_core in enumerate(siblings):
            self.file(f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list", of_core + "\n")
        return self.file("proc/self/status", f"Cpus_allowed_list:\t{allowed or everything}\n")

    def v2(self, path: str, *, root: str = "/") -> Machine:
        """Puts this process into a group of version 2."""
        self.file("proc/self/cgroup", f"0::{path}\n")
        return self.file("proc/self/mountinfo", MOUNT_V2.format(root=root))

    def v1(self, path: str, *, root: str = "/") -> Machine:
        """Puts this process into groups of version 1."""
        self.file("proc/self/cgroup", f"5:cpu,cpuacct:{path}\n4:memory:{path}\n0::/\n")
        return self.file("proc/self/mountinfo", MOUNT_V1.format(root=root))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).cpus(["0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7"])


def test_two_hardware_threads_of_a_core_count_once(machine: Machine) -> None:
    budget = cpu_budget(machine.root)

    assert (budget.physical_cores, budget.logical_cpus, budget.threads) == (4, 8, 4)
    assert budget.why == "4 cores with 8 hardware threads"


@pytest.mark.parametrize(
    ("allowed", "cpus", "cores"),
    [("0-1", 2, 2), ("0,4", 2, 1), ("0-2,4-6", 6, 3), ("0-7", 8, 4)],
)
def test_the_affinity_mask_is_counted_in_cores(
    machine: Machine, allowed: str, cpus: int, cores: int
) -> None:
    machine.file("proc/self/status", f"Name:\tx\nCpus_allowed_list:\t{allowed}\nMems:\t1\n")

    budget = cpu_budget(machine.root)

    assert (budget.affinity, budget.threads) == (cpus, cores)
    assert ("affinity" in budget.why) == (cpus < 8)


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("150000 100000", 1), ("350000 100000", 3), ("20000 100000", 1), ("800000 100000", 4)],
)
def test_a_quota_of_version_2_bounds_the_threads(
    machine: Machine, quota: str, threads: int
) -> None:
    machine.v2("/app").file("sys/fs/cgroup/app/cpu.max", quota + "\n")

    budget = cpu_budget(machine.root)

    assert budget.threads == threads
    assert budget.quota == int(quota.split(maxsplit=1)[0]) / 100_000
    assert ("quota" in budget.why) == (threads < 4)


def test_the_tightest_quota_of_all_parents_counts(machine: Machine) -> None:
    machine.v2("/a/b/c")
    machine.file("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n")
    machine.file("sys/fs/cgroup/a/b/cpu.max", "100000 50000\n")
    machine.file("sys/fs/cgroup/a/cpu.max", "300000 100000\n")

    assert cpu_budget(machine.root).quota == 2.0


def test_no_quota_is_no_limit(machine: Machine) -> None:
    machine.v2("/app").file("sys/fs/cgroup/app/cpu.max", "max 100000\n")

    assert cpu_budget(machine.root).quota is None


def test_a_quota_of_version_1_bounds_the_threads(machine: Machine) -> None:
    machine.v1("/docker/abc")
    machine.file("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "-1\n")
    machine.file("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n")
    machine.file("sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", "200000\n")
    machine.file("sys/fs/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n")

    budget = cpu_budget(machine.root)

    assert (budget.quota, budget.threads) == (2.0, 2)


@pytest.mark.parametrize("shown", ["/docker/abc", "/somewhere/else"])
def test_in_a_container_the_mount_is_the_group(machine: Machine, shown: str) -> None:
    """/proc names the host's path while the mount shows the container's own group."""
    machine.v1("/docker/abc", root=shown)
    machine.file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n")
    machine.file("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")

    assert cpu_budget(machine.root).threads == 1


def test_a_group_outside_the_namespace_does_not_lead_out_of_the_mount(machine: Machine) -> None:
    machine.v2("/../../other").file("sys/fs/cgroup/cpu.max", "100000 100000\n")
    machine.file("sys/other/cpu.max", "1 100000\n")

    assert cpu_budget(machine.root).quota == 1.0


def test_a_mount_point_with_a_space_is_found(machine: Machine) -> None:
    machine.file("proc/self/cgroup", "0::/app\n")
    machine.file("proc/self/mountinfo", r"30 23 0:26 / /sys/my\040groups rw - cgroup2 none rw")
    machine.file("sys/my groups/app/cpu.max", "100000 100000\n")

    assert cpu_budget(machine.root).quota == 1.0


def test_slow_cores_are_left_out(machine: Machine) -> None:
    """A hybrid processor: two fast cores with two threads each, four slow ones."""
    machine.cpus(["0-1", "0-1", "2-3", "2-3", "4", "5", "6", "7"])
    machine.file("sys/devices/cpu_core/cpus", "0-3\n")

    budget = cpu_budget(machine.root)

    assert (budget.physical_cores, budget.threads) == (6, 2)
    assert budget.why == "2 of 6 cores are fast ones"


def test_slow_cores_are_used_when_the_mask_leaves_no_others(machine: Machine) -> None:
    machine.cpus(["0-1", "0-1", "2", "3"], allowed="2-3")
    machine.file("sys/devices/cpu_core/cpus", "0-1\n")

    assert cpu_budget(machine.root).threads == 2


def test_without_topology_every_cpu_is_a_core(machine: Machine, tmp_path: Path) -> None:
    bare = Machine(tmp_path / "bare").file("sys/devices/system/cpu/online", "0-2\n")

    assert cpu_budget(bare.root).threads == 3


def test_without_sys_the_portable_figures_are_used(tmp_path: Path) -> None:
    budget = cpu_budget(tmp_path)

    assert budget.logical_cpus == os.cpu_count()
    assert budget.physical_cores == (psutil.cpu_count(logical=False) or os.cpu_count())
    assert budget.threads >= 1


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", {0}),
        ("0-2,5\n", {0, 1, 2, 5}),
        ("", set()),
        ("x", set()),
        ("0-1,", set()),
        ("0-99999999", set()),
    ],
)
def test_kernel_lists_of_cpus(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx avx2\n\nprocessor\t: 1\n", {"fpu", "avx", "avx2"}),
        ("processor\t: 0\nFeatures\t: fp asimd asimddp\n", {"fp", "asimd", "asimddp"}),
        ("processor\t: 0\n", set()),
    ],
)
def test_what_the_processor_can_do(machine: Machine, text: str, features: set[str]) -> None:
    machine.file("proc/cpuinfo", text)

    kind, found = cpu_features(machine.root)

    assert found == features
    assert kind == platform.machine()


@pytest.mark.skipif(sys.platform != "linux", reason="affinity masks are Linux's")
def test_a_real_affinity_mask_is_seen() -> None:
    """A child bound to one CPU computes with one thread."""
    cpu = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{cpu}}})\n"
        "from runtime.hardware import cpu_budget\n"
        "budget = cpu_budget(); print(budget.affinity, budget.threads)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["1", "1"]


# --- memory -------------------------------------------------------------------------------------


def test_without_groups_the_machine_decides(machine: Machine) -> None:
    facts = memory(machine.root)

    assert (facts.total_bytes, facts.available_bytes) == (8 * GIB, 6 * GIB)
    assert (facts.effective_total_bytes, facts.effective_available_bytes) == (8 * GIB, 6 * GIB)
    assert facts.limit_bytes is None


def test_a_limit_of_version_2_bounds_what_can_be_taken(machine: Machine) -> None:
    machine.v2("/app")
    machine.file("sys/fs/cgroup/app/memory.max", f"{4 * GIB}\n")
    machine.file("sys/fs/cgroup/app/memory.current", f"{3 * GIB}\n")
    machine.file(
        "sys/fs/cgroup/app/memory.stat",
        f"anon 1\nfile 5\ninactive_file {GIB}\nactive_file {GIB}\n",
    )

    facts = memory(machine.root)

    assert facts.limit_bytes == facts.effective_total_bytes == 4 * GIB
    assert facts.effective_available_bytes == 3 * GIB  # two of the three used could be dropped
    assert facts.why == "a control group allows 4.00 GiB"


def test_a_group_slowed_down_above_a_mark_counts_as_limited_by_it(machine: Machine) -> None:
    machine.v2("/app")
    machine.file("sys/fs/cgroup/app/memory.max", "max\n")
    machine.file("sys/fs/cgroup/app/memory.high", f"{2 * GIB}\n")
    machine.file("sys/fs/cgroup/app/memory.current", "0\n")

    assert memory(machine.root).effective_available_bytes == 2 * GIB


def test_the_fullest_parent_decides_what_is_left(machine: Machine) -> None:
    """The inner group has the smaller limit, the outer one less room: siblings fill it."""
    machine.v2("/pod/app")
    machine.file("sys/fs/cgroup/pod/app/memory.max", f"{3 * GIB}\n")
    machine.file("sys/fs/cgroup/pod/app/memory.current", f"{GIB}\n")
    machine.file("sys/fs/cgroup/pod/memory.max", f"{5 * GIB}\n")
    machine.file("sys/fs/cgroup/pod/memory.current", f"{4 * GIB}\n")

    facts = memory(machine.root)

    assert facts.effective_total_bytes == 3 * GIB
    assert facts.effective_available_bytes == GIB
    assert facts.why == "a control group allows 5.00 GiB"


def test_a_limit_of_version_1_bounds_what_can_be_taken(machine: Machine) -> None:
    machine.v1("/docker/abc")
    machine.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    machine.file("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", f"{2 * GIB}\n")
    machine.file("sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", f"{GIB}\n")
    machine.file(
        "sys/fs/cgroup/memory/docker/abc/memory.stat",
        f"inactive_file 7\ntotal_inactive_file {GIB // 2}\ntotal_active_file 0\n",
    )

    facts = memory(machine.root)

    assert facts.limit_bytes == 2 * GIB
    assert facts.effective_available_bytes == 2 * GIB - GIB // 2


def test_a_limit_above_the_machine_is_none(machine: Machine) -> None:
    machine.v2("/app").file("sys/fs/cgroup/app/memory.max", f"{64 * GIB}\n")

    assert memory(machine.root).limit_bytes is None


def test_a_full_machine_counts_more_than_a_roomy_group(machine: Machine) -> None:
    machine.v2("/app").file("sys/fs/cgroup/app/memory.max", f"{7 * GIB}\n")

    facts = memory(machine.root)

    assert facts.effective_available_bytes == 6 * GIB
    assert "other processes" in facts.why


def test_a_group_over_its_limit_leaves_nothing(machine: Machine) -> None:
    machine.v2("/app")
    machine.file("sys/fs/cgroup/app/memory.max", f"{GIB}\n")
    machine.file("sys/fs/cgroup/app/memory.current", f"{2 * GIB}\n")

    assert memory(machine.root).effective_available_bytes == 0


def test_this_machine_has_memory() -> None:
    facts = memory()

    assert facts.total_bytes == psutil.virtual_memory().total
    assert 0 < facts.effective_available_bytes <= facts.total_bytes


def test_the_import_is_light() -> None:
    code = (
        "import sys; import runtime.hardware;"
        "print([m for m in ('psutil', 'subprocess', 'pydantic', 'asyncio') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
