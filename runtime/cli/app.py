"""``llama-runtime``: serve a model, talk to it, see what runs, manage models and engines."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import output
from runtime.cli.doctor import doctor
from runtime.cli.models import models
from runtime.cli.options import COMMON, chosen, server_options
from runtime.cli.servers import logs, ps, serve, stop
from runtime.cli.top import top
from runtime.errors import LLMError, LLMInvalidRequestError
from runtime.settings import DEFAULT_MODEL, ServerConfig, debug_wanted

if TYPE_CHECKING:
    from runtime.client.sync import LlamaClient


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="llama-runtime", message="%(package)s %(version)s")
@click.option("--offline", is_flag=True, help="Never use the network; what is on disk works.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the runtime does, on stderr.")
def cli(*, offline: bool, verbose: bool) -> None:
    """A managed llama.cpp: fetch a model, serve it, talk to it.

    Every setting can also come from the environment: LLAMA_RUNTIME_CTX_SIZE=8192. All files are
    kept below LLAMA_RUNTIME_HOME when that is set.
    """
    if offline:
        os.environ["LLAMA_RUNTIME_OFFLINE"] = "1"
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)


def _client(model: str, base_url: str | None, settings: dict[str, Any]) -> LlamaClient:
    from runtime.client.sync import LlamaClient  # noqa: PLC0415 - `--help` does not need it

    if base_url:
        return LlamaClient(base_url=base_url, api_key=os.environ.get("LLAMA_RUNTIME_API_KEY"))
    config = ServerConfig(model=model, **{"parallel": 1, **chosen(settings)})
    with output.pull_progress() as progress:
        return LlamaClient(config=config, progress=progress)


def _conversation_options(command: Any) -> Any:
    for option in (
        click.option("--model", "-m", default=DEFAULT_MODEL, show_default=True, help="The model."),
        click.option("--system", default=None, help="A system message."),
        click.option("--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate."),
        click.option("--temperature", type=click.FloatRange(min=0), help="Sampling temperature."),
        click.option("--seed", type=int, help="Seed; the same one gives the same answer."),
        click.option(
            "--base-url",
            metavar="URL",
            help="Use a server that runs already (its key: LLAMA_RUNTIME_API_KEY).",
        ),
    ):
        command = option(command)
    return server_options(COMMON)(command)


@cli.command()
@click.argument("prompt", required=False)
@_conversation_options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON.")
def run(
    prompt: str | None,
    model: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    base_url: str | None,
    *,
    as_json: bool,
    **settings: Any,
) -> None:
    """Answer PROMPT once, on stdout.

    What is piped in comes behind the prompt, or is the prompt:

    \b
      llama-runtime run "Name three rivers"
      cat notes.txt | llama-runtime run "Summarize this:"
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    text = "\n\n".join(part for part in (prompt, piped.strip()) if part)
    if not text:
        raise LLMInvalidRequestError(
            "There is no prompt.", hint='For example: llama-runtime run "Name three rivers"'
        )
    with _client(model, base_url, settings) as client:
        messages = [*_system(system), _message("user", text)]
        params = _params(max_tokens, temperature, seed)
        if as_json:
            import dataclasses  # noqa: PLC0415

            output.result_json(dataclasses.asdict(client.chat(messages, params=params)))
            return
        _stream(client, messages, params)


@cli.command()
@click.argument("model_name", metavar="[MODEL]", required=False)
@_conversation_options
def chat(
    model_name: str | None,
    model: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    base_url: str | None,
    **settings: Any,
) -> None:
    """Talk with MODEL in the terminal.

    Ctrl-C stops an answer; at the prompt it ends the conversation, as Ctrl-D does.
    """
    with _client(model_name or model, base_url, settings) as client:
        output.note(f"{client.default_model()} is ready. Ctrl-D ends, Ctrl-C stops an answer.")
        messages = _system(system)
        while (text := _ask()) is not None:
            if not text:
                continue
            messages.append(_message("user", text))
            try:
                answer = _stream(client, messages, _params(max_tokens, temperature, seed))
            except KeyboardInterrupt:
                output.note("\n(stopped)")
                messages.pop()
                continue
            except LLMError as exc:
                output.failure(exc)
                messages.pop()
                continue
            messages.append(_message("assistant", answer))


