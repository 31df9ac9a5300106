"""A routed request's way: from one model of its route to the next, until one answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.client._seats import LoadError
from runtime.errors import (
    ContextOverflowError,
    CrashingRequestError,
    EngineNotRunningError,
    LLMError,
    LLMProviderError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from runtime.client._loading import RoutedClient
    from runtime.client._pool import ModelPool
    from runtime.client._ranking import Ranking
    from runtime.client._seats import Lease

_TRY_AGAIN_S: Final = 60.0
"""For so long after it could not be loaded, a model is tried only when all others fail, too."""

_OTHER_COUNT: Final = 2
"""Another vocabulary may write the same prompt in so many times fewer tokens; a model to which it
would be too long even so is not loaded to be asked."""

_ITS_OWN = (CrashingRequestError, RequestTimeoutError)
"""What another model would meet with as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request may go.

    Attributes:
        names: The models to try, best first.
        why: Why the first one is.
        ranking: How they compare; None when the request named one.
        broken: Those that could not be loaded a moment ago and so come last, and why not.
    """

    names: tuple[str, ...]
    why: str
    ranking: Ranking | None = None
    broken: Mapping[str, str] = field(default_factory=dict)

    def context_of(self, name: str) -> int | None:
        """Tokens that one request to a model may hold; None where nothing tells."""
        order = self.ranking.order if self.ranking else ()
        found = (each.candidate.context_tokens for each in order if each.candidate.name == name)
        return next(found, None)


class Failures:
    """Which models could not be loaded a moment ago. Any thread may use it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, str]] = {}

    def note(self, name: str, error: BaseException) -> None:
        """It could not be loaded."""
        self._known[name] = (time.monotonic(), _told(error))

    def forget(self, name: str) -> None:
        """It was loaded."""
        self._known.pop(name, None)

    def among(self, names: Iterable[str]) -> dict[str, str]:
        """Those of the names that could not, and why not."""
        since = time.monotonic() - _TRY_AGAIN_S
        known = {name: self._known.get(name) for name in names}
        return {
            name: f"it could not be loaded: {failure[1]}"
            for name, failure in known.items()
            if failure is not None and failure[0] > since
        }


class Journey:
    """One request on its way. It has one deadline for all of it.

    Args:
        route: Where it may go.
        pool: Where the models are loaded.
        failures: Which ones could not be.
        timeout_s: Most time for all of it, seconds.
        most_waiting: How many may wait for a model to be loaded.
        given_up: Whether nobody wants the answer any more.

    Attributes:
        name: The model it is at.
    """

    def __init__(
        self,
        route: Route,
        *,
        pool: ModelPool[RoutedClient],
        failures: Failures,
        timeout_s: float,
        most_waiting: Callable[[str], int],
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = ""
        self._route = route
        self._pool = pool
        self._failures = failures
        self._most_waiting = most_waiting
        self._given_up = given_up
        self._began_at = time.monotonic()
        self._until = self._began_at + timeout_s
        self._to_try = list(route.names)
        self._loaded = set(pool.loaded())
        self._errors: dict[str, BaseException] = {}
        self._excluded = dict(route.broken)
        self._waited_s = 0.0

    @property
    def left_s(self) -> float:
        """What is left of its time, seconds."""
        return self._until - time.monotonic()

    def next(self) -> Lease[RoutedClient]:
        """The use of the next model that can be had; one that cannot be loaded gives way.

        Raises:
            LLMError: None could be had; says why not.
        """
        while self._to_try:
            name = self._to_try.pop(0)
            try:
                lease = self._pool.acquire(
                    name,
                    until=self._until,
                    given_up=self._given_up,
                    most_waiting=self._most_waiting(name),
                )
            except LoadError as exc:
                if _ends_all(exc.error):
                    raise exc.error.with_traceback(None) from None
                self._could_not_load(name, exc.error)
                continue
            self._failures.forget(name)
            self._excluded.pop(name, None)
            self._waited_s = time.monotonic() - self._began_at
            self.name = name
            return lease
        raise self._why_none()

    def give_way(self, error: LLMError, client: RoutedClient) -> None:
        """Let the next model try after an answer did not begin.

        It does where the prompt is too long for this one, or its server has failed for good.

        Raises:
            LLMError: ``error``, where that would help nothing; else, when no other is left, why
                none answers.
        """
        if isinstance(error, ContextOverflowError):
            self._errors[self.name] = error
            self._excluded[self.name] = error.message
            self._to_try = [name for name in self._to_try if self._may_hold(name, error)]
        elif client.has_failed and not isinstance(error, _ITS_OWN) and not self._pool.closed:
            self._could_not_load(self.name, error)
        else:
            raise error
        if not self._to_try:
            raise self._why_none()

    def note(self) -> dict[str, object]:
        """What to tell of the choice."""
        ranking = self._route.ranking
        why = self._route.why
        if self._excluded.keys() & set(self._route.names):
            why += ", of those that could be loaded and hold it"
        return {
            "chosen": self.name,
            "why": why,
            "considered": [each.note() for each in ranking.order] if ranking else [],
            "excluded": {**(ranking.excluded if ranking else {}), **self._excluded},
            "was_loaded": self.name in self._loaded,
            "waited_ms": round(self._waited_s * 1000, 1),
        }

    def _could_not_load(self, name: str, error: BaseException) -> None:
        self._errors[name] = error
        self._failures.note(name, error)
        self._excluded[name] = f"it could not be loaded: {_told(error)}"

    def _may_hold(self, name: str, error: ContextOverflowError) -> bool:
        context = self._route.context_of(name)
        if context is None or error.context_tokens is None or error.prompt_tokens is None:
            return True
        return error.context_tokens < context and error.prompt_tokens <= _OTHER_COUNT * context

    def _why_none(self) -> BaseException:
        errors = self._errors
        overflows = {k: e for k, e in errors.items() if isinstance(e, ContextOverflowError)}
        if overflows and len(self._route.names) > 1:
            name, most = max(overflows.items(), key=lambda item: item[1].context_tokens or 0)
            return ContextOverflowError(
                f"{most.message} That is {name}, which holds the most of the models that fit this "
                "request and can be had.",
                prompt_tokens=most.prompt_tokens,
                context_tokens=most.context_tokens,
                hint="Shorten the prompt, or give one of the models a larger ctx_size.",
            )
        if len(errors) == 1:
            (only,) = errors.values()
            return only.with_traceback(None)
        reasons = " ".join(f"{name}: {_told(error)}" for name, error in errors.items())
        first = next(iter(errors.values()))
        return LLMProviderError(
            f"None of the {len(errors)} models that fit this request could be loaded. {reasons}",
            hint=first.hint if isinstance(first, LLMError) else None,
        )


def _ends_all(error: BaseException) -> bool:
    """Whether no other model is to be tried: the time is up, or the client was closed."""
    closed = isinstance(error, EngineNotRunningError) and error.state == "closed"
    return closed or isinstance(error, RequestTimeoutError)


def _told(error: BaseException) -> str:
    return error.message if isinstance(error, LLMError) else f"{type(error).__name__}: {error}"
