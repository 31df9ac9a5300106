"""The command ``serve``."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import detached, output
from runtime.cli.options import chosen, server_options
from runtime.settings import DEFAULT_MODEL, ServerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.server.snapshot import ServerSnapshot

DEFAULT_PORT = 8080
MAX_BODY_BYTES = 32 << 20

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
    help="File with the keys to accept, one a line (or one in LLAMA_RUNTIME_API_KEY); without any "
    "no key is asked for.",
)
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME[:PORT]",
    help="A further name that requests may call this gateway by. May be given repeatedly.",
)
@click.option(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="URL",
    help="A web page's origin (http://localhost:3000) that may use this gateway. May be given "
    "repeatedly.",
)
@click.option(
    "--max-body-bytes",
    type=click.IntRange(min=1),
    default=MAX_BODY_BYTES,
    show_default=True,
    help="Longest request that is read.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=0),
    metavar="N",
    help="Requests that may wait for a slot of one model; more get a 429. [default: 1024]",
)
@click.option("--detach", is_flag=True, help="Return when it is ready; it goes on by itself.")
@click.option(
    "--detached-log", type=click.Path(dir_okay=False, path_type=Path), default=None, hidden=True
)
@click.option("--ready-fd", type=int, default=None, hidden=True)
@server_options(port=DEFAULT_PORT)
def serve(
    model: str | None,
    models: str | None,
    memory_budget: float | None,
    keep_alive: str | None,
    api_key_file: Path | None,
    allow_hosts: tuple[str, ...],
    allow_origins: tuple[str, ...],
    max_body_bytes: int,
    max_queue: int | None,
    detached_log: Path | None,
    ready_fd: int | None,
    *,
    allow_pull: bool,
    detach: bool,
    **settings: Any,
) -> None:
    """Serve MODEL to OpenAI clients on a fixed port until Ctrl-C.

    \b
      llama-runtime serve
      llama-runtime serve smollm2-135m --port 9000 --ctx-size 8192
      llama-runtime serve --models smollm2-135m,qwen3-4b --keep-alive 10m
      llama-runtime serve --detach             then: llama-runtime ps, logs -f, stop

    Further models on this machine are loaded when a request names them.
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    from runtime.gateway.dialect import FOREVER  # noqa: PLC0415 - `--help` does not need it
    from runtime.gateway.dialect import keep_alive as keep_alive_of  # noqa: PLC0415
    from runtime.gateway.models import Models, Plan  # noqa: PLC0415
    from runtime.gateway.rules import keys_from_file, rules_for  # noqa: PLC0415
    from runtime.gateway.running import address_of, listen, run  # noqa: PLC0415

    given = chosen(settings)
    given.setdefault("port", os.environ.get("LLAMA_RUNTIME_PORT", DEFAULT_PORT))
    door = ServerConfig(**given)  # checks every setting
    keys = keys_from_file(api_key_file) if api_key_file else filter(None, [door.api_key])
    rules = rules_for(
        door.host,
        keys=keys,
        allow_hosts=allow_hosts,
        allow_origins=allow_origins,
        max_body_bytes=max_body_bytes,
    )
    if detach:  # what is wrong with the settings has been said by now
        detached.serve_detached(sys.argv)
        return
    if detached_log is not None:
        detached.rotate_output(detached_log)
    plan = Plan(
        models=_named(model, models),
        alias=given.get("alias"),
        settings={k: v for k, v in given.items() if k not in _OF_THE_DOOR},
        memory_budget_bytes=None if memory_budget is None else int(memory_budget * 2**30),
        keep_alive_s=kept if (kept := keep_alive_of(keep_alive)) is not None else FOREVER,
        allow_pull=allow_pull,
        options={} if max_queue is None else {"max_queue": max_queue},
    )
    with listen(door.host, door.port) as listener, _ended_by_signals(), ExitStack() as shown:
        served = Models(plan, progress=shown.enter_context(output.pull_progress()))
        output.note(f"Starting {served.default} ...")

        def ready(snapshot: ServerSnapshot, name: str) -> None:
            shown.close()
            url = address_of(listener)
            _announce(snapshot, url, keyed=bool(rules.keys))
            if ready_fd is None:
                output.note("\nCtrl-C ends it.")
            else:
                told = detached.Ready(name=name, model=snapshot.api_model or "", url=url)
                detached.tell_ready(ready_fd, told)

        run(served, listener, ready=ready, rules=rules, own_log=detached_log)
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
    if snapshot.tuned is not None:
        day = str(snapshot.tuned["at"])[:10]
        output.say("tuned", f"profile of {day}: {snapshot.tuned['summary']}")
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
