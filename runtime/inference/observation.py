"""What became of each request: a log record, counters, and telemetry where there is any.

Every request is a flow (see :mod:`runtime.inference.effects`), so one wrapper around flows sees all
of them, whichever client drives them. No prompt, answer or key is told: an error is named by its
class.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from runtime.errors import LLMError
from runtime.inference.effects import AbortedError, Emit, HttpHead, Open, Read, WireError
from runtime.inference.telemetry import telemetry
from runtime.inference.usage import usage_of

if TYPE_CHECKING:
    from runtime.inference.effects import Effect, Flow
    from runtime.inference.wishes import Wish

T = TypeVar("T")

log = logging.getLogger(__name__)

_SAMPLING: Final = ("top_p", "top_k", "frequency_penalty", "presence_penalty")

Operation = Literal["chat", "embeddings"]
Outcome = Literal["answered", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is known of a request before it is sent.

    Attributes:
        operation: What is asked for.
        model: The model asked.
        backend: The client's name.
        stream: Whether the caller gets the answer piece by piece.
        settings: Further facts under their names in OpenTelemetry's conventions; no content.
    """

    operation: Operation
    model: str
    backend: str
    stream: bool = False
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What became of a request.

    Attributes:
        asked: What was asked.
        outcome: Cancelled ones were closed by the caller, or by the client's end.
        error: The class of the error, or None.
        answered_by: The model that answered, or None.
        base_url: Where it was sent, or None when it never was.
        prompt_tokens: Tokens of the prompt, cached ones included; None where nobody told.
        cached_tokens: How many of them were in the engine's cache.
        completion_tokens: Tokens of the answer.
        duration_s: From the first step to the last, waiting for the caller included.
        first_chunk_s: Until a streamed answer began; None where the server did not stream.
        retries: How often it was sent again, for whatever reason.
        recoveries: How often it went on after the engine was lost.
        finish_reason: Why the answer ended.
    """

    asked: Asked
    outcome: Outcome
    error: str | None
    answered_by: str | None
    base_url: str | None
    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    duration_s: float
    first_chunk_s: float | None
    retries: int
    recoveries: int
    finish_reason: str | None


def summed(counters: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """The counters of several observers together."""
    sums: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for each in counters:
        sums.update({name: count for name, count in each.items() if isinstance(count, int)})
        failed = each["failures"]
        failures.update(failed if isinstance(failed, dict) else {})
    return {**Observer().counters(), **sums, "failures": dict(failures)}


def asked_of(wish: Wish, *, model: str, backend: str, stream: bool) -> Asked:
    """What is known of a conversation before it is sent.

    Args:
        wish: What is asked.
        model: The model that a wish without one means.
        backend: The client's name.
        stream: Whether the caller gets the answer piece by piece.
    """
    settings: dict[str, object] = {
        "gen_ai.request.temperature": wish.temperature,
        "gen_ai.request.max_tokens": wish.max_tokens,
        "gen_ai.request.seed": wish.seed,
        **{f"gen_ai.request.{name}": wish.options.get(name) for name in _SAMPLING},
        "gen_ai.output.type": "json" if wish.schema else "text",
    }
    return Asked(
        operation="chat",
        model=wish.model or model,
        backend=backend,
        stream=stream,
        settings={
            name: value for name, value in settings.items() if isinstance(value, int | float | str)
        },
    )


class Observer:
    """Watches a client's requests. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._outcomes: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()

    def counters(self) -> dict[str, object]:
        """What the requests so far came to: JSON values.

        Counted is what was begun; what is refused before anything is sent is not.
        """
        with self._lock:
            sums = self._sums
            return {
                "requests": self._outcomes.total(),
                "under_way": self._under_way,
                "answered": self._outcomes["answered"],
                "cancelled": self._outcomes["cancelled"],
                "failed": self._outcomes["failed"],
                "failures": dict(self._failures),
                "prompt_tokens": sums["prompt_tokens"],
                "completion_tokens": sums["completion_tokens"],
                "retries": sums["retries"],
                "recoveries": sums["recoveries"],
            }

    def watch(self, flow: Flow[T], asked: Asked) -> Flow[T]:
        """The same flow, of which is told what became of it."""
        trip = _Trip(asked.operation)
        told = telemetry()
        span = told.begin(asked) if told else None
        with self._lock:
            self._under_way += 1
        result: T | None = None
        error: BaseException | None = None
        try:
            result = yield from _followed(flow, trip)
        except BaseException as exc:  # closed or cancelled, too
            error = exc
            raise
        else:
            return result
        finally:
            account = trip.account(asked, result, error)
            self._count(account)
            if log.isEnabledFor(logging.DEBUG):
                _tell(account)
            if told:
                told.end(span, account)

    def _count(self, account: Account) -> None:
        with self._lock:
            self._under_way -= 1
            self._outcomes[account.outcome] += 1
            if account.error is not None:
                self._failures[account.error] += 1
            self._sums["prompt_tokens"] += account.prompt_tokens or 0
            self._sums["completion_tokens"] += account.completion_tokens or 0
            self._sums["retries"] += account.retries
            self._sums["recoveries"] += account.recoveries


