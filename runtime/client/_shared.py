"""The gateway that runs on this machine, for clients that ask for nothing that it does not give."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

import psutil

from runtime.client._sources import AttachedSource
from runtime.errors import EngineNotRunningError, LLMError, RequestTimeoutError
from runtime.server import registry
from runtime.server.listeners import who_listens
from runtime.settings import ENV_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.client._sources import EndpointSource, ManagedSource
    from runtime.contracts import BackendStatus
    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits
    from runtime.inference.queueing import SlotQueue
    from runtime.server.registry import ServerRecord

log = logging.getLogger(__name__)

LOOK_S: Final = 2.0
"""For so long a gateway may take to say what it serves; one that does not is left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A running gateway that serves what is wanted.

    Attributes:
        name: As in its record.
        base_url: Where it answers.
        pid: Its process id.
        model: What it is asked for.
        why: Why it is used.
    """

    name: str
    base_url: str
    pid: int
    model: str
    why: str


def key_of_environment() -> str | None:
    """The key that is shown to a gateway that asks for one."""
    return os.environ.get(ENV_PREFIX + "API_KEY") or None


def find_gateway(
    model: str, *, limits: Limits, queue: SlotQueue
) -> tuple[Gateway, ServerRecord, AttachedSource] | None:
    """A gateway of this user that serves ``model`` now, looked at and ready to be used.

    It is proven before it is shown a key or a prompt: the process that wrote the record runs, is
    this user's, and listens at the address; where the system does not tell who listens, whoever
    answers must know the record's name, which other users cannot read.

    Returns:
        None when there is none; why not is logged.
    """
    short = replace(limits, request_timeout_s=min(LOOK_S, limits.request_timeout_s), max_retries=0)
    for record in registry.running():
        if record.role != "serve" or record.base_url is None or not _is_this_users(record):
            continue
        source = AttachedSource(
            record.base_url,
            api_key=key_of_environment(),
            model=model,
            limits=short,
            queue=queue,
        )
        try:
            if _is_proven(record, source):
                source.start()
                if model in source.served:
                    return _described(record, model), record, source
        except LLMError as exc:
            log.info("the gateway %s is not used: %s", record.name, exc.message)
    return None


def _described(record: ServerRecord, model: str) -> Gateway:
    log.info("using the gateway %s at %s", record.name, record.base_url)
    return Gateway(
        name=record.name,
        base_url=record.base_url or "",
        pid=record.owner_pid,
        model=model,
        why=f"it serves {model} on this machine; use_gateway=False starts a private server",
    )


def _is_this_users(record: ServerRecord) -> bool:
    if not hasattr(os, "geteuid"):
        return record.owner_lives
    try:
        owner = psutil.Process(record.owner_pid).uids().effective
    except psutil.Error:
        return False
    return record.owner_lives and bool(owner == os.geteuid())


def _is_proven(record: ServerRecord, source: AttachedSource) -> bool:
    listens = who_listens(record.base_url or "", pid=record.owner_pid)
    if listens == "unknown":
        return source.instance() == record.name
    return listens == "engine"


class SharedSource:
    """The gateway that serves the wanted model when there is one, else a server of one's own.

    Which of the two is found out by the first start. When the gateway ends, its port may become
    another program's, so nothing more is sent there: another gateway that serves the model is
    looked for, and else a server of one's own is started.

    Attributes:
        queue: Where requests wait for one of the slots.
    """

    def __init__(self, own: ManagedSource, *, model: str, limits: Limits) -> None:
        """Nothing is looked at yet.

        Args:
            own: The server to start when there is no gateway.
            model: The model that is wanted.
            limits: Deadlines.
        """
        self.queue = own.queue
        self.own = own
        self._model = model
        self._limits = limits
        self._lock = threading.Lock()
        self._looked = False
        self._found: tuple[Gateway, ServerRecord, AttachedSource] | None = None
        self._turn: _Turn | None = None

    @property
    def gateway(self) -> Gateway | None:
        """The gateway that is used, or None."""
        return self._found[0] if self._found else None

    @property
    def is_own(self) -> bool:
        """Whether requests go to a server that was started here."""
        return self._found is None

    @property
    def _now(self) -> EndpointSource:
        return self._found[2] if self._found else self.own

    def start(self) -> None:
        """Find the gateway, or start the server; at once when that is done.

        Raises:
            LLMError: There is no gateway, and the start failed; it may be tried again.
        """
        with self._lock:
            if not self._looked:
                self._found = find_gateway(self._model, limits=self._limits, queue=self.queue)
                self._looked = True
        self._now.start()

    @property
    def current(self) -> Endpoint:
        """The endpoint as it was last known; never waits."""
        return self._now.current

    @property
    def models(self) -> tuple[str, ...]:
        """The names it answers to."""
        return self._now.models

    @property
    def sampling(self) -> Mapping[str, float]:
        """Sampling that is recommended for its model."""
        return self._now.sampling

    def endpoint(self, timeout_s: float) -> Endpoint:
        """The endpoint to use now; waits while a server is started in a dead gateway's place.

        Raises:
            LLMError: There is none, or not in time.
        """
        found = self._found
        if found is not None and not found[1].owner_lives:
            with self._lock:
                if self._turn is None:
                    log.warning("the gateway %s is gone: looking for another", found[0].name)
                    find = partial(find_gateway, self._model, limits=self._limits, queue=self.queue)
                    self._turn = _Turn(self.own, find, gone=found[0])
                turn = self._turn
            try:
                turn.wait(timeout_s)
            finally:
                if turn.over:
                    self._turn = None  # where it failed, the next request tries again
            self._found = turn.found
        return self._now.endpoint(timeout_s)

    def resolve(self, model: str) -> str | None:
        """The name to send for a model that was asked for; None for the endpoint's own.

        Raises:
            ModelNotFoundError: It does not answer to that name.
        """
        return self._now.resolve(model)

    def health(self) -> BackendStatus:
        """Whether a request sent now would be served; never raises."""
        return self._now.health()

    def snapshot(self) -> Mapping[str, object] | None:
        """The managed server, or None when it is the gateway's."""
        return self._now.snapshot()

    def stop(self) -> None:
        """End what was started; the gateway goes on. Another start looks for it anew."""
        self._looked = False
        self._now.stop()
        if self._found is not None:
            self.own.stop()


