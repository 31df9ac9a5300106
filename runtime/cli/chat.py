"""The command ``chat``: talk with a model in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import entry, output
from runtime.cli.asking import Backend, Sampling, conversation_options
from runtime.cli.chat_commands import perform, words
from runtime.cli.chat_session import Chat
from runtime.cli.conversation import Conversation
from runtime.errors import LLMError

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from runtime.cli.chat_input import Lines

_HOW = (
    '{model} is ready. Alt-Enter, a \\ at the end or """ go on in a new line; /help; Ctrl-C stops '
    "an answer, Ctrl-D leaves."
)


@click.command()
@click.argument("model_name", metavar="[MODEL]", required=False)
@conversation_options
@click.option("--no-history", is_flag=True, help="Neither read nor keep what is typed.")
def chat(
    model_name: str | None,
    model: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    base_url: str | None,
    *,
    no_history: bool,
    **settings: Any,
) -> None:
    """Talk with MODEL in the terminal, or answer stdin line by line.

    Ctrl-C stops an answer, Ctrl-D at the prompt leaves. A line that ends in a backslash, Alt-Enter
    and a pair of \"\"\" make entries of several lines. /help lists the commands, among them /model,
    /system, /retry, /save and /load; Tab completes them. What is typed is kept for later chats.

    \b
      llama-runtime chat
      llama-runtime chat qwen3-4b --system "Answer in one sentence." --temperature 0.2
      llama-runtime chat --base-url http://127.0.0.1:8080
      printf 'Hello\\nAnd in French?\\n' | llama-runtime chat
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    backend = Backend(model=model_name or model, base_url=base_url, settings=settings)
    sampling = Sampling(temperature=temperature, max_tokens=max_tokens, seed=seed)
    with Chat(backend, sampling, Conversation(system=system or "")) as held:
        output.note(_HOW.format(model=held.model))
        code = _talk(held, _lines(keep=not no_history), at_terminal=sys.stdin.isatty())
    if code:
        raise click.exceptions.Exit(code)


def _lines(*, keep: bool) -> Lines:
    from runtime.cli.chat_input import Editor, Pipe  # noqa: PLC0415 - slow to import

    if not sys.stdin.isatty():
        return Pipe()
    return Editor(history=_history() if keep else None, words=words())


def _history() -> History | None:
    from runtime.cli.chat_history import ChatHistory, history_path  # noqa: PLC0415

    try:
        return ChatHistory(history_path())
    except LLMError as exc:
        output.note(f"What is typed is not kept: {exc.message}")
        return None


def _talk(held: Chat, lines: Lines, *, at_terminal: bool) -> int:
    """Read and answer until the end; returns the exit code of the last failure of piped lines."""
    code = 0
    leaving = False
    while not held.over:
        try:
            text = lines.read()
            if text is None:
                break
            leaving = False
            _take(held, text)
        except KeyboardInterrupt as exc:
            typed = str(exc.args[0]) if exc.args else ""
            if not at_terminal or (leaving and not typed):
                break
            leaving = not typed
            if leaving:
                output.note("Ctrl-D or /quit leaves, and so does Ctrl-C once more.")
        except LLMError as exc:
            code = output.failure(exc)
    return 0 if at_terminal else code


def _take(held: Chat, text: str) -> None:
    """Do what an entry says, or have it answered."""
    if command := entry.command(text):
        perform(held, *command)
    elif text:
        held.ask(entry.said(text))
