"""Which slot of an engine a conversation is in, so that it finds its prompt there again.

llama.cpp gives a request to the idle slot whose last prompt is most like it, measured from the
beginning. Conversations that begin alike (agents with one system prompt) are then all given to one
slot in turn, and each finds what the others left: with four of them only the system prompt was
reused, 52 % of what was there to be reused after ten turns. So the client says which slot.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.inference.payload import LLAMA_CPP_KINDS

if TYPE_CHECKING:
    from runtime.engines.base import Endpoint
    from runtime.inference.wishes import Wish

Keys = tuple[int, ...]
"""One number for each beginning of a conversation: its first message, its first two, and so on."""


@dataclass(slots=True)
class _Slot:
    number: int
    held: Keys = ()
    lasting: bool = False
    busy: bool = False
    used: int = 0


class Places:
    """The slots of one managed engine as its only client knows them. Safe to use in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation: int | None = None
        self._slots: list[_Slot] = []
        self._clock = 0
        self._unplaced = 0
        self._left_alone = False

    def take(self, wish: Wish, endpoint: Endpoint) -> int | None:
        """The slot for a request, which is busy until :meth:`give_back`; None: the engine's choice.

        It is the engine's, too, while it has requests of its own choosing: which slots those are
        in is not known, and one that names a slot waits for it however many others are free.

        A conversation goes where it was. A new one goes where it harms none that will go on (those
        that are offered tools, or have an answer in them), else where none went on for longest.
        """
        if endpoint.kind not in LLAMA_CPP_KINDS or not endpoint.slots or endpoint.slots < 2:
            return None
        keys = _keys(wish)
        begun = any(message["role"] == "assistant" for message in wish.messages)
        lasting = begun or wish.tools is not None
        with self._lock:
            if self._generation != endpoint.generation:
                self._generation = endpoint.generation
                self._slots = [_Slot(number) for number in range(endpoint.slots)]
                self._unplaced = 0
            if self._left_alone or self._unplaced:
                self._unplaced += 1
                return None
            free = [slot for slot in self._slots if not slot.busy]
            chosen = _mine(free, keys) or _harmless(free, keys, lasting=lasting)
            if chosen is None and not begun:
                chosen = min(free, key=lambda slot: slot.used, default=None)
            if chosen is None:
                # More conversations than slots: this one lost its own. The engine may have kept
                # what was there, and looks for it only where it chooses the slot.
                self._unplaced += 1
                return None
            self._clock += 1
            chosen.held, chosen.lasting = keys, lasting
            chosen.busy, chosen.used = True, self._clock
            return chosen.number

    def give_back(self, number: int | None, endpoint: Endpoint) -> None:
        """The request that :meth:`take` had this answer for is over."""
        with self._lock:
            if self._generation != endpoint.generation:
                return
            if number is None:
                self._unplaced = max(0, self._unplaced - 1)
            else:
                self._slots[number].busy = False

    def leave_alone(self) -> None:
        """From now on the engine chooses: texts to embed take any slot, and empty it.

        What was in it is kept by the engine aside, and found again only when the engine chooses.
        """
        with self._lock:
            self._left_alone = True


def _mine(free: list[_Slot], keys: Keys) -> _Slot | None:
    """The slot that holds the longest beginning of this conversation, and nothing else."""
    holding = [slot for slot in free if slot.held and slot.held == keys[: len(slot.held)]]
    return max(holding, key=lambda slot: len(slot.held), default=None)


def _harmless(free: list[_Slot], keys: Keys, *, lasting: bool) -> _Slot | None:
    """The slot to begin in: an empty one, or that of a conversation which will not go on."""
    if lasting:
        # Least like this one: another like it may come, which can then begin with what is there.
        return min(
            (slot for slot in free if not slot.lasting),
            key=lambda slot: (_common(slot.held, keys), slot.used),
            default=None,
        )
    return max(
        (slot for slot in free if not slot.lasting),
        key=lambda slot: (_common(slot.held, keys), -slot.used),
        default=None,
    )


def _common(held: Keys, keys: Keys) -> int:
    return sum(one == other for one, other in zip(held, keys, strict=False))


def _keys(wish: Wish) -> Keys:
    so_far = hash(json.dumps([*wish.tools.functions.values()])) if wish.tools else 0
    keys: list[int] = []
    for message in wish.messages:
        so_far = hash((so_far, json.dumps(message)))
        keys.append(so_far)
    return tuple(keys)
