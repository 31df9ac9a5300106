"""The command ``engines``: what is here, what it can do, what ``auto`` takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import output
from runtime.cli.options import chosen, server_options
from runtime.engines.builds import age_warning
from runtime.engines.detect import choose, engines
from runtime.errors import EngineNotInstalledError
from runtime.hardware import gpu_hint
from runtime.server.probe import remembered_trials
from runtime.settings import ServerConfig

if TYPE_CHECKING:
    from runtime.engines.base import EngineInfo


@click.command("engines")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@server_options(("engine_path",))
def engines_(*, as_json: bool, **settings: Any) -> None:
    """Show which engines are here, what each can do, and which one `auto` would take.

    \b
      llama-runtime engines
      llama-runtime engines --engine-path ~/llama.cpp/build/bin/llama-server
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    config = ServerConfig(**chosen(settings))
    found = [engine.inspect(devices=True) for engine in engines(config)]
    try:
        choice = choose(config, gpu_present=gpu_hint())
        picked, why = choice.engine.kind, choice.why
    except EngineNotInstalledError as exc:
        picked, why = None, exc.message
    if as_json:
        output.result_json(
            {
                "engines": [
                    {**asdict(info), "can": _abilities(info), "warning": _warning(info)}
                    for info in found
                ],
                "auto": {"engine": picked, "why": why},
            }
        )
        return
    output.table(
        ("ENGINE", "VERSION", "DEVICES", "CAN", "PATH"),
        [
            (
                info.kind,
                info.version or "-" if info.installed else "not usable",
                ", ".join(d.description or d.name for d in info.devices) or "CPU",
                ", ".join(_abilities(info)) or "not tried yet",
                str(info.path or "-"),
            )
            if info.installed
            else (info.kind, "-", "-", "-", info.problem or "-")
            for info in found
        ],
    )
    for info in found:
        if not info.installed:
            output.note(f"{info.kind}: {info.install_hint}")
        elif warning := _warning(info):
            output.note(f"{info.kind}: {warning}")
    if any(info.installed and not _abilities(info) for info in found):
        output.note("What an engine can do is tried out, and remembered, when it first starts.")
    output.result(f"auto takes {picked or 'none'}: {why}")


def _warning(info: EngineInfo) -> str | None:
    return age_warning(info.version) if info.installed else None


def _abilities(info: EngineInfo) -> list[str]:
    return [name for name, obeys in remembered_trials(info.path).items() if obeys]
