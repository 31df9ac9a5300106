"""Processor, memory and the limits that the system sets to a process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from runtime.doctor.finding import Finding
from runtime.doctor.wording import size
from runtime.hardware import cpu_budget, cpu_features, memory
from runtime.hardware.cgroups import read_text
from runtime.hardware.ram import parse_meminfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.doctor.site import Site

_X86: Final = frozenset({"x86_64", "AMD64", "amd64"})
_LITTLE_MEMORY_BYTES: Final = 512 << 20
_FEW_FILES: Final = 256
_SMALL_FILE_BYTES: Final = 1 << 30


def processor(site: Site) -> Iterator[Finding]:
    """How many threads there are to use, and whether the wheel's instructions are."""
    budget = cpu_budget(site.root)
    facts = (
        f"{budget.threads} threads to use: {budget.why} ({budget.physical_cores} cores, "
        f"{budget.affinity} of {budget.logical_cpus} hardware threads allowed"
        + (f", CPU quota {budget.quota:g}" if budget.quota is not None else "")
        + ")"
    )
    asked = site.config.threads
    if budget.quota is not None and budget.quota < 1:
        yield Finding(
            id="cpu.threads",
            status="warn",
            found=f"{facts}. Less than one processor: answers will be slow and pause.",
            remedy="Give the container more CPU (docker run --cpus=2).",
        )
    elif asked is not None and asked > budget.threads:
        yield Finding(
            id="cpu.threads",
            status="warn",
            found=f"{facts}. threads={asked} is more: they will wait for each other, and every "
            "token takes longer.",
            remedy=f"Leave threads out (unset LLAMA_RUNTIME_THREADS), or set {budget.threads}.",
        )
    else:
        yield Finding(id="cpu.threads", status="ok", found=facts)
    kind, features = cpu_features(site.root)
    if kind in _X86 and features and "avx2" not in features:
        yield Finding(
            id="cpu.instructions",
            status="fail",
            found="this processor has no AVX2, which the xllamacpp wheel is built for: the engine "
            "will end by SIGILL.",
            remedy="Use a llama-server built on this machine (LLAMA_RUNTIME_ENGINE_PATH), or "
            "`pip install --no-binary xllamacpp xllamacpp`.",
        )
    else:
        known = "AVX2 is there" if "avx2" in features else "no instructions are known to lack"
        yield Finding(id="cpu.instructions", status="ok", found=f"{kind}: {known}")


def main_memory(site: Site) -> Iterator[Finding]:
    """What a model could take, what limits it, and the swap."""
    has = memory(site.root)
    text = (
        f"{size(has.effective_available_bytes)} of {size(has.effective_total_bytes)} can be had: "
        f"{has.why}"
    )
    if has.effective_available_bytes < _LITTLE_MEMORY_BYTES:
        limited = has.limit_bytes is not None and has.effective_available_bytes < (
            has.available_bytes
        )
        yield Finding(
            id="memory",
            status="warn",
            found=f"{text}. That is too little for all but the smallest models.",
            remedy="Raise the control group's limit (docker run --memory=4g)."
            if limited
            else "Close programs; `ps aux --sort=-rss | head` shows the largest.",
        )
    else:
        yield Finding(id="memory", status="ok", found=text)
    yield from _swap(site, short=has.effective_available_bytes < 4 * _LITTLE_MEMORY_BYTES)


def _swap(site: Site, *, short: bool) -> Iterator[Finding]:
    figures = parse_meminfo(read_text(site.root / "proc/meminfo") or "")
    total, free = figures.get("SwapTotal"), figures.get("SwapFree", 0)
    if total is None:
        return
    text = f"{size(total - free)} of {size(total)} in use" if total else "there is none"
    if short and total and free < total // 2:
        yield Finding(
            id="memory.swap",
            status="warn",
            found=f"{text}, and memory is short: a model that is swapped out answers a hundred "
            "times slower.",
            remedy="Close programs, or use a smaller model (`llama-runtime models recommend`).",
        )
    else:
        yield Finding(id="memory.swap", status="ok", found=text)


def limits(_site: Site) -> Iterator[Finding]:
    """The limits of a process (getrlimit(2)) that break downloads, loads or many connections."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - there is none on Windows

    wrong = []
    for number, name, least, letter, means in (
        (resource.RLIMIT_NOFILE, "open files", _FEW_FILES, "n", "many connections fail"),
        (resource.RLIMIT_FSIZE, "file size", _SMALL_FILE_BYTES, "f", "downloads end early"),
        (resource.RLIMIT_AS, "address space", 8 << 30, "v", "models do not load"),
        (resource.RLIMIT_DATA, "data segment", 2 << 30, "d", "models do not load"),
    ):
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY and soft < least:
            wrong.append((f"{name} {soft} (ulimit -{letter}): {means}", letter))
    if wrong:
        flags = "; ".join(
            f"ulimit -{letter} {4096 if letter == 'n' else 'unlimited'}" for _, letter in wrong
        )
        yield Finding(
            id="limits",
            status="warn",
            found="; ".join(text for text, _ in wrong) + ".",
            remedy=f"Raise them in the shell that starts the runtime: {flags}",
        )
    else:
        yield Finding(id="limits", status="ok", found="files and memory are not limited")
