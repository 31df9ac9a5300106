"""Several looks at once, each in a thread that nobody waits for past an instant."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")
TELL_EVERY_S: Final = 1.0


class Look(Generic[T]):
    """One call in a thread of its own.

    Attributes:
        done: Whether it has come back.
        result: What it returned.
        error: What it raised.
    """

    def __init__(self, call: Callable[[], T], changed: threading.Condition) -> None:
        self.done = False
        self.result: T | None = None
        self.error: Exception | None = None
        self._call = call
        self._changed = changed
        # A daemon: what hangs in the system must not keep the program from ending.
        threading.Thread(target=self._run, name="doctor", daemon=True).start()

    def _run(self) -> None:
        result, error = None, None
        try:
            result = self._call()
        except Exception as exc:  # noqa: BLE001 - the top of a thread; it becomes a finding
            error = exc
        with self._changed:
            self.result, self.error, self.done = result, error, True
            self._changed.notify_all()


def abreast(
    calls: Sequence[Callable[[], T]],
    *,
    until_s: Sequence[float | None],
    on_wait: Callable[[Sequence[int]], None] | None = None,
) -> list[Look[T]]:
    """Call them all at once and return them when they are done, or their time is up.

    Args:
        calls: The calls.
        until_s: Instant on the steady clock up to which each is waited for; None: without end.
        on_wait: Called every second with the numbers of those still waited for.
    """
    changed = threading.Condition()
    looks = [Look(call, changed) for call in calls]

    def waited_for() -> list[int]:
        now = time.monotonic()
        limits = enumerate(zip(looks, until_s, strict=True))
        return [at for at, (look, limit) in limits if not look.done and (limit or now + 1) > now]

    with changed:
        while waiting := waited_for():
            limits = [limit for at in waiting if (limit := until_s[at]) is not None]
            nearest = min([time.monotonic() + TELL_EVERY_S, *limits])
            all_done = changed.wait_for(
                lambda waiting=waiting: all(looks[at].done for at in waiting),  # type: ignore[misc]
                max(0.0, nearest - time.monotonic()),
            )
            if on_wait and not all_done:
                on_wait(waited_for())
    return looks
