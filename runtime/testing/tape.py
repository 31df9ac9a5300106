"""One test's cassette at work: answers are recorded, replayed or compared as they pass."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from runtime.testing import cassette, drift, matching
from runtime.testing.cassette import CallIds, Recorded
from runtime.testing.events import event_of, is_last
from runtime.testing.relay import Reply, error_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.testing.relay import Asked

Mode: TypeAlias = Literal["none", "new", "all", "check"]

_MAX_SEED: Final = 2**31 - 1
_TAKE_DOWN_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """An answer that is not the recorded one any more.

    Attributes:
        request: The request in a few words.
        changes: What changed.
    """

    request: str
    changes: tuple[str, ...]


class Tape:
    """A cassette in one of the modes.

    ``none`` replays and asks no engine; ``new`` replays what is there and records the rest; ``all``
    records everything anew; ``check`` asks the engine everything with the recorded seeds, compares,
    and writes nothing.

    Attributes:
        path: The file.
        mode: The mode.
        misses: Requests that no answer was recorded for, each with what the nearest differs in.
        drifts: Answers that changed, in ``all`` and ``check``.
    """

    def __init__(self, path: Path, mode: Mode) -> None:
        self.path = path
        self.mode: Mode = mode
        self.misses: list[str] = []
        self.drifts: list[Drift] = []
        self._old = cassette.read(path)
        self._fresh: list[Recorded] = []
        self._taken: set[int] = set()
        self._call_ids = CallIds()
        self._lock = threading.Condition()
        self._recording = 0

    @property
    def needs_engine(self) -> bool:
        """Whether an engine is sure to be asked."""
        return self.mode in {"all", "check"} or (self.mode == "new" and not self._old)

    def answer(self, asked: Asked, ask: Callable[[Asked], Reply]) -> Reply:
        """The answer to a request: the recorded one, or what ``ask`` brings."""
        body = cassette.without_own_secrets(asked.body)
        key = matching.canonical(asked.method, asked.path, body)
        with self._lock:
            place = self._find(key, matching.seed_of(body))
            if place is not None:
                self._taken.add(place)
        if self.mode in {"none", "new"}:
            if place is not None:
                return self._replay(place)
            if self.mode == "none":
                return self._miss(key, asked, body)
        old = None if place is None else self._old[place]
        sent = _sent(asked.body, key, old if self.mode == "check" else None)
        to_engine = {**sent, "cache_prompt": False} if _generates(sent) else sent
        reply = ask(replace(asked, body=to_engine))
        shell = Recorded(
            method=asked.method,
            path=asked.path,
            asked=cassette.without_own_secrets(sent),
            status=reply.status,
            content_type=reply.content_type,
        )
        pieces = self._tapped(reply, shell, old)
        return replace(reply, pieces=pieces)

    def close(self) -> bool:
        """Write the cassette where the mode says so; whether it was written."""
        with self._lock:  # a client may have all of an answer before it is taken down
            self._lock.wait_for(lambda: not self._recording, _TAKE_DOWN_S)
        if self.mode == "check":
            for number, each in enumerate(self._old):
                if number not in self._taken and each.method == "POST":
                    label = matching.label(each.method, each.path, each.asked)
                    self.drifts.append(Drift(request=label, changes=("not asked any more",)))
        if self.mode not in {"new", "all"} or not self._fresh:
            return False
        kept = self._old if self.mode == "new" else ()
        return cassette.write(self.path, [*kept, *self._fresh])

    # --- replaying ----------------------------------------------------------------------------

    def _find(self, key: str, seed: int | None) -> int | None:
        """The place of the recorded answer to use: one not used yet, with the same seed, first."""
        same = [
            place
            for place, each in enumerate(self._old)
            if matching.canonical(each.method, each.path, each.asked) == key
        ]
        if not same:
            return None

        def rank(place: int) -> tuple[bool, bool, int]:
            used = place in self._taken
            other_seed = seed is not None and matching.seed_of(self._old[place].asked) != seed
            return used, other_seed, -place if used else place

        return min(same, key=rank)

    def _replay(self, place: int) -> Reply:
        recorded = self._old[place]
        return Reply(
            status=recorded.status,
            content_type=recorded.content_type,
            pieces=self._played(place, recorded),
        )

    def _played(self, place: int, recorded: Recorded) -> Iterator[bytes]:
        try:
            if recorded.stream is not None:
                yield from recorded.events()
            elif isinstance(recorded.body, str):
                yield recorded.body.encode()
            else:
                yield json.dumps(recorded.body, ensure_ascii=False).encode()
        except GeneratorExit:  # cut off: who asks again gets the same
            with self._lock:
                self._taken.discard(place)
            raise

    def _miss(self, key: str, asked: Asked, body: Any) -> Reply:
        label = matching.label(asked.method, asked.path, body)
        shown = os.path.relpath(self.path)
        lines = [f"Not recorded in {shown}: {label}."]
        near = matching.nearest(key, self._old)
        if near is None:
            lines.append("The cassette is empty, or there is none.")
        else:
            other, found = near
            named = matching.label(other.method, other.path, other.asked)
            lines.append(f"The nearest recorded request is {named}; it differs in")
            lines += [f"  {line}" for line in found[: matching.MOST_SHOWN]]
            if (more := len(found) - matching.MOST_SHOWN) > 0:
                lines.append(f"  and {more} more")
        lines.append("Record it with --llama-record=new, which needs an engine.")
        text = "\n".join(lines)
        with self._lock:
            self.misses.append(text)
        return error_reply(400, text, "not_recorded_error")

    # --- recording ----------------------------------------------------------------------------

    def _tapped(self, reply: Reply, shell: Recorded, old: Recorded | None) -> Iterator[bytes]:
        """What is recorded, piece by piece; taken down when it is complete."""
        with self._lock:
            self._recording += 1
        try:
            yield from self._taken_down(reply, shell, old)
        finally:
            with self._lock:
                self._recording -= 1
                self._lock.notify_all()

    def _taken_down(self, reply: Reply, shell: Recorded, old: Recorded | None) -> Iterator[bytes]:
        if reply.streams:
            values: list[Any] = []
            for event in reply.pieces:
                value = cassette.event_value(event)
                if isinstance(value, dict) and "prompt_progress" in value:
                    continue  # how far the prompt was at some instant
                with self._lock:
                    value = cassette.kept(shell.path, value, call_ids=self._call_ids)
                values.append(value)
                if is_last(event):  # a client that has it may hang up at once
                    self._take_down(replace(shell, stream=tuple(values)), old)
                yield value.encode() if isinstance(value, str) else event_of(value)
            return
        data = b"".join(reply.pieces)
        try:
            body = json.loads(data)
        except ValueError:
            body = data.decode("utf-8", "replace")
        with self._lock:
            body = cassette.kept(shell.path, body, call_ids=self._call_ids)
        self._take_down(replace(shell, body=body), old)
        yield body.encode() if isinstance(body, str) else json.dumps(body).encode()

    def _take_down(self, fresh: Recorded, old: Recorded | None) -> None:
        if fresh.status >= 500:  # of no use to anybody later
            return
        with self._lock:
            if fresh not in self._fresh:
                self._fresh.append(fresh)
            found = self._changes(fresh, old)
            if found and fresh.method == "POST":
                label = matching.label(fresh.method, fresh.path, fresh.asked)
                self.drifts.append(Drift(request=label, changes=tuple(found)))

    def _changes(self, fresh: Recorded, old: Recorded | None) -> list[str]:
        if old is None:
            return ["not recorded"] if self.mode == "check" else []
        found = drift.changes(old, fresh)
        seeds = matching.seed_of(old.asked), matching.seed_of(fresh.asked)
        if found and seeds[0] != seeds[1]:
            found.append(f"the seed was {seeds[0]} and is {seeds[1]}")
        return found


def _generates(body: Any) -> bool:
    return isinstance(body, dict) and ("messages" in body or "prompt" in body)


def _sent(body: Any, key: str, old: Recorded | None) -> Any:
    """The body to send: with a seed, so that it can be asked again; the recorded one if any."""
    if not _generates(body):
        return body
    seed = matching.seed_of(old.asked) if old is not None else None
    if seed is None:
        seed = matching.seed_of(body)
    if seed is None:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % _MAX_SEED
    return {**body, "seed": seed}
