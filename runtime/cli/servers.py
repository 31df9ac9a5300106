"""The commands about running servers: serve, ps, stop, logs."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections import deque
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil

from runtime.cli import output
from runtime.cli.options import chosen, server_options
from runtime.errors import LLMInvalidRequestError, LLMProviderError
from runtime.server import registry
from runtime.settings import DEFAULT_MODEL, ServerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.server.registry import ServerRecord
    from runtime.server.snapshot import ServerSnapshot

DEFAULT_PORT = 8080
STOP_PATIENCE_S = 15.0

_OF_THE_DOOR = frozenset({"host", "port", "api_key", "alias"})
"""Settings of the gateway itself, not of the engines behind it."""


@click.command()
@click.argument("model", required=False)
@click.option(
    "--models",
    metavar="A,B",
    help="Several models behind one address, each loaded when first asked for.",
)
@click.option(
    "--memory-budget",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="Most memory for all loaded models. [default: what is free now, less a margin]",
)
@click.option(
    "--keep-alive",
    metavar="TIME",
    help='How long an unused model stays loaded: "5m", seconds, 0, or -1 for ever. [default: -1]',
)
@click.option(
    "--allow-pull",
    is_flag=True,
    help="Fetch models that requests name; without it they must be on this machine.",
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the key to demand (or LLAMA_RUNTIME_API_KEY); without one no key is asked for.",
)
@server_options(port=DEFAULT_PORT)
def serve(
    model: str | None,
    models: str | None,
    memory_budget: float | None,
    keep_alive: str | None,
    api_key_file: Path | None,
    *,
    allow_pull: bool,
    **settings: Any,
) -> None:
    """Serve MODEL to OpenAI clients on a fixed port until Ctrl-C.

    \b
      llama-runtime serve
      llama-runtime serve smollm2-135m --port 9000 --ctx-size 8192
      llama-runtime serve --models smollm2-135m,qwen3-4b --keep-alive 10m

    Further models on this machine are loaded when a request names them.
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    from runtime.gateway.dialect import FOREVER  # noqa: PLC0415 - `--help` does not need it
    from runtime.gateway.dialect import keep_alive as keep_alive_of  # noqa: PLC0415
    from runtime.gateway.models import Models, Plan  # noqa: PLC0415
    from runtime.gateway.rules import keys_from_file, rules_for  # noqa: PLC0415
    from runtime.gateway.running import address_of, listen, run  # noqa: PLC0415
    from runtime.gateway.security import Guard  # noqa: PLC0415

    given = chosen(settings)
    given.setdefault("port", os.environ.get("LLAMA_RUNTIME_PORT", DEFAULT_PORT))
    door = ServerConfig(**given)  # checks every setting
    keys = keys_from_file(api_key_file) if api_key_file else filter(None, [door.api_key])
    rules = rules_for(door.host, keys=keys)
    plan = Plan(
        models=_named(model, models),
        alias=given.get("alias"),
        settings={k: v for k, v in given.items() if k not in _OF_THE_DOOR},
        memory_budget_bytes=None if memory_budget is None else int(memory_budget * 2**30),
        keep_alive_s=kept if (kept := keep_alive_of(keep_alive)) is not None else FOREVER,
        allow_pull=allow_pull,
    )
    with listen(door.host, door.port) as listener, _ended_by_signals(), ExitStack() as shown:
        served = Models(plan, progress=shown.enter_context(output.pull_progress()))
        output.note(f"Starting {served.default} ...")

        def ready(snapshot: ServerSnapshot) -> None:
            shown.close()
            _announce(snapshot, address_of(listener), keyed=bool(rules.keys))

        run(served, listener, ready=ready, guard=partial(Guard, rules=rules))
    output.note("Ended.")


