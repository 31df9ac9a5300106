"""Which models stay in memory: what may be unloaded for what, as pure functions of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model that holds memory, or is about to.

    Attributes:
        name: Its name.
        held_bytes: What it takes: the plan, or what was measured where that is more.
        idle_since: Instant since which nobody uses it; None while it is in use, being loaded or
            being unloaded.
        idle_timeout_s: For so long it may be idle; None for ever.
    """

    name: str
    held_bytes: int
    idle_since: float | None
    idle_timeout_s: float | None = None

    @property
    def due_at(self) -> float | None:
        """The instant at which it has been idle for long enough; None for never."""
        if self.idle_since is None or self.idle_timeout_s is None:
            return None
        return self.idle_since + self.idle_timeout_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Whether a model may be loaded now.

    Attributes:
        verdict: ``"load"``: there is room. ``"unload"``: there will be, once these are gone.
            ``"wait"``: not while so many are in use. ``"never"``: the budget is too small for it.
        unload: The idle models that must go, the longest unused first.
    """

    verdict: Literal["load", "unload", "wait", "never"]
    unload: tuple[str, ...] = ()


def admit(residents: Sequence[Resident], needed_bytes: int, budget_bytes: int) -> Admission:
    """Whether a model that takes ``needed_bytes`` may join the residents.

    Idle ones go by least recent use, none without need.
    """
    if needed_bytes > budget_bytes:
        return Admission(verdict="never")
    lacking = sum(each.held_bytes for each in residents) + needed_bytes - budget_bytes
    if lacking <= 0:
        return Admission(verdict="load")
    idle = sorted(
        (each for each in residents if each.idle_since is not None),
        key=lambda each: each.idle_since or 0.0,
    )
    going: list[Resident] = []
    for each in idle:
        if lacking <= 0:
            break
        going.append(each)
        lacking -= each.held_bytes
    if lacking > 0:
        return Admission(verdict="wait")
    for each in tuple(
        reversed(going)
    ):  # a large one that went last may have made others' going idle
        if lacking + each.held_bytes <= 0:
            going.remove(each)
            lacking += each.held_bytes
    return Admission(verdict="unload", unload=tuple(each.name for each in going))


def overdue(residents: Sequence[Resident], now: float) -> tuple[str, ...]:
    """The models that nobody has used for as long as they may be idle."""
    return tuple(each.name for each in residents if each.due_at is not None and now >= each.due_at)


def next_due(residents: Sequence[Resident]) -> float | None:
    """The instant at which the next model becomes overdue; None while none will."""
    return min((each.due_at for each in residents if each.due_at is not None), default=None)
