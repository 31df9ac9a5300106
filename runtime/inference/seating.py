"""The slot of one conversation, chosen anew for every engine process that works on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.contracts import LLMResponse
    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Pace
    from runtime.inference.effects import Flow
    from runtime.inference.places import Places, Seat
    from runtime.inference.session_result import Session
    from runtime.inference.sessions import Keeping
    from runtime.inference.wishes import Wish


class Seating:
    """Where a conversation sits, from its first request to its last.

    Args:
        wish: What is asked.
        places: The slots of the engine, when it is ours alone.
        keeping: The sessions that were saved or restored here, if there can be any.
        pace: How fast the engine processes prompts.

    Attributes:
        landed: The slot that the last answer came from, where the engine told.
    """

    def __init__(
        self, wish: Wish, places: Places | None, keeping: Keeping | None, pace: Pace
    ) -> None:
        self.landed: int | None = None
        self._wish = wish
        self._places = None if "id_slot" in wish.options else places
        self._keeping = keeping
        self._pace = pace
        self._generation: int | None = None
        self._seat: Seat | None = None
        self._brought: tuple[Session, float] | None = None

    def seated(self, asked: Wish, endpoint: Endpoint) -> Flow[Wish]:
        """What is asked of this engine, with the slot to do it in.

        Chosen only when the request has come up in line: before, all slots are busy, and where the
        conversation would be at home is not known yet. An engine that was started after the
        conversation's session was saved is given that first, where computing it would take longer.
        """
        if self._places is None:
            return asked
        if self._generation != endpoint.generation:
            self.leave()
            if self._keeping is not None:
                brought = yield from self._keeping.bring_back(self._wish, endpoint, self._pace)
                self._brought = brought or self._brought
            self._generation = endpoint.generation
            self._seat = self._places.take(self._wish, endpoint)
        if self._seat is None:
            return asked
        # The last event of an answer then says which slot it came from.
        slot = self._seat.slot
        told = {"verbose": True} if slot is None else {"id_slot": slot}
        return replace(asked, options={**asked.options, **told})

    def leave(self) -> None:
        """The slot is free for others."""
        seat, self._seat = self._seat, None
        if seat is not None and self._places is not None:
            self._places.give_back(seat, self.landed)

    def noted(self, response: LLMResponse) -> LLMResponse:
        """The response with ``raw["session"]``, when one was brought back for it."""
        if self._brought is None:
            return response
        session, seconds = self._brought
        note = {
            "path": str(session.path),
            "tokens": session.tokens,
            "ms": round(seconds * 1000),
        }
        return replace(response, raw={**(response.raw or {}), "session": note})
