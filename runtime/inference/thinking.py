"""Thoughts of a model: admitted by grammars, and kept apart from its answer."""

from __future__ import annotations

import re
from typing import Final, Literal

from runtime.engines.thinking import Thinking
from runtime.inference.gbnf import literal

_USUAL: Final = Thinking()


def admitted(grammar: str, thinking: Thinking) -> str:
    """A grammar of this package with thoughts admitted before what it demands.

    Without them, a model whose template has begun its thoughts would write the answer there.
    """
    before = "thought" if thinking.opened else f"({literal(thinking.opening)} thought)?"
    if grammar.startswith("%llguidance"):
        closing = re.escape(thinking.closing).replace("/", r"\/")
        rules = [rf"thought[lazy]: /(.|\n)*{closing}/", r"gap: /\s{0,3}/"]
        begun = grammar.replace("\nstart: ", f"\nstart: {before} gap answer\nanswer: ", 1)
        return "\n".join([begun, *rules])
    first, second, third, rest = *thinking.closing[:3], thinking.closing[3:]
    inside = f'[^{first}] | "{first}" [^{second}] | "{first}{second}" [^{third}{first}]'
    return "\n".join(
        [
            grammar.replace("root ::= ", f"root ::= {before} gap answer\nanswer ::= ", 1),
            f'thought ::= ({inside})* "{first}{second}{third}{rest}"',
            r"gap ::= [ \n]{0,3}",
        ]
    )


class ThoughtReader:
    """Tells thoughts from the answer while text arrives, where the server does not.

    Args:
        thinking: How the model thinks; None where that is not known, for the usual way.
    """

    def __init__(self, thinking: Thinking | None) -> None:
        self._thinking = thinking or _USUAL
        self._state: Literal["start", "thought", "gap", "answer"] = "start"
        self._waiting = ""

    def feed(self, text: str) -> tuple[str, str]:
        """What is now certain to be thought, and what answer."""
        if self._state == "answer":
            return "", text
        self._waiting += text
        thought = ""
        if self._state == "start":
            self._begin()
        if self._state == "thought":
            thought = self._think()
        if self._state == "gap":
            self._waiting = self._waiting.lstrip()
            if self._waiting:
                self._state = "answer"
        return thought, self._take(len(self._waiting)) if self._state == "answer" else ""

    def end(self) -> tuple[str, str]:
        """What had to wait for more, now that there is no more."""
        left = self._take(len(self._waiting))
        return (left, "") if self._state == "thought" else ("", left)

    def _begin(self) -> None:
        opening, begun = self._thinking.opening, self._waiting.lstrip()
        if begun.startswith(opening):  # some servers repeat what the template wrote
            self._state, self._waiting = "thought", begun.removeprefix(opening)
        elif not opening.startswith(begun):
            self._state = "thought" if self._thinking.opened else "answer"

    def _think(self) -> str:
        closing = self._thinking.closing
        thought, found, rest = self._waiting.partition(closing)
        if found:
            self._state, self._waiting = "gap", rest
            return thought
        lengths = range(min(len(closing) - 1, len(thought)), 0, -1)
        held = next((n for n in lengths if closing.startswith(thought[-n:])), 0)
        return self._take(len(thought) - held)

    def _take(self, count: int) -> str:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken
