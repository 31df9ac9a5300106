"""Where a client's requests go: a server of its own, or one that runs already."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

from runtime.contracts import BackendStatus, Provenance
from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.errors import EngineNotRunningError, LLMError
from runtime.inference import discovery, transport
from runtime.inference.failures import client_closed
from runtime.inference.names import public_name
from runtime.inference.queueing import SlotQueue
from runtime.inference.switchboard import Switchboard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.inference.clock import Limits
    from runtime.server.manager import Role, ServerManager
    from runtime.settings import ServerConfig
    from runtime.store import PullProgress


class EndpointSource(Protocol):
    """Knows where a server is; :meth:`start` comes first. Any thread may call every method.

    Attributes:
        queue: Where requests wait for one of its slots.
    """

    queue: SlotQueue

    def start(self) -> None:
        """Start the server, or look at the one that runs; at once when that is done.

        Raises:
            LLMError: That failed; it may be tried again.
        """
        ...

    @property
    def current(self) -> Endpoint:
        """The endpoint as it was last known; never waits. Known once it was started."""
        ...

    @property
    def models(self) -> tuple[str, ...]:
        """The names it answers to; empty when every name is passed on."""
        ...

    @property
    def sampling(self) -> Mapping[str, float]:
        """Sampling that is recommended for its model."""
        ...

    def endpoint(self, timeout_s: float) -> Endpoint:
        """The endpoint to use now; waits while the server is being restarted.

        Raises:
            LLMProviderError: There is none, or not in time.
        """
        ...

    def resolve(self, model: str) -> str | None:
        """The name to send for a model that was asked for; None for the endpoint's own.

        Raises:
            ModelNotFoundError: It does not answer to that name.
        """
        ...

    def health(self) -> BackendStatus:
        """Whether a request sent now would be served; never raises."""
        ...

    def snapshot(self) -> Mapping[str, object] | None:
        """The managed server, or None when it is another's."""
        ...

    def stop(self) -> None:
        """End what was started; safe to call twice."""
        ...


def recommended_sampling(reference: str) -> dict[str, float]:
    """What the authors of a model of the catalogue recommend; empty for every other reference."""
    from runtime.store.catalog import read_catalog  # noqa: PLC0415 - not for attached clients

    entry = read_catalog().get(reference)
    if entry is None or entry.sampling is None:
        return {}
    return {name: value for name, value in asdict(entry.sampling).items() if value is not None}


class ManagedSource:
    """A server that is started here and ends with the client."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        offline: bool | None,
        max_queue: int,
        progress: Callable[[PullProgress], None] | None = None,
        role: Role = "client",
    ) -> None:
        from runtime.server.manager import ServerManager  # noqa: PLC0415 - not for attached ones

        self.queue = SlotQueue(max_queue)
        self._progress = progress
        self._ended = False
        self._sampling: Mapping[str, float] = {}
        self._current: Endpoint | None = None
        self.manager: ServerManager = ServerManager(
            config, offline=offline, progress=self._tell_progress, role=role
        )

    def start(self) -> None:
        if self._current is None:
            self._ended = False
            self._sampling = recommended_sampling(self.manager.config.model)
            self.manager.start()
            self._known(self.manager.wait_ready())

    def _known(self, endpoint: Endpoint) -> Endpoint:
        self._current = endpoint
        self.queue.resize(endpoint.slots, endpoint.prompts_at_once)
        return endpoint

    def _tell_progress(self, progress: PullProgress) -> None:
        if self._ended:  # what is raised here ends the download
            raise client_closed()
        if self._progress is not None:
            self._progress(progress)

    @property
    def current(self) -> Endpoint:
        if self._current is None:
            raise not_started()
        return self._current

    @property
    def models(self) -> tuple[str, ...]:
        config = self.manager.config
        names = (public_name(self.current), config.alias, config.model)
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def sampling(self) -> Mapping[str, float]:
        return self._sampling

    def endpoint(self, timeout_s: float) -> Endpoint:
        return self._known(self.manager.endpoint(timeout_s))

    def resolve(self, model: str) -> None:
        if model not in self.models:
            raise discovery.unknown_model(model, self.models)

    def health(self) -> BackendStatus:
        return self.manager.health()

    def snapshot(self) -> Mapping[str, object]:
        return self.manager.snapshot().to_dict()

    def stop(self) -> None:
        self._ended = True
        self.manager.stop()


class AttachedSource:
    """A server that somebody else runs."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None,
        model: str | None,
        limits: Limits,
        queue: SlotQueue,
    ) -> None:
        self._address = Endpoint(
            base_url=discovery.origin(base_url),
            api_key=api_key,
            kind="openai",
            model=model or "",
            capabilities=EngineCapabilities(),
            context_tokens=None,
        )
        self.queue = queue
        self._wanted = model
        self._limits = limits
        self._board = Switchboard()
        self._lock = threading.Lock()
        self._known: discovery.Discovered | None = None

    def start(self) -> None:
        with self._lock:
            if self._known is None:
                self._board = Switchboard()
                self._known = self._discover()

    @property
    def _found(self) -> discovery.Discovered:
        if self._known is None:
            raise not_started()
        return self._known

    def _discover(self) -> discovery.Discovered:
        address = self._address
        flow = discovery.discover(
            address.base_url, api_key=address.api_key, model=self._wanted, limits=self._limits
        )
        found = transport.run(flow, locate=lambda _: address, board=self._board)
        self.queue.resize(found.endpoint.slots)
        return found

    @property
    def current(self) -> Endpoint:
        return self._found.endpoint

    @property
    def models(self) -> tuple[str, ...]:
        return self._found.models

    @property
    def served(self) -> tuple[str, ...]:
        """The names of what it serves already, without what it would first have to load."""
        return self._found.served

    @property
    def sampling(self) -> Mapping[str, float]:
        return {}  # its operator's choice

    def endpoint(self, timeout_s: float) -> Endpoint:  # noqa: ARG002 - it is where it is
        return self._found.endpoint

    def resolve(self, model: str) -> str:
        if model not in self.models:
            with self._lock:  # it may have been loaded since
                self._known = self._discover()
            if model not in self.models:
                raise discovery.unknown_model(model, self.models)
        return model

    def instance(self) -> str | None:
        """The name of the gateway that answers there, which is asked without the key.

        Raises:
            LLMError: Nothing answers.
        """
        address = self._address
        flow = discovery.instance(address.base_url, limits=self._limits)
        return transport.run(flow, locate=lambda _: address, board=self._board)

    def health(self) -> BackendStatus:
        address = self._address
        flow = discovery.health(address.base_url, api_key=address.api_key, limits=self._limits)
        ok = True
        try:
            message = transport.run(flow, locate=lambda _: address, board=self._board)
        except LLMError as exc:
            ok, message = False, exc.message
        return BackendStatus(
            ok=ok,
            message=message,
            details={"base_url": address.base_url},
            checked_at=Provenance.now_iso(),
        )

    def snapshot(self) -> None:
        return None

    def stop(self) -> None:
        self._board.close()


def not_started() -> EngineNotRunningError:
    """The error for asking a client about a server that it has not looked at yet."""
    return EngineNotRunningError(
        "The client has not been started.",
        state="stopped",
        hint="Use it with `async with`, or call `await client.start()` first.",
    )
