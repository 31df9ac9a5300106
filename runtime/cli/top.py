"""The command ``top``: a running gateway, live."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from runtime.cli import output
from runtime.cli.top_view import clean, picture
from runtime.errors import ConfigError, LLMAuthError, LLMInvalidRequestError, LLMProviderError
from runtime.server import probe, registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PATIENCE_S: Final = 3.0


@click.command()
@click.argument("server", required=False)
@click.option(
    "--url", metavar="URL", help="The gateway's address, where it is not found by itself."
)
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File with the gateway's key (or LLAMA_RUNTIME_API_KEY).",
)
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=0.2),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look once and end, as when it is piped.")
@click.option("--json", "as_json", is_flag=True, help="The snapshot as JSON, once.")
def top(
    server: str | None,
    url: str | None,
    api_key_file: Path | None,
    every_s: float,
    *,
    once: bool,
    as_json: bool,
) -> None:
    """Watch a running gateway, live.

    Models, slots, queue, memory, tokens per second, errors. SERVER is its name, model or process
    id where several run. q or Ctrl-C ends.

    \b
      llama-runtime top
      llama-runtime top --once
      llama-runtime top --url http://127.0.0.1:9000
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    address = _address(url) if url else _running(server)
    key = _key(api_key_file)
    first = _snapshot(address, key)
    console = Console(highlight=False)
    if as_json:
        output.result_json(first)
    elif once or not console.is_terminal:
        console.print(picture(first, width=console.width))
    else:
        _watch(console, first, lambda: _snapshot(address, key), every_s)


def _watch(
    console: Console,
    first: Mapping[str, Any],
    look: Callable[[], Mapping[str, Any]],
    every_s: float,
) -> None:
    """Show it until q or Ctrl-C; a gateway that goes away is waited for."""
    snapshot, problem = first, ""
    with (
        contextlib.suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            foot = Text(problem or "q ends", style="yellow" if problem else "dim")
            live.update(Group(picture(snapshot, width=console.width), "", foot), refresh=True)
            if pressed(every_s) in {"q", "Q", "\x03"}:
                return
            try:
                snapshot, problem = look(), ""
            except LLMProviderError as exc:
                problem = f"{exc.message} Trying again; this is what it said last. q ends"


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key so many seconds; "" when none was pressed."""
    if os.name != "posix" or not sys.stdin.isatty():
        yield _no_key
        return
    import termios  # noqa: PLC0415 - only where there is such a thing
    import tty  # noqa: PLC0415

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([terminal], [], [], seconds)
        return os.read(terminal, 1).decode("latin-1") if ready else ""

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    """Wait where no keys can be read."""
    threading.Event().wait(seconds)
    return ""


def _running(wanted: str | None) -> str:
    """The address of the gateway that is meant.

    Raises:
        LLMInvalidRequestError: None runs, none is called so, or several are meant.
    """
    found = [
        record
        for record in registry.running()
        if record.role == "serve" and record.base_url is not None
    ]
    if not found:
        raise LLMInvalidRequestError(
            "No gateway runs.",
            hint="`llama-runtime serve` starts one; --url names one on another machine.",
        )
    meant = [
        record
        for record in found
        if wanted is None or wanted in {record.name, record.model, str(record.owner_pid)}
    ]
    if len(meant) != 1:
        names = ", ".join(f"{record.name} ({record.model}, {record.base_url})" for record in found)
        raise LLMInvalidRequestError(
            f"No gateway is called {wanted!r}." if not meant else "More than one gateway is meant.",
            hint=f"There is: {names}.",
        )
    return str(meant[0].base_url)


def _address(url: str) -> str:
    """The address that was given, without what clients put behind it.

    Raises:
        ConfigError: It is none.
    """
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(
            f"{url!r} is no gateway's address.", hint="It looks like http://127.0.0.1:8080."
        )
    return f"http://{parts.netloc}"


def _key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("LLAMA_RUNTIME_API_KEY")
    try:
        return path.read_text("utf-8").strip()
    except OSError as exc:
        raise ConfigError(
            f"Cannot read the key file {path}: {exc.strerror or exc}.", hint="Check the path."
        ) from exc


def _snapshot(address: str, key: str | None) -> Mapping[str, Any]:
    """What the gateway tells.

    Raises:
        LLMAuthError: It asks for a key, or for another one.
        LLMProviderError: It does not answer, or it is no gateway.
    """
    reply = probe.ask(address, "/snapshot", api_key=key, timeout_s=PATIENCE_S)
    if reply.status in {401, 403}:
        said = "refuses this key" if key else "asks for a key"
        raise LLMAuthError(
            f"The gateway at {address} {said}.",
            hint="Set LLAMA_RUNTIME_API_KEY, or name a file with --api-key-file.",
        )
    if reply.status == 0:
        raise LLMProviderError(
            f"The gateway at {address} does not answer: {clean(reply.problem)}.",
            hint="`llama-runtime ps` shows what runs.",
        )
    if reply.status != 200 or not isinstance(reply.body, dict) or "models" not in reply.body:
        raise LLMProviderError(
            f"What answers at {address} is no gateway: /snapshot gave HTTP {reply.status}.",
            hint="`llama-runtime ps` shows what runs.",
        )
    return reply.body