def _ask() -> str | None:
    """One line of the user's; None at the end."""
    try:
        if sys.stdin.isatty():
            import readline  # noqa: F401, PLC0415 - gives input() editing and history

            return input("> ").strip()
        line = sys.stdin.readline()
    except (EOFError, KeyboardInterrupt):
        output.note("")
        return None
    return line.strip() if line else None


def _system(text: str | None) -> list[Any]:
    return [_message("system", text)] if text else []


def _message(role: Any, text: str) -> Any:
    from runtime.contracts import LLMMessage  # noqa: PLC0415

    return LLMMessage(role=role, content=text)


def _params(max_tokens: int | None, temperature: float | None, seed: int | None) -> Any:
    from runtime.contracts import LLMChatParams  # noqa: PLC0415

    options: dict[str, object] = {} if seed is None else {"seed": seed}
    return LLMChatParams(temperature=temperature, max_tokens=max_tokens, provider_options=options)


def _stream(client: LlamaClient, messages: list[Any], params: Any) -> str:
    """Print an answer as it comes; returns its text."""
    text = ""
    for event in client.stream_chat(messages, params=params):
        if event.delta_text:
            output.piece(event.delta_text)
        if event.response is not None:
            text = event.response.text
            if event.response.finish_reason == "length":
                output.note("\n(cut off: the token limit was reached)")
    output.piece("\n")
    return text


@cli.command()
@click.argument("texts", nargs=-1)
@click.option("--model", "-m", default=DEFAULT_MODEL, show_default=True, help="The model.")
@click.option("--base-url", metavar="URL", help="Use a server that runs already.")
@click.option("--truncate", is_flag=True, help="Cut what is too long instead of refusing it.")
@server_options(COMMON)
def embed(
    texts: tuple[str, ...],
    model: str,
    base_url: str | None,
    *,
    truncate: bool,
    **settings: Any,
) -> None:
    """Print the embedding of each text (or of each line of stdin) as a line of JSON."""
    import json  # noqa: PLC0415

    wanted = list(texts)
    if not wanted and not sys.stdin.isatty():
        wanted = [line for line in sys.stdin.read().splitlines() if line.strip()]
    with _client(model, base_url, settings) as client:
        made = client.embed(wanted, truncate=truncate)
        for each in getattr(made, "truncated", ()):
            output.note(f"Text {each.index}: {each.kept} of its {each.tokens} tokens are embedded.")
        for vector in made.vectors:
            output.result(json.dumps(list(vector)))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@server_options(("engine_path",))
def engines(*, as_json: bool, **settings: Any) -> None:
    """Show which engines are here, what each can do, and which one `auto` would take."""
    from runtime.cli.engines import show_engines  # noqa: PLC0415

    show_engines(ServerConfig(**chosen(settings)), as_json=as_json)


for _command in (serve, ps, top, stop, logs, models, doctor):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; every failure becomes a message and an exit code."""
    try:
        code = cli.main(prog_name="llama-runtime", standalone_mode=False)
    except click.exceptions.Exit as exc:
        code = exc.exit_code
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        output.note("Stopped.")
        code = output.EXIT_INTERRUPTED
    except LLMError as exc:
        if debug_wanted():
            raise
        code = output.failure(exc)
    except Exception as exc:
        if debug_wanted():
            raise
        output.err.print(f"[bold red]Defect:[/bold red] {type(exc).__name__}: {exc}", markup=True)
        output.note("This is a defect of llama-runtime. LLAMA_RUNTIME_DEBUG=1 shows where it is.")
        code = output.EXIT_DEFECT
    sys.exit(code if isinstance(code, int) else 0)
