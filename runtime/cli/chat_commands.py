"""The commands of a chat: what can be done beside talking."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.cli import conversation, output
from runtime.cli.conversation import Conversation
from runtime.cli.lazy import nearest
from runtime.cli.names import model_names
from runtime.errors import LLMInvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.cli.chat_session import Chat


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    Attributes:
        usage: What may follow it; empty for nothing.
        about: What it does.
        act: Does it.
        words: What may follow it, for completion; None for the name of a file.
    """

    usage: str
    about: str
    act: Callable[[Chat, str], None]
    words: Callable[[], list[str]] | None = list


def perform(chat: Chat, name: str, argument: str) -> None:
    """Do what a command says.

    Raises:
        LLMInvalidRequestError: There is no such command, or its argument is not right.
        LLMError: It failed.
    """
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        near = nearest(name, list(COMMANDS)).replace("'", "").replace("mean ", "mean /")
        raise LLMInvalidRequestError(
            f"There is no command /{name}.{near}",
            hint="/help lists them; //text says a text that begins with a slash.",
        )
    if argument and not command.usage:
        raise LLMInvalidRequestError(f"/{name} takes nothing.", hint=f"Just /{name}.")
    command.act(chat, argument)


def words() -> Mapping[str, Callable[[], list[str]] | None]:
    """What may follow each command."""
    return {name: command.words for name, command in COMMANDS.items()}