def _named(model: str | None, models: str | None) -> tuple[str, ...]:
    """The models that are served, the default first."""
    listed = [model, *(models or "").split(",")] if model else (models or "").split(",")
    names = [name.strip() for name in listed if name and name.strip()]
    return tuple(dict.fromkeys(names)) or (os.environ.get("LLAMA_RUNTIME_MODEL") or DEFAULT_MODEL,)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(snapshot: ServerSnapshot, url: str, *, keyed: bool) -> None:
    facts = snapshot.to_dict()
    model, engine, device = facts["model"], facts["engine"], facts["device"]
    context, slots = facts["context"], facts["slots"]
    assert isinstance(model, dict) and isinstance(engine, dict) and isinstance(device, dict)  # noqa: PT018, S101
    assert isinstance(context, dict) and isinstance(slots, dict)  # noqa: PT018, S101
    key = ' -H "Authorization: Bearer $LLAMA_RUNTIME_API_KEY"' if keyed else ""
    output.err.print(f"[bold green]Ready[/bold green] at [bold]{url}/v1[/bold]")
    output.say(
        "model",
        f"{facts['api_model']} ({model['architecture']} {model['quantization']}, "
        f"{output.size(model['size_bytes'])})",
    )
    output.say("engine", f"{engine['kind']} {engine['version']}")
    output.say("device", f"{device['actual'] or 'unknown'}: {device['why']}")
    output.say(
        "context", f"{context['actual']} tokens for each of {slots['total']} requests at once"
    )
    for text in snapshot.notes:
        output.say("note", text)
    output.say("log", str(facts["log_path"] or "no file"))
    output.err.print("\nTry it:")
    output.err.print(
        f"  curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"messages": [{{"role": "user", "content": "Hello!"}}], "max_tokens": 50}}\'',
        markup=False,
        soft_wrap=True,
    )
    output.note("\nCtrl-C ends it.")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def ps(*, as_json: bool) -> None:
    """Show the managed servers that run on this machine."""
    records = registry.running()
    if as_json:
        output.result_json([dataclasses.asdict(record) for record in records])
    elif records:
        output.table(
            ("NAME", "MODEL", "STATE", "URL", "ENGINE", "PID", "OWNER", "STARTED"),
            [
                (
                    record.name,
                    record.model,
                    record.state,
                    record.base_url or "-",
                    record.engine,
                    str(record.engine_pid or "-"),
                    f"{record.role} {record.owner_pid}",
                    (record.started_at or "")[:19],
                )
                for record in records
            ],
        )
    else:
        output.note("No managed server runs. `llama-runtime serve` starts one.")


def _pick(wanted: str | None, records: tuple[ServerRecord, ...]) -> ServerRecord:
    """The one server that a name, a model or a process id means."""
    matches = [
        record
        for record in records
        if wanted is None
        or wanted in {record.name, record.model, str(record.owner_pid), str(record.engine_pid)}
    ]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise LLMInvalidRequestError(
            f"No managed server is called {wanted!r}." if wanted else "No managed server runs.",
            hint="`llama-runtime ps` shows what runs.",
        )
    raise LLMInvalidRequestError(
        "More than one server is meant: " + ", ".join(record.name for record in matches) + ".",
        hint="Give one of these names.",
    )


@click.command()
@click.argument("server", required=False)
def stop(server: str | None) -> None:
    """End a server that `serve` started: by its name, model or process id."""
    record = _pick(server, registry.running())
    if record.role != "serve":
        raise LLMInvalidRequestError(
            f"{record.name} belongs to a program (process {record.owner_pid}) and ends with it.",
            hint=f"End that program: kill {record.owner_pid}",
        )
    try:
        owner = psutil.Process(record.owner_pid)
        if record.owner_lives:  # the very process, not one that took over its id
            owner.terminate()
            output.note(f"Ending {record.name} ({record.model}) ...")
            _wait_for_end(owner, record)
    except psutil.NoSuchProcess:
        pass  # it ended meanwhile, which is what was wanted
    except psutil.AccessDenied as exc:
        raise LLMProviderError(
            f"Process {record.owner_pid} belongs to another user.", hint="Ask that user."
        ) from exc
    output.note("Ended.")


def _wait_for_end(owner: psutil.Process, record: ServerRecord) -> None:
    deadline = time.monotonic() + STOP_PATIENCE_S
    while record.owner_lives:
        if time.monotonic() > deadline:
            raise LLMProviderError(
                f"Process {record.owner_pid} did not end within {STOP_PATIENCE_S:.0f} s.",
                hint=f"kill -9 {record.owner_pid} ends it and its engine.",
            )
        with suppress(psutil.TimeoutExpired):
            owner.wait(0.1)


@click.command()
@click.argument("server", required=False)
@click.option("-n", "--lines", type=click.IntRange(min=1), default=100, show_default=True)
def logs(server: str | None, lines: int) -> None:
    """Show the last lines that a server's engine printed."""
    record = _pick(server, registry.running())
    if record.log_path is None:
        raise LLMInvalidRequestError(f"{record.name} writes no log file.", hint=None)
    try:
        with Path(record.log_path).open(encoding="utf-8", errors="replace") as file:
            for line in deque(file, maxlen=lines):
                output.result(line.rstrip("\n"))
    except OSError as exc:
        raise LLMProviderError(
            f"Cannot read {record.log_path}: {exc.strerror or exc}.",
            hint="It was removed; restart the server to have it written again.",
        ) from exc
