"""Conversations that may be gone on with, kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import LLMMessage

MOST_KEPT: Final = 256
MOST_CHARACTERS: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An answer, and the conversation that it ends.

    Attributes:
        response: The answer as it was sent.
        turns: What was said up to and with the answer, without instructions.
    """

    response: Mapping[str, object]
    turns: tuple[LLMMessage, ...]

    @property
    def characters(self) -> int:
        """How long the conversation is."""
        calls = (call for turn in self.turns for call in getattr(turn, "tool_calls", ()))
        said = sum(len(turn.content) for turn in self.turns)
        return said + sum(len(call.arguments_json) for call in calls)


class Conversations:
    """The latest answers, by their ids: the oldest make room. Any thread may use it."""

    def __init__(self, *, most: int = MOST_KEPT, most_characters: int = MOST_CHARACTERS) -> None:
        """Nothing yet.

        Args:
            most: How many answers are kept.
            most_characters: How long their conversations may be together. What two of them have in
                common is counted twice.
        """
        self._most = most
        self._most_characters = most_characters
        self._characters = 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, response_id: str, kept: Kept) -> None:
        """Keep an answer."""
        with self._lock:
            self._kept[response_id] = kept
            self._characters += kept.characters
            while len(self._kept) > self._most or self._characters > self._most_characters:
                self._drop(next(iter(self._kept)))

    def find(self, response_id: str) -> Kept | None:
        """The answer of that id; None when it is not kept, or not any more."""
        with self._lock:
            return self._kept.get(response_id)

    def item(self, item_id: str) -> Mapping[str, object] | None:
        """The part of an answer that has that id."""
        with self._lock:
            latest_first = list(reversed(self._kept.values()))
        for kept in latest_first:
            output = kept.response.get("output")
            for item in output if isinstance(output, list) else ():
                if item.get("id") == item_id:
                    found: Mapping[str, object] = item
                    return found
        return None

    def drop(self, response_id: str) -> bool:
        """Forget an answer; tells whether it was kept."""
        with self._lock:
            return self._drop(response_id)

    def _drop(self, response_id: str) -> bool:
        kept = self._kept.pop(response_id, None)
        if kept is None:
            return False
        self._characters -= kept.characters
        return True