def _help(chat: Chat, argument: str) -> None:  # noqa: ARG001 - every command has these
    width = max(len(f"/{name} {command.usage}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        output.note(f"{f'/{name} {command.usage}':<{width}}  {command.about}")
    output.note(
        'Alt-Enter, a \\ at the end of a line, or """ before and after make several lines. Ctrl-C '
        "stops an answer; //text says a text that begins with a slash."
    )


def _model(chat: Chat, argument: str) -> None:
    if not argument:
        output.note(f"{chat.model} answers. Others: {', '.join(model_names())}.")
        return
    chat.switch(argument)
    output.note(f"{chat.model} is ready; the conversation goes on.")


def _system(chat: Chat, argument: str) -> None:
    if argument:
        text = "" if argument == "-" else argument
        chat.conversation = replace(chat.conversation, system=text)
    system = chat.conversation.system
    output.note(f"The system message: {system}" if system else "There is no system message.")


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.partition(" ")
    value = value.strip()
    if name and name not in SETTINGS:
        raise LLMInvalidRequestError(
            f"There is no setting {name!r}.{nearest(name, list(SETTINGS))}",
            hint=f"The settings are: {', '.join(SETTINGS)}.",
        )
    if name and value:
        _put(chat, name, None if value == "default" else _parsed(name, value))
    for known in [name] if name else SETTINGS:
        now = _get(chat, known)
        output.note(f"{known} = {'default' if now is None else now}")


def _parsed(name: str, value: str) -> float | str:
    kind, most = SETTINGS[name]
    try:
        parsed = kind(value)
    except ValueError:
        parsed = None
    if parsed is None or (not isinstance(parsed, str) and not 0 <= parsed <= most):
        shape = "a whole number" if kind is int else "a number"
        bound = "" if most == float("inf") else f" up to {most:g}"
        raise LLMInvalidRequestError(
            f"{name} cannot be {value!r}.", hint=f"It is {shape} from 0{bound}, or `default`."
        )
    if name == "fit" and parsed not in FITS:
        raise LLMInvalidRequestError(
            f"fit cannot be {value!r}.", hint=f"It is {' or '.join(FITS)}."
        )
    return parsed


def _get(chat: Chat, name: str) -> object:
    if name == "fit":
        return chat.fit
    if name in OWN:
        return getattr(chat.sampling, name)
    return chat.sampling.options.get(name)


def _put(chat: Chat, name: str, value: float | str | None) -> None:
    if name == "fit":
        chat.fit = str(value or FITS[0])
    elif name in OWN:
        chat.sampling = replace(chat.sampling, **{name: value})  # type: ignore[arg-type]
    else:
        rest = {key: old for key, old in chat.sampling.options.items() if key != name}
        options = rest if value is None else {**rest, name: value}
        chat.sampling = replace(chat.sampling, options=options)


def _path(argument: str, command: str) -> tuple[Path, bool]:
    """The file that is named, and whether ``-f`` says that what is there may go."""
    name = argument.removeprefix("-f ").strip()
    if not name or name == "-f":
        raise LLMInvalidRequestError(
            f"/{command} needs the name of a file.", hint=f"/{command} talk.json"
        )
    return Path(name).expanduser(), name != argument


def _save(chat: Chat, argument: str) -> None:
    path, overwrite = _path(argument, "save")
    conversation.save(chat.conversation, path, model=chat.model, overwrite=overwrite)
    chat.saved = chat.conversation
    output.note(f"{len(chat.conversation.turns)} messages are in {path}, for you alone to read.")


def _load(chat: Chat, argument: str) -> None:
    path, discard = _path(argument, "load")
    loaded = conversation.load(path)
    if chat.unsaved and not discard:
        raise LLMInvalidRequestError(
            f"This conversation of {len(chat.conversation.turns)} messages is not saved.",
            hint=f"/save FILE keeps it; `/load -f {path}` lets it go.",
        )
    chat.conversation = chat.saved = loaded
    chat.unanswered = None
    output.note(f"{len(loaded.turns)} messages from {path}.")


def _tokens(chat: Chat, argument: str) -> None:  # noqa: ARG001
    tokens, context = chat.tokens(chat.conversation), chat.context_tokens
    if tokens is None:
        raise LLMInvalidRequestError("This server counts no tokens.")
    of = f" of {context:,}, room for {max(0, context - tokens):,} more" if context else ""
    output.note(f"The conversation has {tokens:,} tokens{of}.")


def _snapshot(chat: Chat, argument: str) -> None:  # noqa: ARG001
    snapshot = chat.client.server_snapshot()
    if snapshot is None:
        raise LLMInvalidRequestError(
            "The server is not this program's own.", hint="Its own address tells: /snapshot there."
        )
    output.result_json(snapshot)


def _clear(chat: Chat, argument: str) -> None:  # noqa: ARG001
    count = len(chat.conversation.turns)
    chat.conversation = chat.saved = Conversation(system=chat.conversation.system)
    chat.unanswered = None
    output.note(f"{count} messages are forgotten.")


def _retry(chat: Chat, argument: str) -> None:  # noqa: ARG001
    if chat.sampling.seed is not None:
        output.note("The seed is set, so the answer will be the same: /set seed default.")
    chat.retry()


def _quit(chat: Chat, argument: str) -> None:  # noqa: ARG001
    chat.over = True


FITS: Final = ("drop_oldest", "error")
OWN: Final = ("temperature", "max_tokens", "seed")
SETTINGS: Final[dict[str, tuple[type[float | int | str], float]]] = {
    "temperature": (float, float("inf")),
    "max_tokens": (int, float("inf")),
    "seed": (int, 2**32 - 2),
    "top_p": (float, 1),
    "top_k": (int, float("inf")),
    "min_p": (float, 1),
    "repeat_penalty": (float, float("inf")),
    "fit": (str, 0),
}
"""What /set knows: each with the kind of its values, and the largest."""

ALIASES: Final = {"exit": "quit", "q": "quit", "h": "help"}

COMMANDS: Final = {
    "help": Command("", "Show this.", _help),
    "model": Command(
        "[NAME]", "Show or load another model; the conversation stays.", _model, model_names
    ),
    "system": Command("[TEXT | -]", "Show, set or remove the system message.", _system),
    "set": Command(
        "[NAME [VALUE]]",
        "Show or set temperature, max_tokens, seed, ...; `default` unsets.",
        _set,
        lambda: list(SETTINGS),
    ),
    "save": Command("[-f] FILE", "Keep the conversation as JSON; -f overwrites.", _save, None),
    "load": Command("[-f] FILE", "Go on with a saved one; -f lets this one go.", _load, None),
    "tokens": Command("", "Count the conversation's tokens against the context.", _tokens),
    "snapshot": Command("", "Show the server as JSON.", _snapshot),
    "clear": Command("", "Forget what was said; the system message stays.", _clear),
    "retry": Command("", "Ask the last question again.", _retry),
    "quit": Command("", "Leave, as Ctrl-D does.", _quit),
}
"""Every command by its name."""
