"""Whether a serving engine still makes progress: pure reckoning over what is seen of it.

Answers to ``/health``, ``/slots`` and ``/metrics`` prove nothing: all three came with the inference
thread frozen. What counts is that tokens move while a slot is at work. How long they may stand is
measured: four times the longest step that was seen to end, and never less than a floor. A process
that is starved of processor time is slow, not stuck: its own processor time is the second clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

STEP_FACTOR: Final = 4.0
# Far below what any processor of the last ten years does per thread (25 to 75 GFLOP/s measured), so
# that the first, unmeasured batch of a large model on a weak machine is given its time.
SLOWEST_FLOPS_PER_THREAD: Final = 2e9
IDLE_CPU_SHARE: Final = 0.01

Verdict = Literal["fine", "suspect", "stuck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """What ``/slots`` says of a slot at work.

    Attributes:
        slot: Its number.
        task: The request it works on.
        prompt_done: Prompt tokens processed.
        decoded: Tokens generated.
    """

    slot: int
    task: int
    prompt_done: int
    decoded: int


def first_step_s(*, parameters: int, batch: int, threads: int) -> float:
    """Longest time the first batch may take before any was measured, in seconds.

    A forward pass costs about two operations for each parameter and token (Kaplan et al., "Scaling
    Laws for Neural Language Models", 2020, section 2.1).
    """
    return 2.0 * parameters * batch / (SLOWEST_FLOPS_PER_THREAD * threads)


class Watchdog:
    """Judges one engine process from one look to the next. All times in seconds."""

    def __init__(self, *, floor_s: float, first_step_s: float, now_s: float) -> None:
        self._floor_s = floor_s
        self._longest_step_s = first_step_s
        self._measured = False
        self._seen: frozenset[SlotView] = frozenset()
        self._moved_s = now_s
        self._cpu_moved_s = 0.0
        self._answered = True

    @property
    def limit_s(self) -> float:
        """How long tokens may stand still."""
        return max(self._floor_s, STEP_FACTOR * self._longest_step_s)

    @property
    def working(self) -> bool:
        """Whether a slot was at work at the last look."""
        return bool(self._seen) or not self._answered

    def standing_s(self, now_s: float) -> float:
        """Seconds since something moved."""
        return now_s - self._moved_s

    def look(self, *, now_s: float, cpu_s: float, slots: Sequence[SlotView] | None) -> Verdict:
        """Judge what is seen now.

        Args:
            now_s: The present instant on a steady clock.
            cpu_s: Processor time the engine has used since it started.
            slots: The slots at work; None when the engine did not answer.
        """
        if slots is not None:
            self._answered = True
            seen = frozenset(slots)
            if not seen or seen != self._seen:
                self._note_step(now_s, seen)
                self._seen, self._moved_s, self._cpu_moved_s = seen, now_s, cpu_s
                return "fine"
        elif self._answered and not self._seen:
            # Idle until now: its silence begins here.
            self._answered, self._moved_s, self._cpu_moved_s = False, now_s, cpu_s
            return "fine"
        else:
            self._answered = False
        standing_s = now_s - self._moved_s
        spent_s = cpu_s - self._cpu_moved_s
        starved = IDLE_CPU_SHARE * standing_s < spent_s < standing_s / 2 and spent_s < self.limit_s
        if standing_s < self.limit_s / 2 or starved:
            return "fine"
        return "stuck" if standing_s >= self.limit_s else "suspect"

    def _note_step(self, now_s: float, seen: frozenset[SlotView]) -> None:
        """A step ended: its length is what a step may take, from now on."""
        continued = {(view.slot, view.task) for view in self._seen} & {
            (view.slot, view.task) for view in seen
        }
        if not continued:
            return
        step_s = now_s - self._moved_s
        # The first measurement takes the place of the guess.
        self._longest_step_s = max(step_s, self._longest_step_s) if self._measured else step_s
        self._measured = True


def slots_at_work(body: object) -> tuple[SlotView, ...] | None:
    """The slots at work, from the JSON of ``/slots``; None when it is not of that form."""
    if not isinstance(body, list):
        return None
    return tuple(
        SlotView(
            slot=int(slot.get("id", 0)),
            task=int(slot.get("id_task", -1)),
            prompt_done=int(slot.get("n_prompt_tokens_processed", 0)),
            decoded=_decoded(slot),
        )
        for slot in body
        if isinstance(slot, dict) and slot.get("is_processing")
    )


def latest_task(body: object) -> int:
    """The latest request that a slot took up, from the JSON of ``/slots``; -1 for none.

    Idle slots still show what they worked on last.
    """
    if not isinstance(body, list):
        return -1
    tasks = [slot.get("id_task") for slot in body if isinstance(slot, dict)]
    return max((task for task in tasks if isinstance(task, int)), default=-1)


def _decoded(slot: dict[str, object]) -> int:
    following = slot.get("next_token")
    if isinstance(following, list):
        following = following[0] if following else None
    count = following.get("n_decoded") if isinstance(following, dict) else slot.get("n_decoded")
    return count if isinstance(count, int) else 0
