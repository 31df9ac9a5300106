"""The command ``doctor``: what this machine has, and what a model would take of it."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from runtime.cli import output
from runtime.cli.models import plan_rows
from runtime.cli.options import chosen, server_options
from runtime.engines.builds import age_warning
from runtime.engines.detect import choose, engines
from runtime.errors import LLMError
from runtime.hardware import cpu_budget, gpu_hint, gpus, memory
from runtime.server import registry
from runtime.settings import DEFAULT_MODEL, ServerConfig, directories, private_folder
from runtime.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engines.base import EngineInfo

Verdict = Literal["ok", "note", "problem"]
_LITTLE_DISK_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: What was looked at.
        verdict: ``"problem"`` when something will not work.
        text: What was found.
        remedy: What to do about it, or None.
    """

    topic: str
    verdict: Verdict
    text: str
    remedy: str | None = None


@click.command()
@click.argument("model", default=DEFAULT_MODEL)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@server_options(("ctx_size", "parallel", "cache_type_k", "cache_type_v"))
def doctor(model: str, *, as_json: bool, **settings: Any) -> None:
    """Look at this machine, the engines and the files, and plan the memory of MODEL."""
    config = ServerConfig(model=model, **chosen(settings))
    findings = [
        _python(),
        _processor(),
        _memory(),
        *_gpus(),
        *_engines(config),
        _folder("cache", lambda: directories().cache),
        _folder("state", lambda: directories().state),
        _servers(),
        _model(config),
    ]
    if as_json:
        output.result_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            output.result(f"{finding.verdict:<8} {finding.topic:<18} {finding.text}")
            if finding.remedy:
                output.result(f"{'':<27} -> {finding.remedy}")
    if any(finding.verdict == "problem" for finding in findings):
        raise click.exceptions.Exit(1)


def _python() -> Finding:
    return Finding(
        topic="python",
        verdict="ok",
        text=f"{platform.python_version()} at {sys.executable}, {platform.platform()}",
    )


def _processor() -> Finding:
    budget = cpu_budget()
    return Finding(
        topic="processor", verdict="ok", text=f"{budget.threads} threads to use: {budget.why}"
    )


def _memory() -> Finding:
    has = memory()
    return Finding(
        topic="memory",
        verdict="ok",
        text=f"{output.size(has.effective_available_bytes)} of "
        f"{output.size(has.effective_total_bytes)} can be had: {has.why}",
    )


def _gpus() -> list[Finding]:
    found = [
        Finding(
            topic="gpu",
            verdict="problem" if gpu.problem else "ok",
            text=f"{gpu.name}: {gpu.problem or output.size(gpu.memory_total_bytes)}",
            remedy="Mend its driver, or run with device='cpu'." if gpu.problem else None,
        )
        for gpu in gpus()
    ]
    if found:
        return found
    text = (
        "a device file is there, but no tool that tells about it" if gpu_hint() else "none is seen"
    )
    return [Finding(topic="gpu", verdict="note", text=text)]


def _engines(config: ServerConfig) -> list[Finding]:
    found = [
        _installed(info)
        if info.installed
        else Finding(
            topic=info.kind,
            verdict="note",
            text=info.problem or "not usable",
            remedy=info.install_hint,
        )
        for info in (engine.inspect(devices=True) for engine in engines(config))
    ]
    try:
        choice = choose(config, gpu_present=gpu_hint())
    except LLMError as exc:
        found.append(Finding(topic="auto", verdict="problem", text=exc.message, remedy=exc.hint))
    else:
        found.append(
            Finding(topic="auto", verdict="ok", text=f"takes {choice.engine.kind}: {choice.why}")
        )
    return found


def _installed(info: EngineInfo) -> Finding:
    warning = age_warning(info.version)
    return Finding(
        topic=info.kind,
        verdict="note" if warning else "ok",
        text=f"{info.version} at {info.path}" + (f": {warning}" if warning else ""),
        remedy=f"Install a newer one: {info.install_hint}" if warning else None,
    )


def _folder(name: str, where: Callable[[], Any]) -> Finding:
    try:
        folder = private_folder(where())
        free = shutil.disk_usage(folder).free
    except LLMError as exc:
        return Finding(topic=name, verdict="problem", text=exc.message, remedy=exc.hint)
    little = free < _LITTLE_DISK_BYTES
    return Finding(
        topic=name,
        verdict="note" if little else "ok",
        text=f"{folder}, {output.size(free)} free",
        remedy="Most models need more: set LLAMA_RUNTIME_HOME to a larger disk."
        if little
        else None,
    )


def _servers() -> Finding:
    running = registry.running()
    names = ", ".join(f"{record.model} ({record.name})" for record in running)
    return Finding(topic="servers", verdict="ok", text=names or "none runs")


def _model(config: ServerConfig) -> Finding:
    try:
        plan = ModelStore().plan(config.model, config)
    except LLMError as exc:
        verdict: Verdict = "problem" if "needed_bytes" in vars(exc) else "note"
        return Finding(topic=config.model, verdict=verdict, text=exc.message, remedy=exc.hint)
    parts = ", ".join(f"{name} {size}" for name, size in plan_rows(plan))
    request = plan.request
    return Finding(
        topic=config.model,
        verdict="ok",
        text=f"{request.parallel} slots of {request.slot_ctx} tokens: {parts}",
    )
