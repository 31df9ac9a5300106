"""The life of a managed server as a table: pure, so that it can be read and tested as a whole."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.settings import RestartPolicy


class State(enum.StrEnum):
    """Where a managed server is in its life."""

    STOPPED = "stopped"
    """No process, and none wanted."""
    RESOLVING = "resolving"
    """Finding, perhaps downloading, the model, and choosing the engine."""
    STARTING = "starting"
    """The keeper has been asked for a process."""
    LOADING = "loading"
    """The process exists and loads the model."""
    READY = "ready"
    """Requests are answered."""
    SUSPECT = "suspect"
    """A request is at work and its tokens stand still: no new one is let in."""
    BACKOFF = "backoff"
    """The process died; another will be started in a moment."""
    STOPPING = "stopping"
    """The process has been told to end."""
    FAILED = "failed"
    """It will not be started again unless someone asks for it."""


class Event(enum.StrEnum):
    """What happens to a managed server."""

    START = "start"
    RESOLVED = "resolved"
    UNRESOLVED = "unresolved"
    SPAWNED = "spawned"
    HEALTHY = "healthy"
    SUSPECTED = "suspected"
    RECOVERED = "recovered"
    CRASHED = "crashed"
    """The process is gone, and another try may fare better."""
    DOOMED = "doomed"
    """The process is gone, and another try would end the same way, or none is allowed."""
    RETRY = "retry"
    PROMOTED = "promoted"
    """A standby that is loaded and healthy takes the place of the process that is gone."""
    STOP = "stop"
    GONE = "gone"
    """The process that was told to end has ended."""


_NEXT: Final[dict[tuple[State, Event], State]] = {
    (State.STOPPED, Event.START): State.RESOLVING,
    (State.FAILED, Event.START): State.RESOLVING,
    (State.RESOLVING, Event.RESOLVED): State.STARTING,
    (State.RESOLVING, Event.UNRESOLVED): State.FAILED,
    (State.RESOLVING, Event.STOP): State.STOPPED,
    (State.STARTING, Event.SPAWNED): State.LOADING,
    (State.STARTING, Event.CRASHED): State.BACKOFF,
    (State.STARTING, Event.DOOMED): State.FAILED,
    (State.STARTING, Event.STOP): State.STOPPING,
    (State.LOADING, Event.HEALTHY): State.READY,
    (State.LOADING, Event.CRASHED): State.BACKOFF,
    (State.LOADING, Event.DOOMED): State.FAILED,
    (State.LOADING, Event.STOP): State.STOPPING,
    (State.READY, Event.CRASHED): State.BACKOFF,
    (State.READY, Event.DOOMED): State.FAILED,
    (State.READY, Event.STOP): State.STOPPING,
    (State.READY, Event.SUSPECTED): State.SUSPECT,
    (State.SUSPECT, Event.RECOVERED): State.READY,
    (State.SUSPECT, Event.CRASHED): State.BACKOFF,
    (State.SUSPECT, Event.DOOMED): State.FAILED,
    (State.SUSPECT, Event.STOP): State.STOPPING,
    (State.BACKOFF, Event.RETRY): State.RESOLVING,
    (State.BACKOFF, Event.PROMOTED): State.READY,
    (State.BACKOFF, Event.STOP): State.STOPPED,
    (State.STOPPING, Event.GONE): State.STOPPED,
}

RESTING_STATES: Final = frozenset({State.STOPPED, State.FAILED})
"""No process, and none will come unless someone asks for it."""


class ImpossibleTransitionError(AssertionError):
    """An event came that the state does not know: a defect of this runtime, not of its use."""


def next_state(state: State, event: Event) -> State:
    """Where ``event`` leads from ``state``.

    Raises:
        ImpossibleTransitionError: The table has no such step.
    """
    try:
        return _NEXT[state, event]
    except KeyError:
        raise ImpossibleTransitionError(f"{event} cannot happen while {state}") from None


def accepts(state: State, event: Event) -> bool:
    """Whether the table knows ``event`` in ``state``."""
    return (state, event) in _NEXT


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One step of the life.

    Attributes:
        at: When, ISO 8601, UTC.
        before: The state before.
        event: What happened.
        after: The state after.
        reason: Why, for a person.
    """

    at: str
    before: State
    event: Event
    after: State
    reason: str


def restart_delay_s(
    policy: RestartPolicy,
    *,
    now_s: float,
    earlier_s: Sequence[float],
    ready_for_s: float | None,
    chance: float,
) -> float | None:
    """Seconds to wait before the next restart, or None when no further one is allowed.

    The first restart is at once; the n-th after it waits a random time in
    [0, min(backoff_max, backoff_base · 2^n)] ("full jitter", M. Brooker, "Exponential Backoff And
    Jitter", 2015), so that many owners that lost their engines together do not start them together.

    Args:
        policy: The limits.
        now_s: The present instant, seconds on a steady clock.
        earlier_s: Instants of earlier restarts on the same clock.
        ready_for_s: How long the process that died had been ready; None when it never was.
        chance: A random number in [0, 1).
    """
    if not policy.enabled:
        return None
    stable = ready_for_s is not None and ready_for_s >= policy.stable_after_s
    counted = 0 if stable else sum(now_s - at_s < policy.window_s for at_s in earlier_s)
    if counted >= policy.max_restarts:
        return None
    if counted == 0:
        return 0.0
    return chance * min(policy.backoff_max_s, policy.backoff_base_s * 2.0**counted)
