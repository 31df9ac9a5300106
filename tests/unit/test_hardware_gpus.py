"""GPUs, from what the vendors' tools print and from tools that misbehave."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from runtime.hardware import gpu_hint, gpus
from runtime.hardware.gpu_reports import (
    Gpu,
    read_amd_smi,
    read_nvidia_smi,
    read_rocm_smi,
    read_system_profiler,
    read_vulkaninfo,
)

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20

NVIDIA_TWO = """\
0, NVIDIA GeForce RTX 3090, 24576
1, NVIDIA GeForce GTX 1650 Ti, 4096
"""
NVIDIA_GB10 = "0, NVIDIA GB10, [N/A]\n"
NVIDIA_LOST = "0, NVIDIA A100-SXM4-40GB, [GPU is lost]\n"
NVIDIA_NO_DRIVER = """\
NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. \
Make sure that the latest NVIDIA driver is installed and running.

"""

ROCM_TWO = """\
WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status

{"card0": {"GPU use (%)": "0", "VRAM Total Memory (B)": "21458059264", \
"VRAM Total Used Memory (B)": "27856896", "Card Series": "Radeon RX 7900 XT", \
"Card Model": "0x744c", "Card Vendor": "Advanced Micro Devices, Inc. [AMD/ATI]", \
"Card SKU": "D70401XT", "Subsystem ID": "0x471e", "Device Rev": "0xcc", "Node ID": "1", \
"GUID": "26967", "GFX Version": "gfx1100"}, \
"card1": {"VRAM Total Memory (B)": "67108864", "VRAM Total Used Memory (B)": "26079232", \
"Card Series": "Raphael", "Card Model": "0x164e", "GFX Version": "gfx1036"}, \
"system": {"Driver version": "6.8.5"}}
"""

AMD_STATIC = [
    {
        "gpu": 0,
        "asic": {
            "market_name": "Radeon RX 6600",
            "vendor_id": "0x1002",
            "vendor_name": "Advanced Micro Devices Inc. [AMD/ATI]",
            "device_id": "0x73ff",
            "rev_id": "0xc7",
            "num_compute_units": 28,
            "target_graphics_version": "gfx1032",
        },
        "driver": {"name": "amdgpu", "version": "6.12.12"},
        "vram": {
            "type": "GDDR6",
            "vendor": "SAMSUNG",
            "size": {"value": 8176, "unit": "MB"},
            "bit_width": 128,
            "max_bandwidth": {"value": "N/A", "unit": "GB/s"},
        },
    }
]
AMD_METRIC = [
    {
        "gpu": 0,
        "mem_usage": {
            "total_vram": {"value": 8176, "unit": "MB"},
            "used_vram": {"value": 202, "unit": "MB"},
            "free_vram": {"value": 7974, "unit": "MB"},
            "total_visible_vram": {"value": 8176, "unit": "MB"},
            "total_gtt": {"value": 64357, "unit": "MB"},
        },
    }
]

MAC_M3 = """\
{
  "SPDisplaysDataType" : [
    {
      "_name" : "Apple M3 Pro",
      "spdisplays_mtlgpufamilysupport" : "spdisplays_metal3",
      "spdisplays_ndrvs" : [
        {
          "_name" : "Color LCD",
          "_spdisplays_pixels" : "3024 x 1964",
          "spdisplays_main" : "spdisplays_yes"
        }
      ],
      "spdisplays_vendor" : "sppci_vendor_Apple",
      "sppci_bus" : "spdisplays_builtin",
      "sppci_cores" : "14",
      "sppci_device_type" : "spdisplays_gpu",
      "sppci_model" : "Apple M3 Pro"
    }
  ]
}
"""
MAC_INTEL = json.dumps(
    {
        "SPDisplaysDataType": [
            {
                "_name": "kHW_IntelIrisGraphics6100Item",
                "spdisplays_vendor": "Intel",
                "spdisplays_vram_shared": "1536 MB",
                "sppci_device_type": "spdisplays_gpu",
                "sppci_model": "Intel Iris Graphics 6100",
            },
            {
                "_name": "AMD Radeon Pro 5500M",
                "spdisplays_metal": "spdisplays_supported",
                "spdisplays_vendor": "sppci_vendor_amd",
                "spdisplays_vram": "8 GB",
                "sppci_model": "AMD Radeon Pro 5500M",
            },
        ]
    }
)

VULKAN = """\
'DISPLAY' environment variable not set... skipping surface info
==========
VULKANINFO
==========

