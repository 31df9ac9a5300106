"""Whether a serving engine still makes progress: pure reckoning over what is seen of it.

Answers to ``/health``, ``/slots`` and ``/metrics`` prove nothing: all three came with the inference
thread frozen. What counts is that tokens move while a slot is at work. How long they may stand
depends on what they wait for: a batch of a prompt moves as a whole, and takes as long as its tokens
do; while only answers are written, each step moves one. Both are measured, and reckoned from the
model's size before they were; a floor holds in any case.

A process that is starved of processor time is slow, not stuck: its own processor time is the second
clock. One whose threads all sleep is not slow, it waits for something that does not come: only the
floor is its limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

STEP_FACTOR: Final = 4.0
# Far below what a processor does per thread (25 to 75 GFLOP/s measured with AVX2, some 4 reckoned
# for a Raspberry Pi 4), so that the first, unmeasured batch is given its time also where threads
# that spin for each other lose most of it to a busy neighbour (30 times slower was seen).
SLOWEST_FLOPS_PER_THREAD: Final = 5e8
IDLE_CPU_SHARE: Final = 0.01
# Of the looks at a frozen engine, a few see the thread that has just answered.
ASLEEP_SHARE: Final = 0.7
# Fewer tell nothing of the cost of one: most of the time was not theirs.
MEASURED_TOKENS: Final = 32

Verdict = Literal["fine", "suspect", "stuck"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """What ``/slots`` says of a slot at work.

    Attributes:
        slot: Its number.
        task: The request it works on.
        prompt_done: Prompt tokens processed.
        decoded: Tokens generated.
        prompt: Prompt tokens it has taken up, those at work included; 0 when it does not say.
    """

    slot: int
    task: int
    prompt_done: int
    decoded: int
    prompt: int = 0


def slowest_token_s(*, parameters: int, threads: int) -> float:
    """Longest time a token of a prompt may take before any was measured, in seconds.

    A forward pass costs about two operations for each parameter and token (Kaplan et al., "Scaling
    Laws for Neural Language Models", 2020, section 2.1).
    """
    return 2.0 * parameters / (SLOWEST_FLOPS_PER_THREAD * threads)


class Watchdog:
    """Judges one engine process from one look to the next. All times in seconds."""

    def __init__(
        self, *, floor_s: float, token_s: float, batch: int, threads: int, now_s: float
    ) -> None:
        """Begin.

        Args:
            floor_s: How long tokens may stand still in any case.
            token_s: Longest time that a token may take before any was measured.
            batch: Most tokens of prompts that move at once.
            threads: Threads that compute: together they use their number of seconds in a second.
            now_s: The present instant on a steady clock.
        """
        self._floor_s = floor_s
        self._token_s = token_s
        self._batch = batch
        self._threads = threads
        self._prompt_token_s: float | None = None
        self._answer_step_s: float | None = None
        self._seen: frozenset[SlotView] = frozenset()
        self._moved_s = now_s
        self._cpu_moved_s = 0.0
        self._looked_s = now_s
        self._cpu_looked_s = 0.0
        self._slept_s = 0.0
        self._starved_s = 0.0
        self._asleep = False
        self._answered = True

    @property
    def limit_s(self) -> float:
        """How long what is at work now may stand still."""
        prompts = [view for view in self._seen if not view.decoded]
        if prompts or not self._seen:
            left = sum(view.prompt - view.prompt_done for view in prompts if view.prompt)
            known = bool(prompts) and all(view.prompt for view in prompts)
            tokens = min(self._batch, max(left, 1)) if known else self._batch
            if self._prompt_token_s is None:
                return max(self._floor_s, self._token_s * tokens)
            return max(self._floor_s, STEP_FACTOR * self._prompt_token_s * tokens)
        step_s = self._answer_step_s
        return max(
            self._floor_s,
            STEP_FACTOR * (self._token_s * len(self._seen) if step_s is None else step_s),
        )

    @property
    def working(self) -> bool:
        """Whether a slot was at work at the last look."""
        return bool(self._seen) or not self._answered

    def reason(self, now_s: float) -> str:
        """What speaks against it, in words."""
        standing = f"no token has moved for {now_s - self._moved_s:.0f} s"
        if self._asleep:
            return f"{standing}, and every thread sleeps (limit {self._floor_s:.0f} s)"
        return f"{standing} (limit {self.limit_s:.0f} s)"

    def look(
        self,
        *,
        now_s: float,
        cpu_s: float,
        slots: Sequence[SlotView] | None,
        asleep: bool | None = None,
    ) -> Verdict:
        """Judge what is seen now.

        Args:
            now_s: The present instant on a steady clock.
            cpu_s: Processor time the engine has used since it started.
            slots: The slots at work; None when the engine did not answer.
            asleep: No thread of the engine runs, wants to run or waits for a disk, and no other
                device could be at its work; None where that is not known.
        """
        passed_s, used_s = now_s - self._looked_s, cpu_s - self._cpu_looked_s
        self._looked_s, self._cpu_looked_s = now_s, cpu_s
        if slots is not None:
            self._answered = True
            seen = frozenset(slots)
            if not seen or seen != self._seen:
                self._note_step(now_s, seen)
                self._moved(now_s, cpu_s, seen)
                return "fine"
        elif self._answered and not self._seen:
            # Idle until now: its silence begins here.
            self._answered = False
            self._moved(now_s, cpu_s, self._seen)
            return "fine"
        else:
            self._answered = False
        if asleep:
            self._slept_s += passed_s
        elif asleep is False:
            self._starved_s += max(0.0, passed_s - used_s / self._threads)
        standing_s = now_s - self._moved_s
        spent_s = cpu_s - self._cpu_moved_s
        worked = spent_s > IDLE_CPU_SHARE * standing_s
        self._asleep = not worked and self._slept_s > ASLEEP_SHARE * standing_s
        limit_s = self._floor_s if self._asleep else self.limit_s
        # Time that it was not given does not count.
        if asleep is None and worked:
            standing_s = min(standing_s, spent_s / self._threads)
        standing_s -= self._starved_s
        if standing_s < limit_s / 2:
            return "fine"
        return "stuck" if standing_s >= limit_s else "suspect"

    def _moved(self, now_s: float, cpu_s: float, seen: frozenset[SlotView]) -> None:
        self._seen = seen
        self._moved_s, self._cpu_moved_s = now_s, cpu_s
        self._slept_s = self._starved_s = 0.0
        self._asleep = False

    def _note_step(self, now_s: float, seen: frozenset[SlotView]) -> None:
        """A step ended: what it took is what such a one may take, from now on."""
        before = {(view.slot, view.task): view for view in self._seen}
        pairs = [
            (before[view.slot, view.task], view)
            for view in seen
            if (view.slot, view.task) in before
        ]
        step_s = now_s - self._moved_s
        read = sum(now.prompt_done - then.prompt_done for then, now in pairs)
        written = sum(now.decoded - then.decoded for then, now in pairs)
        if read >= MEASURED_TOKENS:
            self._prompt_token_s = max(step_s / read, self._prompt_token_s or 0.0)
        elif written and not read:
            self._answer_step_s = max(step_s, self._answer_step_s or 0.0)


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
            prompt=int(slot.get("n_prompt_tokens", 0)),
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
