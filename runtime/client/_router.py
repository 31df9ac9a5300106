"""From a request to the model that answers it: the choice, the wait for it, and what is learned."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from runtime.client._ranking import CHARS_PER_TOKEN, Task, rank
from runtime.client._routed_stream import Course, RoutedStream
from runtime.client._seats import LoadError
from runtime.client._speeds import from_answer
from runtime.contracts import LLMRequest, LLMStreamEvent, TaskPriority
from runtime.errors import (
    EngineNotRunningError,
    LLMInvalidRequestError,
    NoModelFitsError,
    RequestTimeoutError,
)
from runtime.inference import discovery

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from runtime.client._loading import RoutedClient
    from runtime.client._pool import ModelPool
    from runtime.client._ranking import Ranking
    from runtime.client._routed import KnownModel
    from runtime.client._seats import Lease
    from runtime.client._speeds import SpeedBook
    from runtime.client._stream import AnswerStream
    from runtime.client.sync import LlamaClient
    from runtime.contracts import LLMResponse, TaskProfile
    from runtime.inference.wishes import Wish

Item = TypeVar("Item")

AUTO: Final = "auto"
"""The router's default model: naming it, or none, leaves the choice to the router."""


_TRY_AGAIN_S: Final = 60.0
"""For so long after it could not be loaded, a model is tried only when all others fail, too."""


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


class Router:
    """Chooses among models. Any thread may use it.

    Args:
        models: The models by name.
        pool: Where they are loaded.
        book: How fast they are.
        profile: What requests want that do not say it.
        budget_bytes: The memory budget.
        timeout_s: Most time for a request, the wait for its model included, seconds.
    """

    def __init__(
        self,
        models: Mapping[str, KnownModel],
        *,
        pool: ModelPool[RoutedClient],
        book: SpeedBook,
        profile: TaskProfile,
        budget_bytes: int,
        timeout_s: float,
    ) -> None:
        self._models = models
        self._pool = pool
        self._book = book
        self._profile = profile
        self._budget = budget_bytes
        self._timeout_s = timeout_s
        self._failures: dict[str, tuple[float, str]] = {}

    def named(self, model: str | None) -> str | None:
        """The model that a request names; None when it leaves the choice to the router.

        Raises:
            ModelNotFoundError: No model has that name.
        """
        if model is None or model == AUTO:
            return None
        for known in self._models.values():
            if model in known.names:
                return known.name
        raise discovery.unknown_model(model, (AUTO, *self._models))

    def route(self, wish: Wish, request: object) -> Route:
        """Where a request may go.

        Args:
            wish: What is asked.
            request: The request it came from, of which only the task profile is read.

        Raises:
            ModelNotFoundError: It names a model that is none of these.
            NoModelFitsError: None fits its profile; says why not for each.
        """
        name = self.named(wish.model)
        if name is not None:
            return Route(names=(name,), why="the request names it")
        task = _task(wish, getattr(request, "task_profile", None) or self._profile)
        loaded = self._pool.loaded()
        candidates = [
            known.candidate(self._book, loaded=known.name in loaded)
            for known in self._models.values()
        ]
        ranking = rank(candidates, task, budget_bytes=self._budget)
        if not ranking.order:
            reasons = "; ".join(f"{name}: {why}" for name, why in ranking.excluded.items())
            raise NoModelFitsError(
                f"None of the models fits this request. {reasons}.",
                excluded=ranking.excluded,
                hint="Ask for less in its task_profile, or name a model.",
            )
        names = [each.candidate.name for each in ranking.order]
        broken = self._broken(names)
        names.sort(key=lambda name: name in broken)
        why = f"first of {len(names)} by {task.priority}" if len(names) > 1 else "the only one left"
        return Route(names=tuple(names), why=why, ranking=ranking, broken=broken)

    def _broken(self, names: Iterable[str]) -> dict[str, str]:
        since = time.monotonic() - _TRY_AGAIN_S
        failures = {name: self._failures.get(name) for name in names}
        return {
            name: f"it could not be loaded: {failure[1]}"
            for name, failure in failures.items()
            if failure is not None and failure[0] > since
        }

    def enter(
        self, route: Route, given_up: Callable[[], bool] = lambda: False
    ) -> tuple[str, Lease[RoutedClient], dict[str, object]]:
        """The first model of the route that can be had: its name, its use, and what to tell of it.

        One that cannot be loaded gives way to the next; that is told, too.

        Raises:
            LLMError: None could be had: why not the first of them.
        """
        began_at = time.monotonic()
        failed: dict[str, BaseException] = {}
        broken = dict(route.broken)
        loaded = self._pool.loaded()
        for name in route.names:
            try:
                lease = self._pool.acquire(
                    name, until=began_at + self._timeout_s, given_up=given_up
                )
            except LoadError as exc:
                if isinstance(exc.error, RequestTimeoutError | EngineNotRunningError):
                    raise exc.error.with_traceback(None) from None
                failed[name] = exc.error
                self._failures[name] = (time.monotonic(), str(exc.error))
                broken |= self._broken([name])
                continue
            self._failures.pop(name, None)
            broken.pop(name, None)
            waited_s = time.monotonic() - began_at
            return name, lease, _note(route, name, broken, name in loaded, waited_s)
        raise failed[route.names[0]].with_traceback(None)

    def answer(
        self, wish: Wish, request: object, ask: Callable[[LlamaClient], LLMResponse]
    ) -> LLMResponse:
        """A whole answer, in what time the wait for its model left."""
        began_at = time.monotonic()
        name, lease, note = self.enter(self.route(wish, request))
        with lease:
            response = ask(lease.loaded.within(self._left_s(began_at)))
        self._learn(name, response)
        return _routed(response, note)

    def stream(
        self, wish: Wish, request: object, ask: Callable[[LlamaClient], AnswerStream[Item]]
    ) -> RoutedStream[Item]:
        """An answer piece by piece. The model is chosen now, and loaded with the first step."""
        course: Course[Item] = Course(self._pool.nudge)
        return RoutedStream(self._steps(self.route(wish, request), course, ask), course)

    def _steps(
        self, route: Route, course: Course[Item], ask: Callable[[LlamaClient], AnswerStream[Item]]
    ) -> Generator[Item, None, None]:
        began_at = time.monotonic()
        name, lease, note = self.enter(route, lambda: course.closed)
        with lease, ask(lease.loaded.within(self._left_s(began_at))) as inner:
            course.follow(inner, note)
            while True:
                try:
                    item = next(inner)
                except StopIteration as stop:
                    self._learn(name, stop.value)  # the response, whatever was handed out
                    return
                if isinstance(item, LLMStreamEvent) and item.response is not None:
                    item = replace(item, response=_routed(item.response, note))
                yield item

    def _left_s(self, began_at: float) -> float:
        return began_at + self._timeout_s - time.monotonic()

    def _learn(self, name: str, response: object) -> None:
        known = self._models[name]
        measured = from_answer(response)
        if measured is not None and known.key is not None:
            self._book.learn(known.key, known.weighed(measured))


