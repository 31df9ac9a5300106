"""Which slot of an engine a conversation is in, so that it finds its prompt there again.

llama.cpp has two places for the prompts it has computed: each slot holds one, and a cache in main
memory holds copies, which it makes of idle slots whenever a request begins. We have it look into
that cache for every request that names no slot, and for no other
(:data:`runtime.engines.commands.SLOT_SIMILARITY`): by default a tenth in common makes a slot like a
request, and conversations that begin alike (agents with one system prompt) are given to one slot in
turn, where each cuts off what the others had.

What was in a slot last has no copy yet. So a conversation that goes on names its slot while it is
known to be there; every other request is left to the engine, which brings the conversation back
from the copies, or a beginning that is shared, and says afterwards which slot it took.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from runtime.inference.payload import LLAMA_CPP_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from runtime.engines.base import Endpoint
    from runtime.inference.effects import Flow
    from runtime.inference.wishes import Wish

T = TypeVar("T")

Keys = tuple[int, ...]
"""One number for each beginning of a conversation: its first message, its first two, and so on."""


@dataclass(slots=True)
class _Slot:
    number: int
    held: Keys = ()
    busy: bool = False
    fresh: bool = True
    used: int = 0


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one request is.

    Attributes:
        slot: The slot that it names; None: the engine chooses.
        generation: The engine process that this is about.
        keys: What the slot holds once the request is over.
    """

    slot: int | None
    generation: int
    keys: Keys


class Places:
    """The slots of one managed engine as its only client knows them. Safe to use in any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation = 0
        self._slots: list[_Slot] = []
        self._unplaced = 0
        self._clock = 0

    def take(self, wish: Wish, endpoint: Endpoint) -> Seat | None:
        """The seat of a request, until :meth:`give_back`; None where there is nothing to choose.

        A conversation goes where it was. One that is like no other begins in a slot that was never
        used. The engine chooses for all others, and for everyone while it has requests of its own
        choosing: which slots those are in is not known, and one that names a slot waits for it
        however many others are free.
        """
        if endpoint.kind not in LLAMA_CPP_KINDS or not endpoint.slots or endpoint.slots < 2:
            return None
        keys = keys_of(wish.messages, wish.tools.functions.values() if wish.tools else ())
        with self._lock:
            self._meet(endpoint)
            self._clock += 1
            chosen = None
            if not self._unplaced:
                free = [slot for slot in self._slots if not slot.busy]
                chosen = _mine(free, keys)
                if chosen is None and not any(_alike(slot.held, keys) for slot in self._slots):
                    chosen = next((slot for slot in free if slot.fresh), None)
            if chosen is None:
                self._unplaced += 1
                return Seat(None, endpoint.generation, keys)
            chosen.held, chosen.busy, chosen.fresh = keys, True, False
            chosen.used = self._clock
            return Seat(chosen.number, endpoint.generation, keys)

    def home(self, keys: Keys, endpoint: Endpoint) -> Seat | None:
        """The slot that a conversation is known to be in, idle until now; None: not known."""
        with self._lock:
            self._meet(endpoint)
            if self._unplaced:
                return None
            chosen = _mine([slot for slot in self._slots if not slot.busy], keys)
            if chosen is None:
                return None
            chosen.busy = True
            return Seat(chosen.number, endpoint.generation, keys)

    def claim(self, keys: Keys, endpoint: Endpoint) -> Seat:
        """A slot for a conversation that is brought from elsewhere, where it harms least.

        Never used, else without a known conversation, else with the one that waits for longest.
        """
        with self._lock:
            self._meet(endpoint)
            self._clock += 1
            free = [slot for slot in self._slots if not slot.busy] or self._slots
            chosen = min(free, key=lambda slot: (not slot.fresh, bool(slot.held), slot.used))
            chosen.held, chosen.busy, chosen.fresh = keys, True, False
            chosen.used = self._clock
            return Seat(chosen.number, endpoint.generation, keys)

    def known(self, endpoint: Endpoint) -> bool:
        """Whether a slot is certain to be free."""
        with self._lock:
            self._meet(endpoint)
            if endpoint.slots == 1:
                return True
            return not self._unplaced and any(not slot.busy for slot in self._slots)

    def forget(self, seat: Seat) -> None:
        """What a seat's slot holds is not known."""
        with self._lock:
            if self._generation == seat.generation and seat.slot is not None:
                self._slots[seat.slot].held = ()

    def give_back(self, seat: Seat, landed: int | None) -> None:
        """The request that :meth:`take` had this answer for is over.

        Args:
            seat: The answer.
            landed: The slot that the engine chose; None when it did not come to say.
        """
        with self._lock:
            if self._generation != seat.generation:
                return
            if seat.slot is not None:
                self._slots[seat.slot].busy = False
                return
            self._unplaced = max(0, self._unplaced - 1)
            if landed is None:
                for slot in self._slots:
                    if not slot.busy:  # it may have been any of them
                        slot.held, slot.fresh = (), False
            elif landed < len(self._slots):
                slot = self._slots[landed]
                slot.held, slot.fresh, slot.used = seat.keys, False, self._clock

    def disturb(self) -> Seat:
        """From now on until it is given back, a request may be in any slot."""
        with self._lock:
            self._unplaced += 1
            return Seat(None, self._generation, ())

    def disturbed(self, flow: Flow[T]) -> Flow[T]:
        """A flow of requests that may take any slot: texts to embed do, and empty it."""
        seat = self.disturb()
        try:
            return (yield from flow)
        finally:
            self.give_back(seat, None)

    def _meet(self, endpoint: Endpoint) -> None:
        if not self._slots or self._generation != endpoint.generation:
            self._generation = endpoint.generation
            self._slots = [_Slot(number) for number in range(endpoint.slots or 0)]
            self._unplaced = 0


def _mine(free: list[_Slot], keys: Keys) -> _Slot | None:
    """The slot that holds the longest beginning of this conversation, and nothing else."""
    holding = [slot for slot in free if slot.held and slot.held == keys[: len(slot.held)]]
    return max(holding, key=lambda slot: len(slot.held), default=None)


def _alike(held: Keys, keys: Keys) -> bool:
    return held[:1] == keys[:1]


def keys_of(
    messages: Iterable[Mapping[str, object]], functions: Iterable[Mapping[str, object]]
) -> Keys:
    """One number for each beginning of a conversation that offers these tools."""
    tools = [*functions]
    so_far = hash(json.dumps(tools)) if tools else 0
    keys: list[int] = []
    for message in messages:
        rest = {name: value for name, value in message.items() if name != "content"}
        so_far = hash((so_far, str(message["content"]), json.dumps(rest)))
        keys.append(so_far)
    return tuple(keys)
