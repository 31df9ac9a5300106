"""What a pool of models says where it has no model to give: errors, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.client._seats import State
from runtime.errors import ModelTooLargeError, QueueFullError, RequestTimeoutError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DOING: Final = {
    State.PREPARING: "its file was being fetched or looked at",
    State.LOADING: "its engine was loading it",
    State.READY: "it was ready just then",
    State.UNLOADING: "its engine was being ended, to be started anew",
}


def not_loaded(name: str, state: State, after_s: float) -> RequestTimeoutError:
    """A model was still on its way at the deadline."""
    return RequestTimeoutError(
        f"{name} was not loaded within {after_s:.1f} s (total deadline): {_DOING[state]}.",
        phase="load",
        after_s=after_s,
        doing=_DOING[state],
        hint="Raise request_timeout_s, or fetch the model beforehand.",
    )


def no_room(
    name: str, needed_bytes: int, budget_bytes: int, in_use: Sequence[str], after_s: float
) -> RequestTimeoutError:
    """Models that could not be unloaded took a model's room until the deadline."""
    used = ", ".join(in_use)
    return RequestTimeoutError(
        f"There was no room for {name} within {after_s:.1f} s (total deadline): it needs "
        f"{_mib(needed_bytes)} of {_mib(budget_bytes)}, and models in use are not unloaded "
        f"({used or 'none now'}).",
        phase="room",
        after_s=after_s,
        doing=f"in use: {used}" if used else None,
        hint="Raise memory_budget_bytes or request_timeout_s, or close streams that are open.",
    )


def too_large(name: str, needed_bytes: int, budget_bytes: int) -> ModelTooLargeError:
    """A model takes more than all of the pool's memory."""
    return ModelTooLargeError(
        f"{name} needs {_mib(needed_bytes)}, and the memory budget is {_mib(budget_bytes)}.",
        needed_bytes=needed_bytes,
        available_bytes=budget_bytes,
        hint="Raise memory_budget_bytes, or lower ctx_size or parallel.",
    )


def crowded(name: str, waiting: int, most_waiting: int) -> QueueFullError:
    """As many requests wait for a model to be loaded as may."""
    return QueueFullError(
        f"{name} is still being loaded, and {waiting} requests wait for it already.",
        waiting=waiting,
        running=0,
        max_queue=most_waiting,
        hint="Send fewer at once, try again later, or raise max_queue.",
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.0f} MiB"
