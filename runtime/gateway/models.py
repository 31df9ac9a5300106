"""The gateway's models: which there are, which are loaded, and how a request gets to use one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from runtime.client._pool import ModelPool
from runtime.client._routed import RoutedModel
from runtime.client._seats import LoadError
from runtime.errors import (
    EngineNotRunningError,
    LLMError,
    LLMInvalidRequestError,
    ModelNotFoundError,
    ModelTooLargeError,
)
from runtime.gateway.catalogue import Catalogue
from runtime.gateway.served import ServedLoader, ServedModel
from runtime.gateway.statuses import GatewayEndingError
from runtime.hardware import memory
from runtime.inference.async_transport import Threads
from runtime.inference.clock import Limits
from runtime.inference.failures import client_closed
from runtime.server.lifecycle import State
from runtime.store import ModelStore
from runtime.store.fit import margin_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from runtime.client._routed import KnownModel
    from runtime.client._seats import Lease
    from runtime.server.snapshot import ServerSnapshot
    from runtime.store import PullProgress

log = logging.getLogger(__name__)

TRY_AGAIN_S: Final = 5.0
"""For so long after a model could not be loaded, requests for it are told why at once."""

_MOST_LOADING: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a gateway serves.

    Attributes:
        models: References of the models that are named; the first is the default.
        alias: The name of the first in the API, or None for its own.
        settings: Fields of :class:`runtime.ServerConfig` for all of them.
        memory_budget_bytes: Most main memory that all loaded models take; None for what this
            machine has now, with some left free.
        keep_alive_s: Seconds without use after which a model is unloaded; infinite for never.
        allow_pull: Whether a model that a request names may be fetched.
        options: Further arguments of the clients, such as time limits.
    """

    models: tuple[str, ...]
    alias: str | None = None
    settings: Mapping[str, Any]
    memory_budget_bytes: int | None = None
    keep_alive_s: float = math.inf
    allow_pull: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A model as it stands now.

    Attributes:
        name: Its name.
        names: Every name it answers to.
        state: The state of its engine; ``"unloaded"`` while there is none, ``"waiting"`` while it
            waits for memory or is being fetched.
        loaded: Whether it has answered since it was loaded, or could.
        users: Requests that use it or wait for it.
        held_bytes: Memory that is reckoned with.
        error: Why it could not be loaded, or has failed.
        counters: What its requests so far came to.
        served: Its client, while it is loaded.
    """

    name: str
    names: tuple[str, ...]
    state: str
    loaded: bool
    users: int = 0
    held_bytes: int = 0
    error: LLMError | None = None
    counters: Mapping[str, object]
    served: ServedModel | None = None


class _Arrival:
    """A model on its way, and how many wait for it."""

    def __init__(self, task: asyncio.Task[Lease[ServedModel]]) -> None:
        self.task = task
        self.waiting = 0


class Models:
    """The models of a gateway; used by the tasks of one event loop."""

    def __init__(
        self,
        plan: Plan,
        *,
        progress: Callable[[PullProgress], None] | None = None,
    ) -> None:
        """Look at the models that are named; nothing is fetched or loaded yet.

        Raises:
            ConfigError: A setting cannot work, or two models have one name.
            ModelNotFoundError: A reference cannot name a model.
            EngineNotInstalledError: There is no engine.
        """
        # Engines listen on loopback alone, each on a port and with a key that nobody knows.
        shared = {**plan.settings, "host": "127.0.0.1", "api_key": None}
        first, *others = plan.models
        routed = [RoutedModel(first, name=plan.alias), *map(RoutedModel, others)]
        self._threads = Threads(_MOST_LOADING)
        self._catalogue = catalogue = Catalogue(
            routed,
            shared=shared,
            store=ModelStore(),
            allow_pull=plan.allow_pull,
            threads=self._threads,
        )
        self._known = catalogue.models
        self.named = catalogue.named
        self.default = self.named[0]
        self.budget_bytes = plan.memory_budget_bytes or max(
            _room_bytes(), self._known[self.default].facts.needed_bytes or 0
        )
        limits = Limits()
        self._patience_s = float(plan.options.get("request_timeout_s", limits.request_timeout_s))
        self._loader = ServedLoader(self._known, options=plan.options, progress=progress)
        never = math.isinf(plan.keep_alive_s)
        self._pool: ModelPool[ServedModel] = ModelPool(
            self._loader,
            budget_bytes=self.budget_bytes,
            idle_timeout_s=None if never else plan.keep_alive_s,
        )
        self._arrivals: dict[str, _Arrival] = {}
        self._bringing: Counter[str] = Counter()
        self._failures: dict[str, tuple[float, LLMError]] = {}
        self._ending = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def load(self) -> ServerSnapshot:
        """Load the default model; returns its server as it then is.

        Raises:
            LLMError: That failed.
        """
        async with self.lease() as served:
            server = served.server
            assert server is not None  # noqa: S101 - its engine is ours
            return await self._threads.run(server.snapshot)

    async def give_up_loading(self) -> None:
        """End what is being fetched or started, and every request that waits for it."""
        self._ending = True
        await self._threads.finish(self._loader.close)

    def cut(self) -> None:
        """End every request under way, and each one to come, with an error that says why."""
        self._ending = True
        for served in self._pool.loaded().values():
            served.cut()

    def why(self, failure: LLMError) -> LLMError:
        """What a request that failed is told: where the end of the gateway ended it, that."""
        if self._ending and isinstance(failure, EngineNotRunningError):
            return GatewayEndingError()
        return failure

    async def close(self) -> None:
        """End every engine; waits until they have ended."""
        self.cut()
        await self.give_up_loading()
        await self._threads.finish(self._pool.close)
        for arrival in list(self._arrivals.values()):
            with contextlib.suppress(LLMError):
                await arrival.task

    @contextlib.asynccontextmanager
    async def lease(
        self, model: str | None = None, keep_alive_s: float | None = None
    ) -> AsyncGenerator[ServedModel]:
        """The model that a request names, loaded first where it is not; kept for the time being.

        Args:
            model: The name; None for the default model.
            keep_alive_s: Seconds for which it may then be unused; None for what holds for all.

        Raises:
            ModelNotFoundError: There is none of that name, and what there is.
            LLMError: It could not be loaded.
        """
        name = await self.find(model)
        lease = await self._acquire(name)
        if keep_alive_s is not None:
            self._pool.keep(name, None if math.isinf(keep_alive_s) else keep_alive_s)
        with lease:
            if self._ending:
                raise GatewayEndingError
            yield lease.loaded

    async def find(self, model: str | None) -> str:
        """The name of the model that is meant; see :meth:`Catalogue.find`."""
        return await self._catalogue.find(model)

    def listed(self) -> tuple[Standing, ...]:
        """The models that are named or were asked for: the default first."""
        table = self._pool.table()
        ready = self._pool.loaded()
        return tuple(self._standing(known, table, ready) for known in list(self._known.values()))

    async def on_disk(self) -> tuple[str, ...]:
        """Names of further models on this machine, which are loaded when asked for."""
        return await self._catalogue.on_disk()

    # --- parts --------------------------------------------------------------------------------

    def _standing(
        self,
        known: KnownModel,
        table: Mapping[str, Mapping[str, Any]],
        ready: Mapping[str, ServedModel],
    ) -> Standing:
        name, seat, served = known.name, table.get(known.name, {}), ready.get(known.name)
        state = {"preparing": "waiting", "loading": "loading", "unloading": "stopping"}.get(
            str(seat.get("state")), "unloaded"
        )
        if state == "unloaded" and name in self._arrivals:
            state = "waiting"
        _, error = self._failures.get(name, (0.0, None))
        if served is not None and served.server is not None:
            state = served.server.state.value
            if state == State.FAILED:
                error = _why_failed(served)
        elif state == "unloaded" and error is not None:
            state = State.FAILED.value
        return Standing(
            name=name,
            names=known.names,
            state=state,
            loaded=served is not None,
            users=int(seat.get("users", 0)),
            held_bytes=int(seat.get("held_bytes", 0)),
            error=error,
            counters=self._loader.counters(name, served),
            served=served,
        )

    async def _acquire(self, name: str) -> Lease[ServedModel]:
        if (lease := self._pool.take(name)) is not None:
            return lease
        until, error = self._failures.get(name, (0.0, None))
        if error is not None and time.monotonic() < until:
            self._forget(name)
            raise error.with_traceback(None)
        if (arrival := self._arrivals.get(name)) is None:
            self._bringing[name] += 1
            arrival = _Arrival(asyncio.create_task(self._bring(name)))
            self._arrivals[name] = arrival
        arrival.waiting += 1
        try:
            await asyncio.shield(arrival.task)
            if (lease := self._pool.take(name)) is None:
                raise client_closed()
            return lease
        finally:
            arrival.waiting -= 1
            if not arrival.waiting:
                if self._arrivals.get(name) is arrival:
                    del self._arrivals[name]
                arrival.task.add_done_callback(_let_go)

    async def _bring(self, name: str) -> Lease[ServedModel]:
        """Have a model loaded, and hold it until all who wait for it have it."""
        until = time.monotonic() + self._patience_s
        wanted = partial(self._pool.acquire, name, until=until, given_up=lambda: False)
        try:
            lease = await self._threads.finish(wanted)
        except LoadError as exc:
            if not isinstance(exc.error, LLMError):
                raise exc.error from None
            problem = exc.error
            if not (isinstance(problem, EngineNotRunningError) and self._pool.closed):
                log.warning("%s could not be loaded: %s", name, problem.message)
                problem = _unloadable(name, problem, named=name in self.named)
                self._failed(name, problem)
            raise problem.with_traceback(None) from None
        finally:
            self._bringing[name] -= 1
            self._forget(name)
        self._failures.pop(name, None)
        return lease

    def _failed(self, name: str, problem: LLMError) -> None:
        now = time.monotonic()
        for each, (until, _) in list(self._failures.items()):
            if each not in self.named and until < now:
                del self._failures[each]
        self._failures[name] = (now + TRY_AGAIN_S, problem)

    def _forget(self, name: str) -> None:
        """Drop a model that a request named and that could not be had."""
        if not self._bringing[name]:
            del self._bringing[name]
            if name not in self._pool.table():
                self._catalogue.forget(name)


def _unloadable(name: str, problem: LLMError, *, named: bool) -> LLMError:
    """What a request is told of a model that is there and cannot be loaded.

    It is not the request that is wrong, as the error of whoever starts a model with such a file
    says. Where that is, and what else is there, is the operator's.
    """
    wrong = isinstance(problem, LLMInvalidRequestError) and not isinstance(
        problem, ModelTooLargeError
    )
    if not wrong or (isinstance(problem, ModelNotFoundError) and not named):
        return problem
    return EngineNotRunningError(
        f"{name} cannot be loaded now: {problem.message}",
        state=State.FAILED.value,
        hint="The gateway's operator can mend it; it is tried again after "
        f"{TRY_AGAIN_S:.0f} s. The other models are not concerned.",
    )


def _let_go(task: asyncio.Task[Lease[ServedModel]]) -> None:
    if not task.cancelled() and task.exception() is None:
        with task.result():
            pass


def _why_failed(served: ServedModel) -> LLMError | None:
    try:
        if served.server is not None:
            served.server.endpoint(0.0)
    except LLMError as exc:
        return exc
    return None


def _room_bytes() -> int:
    has = memory()
    return max(0, has.effective_available_bytes - margin_bytes(has))