def without_model(request: object) -> LLMRequest:
    """The request, or its look-alike, with the choice of the model taken out of it."""
    values: dict[str, Any] = {
        each.name: getattr(request, each.name)
        for each in fields(LLMRequest)
        if hasattr(request, each.name)
    }
    return LLMRequest(**values | {"model": None})


def _task(wish: Wish, profile: object) -> Task:
    priority: Any = getattr(profile, "priority", "balanced")
    if priority not in get_args(TaskPriority):
        raise LLMInvalidRequestError(
            f"The task profile's priority is {priority!r}.",
            hint=f"It is one of {', '.join(get_args(TaskPriority))}.",
        )
    tags = getattr(profile, "tags", ()) or ()
    if isinstance(tags, str):
        raise LLMInvalidRequestError(
            f"The task profile's tags are {tags!r}.", hint=f"Pass ({tags!r},)."
        )
    texts = [str(message.get("content") or "") for message in wish.messages]
    told = wish.tools.functions.values() if wish.tools else ()
    chars = sum(map(len, texts)) + sum(len(str(function)) for function in told)
    return Task(
        prompt_tokens=max(1, chars // CHARS_PER_TOKEN),
        max_tokens=wish.max_tokens,
        priority=priority,
        tags=tuple(tags),
        max_cost_usd=getattr(profile, "max_cost_usd", None),
        max_latency_ms=getattr(profile, "max_latency_ms", None),
    )


def _note(
    route: Route, name: str, broken: Mapping[str, str], loaded: bool, waited_s: float
) -> dict[str, object]:
    ranking = route.ranking
    better = "" if not broken else ", for what could be loaded"
    return {
        "chosen": name,
        "why": route.why + better,
        "considered": [each.note() for each in ranking.order] if ranking else [],
        "excluded": {**(ranking.excluded if ranking else {}), **broken},
        "was_loaded": loaded,
        "waited_ms": round(waited_s * 1000, 1),
    }


def _routed(response: LLMResponse, note: Mapping[str, object]) -> LLMResponse:
    return replace(response, raw={**(response.raw or {}), "routing": dict(note)})