_Found: TypeAlias = "tuple[Gateway, ServerRecord, AttachedSource]"


class _Turn:
    """What takes the place of a gateway that is gone: found by a thread, for all to await.

    Those who wait may be tasks of an event loop, which look again and again.

    Attributes:
        found: Another gateway; None where it is a server of one's own.
    """

    def __init__(
        self, own: ManagedSource, find: Callable[[], _Found | None], *, gone: Gateway
    ) -> None:
        self.found: _Found | None = None
        self._own = own
        self._find = find
        self._gone = gone
        self._done = threading.Event()
        self._problem: LLMError | None = None
        threading.Thread(target=self._run, name="llama-own-server", daemon=True).start()

    def _run(self) -> None:
        try:
            self.found = self._find()
            if self.found is None:
                self._own.start()
        except LLMError as exc:
            self._problem = exc
        finally:
            self._done.set()

    @property
    def over(self) -> bool:
        """Whether it is known what takes the place, or that nothing does."""
        return self._done.is_set()

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something.

        Raises:
            RequestTimeoutError: Not in time.
            EngineNotRunningError: There is nothing; says why.
        """
        if not self._done.wait(timeout_s):
            raise RequestTimeoutError(
                "The gateway is gone, and the server that takes its place is still starting.",
                phase="connect",
                after_s=timeout_s,
                hint="Wait longer.",
            )
        if (problem := self._problem) is not None:
            raise EngineNotRunningError(
                f"The gateway at {self._gone.base_url} is gone, no other serves "
                f"{self._gone.model}, and a server of this client's own did not start: "
                f"{problem.message}",
                state="failed",
                hint="Start the gateway again (`llama-runtime serve`), or name a model that is on "
                "this machine.",
            ) from problem
