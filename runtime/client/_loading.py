"""How a router's models become clients with a server each, and end again."""

from __future__ import annotations

import copy
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

import psutil

from runtime.client._speeds import Measured
from runtime.client.sync import LlamaClient
from runtime.inference.failures import client_closed
from runtime.inference.observation import summed
from runtime.server.lifecycle import RESTING_STATES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.client._routed import KnownModel
    from runtime.client._speeds import SpeedBook
    from runtime.server.manager import ServerManager
    from runtime.store import PullProgress

_INSTANT_S: Final = 0.001
"""For a request whose time was up just as its model was ready; 0 is no time limit's value."""


def engine_bytes(server: ServerManager | None, known: KnownModel) -> int | None:
    """The resident size of a model's engine, without file pages that the system may drop."""
    pid = server.pid if server else None
    if pid is None:
        return None
    try:
        resident = int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it is being restarted
        return None
    return resident - known.facts.file_pages_bytes


class RoutedClient(LlamaClient):
    """The client of one of a router's models."""

    def counters(self) -> dict[str, object]:
        """What its requests so far came to."""
        return self._observer.counters()

    @property
    def has_failed(self) -> bool:
        """Whether its server has ended, and none will be started by itself."""
        return self.server is not None and self.server.state in RESTING_STATES

    def within(self, left_s: float) -> Self:
        """This client, for one request that has no more time than that."""
        hurried = copy.copy(self)
        left = max(left_s, _INSTANT_S)
        hurried._limits = replace(self._limits, request_timeout_s=left)  # noqa: SLF001 - our own
        return hurried


class ClientLoader:
    """Loads a router's models, each as a client of its own. Any thread may use it.

    Args:
        models: The models by name.
        book: Where the time a load takes is noted.
        options: Arguments of every client.
        progress: Told about downloads.
    """

    def __init__(
        self,
        models: Mapping[str, KnownModel],
        *,
        book: SpeedBook,
        options: Mapping[str, Any],
        progress: Callable[[PullProgress], None] | None,
    ) -> None:
        self._models = models
        self._book = book
        self._options = options
        self._progress = progress
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._clients: set[RoutedClient] = set()
        self._past: dict[str, object] = summed(())

    def close(self) -> None:
        """Let downloads under way end; what has arrived is kept for the next time."""
        self._closing.set()

    def prepare(self, name: str) -> int:
        """Fetch the model; returns the memory it will take."""
        return self._models[name].prepare(self._told)

    def load(self, name: str) -> RoutedClient:
        """A client whose server is ready."""
        known = self._models[name]
        began_at = time.monotonic()
        client = RoutedClient(config=known.config, progress=self._told, **self._options)
        if known.key is not None:
            took = Measured(loads=1.0, load_s=time.monotonic() - began_at)
            self._book.learn(known.key, known.weighed(took))
        with self._lock:
            self._clients.add(client)
        return client

    def unload(self, name: str, loaded: RoutedClient) -> None:  # noqa: ARG002 - of the protocol
        """End a client and its server."""
        loaded.close()
        with self._lock:
            self._clients.discard(loaded)
            self._past = summed((self._past, loaded.counters()))
        self._book.save()

    def usable(self, name: str, loaded: RoutedClient) -> bool:  # noqa: ARG002 - of the protocol
        """Whether its server runs, or is being restarted."""
        return not loaded.has_failed

    def counters(self) -> dict[str, object]:
        """What the requests to all models came to, those that are unloaded included."""
        with self._lock:
            return summed((self._past, *(client.counters() for client in self._clients)))

    def measured_bytes(self, name: str, loaded: RoutedClient) -> int | None:
        """The resident size of its engine, without file pages that the system may drop."""
        return engine_bytes(loaded.server, self._models[name])

    def _told(self, progress: PullProgress) -> None:
        if self._closing.is_set():
            raise client_closed()
        if self._progress is not None:
            self._progress(progress)
