"""Whether a model's chat template makes it think before it answers, and how its thoughts end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_TAGS: Final = ("think", "thinking", "seed:think")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """How a model thinks aloud.

    Attributes:
        opening: What begins its thoughts.
        closing: What ends them.
        opened: Whether the template writes the opening, so that every answer begins in thoughts.
        separated: Whether the server keeps them apart from the answer's text.
    """

    opening: str = "<think>"
    closing: str = "</think>"
    opened: bool = False
    separated: bool = False


def thinking_of(template: object, prompt: object = None) -> Thinking | None:
    """How a model with this chat template thinks, or None when the template knows of no thoughts.

    Args:
        template: The template's text.
        prompt: What it makes of a short conversation, with the model's turn begun.
    """
    if not isinstance(template, str):
        return None
    for tag in _TAGS:
        opening, closing = f"<{tag}>", f"</{tag}>"
        begun = isinstance(prompt, str) and prompt.rstrip().endswith(opening)
        if begun or closing in template:
            return Thinking(opening=opening, closing=closing, opened=begun)
    return None


def separation_trial(thinking: Thinking) -> dict[str, object]:
    """A request whose answer shows whether the server keeps thoughts apart."""
    said = f"{'' if thinking.opened else thinking.opening}q{thinking.closing}z"
    return {
        "messages": [{"role": "user", "content": "."}],
        "grammar": f'root ::= "{said}"',
        "max_tokens": 64,
        "temperature": 0,
        "seed": 1,
    }


def is_separated(message: object) -> bool:
    """Whether the message that answered the trial has the thought apart."""
    match message:
        case {"reasoning_content": str(thought), "content": str(text)}:
            return thought.strip() == "q" and text.strip() == "z"
    return False