Vulkan Instance Version: 1.4.341


Instance Extensions: count = 2
-------------------------------
VK_EXT_acquire_drm_display             : extension revision 1
VK_KHR_surface                         : extension revision 25

Devices:
========
GPU0:
\tapiVersion         = 1.4.318
\tdriverVersion      = 25.2.8
\tvendorID           = 0x8086
\tdeviceID           = 0x46a6
\tdeviceType         = PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU
\tdeviceName         = Intel(R) Iris(R) Xe Graphics (ADL GT2)
\tdriverID           = DRIVER_ID_INTEL_OPEN_SOURCE_MESA
\tdriverName         = Intel open-source Mesa driver
\tdriverInfo         = Mesa 25.2.8
\tconformanceVersion = 1.4.0.0
\tdeviceUUID         = 8680a646-0c00-0000-0002-000000000000
\tdriverUUID         = 5f1d1a53-9ef9-ef0a-5a1e-8f1f2b3c4d5e
GPU1:
\tapiVersion         = 1.4.325
\tdriverVersion      = 590.48.1.0
\tvendorID           = 0x10de
\tdeviceID           = 0x2204
\tdeviceType         = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName         = NVIDIA GeForce RTX 3090
\tdriverID           = DRIVER_ID_NVIDIA_PROPRIETARY
\tdriverName         = NVIDIA
\tdriverInfo         = 590.48.01
\tconformanceVersion = 1.4.3.0
\tdeviceUUID         = 8389ef2b-954d-4c2e-1e19-49bc92e5c34f
\tdriverUUID         = cacc304f-7167-5cf5-a6bd-293f0657ef84
GPU2:
\tvendorID           = 0x10de
\tdeviceID           = 0x2204
\tdeviceType         = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName         = NVIDIA GeForce RTX 3090
\tdriverName         = NVK
\tdeviceUUID         = 8389ef2b-954d-4c2e-1e19-49bc92e5c34f
GPU3:
\tapiVersion         = 1.4.318
\tdriverVersion      = 25.2.8
\tvendorID           = 0x10005
\tdeviceID           = 0x0000
\tdeviceType         = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName         = llvmpipe (LLVM 20.1.2, 256 bits)
\tdriverID           = DRIVER_ID_MESA_LLVMPIPE
\tdriverName         = llvmpipe
"""


def test_nvidia_smi_lists_names_and_memory() -> None:
    first, second = read_nvidia_smi(NVIDIA_TWO)

    assert first == Gpu(
        name="NVIDIA GeForce RTX 3090",
        source="nvidia-smi",
        memory_total_bytes=24576 * MIB,
    )
    assert first.usable
    assert (second.name, second.memory_total_bytes) == ("NVIDIA GeForce GTX 1650 Ti", 4096 * MIB)


def test_an_nvidia_chip_without_own_memory_is_usable() -> None:
    (gpu,) = read_nvidia_smi(NVIDIA_GB10)

    assert gpu.memory_total_bytes is None
    assert gpu.usable


def test_a_lost_gpu_is_reported_with_its_trouble() -> None:
    (gpu,) = read_nvidia_smi(NVIDIA_LOST)

    assert gpu.problem == "nvidia-smi says: GPU is lost"


@pytest.mark.parametrize("text", ["", "No devices were found\n", "1, 2\n", ", ,\n"])
def test_nvidia_smi_without_rows_lists_none(text: str) -> None:
    assert read_nvidia_smi(text) == ()


def test_rocm_smi_lists_cards_behind_its_warnings() -> None:
    card, chip = read_rocm_smi(ROCM_TWO)

    assert card == Gpu(name="Radeon RX 7900 XT", source="rocm-smi", memory_total_bytes=21458059264)
    assert (chip.name, chip.memory_total_bytes) == ("Raphael", 67108864)


@pytest.mark.parametrize("wrapped", [False, True])
def test_amd_smi_joins_its_two_reports(wrapped: bool) -> None:
    """Newer versions put the list into an object."""
    static: object = {"gpu_data": AMD_STATIC} if wrapped else AMD_STATIC
    metric: object = {"gpu_data": AMD_METRIC} if wrapped else AMD_METRIC

    (gpu,) = read_amd_smi(json.dumps(static), json.dumps(metric))

    assert gpu == Gpu(name="Radeon RX 6600", source="amd-smi", memory_total_bytes=8176 * MIB)


def test_amd_smi_without_usage_still_tells_the_size() -> None:
    (gpu,) = read_amd_smi(json.dumps(AMD_STATIC), "AMDSMI_STATUS_NOT_SUPPORTED")

    assert gpu.memory_total_bytes == 8176 * MIB


def test_a_mac_with_apple_s_chip_shares_its_memory() -> None:
    (gpu,) = read_system_profiler(MAC_M3)

    assert (gpu.name, gpu.memory_total_bytes) == ("Apple M3 Pro", None)
    assert gpu.usable


def test_an_older_mac_tells_which_gpu_can_do_metal() -> None:
    iris, radeon = read_system_profiler(MAC_INTEL)

    assert (iris.memory_total_bytes, iris.problem) == (None, "it does not support Metal")
    assert (radeon.usable, radeon.memory_total_bytes) == (True, 8 << 30)


def test_vulkaninfo_lists_real_gpus_once() -> None:
    iris, rtx = read_vulkaninfo(VULKAN)

    assert iris.name == "Intel(R) Iris(R) Xe Graphics (ADL GT2)"
    assert rtx.name == "NVIDIA GeForce RTX 3090"


@pytest.mark.parametrize("read", [read_rocm_smi, read_system_profiler])
@pytest.mark.parametrize("text", ["", "ERROR", "[1]", '{"card0": '])
def test_a_report_that_is_no_object_is_a_value_error(read, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"."):
        read(text)


# --- running the tools --------------------------------------------------------------------------


class Tools:
    """A folder of programs that stands for $PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, script: str) -> None:
        """Adds a shell script."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def prints(self, name: str, text: str, *, code: int = 0) -> None:
        """Adds a tool that prints a text, whatever it is asked."""
        data = self.folder / f"{name}.txt"
        data.write_text(text)
        self.add(name, f"while read -r line; do echo \"$line\"; done < '{data}'; exit {code}")

    def gpus(self, platform: str = "linux", timeout_s: float = 20.0) -> tuple[Gpu, ...]:
        """What is found with these tools."""
        return gpus(path=str(self.folder), platform=platform, timeout_s=timeout_s)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


def test_without_tools_there_are_no_gpus(tools: Tools) -> None:
    assert tools.gpus() == ()
    assert tools.gpus("darwin") == ()


def test_gpus_of_two_vendors_are_listed_together(tools: Tools) -> None:
    tools.prints("nvidia-smi", NVIDIA_TWO)
    tools.prints("rocm-smi", ROCM_TWO)
    tools.prints("vulkaninfo", VULKAN)  # has nothing to add

    assert [gpu.source for gpu in tools.gpus()] == ["nvidia-smi"] * 2 + ["rocm-smi"] * 2


def test_nvidia_smi_is_asked_for_what_the_reader_expects(tools: Tools) -> None:
    wanted = "--query-gpu=index,name,memory.total"
    tools.add(
        "nvidia-smi",
        f'[ "$1 $2" = "{wanted} --format=csv,noheader,nounits" ] && echo "0, X, 1"',
    )

    assert [gpu.name for gpu in tools.gpus()] == ["X"]


def test_a_driver_that_fails_is_a_fact(tools: Tools) -> None:
    tools.prints("nvidia-smi", NVIDIA_NO_DRIVER, code=9)

    (gpu,) = tools.gpus()

    assert not gpu.usable
    assert gpu.problem is not None
    assert "couldn't communicate with the NVIDIA driver" in gpu.problem
    assert "exit code 9" in gpu.problem


def test_a_tool_that_lists_nothing_is_a_fact(tools: Tools) -> None:
    tools.prints("nvidia-smi", "No devices were found\n")

    assert [gpu.problem for gpu in tools.gpus()] == ["nvidia-smi: it lists none"]


def test_a_tool_whose_answer_makes_no_sense_is_a_fact(tools: Tools) -> None:
    tools.prints("rocm-smi", "cannot open shared object file\n")

    (gpu,) = tools.gpus()

    assert (gpu.name, gpu.usable) == ("AMD GPU", False)
    assert "cannot be read" in (gpu.problem or "")


def test_a_tool_that_cannot_be_started_is_a_fact(tools: Tools) -> None:
    path = tools.folder / "nvidia-smi"
    path.write_bytes(b"\x7fELF for another machine")
    path.chmod(0o755)

    (gpu,) = tools.gpus()

    assert "cannot be started" in (gpu.problem or "")


def test_a_tool_that_hangs_is_ended_and_reported(tools: Tools, tmp_path: Path) -> None:
    """Its children are ended too: one holds the pipe that the answer would come through."""
    note = tmp_path / "pid"
    tools.add("nvidia-smi", f"/bin/sleep 60 & echo $! > '{note}'; wait")
    began = time.monotonic()

    (gpu,) = tools.gpus(timeout_s=0.5)

    assert time.monotonic() - began < 10
    assert gpu.problem == "nvidia-smi: it gave no answer within 0.5 s"
    deadline = time.monotonic() + 5
    pid = int(note.read_text())
    while _runs(pid):
        assert time.monotonic() < deadline, "the tool's child is still running"


def test_rocm_smi_steps_in_where_amd_smi_fails(tools: Tools) -> None:
    tools.prints("amd-smi", "ERROR:root:Unable to detect any GPU devices\n", code=255)
    assert [gpu.source for gpu in tools.gpus()] == ["amd-smi"]

    tools.prints("rocm-smi", ROCM_TWO)

    assert [gpu.source for gpu in tools.gpus()] == ["rocm-smi", "rocm-smi"]


def test_vulkaninfo_steps_in_where_no_vendor_s_tool_works(tools: Tools) -> None:
    tools.prints("nvidia-smi", NVIDIA_NO_DRIVER, code=9)
    tools.prints("vulkaninfo", VULKAN.replace("\t", "    "))
    tools.add("vulkaninfo", f"exec /bin/cat '{tools.folder}/vulkaninfo.txt'")

    found = tools.gpus()

    assert [gpu.source for gpu in found] == ["nvidia-smi", "vulkaninfo", "vulkaninfo"]
    assert [gpu.usable for gpu in found] == [False, True, True]


def test_on_a_mac_only_the_system_profiler_is_asked(tools: Tools) -> None:
    tools.prints("nvidia-smi", NVIDIA_TWO)
    tools.prints("system_profiler", MAC_M3)

    assert [gpu.name for gpu in tools.gpus("darwin")] == ["Apple M3 Pro"]


# --- the hint -----------------------------------------------------------------------------------


@pytest.mark.parametrize("node", ["nvidia0", "kfd", "dri/renderD128", "dxg", "nvhost-gpu"])
def test_a_device_file_hints_at_a_gpu(tmp_path: Path, node: str) -> None:
    path = tmp_path / "dev" / node
    path.parent.mkdir(parents=True)
    path.touch()

    assert gpu_hint(tmp_path, platform="linux")


@pytest.mark.parametrize("node", ["null", "nvidiactl", "dri/card0", "nvidia-caps/x"])
def test_other_device_files_do_not(tmp_path: Path, node: str) -> None:
    path = tmp_path / "dev" / node
    path.parent.mkdir(parents=True)
    path.touch()

    assert not gpu_hint(tmp_path, platform="linux")


def test_no_dev_at_all_is_no_gpu(tmp_path: Path) -> None:
    assert not gpu_hint(tmp_path, platform="linux")


@pytest.mark.parametrize(("machine", "expected"), [("arm64", True), ("x86_64", False)])
def test_a_mac_s_processor_decides(tmp_path: Path, machine: str, expected: bool) -> None:
    assert gpu_hint(tmp_path, platform="darwin", machine=machine) is expected


def test_the_hint_is_quick() -> None:
    gpu_hint()
    began = time.monotonic()

    gpu_hint()

    assert time.monotonic() - began < 0.05


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # no one may be there to reap
    except psutil.NoSuchProcess:
        return False
