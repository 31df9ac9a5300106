"""A conversation's way to its answer: made to fit, given its slot, answered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.inference import flow
from runtime.inference.clock import Clock
from runtime.inference.fitting import fitted

if TYPE_CHECKING:
    from runtime.contracts import LLMResponse
    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow
    from runtime.inference.fitting import Fit
    from runtime.inference.places import Places
    from runtime.inference.reply import Backend
    from runtime.inference.sessions import Keeping
    from runtime.inference.wishes import Wish


def converse(
    wish: Wish,
    limits: Limits,
    backend: Backend,
    *,
    emit: bool,
    places: Places | None = None,
    keeping: Keeping | None = None,
) -> Flow[LLMResponse]:
    """Answer a conversation; see :func:`runtime.inference.flow.converse`.

    Args:
        wish: What is asked.
        limits: Deadlines and bounds.
        backend: Who signs the response.
        emit: Whether each piece is handed out as it comes.
        places: The slots of the engine, when it is ours alone.
        keeping: The sessions of that engine.
    """
    clock = Clock(limits)
    fit: Fit | None = None
    if wish.policy.fit == "drop_oldest":
        wish, fit = yield from fitted(wish, limits)
        limits = replace(limits, request_timeout_s=max(clock.left_s, 0.001))
    response = yield from flow.converse(
        wish, limits, backend, emit=emit, places=places, keeping=keeping
    )
    if fit is None:
        return response
    return replace(response, raw={**(response.raw or {}), "fit": fit.note()})