def _followed(flow: Flow[T], trip: _Trip) -> Flow[T]:
    value: object = None
    failure: WireError | LLMError | None = None
    with contextlib.closing(flow):
        while True:
            try:
                effect = flow.send(value) if failure is None else flow.throw(failure)
            except StopIteration as stop:
                done: T = stop.value
                return done
            value = failure = None
            if isinstance(effect, Emit):
                yield effect
                continue
            trip.going(effect)
            try:
                value = yield effect
            except (WireError, LLMError) as exc:
                failure = exc
                trip.failed(effect, exc)
            else:
                trip.came(effect, value)


class _Trip:
    """What a request meets on its way."""

    def __init__(self, operation: Operation) -> None:
        self.first_chunk_at: float | None = None
        self._began_at = time.monotonic()
        self._operation = operation
        self._aborted = False
        self._streams = False
        self._base_url: str | None = None
        self._path: str | None = None
        self._open_failed = False
        self._retries = 0

    def going(self, effect: Effect) -> None:
        """An effect is about to be performed."""
        if not isinstance(effect, Open):
            return
        again = effect.request.path == self._path
        # Texts to embed go out in several requests of their own, which are no retries.
        if again and (self._operation == "chat" or self._open_failed):
            self._retries += 1
        self._base_url, self._path = effect.request.base_url, effect.request.path
        self._open_failed = False

    def came(self, effect: Effect, value: object) -> None:
        """It was performed, with this result."""
        if isinstance(value, HttpHead):
            self._streams = value.status == 200 and value.content_type == "text/event-stream"
        elif (
            self._streams
            and self.first_chunk_at is None
            and isinstance(effect, Read)
            and isinstance(value, bytes)
            and value
            and b'"prompt_progress"' not in value  # which comes before the answer begins
        ):
            self.first_chunk_at = time.monotonic()

    def failed(self, effect: Effect, error: WireError | LLMError) -> None:
        """It could not be performed."""
        self._open_failed = isinstance(effect, Open)
        self._aborted = isinstance(error, AbortedError)

    def account(self, asked: Asked, result: object, error: BaseException | None) -> Account:
        """What came of it all."""
        cancelled = error is not None and (self._aborted or not isinstance(error, Exception))
        raw = getattr(result, "raw", None) or {}
        usage = usage_of(getattr(result, "usage", None))
        return Account(
            asked=asked,
            outcome="cancelled" if cancelled else "answered" if error is None else "failed",
            error=None if error is None or cancelled else type(error).__name__,
            answered_by=getattr(result, "model", None) or getattr(result, "model_id", None),
            base_url=self._base_url,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=_number(raw.get("cache"), "reused"),
            completion_tokens=usage.completion_tokens,
            duration_s=time.monotonic() - self._began_at,
            first_chunk_s=self.first_chunk_at and self.first_chunk_at - self._began_at,
            retries=self._retries,
            recoveries=_number(raw.get("recovery"), "count") or 0,
            finish_reason=getattr(result, "finish_reason", None),
        )


def _number(notes: object, name: str) -> int | None:
    value = notes.get(name) if isinstance(notes, Mapping) else None
    return value if isinstance(value, int) else None


def _tell(account: Account) -> None:
    facts = {
        "operation": account.asked.operation,
        "model": account.answered_by or account.asked.model,
        "backend": account.asked.backend,
        "stream": account.asked.stream,
        "outcome": account.outcome,
        "error": account.error,
        "finish_reason": account.finish_reason,
        "prompt_tokens": account.prompt_tokens,
        "cached_tokens": account.cached_tokens,
        "completion_tokens": account.completion_tokens,
        "duration_ms": round(account.duration_s * 1000, 1),
        "first_token_ms": account.first_chunk_s and round(account.first_chunk_s * 1000, 1),
        "retries": account.retries,
        "recoveries": account.recoveries,
    }
    log.debug(
        "%s %s: %s in %.0f ms",
        facts["operation"],
        facts["model"],
        account.error or account.outcome,
        facts["duration_ms"],
        extra=facts,
    )
