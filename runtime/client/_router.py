"""From a request to the model that answers it: the choice, the wait for it, and what is learned."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args

from runtime.client._journey import Failures, Journey, Route
from runtime.client._ranking import CHARS_PER_TOKEN, Task, rank
from runtime.client._routed_stream import Course, RoutedStream
from runtime.client._speeds import from_answer
from runtime.contracts import LLMRequest, LLMStreamEvent, TaskPriority
from runtime.errors import LLMError, LLMInvalidRequestError, NoModelFitsError
from runtime.inference import discovery

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from runtime.client._loading import RoutedClient
    from runtime.client._pool import ModelPool
    from runtime.client._routed import KnownModel
    from runtime.client._speeds import SpeedBook
    from runtime.client._stream import AnswerStream
    from runtime.client.sync import LlamaClient
    from runtime.contracts import LLMResponse, TaskProfile
    from runtime.inference.wishes import Wish

Item = TypeVar("Item")
Result = TypeVar("Result")

AUTO: Final = "auto"
"""The router's default model: naming it, or none, leaves the choice to the router."""


class Router:
    """Chooses among models. Any thread may use it.

    Args:
        models: The models by name.
        pool: Where they are loaded.
        book: How fast they are.
        profile: What requests want that do not say it.
        budget_bytes: The memory budget.
        timeout_s: Most time for a request, the wait for its model included, seconds.
        max_queue: How many requests may be in line for each model.
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
        max_queue: int,
    ) -> None:
        self._models = models
        self._pool = pool
        self._book = book
        self._profile = profile
        self._budget = budget_bytes
        self._timeout_s = timeout_s
        self._max_queue = max_queue
        self._failures = Failures()

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
            known.candidate(
                self._book,
                loaded=known.name in loaded,
                context_tokens=self.context_tokens(known, loaded.get(known.name)),
            )
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
        broken = self._failures.among(names)
        names.sort(key=lambda name: name in broken)
        why = f"first of {len(names)} by {task.priority}" if len(names) > 1 else "the only one left"
        if len({each.lacks for each in ranking.order}) > 1:
            why += ", those with room for it before the others"
        return Route(names=tuple(names), why=why, ranking=ranking, broken=broken)

    def answer(
        self, wish: Wish, request: object, ask: Callable[[LlamaClient], LLMResponse]
    ) -> LLMResponse:
        """A whole answer, in what time the wait for its model left."""
        journey = self._journey(self.route(wish, request))
        while True:
            with journey.next() as lease:
                try:
                    response = ask(lease.loaded.within(journey.left_s))
                except LLMError as exc:
                    journey.give_way(exc, lease.loaded)
                    continue
            self._learn(journey.name, response)
            return _routed(response, journey.note())

    def stream(
        self, wish: Wish, request: object, ask: Callable[[LlamaClient], AnswerStream[Item]]
    ) -> RoutedStream[Item]:
        """An answer piece by piece. The model is chosen now, and loaded with the first step."""
        course: Course[Item] = Course(self._pool.nudge)
        return RoutedStream(self._steps(self.route(wish, request), course, ask), course)

    def use(self, name: str, ask: Callable[[LlamaClient], Result]) -> Result:
        """What one model says, in what time the wait for it left."""
        journey = self._journey(Route(names=(name,), why="it was named"))
        with journey.next() as lease:
            return ask(lease.loaded.within(journey.left_s))

    def context_tokens(self, known: KnownModel, client: LlamaClient | None) -> int | None:
        """Tokens that one request to a model may hold: what its server says, else what is planned.

        Args:
            known: The model.
            client: Its client, while it is loaded.
        """
        return client.capabilities().max_context_tokens if client else known.facts.context

    def _steps(
        self, route: Route, course: Course[Item], ask: Callable[[LlamaClient], AnswerStream[Item]]
    ) -> Generator[Item, None, None]:
        journey = self._journey(route, lambda: course.closed)
        while True:
            begun = False
            with journey.next() as lease, ask(lease.loaded.within(journey.left_s)) as inner:
                note = journey.note()
                course.follow(inner, note)
                while True:
                    try:
                        item = next(inner)
                    except StopIteration as stop:
                        # The value is the response, whatever was handed out.
                        self._learn(journey.name, stop.value)
                        return
                    except LLMError as exc:
                        if begun or course.closed:
                            raise
                        journey.give_way(exc, lease.loaded)
                        break
                    begun = True
                    if isinstance(item, LLMStreamEvent) and item.response is not None:
                        item = replace(item, response=_routed(item.response, note))
                    yield item

    def _journey(self, route: Route, given_up: Callable[[], bool] = lambda: False) -> Journey:
        return Journey(
            route,
            pool=self._pool,
            failures=self._failures,
            timeout_s=self._timeout_s,
            most_waiting=lambda name: self._max_queue + self._models[name].facts.slots,
            given_up=given_up,
        )

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


def _routed(response: LLMResponse, note: Mapping[str, object]) -> LLMResponse:
    return replace(response, raw={**(response.raw or {}), "routing": dict(note)})
