"""A conversation's way to its answer: made to fit, given its slot, answered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.inference import flow
from runtime.inference.clock import Clock
from runtime.inference.effects import locate
from runtime.inference.fitting import fitted

if TYPE_CHECKING:
    from runtime.contracts import LLMResponse
    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow
    from runtime.inference.fitting import Fit
    from runtime.inference.payload import Wish
    from runtime.inference.places import Places
    from runtime.inference.reply import Backend


def converse(
    wish: Wish, limits: Limits, backend: Backend, *, emit: bool, places: Places | None = None
) -> Flow[LLMResponse]:
    """Answer a conversation; see :func:`runtime.inference.flow.converse`.

    Args:
        wish: What is asked.
        limits: Deadlines and bounds.
        backend: Who signs the response.
        emit: Whether each piece is handed out as it comes.
        places: The slots of the engine, when it is ours alone.
    """
    clock = Clock(limits)
    fit: Fit | None = None
    if wish.policy.fit == "drop_oldest":
        wish, fit = yield from fitted(wish, limits)
        limits = replace(limits, request_timeout_s=max(clock.left_s, 0.001))
    if places is None or "id_slot" in wish.options:
        response = yield from flow.converse(wish, limits, backend, emit=emit)
    else:
        response = yield from _in_its_place(wish, limits, backend, places, emit=emit)
    if fit is None:
        return response
    return replace(response, raw={**(response.raw or {}), "fit": fit.note()})


def _in_its_place(
    wish: Wish, limits: Limits, backend: Backend, places: Places, *, emit: bool
) -> Flow[LLMResponse]:
    endpoint = yield from locate(limits.request_timeout_s)
    slot = places.take(wish, endpoint)
    placed = wish if slot is None else replace(wish, options={**wish.options, "id_slot": slot})
    try:
        return (yield from flow.converse(placed, limits, backend, emit=emit))
    finally:
        places.give_back(slot, endpoint)
