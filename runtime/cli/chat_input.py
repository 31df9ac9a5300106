"""Where a chat's lines come from: an editor in the terminal, or a pipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output import create_output

from runtime.cli import entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent


class Lines(Protocol):
    """Where entries come from."""

    def read(self) -> str | None:
        """The next entry, as it was meant; None at the end.

        Raises:
            KeyboardInterrupt: Ctrl-C; its argument is what had been typed.
        """
        ...


class Pipe:
    """Entries out of a pipe or a file: one a line, unless the line says that more is to come."""

    def read(self) -> str | None:
        """The next entry; None at the end."""
        text = sys.stdin.readline()
        if not text:
            return None
        while entry.is_open(text.rstrip("\n")):
            more = sys.stdin.readline()
            if not more:
                break
            text += more
        return entry.meant(text.rstrip("\n"))


class Editor:
    """Entries typed in a terminal, with history, completion, and several lines when wanted.

    Args:
        history: What was typed before.
        words: What may follow each command, by its name; None for the name of a file.
    """

    def __init__(
        self,
        *,
        history: History | None = None,
        words: Mapping[str, Callable[[], list[str]] | None],
    ) -> None:
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation=lambda width, *_: "… ".rjust(width),
            history=history or InMemoryHistory(),
            enable_history_search=False,
            completer=CommandCompleter(words),
            complete_while_typing=False,
            key_bindings=_keys(),
            output=create_output(always_prefer_tty=True),
        )

    def read(self) -> str | None:
        """The next entry; None after Ctrl-D at an empty prompt."""
        try:
            return entry.meant(self._session.prompt())
        except EOFError:
            return None
        except KeyboardInterrupt as exc:
            raise KeyboardInterrupt(self._session.default_buffer.text) from exc


def _keys() -> KeyBindings:
    """Enter sends what is complete; Alt-Enter always goes on in a new line."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # Enter takes what Tab has chosen
        elif entry.is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


class CommandCompleter(Completer):
    """Completes ``/`` commands, and what may follow each.

    Args:
        words: What may follow each command, by its name; None for the name of a file.
    """

    def __init__(self, words: Mapping[str, Callable[[], list[str]] | None]) -> None:
        self._words = words
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        """What the text before the cursor may become."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, blank, rest = text[1:].partition(" ")
        if not blank:
            for known in self._words:
                if known.startswith(name):
                    yield Completion(f"/{known}", start_position=-len(text))
            return
        if name not in self._words:
            return
        words = self._words[name]
        if words is None:
            typed = rest.removeprefix("-f ")
            yield from self._paths.get_completions(Document(typed), event)
            return
        for word in words():
            if word.startswith(rest):
                yield Completion(word, start_position=-len(rest))
