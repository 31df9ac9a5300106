"""ServerManager: a llama.cpp server that is started, watched, restarted and ended for you."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import sys
import threading
import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

from runtime.contracts import BackendStatus, Provenance
from runtime.errors import (
    EngineNotRunningError,
    LLMError,
    LLMProviderError,
    RequestTimeoutError,
    StorageError,
)
from runtime.server import probe, registry, slot_folders
from runtime.server.engine_run import CONFIRM_AGAIN_S, KILL_PATIENCE_S
from runtime.server.lifecycle import RESTING_STATES, State
from runtime.server.plan import new_key, plan_launch
from runtime.server.ports import refuse_shared_port, refuse_taken_port
from runtime.server.snapshot import take_snapshot
from runtime.server.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from runtime.engines.base import Endpoint
    from runtime.server.plan import LaunchPlan
    from runtime.server.snapshot import ServerSnapshot
    from runtime.server.view import View
    from runtime.settings import ServerConfig
    from runtime.store import PullProgress
    from runtime.store.drafts import Drafting
    from runtime.store.local import LocalModel

log = logging.getLogger(__name__)

Role = Literal["client", "serve", "engine"]
"""Whose a server is: a program's own, the ``serve`` command's, or one of those behind it."""

_LIVE: weakref.WeakSet[ServerManager] = weakref.WeakSet()
# Not every passing state: each is a file written.
_RECORDED_STATES = frozenset({State.LOADING, State.READY, State.BACKOFF})
STOP_MARGIN_S = 5.0
HEALTH_TIMEOUT_S = 2.0


class ServerManager:
    """Owns one llama.cpp server process. Every method may be called from any thread.

    As a context manager it starts on entry and stops on exit. When the process that made it dies,
    by whatever means, the server is ended by its keeper. After a fork the child's copy refuses to
    work: the server is the parent's.

    Attributes:
        config: What the server is to be.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        offline: bool | None = None,
        progress: Callable[[PullProgress], None] | None = None,
        role: Role = "client",
    ) -> None:
        """Prepare; nothing runs before :meth:`start`.

        Args:
            config: What the server is to be.
            offline: Never use the network; None: as the environment says.
            progress: Told about the download of the model.
            role: Whose it is, for ``llama-runtime ps``.
        """
        self.config = config
        self._offline = offline
        self._progress = progress
        self._role = role
        self._owner_pid = os.getpid()
        self._key: str | None = None
        self._restarting = False
        self._restart_lock = threading.Lock()
        self._record_name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._recorded: tuple[object, ...] | None = None
        self._supervisor = Supervisor(
            config,
            replan=self._replan,
            on_change=self._record,
            name=self._record_name,
        )

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> Self:
        """Find the model, start the engine and wait until it is ready; at once when it is.

        Raises:
            ModelNotFoundError: No model answers to the configured reference.
            EngineStartError: The engine did not come up; says why and shows its last words.
            LLMError: Anything else that kept it from starting, as its own class.
        """
        self._refuse_after_fork()
        refuse_shared_port(self.config)
        _LIVE.add(self)
        if self._supervisor.begin():
            try:
                plan = self._plan_first()
            except BaseException as exc:  # Ctrl-C, too: else others wait for a launch without end
                self._supervisor.unresolved(exc)
                raise
            self._supervisor.launch(plan)
        try:
            self.wait_ready()
        except BaseException as exc:  # Ctrl-C, too: what did not start leaves nothing behind
            self._stop(f"the start was given up ({type(exc).__name__})")
            raise
        return self

    def stop(self) -> None:
        """End the engine: SIGTERM to its process group, SIGKILL after ``stop_grace_s``.

        Safe to call at any time, also twice, and from a signal's KeyboardInterrupt.
        """
        self._stop("a stop was asked for")

    def _stop(self, reason: str) -> None:
        if os.getpid() != self._owner_pid:
            return  # the server is the parent's
        self._supervisor.stop(reason)
        longest_s = self.config.stop_grace_s + KILL_PATIENCE_S + STOP_MARGIN_S
        view = self._supervisor.wait_for(lambda view: view.state in RESTING_STATES, longest_s)
        if view.state not in RESTING_STATES:
            raise LLMProviderError(
                f"The engine (process {view.pid}) did not end within {longest_s:.0f} s.",
                hint=f"kill -9 {view.pid}",
            )
        self._supervisor.join(STOP_MARGIN_S)
        slot_folders.remove(self._record_name)
        _LIVE.discard(self)

    def restart(self) -> Self:
        """Stop and start again; requests that come meanwhile wait."""
        self._refuse_after_fork()
        with self._restart_lock:
            self._restarting = True
            try:
                self.stop()
                return self.start()
            finally:
                self._restarting = False
                self._supervisor.nudge()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # --- use ----------------------------------------------------------------------------------

    def wait_ready(self, timeout: float | None = None) -> Endpoint:
        """Wait until the server answers.

        Args:
            timeout: Seconds; None for as long as the start makes progress.

        Raises:
            RequestTimeoutError: The time is up and it is still starting.
            EngineNotRunningError: It is stopped.
            EngineStartError: It failed.
        """
        self._refuse_after_fork()
        view = self._supervisor.view
        if view.endpoint is None:
            view = self._supervisor.wait_for(self._is_settled, timeout)
        if view.endpoint is not None:
            return view.endpoint
        if view.error is not None:
            raise view.error.with_traceback(None)
        if view.state in RESTING_STATES:
            raise EngineNotRunningError(
                f"The managed server is {view.state}.",
                state=view.state.value,
                hint="Call start(), or make a new client.",
            )
        raise RequestTimeoutError(
            f"The managed server is still {view.state} after {timeout:.1f} s.",
            phase="connect",
            after_s=timeout or 0.0,
            doing=f"the engine was {view.state}",
            hint="Wait longer; logs() shows what it is doing.",
        )

    def endpoint(self, timeout_s: float | None = None) -> Endpoint:
        """Where to send a request now; waits while the engine is being restarted.

        Raises the same as :meth:`wait_ready`.
        """
        return self.wait_ready(timeout_s)

    def _is_settled(self, view: View) -> bool:
        if view.endpoint is not None:
            return True
        return view.state in RESTING_STATES and not self._restarting

    def health(self) -> BackendStatus:
        """Whether a request sent now would be served, found out by asking the engine."""
        self._refuse_after_fork()
        view = self._supervisor.view
        details: dict[str, object] = {"state": view.state.value, "pid": view.pid}
        endpoint, plan = view.endpoint, view.plan
        if endpoint is None or plan is None:
            message = view.error.message if view.error else f"The managed server is {view.state}."
            return BackendStatus(
                ok=False, message=message, details=details, checked_at=Provenance.now_iso()
            )
        reply = probe.ask(
            endpoint.base_url,
            plan.choice.engine.health_path,
            api_key=endpoint.api_key,
            timeout_s=HEALTH_TIMEOUT_S,
        )
        ok = reply.status == 200
        answer = reply.problem or f"HTTP {reply.status}"
        message = "ready" if ok else f"The engine answers {answer}."
        return BackendStatus(
            ok=ok,
            message=message,
            details={**details, "http_status": reply.status, "base_url": endpoint.base_url},
            checked_at=Provenance.now_iso(),
        )

    def snapshot(self) -> ServerSnapshot:
        """The server as it is now; never waits longer than about 200 ms for a busy engine."""
        self._refuse_after_fork()
        return take_snapshot(self.config, self._supervisor.view, poll_interval_s=CONFIRM_AGAIN_S)

    def logs(self, n: int = 100) -> tuple[str, ...]:
        """The last ``n`` lines the engine printed, oldest first (400 at most; the file has all)."""
        return self._supervisor.tail.last(n)

    def session_facts(self) -> dict[str, str]:
        """What the state of its slots depends on, by name; hashes the model the first time.

        Raises:
            StorageError: The model cannot be read.
        """
        from runtime.server.identity import session_facts  # noqa: PLC0415 - few keep conversations

        return session_facts(self._supervisor.view)

    @property
    def base_url(self) -> str | None:
        """Where the server answers, or None while it does not."""
        endpoint = self._supervisor.view.endpoint
        return endpoint.base_url if endpoint else None

    @property
    def api_key(self) -> str | None:
        """The key the server asks for, or None when it asks for none."""
        return self._key

    @property
    def pid(self) -> int | None:
        """The engine's process id, or None while there is none."""
        return self._supervisor.view.pid

    @property
    def restarts(self) -> int:
        """How often the engine was started again by itself."""
        return self._supervisor.view.restarts

    @property
    def state(self) -> State:
        """Where the server is in its life."""
        return self._supervisor.view.state

    # --- parts --------------------------------------------------------------------------------

    def _plan_first(self) -> LaunchPlan:
        from runtime.store import ModelStore  # noqa: PLC0415 - its libraries load when needed

        registry.reap_leftovers()
        slot_folders.sweep()
        refuse_taken_port(self.config.host, self.config.port)
        self._key = self.config.api_key if self.config.api_key is not None else new_key()
        self._key = self._key or None
        self._store = ModelStore(offline=self._offline)
        model = self._store.pull(self.config.model, progress=self._progress)
        self._draft = self._find_draft()
        return self._planned(model)

    def _planned(self, model: LocalModel) -> LaunchPlan:
        return plan_launch(
            self.config,
            model,
            api_key=self._key,
            draft=self._draft,
            slot_folder=slot_folders.make(self._record_name),
        )

    def _find_draft(self) -> Drafting:
        from runtime.store.drafts import AUTO, Drafting, catalogue_draft  # noqa: PLC0415 - as above

        wanted = self.config.draft_model
        if wanted is None:
            return Drafting()
        if wanted == AUTO:
            return catalogue_draft(self._store, self.config.model)
        path = self._store.pull(wanted, progress=self._progress).path
        return Drafting(name=wanted, path=path, why="draft_model was set")

    def _replan(self) -> LaunchPlan:
        """Before a restart: what is on disk now, without the network."""
        model = self._store.resolve(self.config.model)
        plan = self._planned(model)
        before = self._supervisor.view.plan
        if before is not None and plan.model_identity != before.model_identity:
            note = f"the model file {model.path} is not the one that was started first"
            log.warning("%s: %s", self.config.model, note)
            plan = replace(plan, notes=(*plan.notes, note))
        return plan

    def _record(self, view: View) -> None:
        """Keep the file that other processes read up to date (supervisor's thread)."""
        if view.state in RESTING_STATES or view.plan is None:
            if self._recorded is not None:
                registry.erase(self._record_name)
                self._recorded = None
            return
        standby = view.standby
        second = standby.pid if standby else None
        facts = (view.state, view.pid, view.endpoint, second)
        if facts == self._recorded or view.state not in _RECORDED_STATES:
            return
        self._recorded = facts
        record = registry.ServerRecord(
            name=self._record_name,
            role=self._role,
            owner_pid=self._owner_pid,
            owner_birth=registry.birth(self._owner_pid) or "",
            engine_pid=view.pid,
            model=view.plan.served_name,
            engine=view.plan.choice.engine.kind,
            base_url=view.endpoint.base_url if view.endpoint else None,
            state=view.state.value,
            started_at=view.started_at,
            engine_birth=registry.birth(view.pid) if view.pid else None,
            log_path=str(view.log_path) if view.log_path else None,
            standby_pid=second,
            standby_birth=registry.birth(second) if second else None,
            standby_log_path=str(standby.log_path) if standby and standby.log_path else None,
        )
        try:
            registry.write(record)
        except StorageError as exc:
            log.warning("`llama-runtime ps` will not show this server: %s", exc.message)

    def _refuse_after_fork(self) -> None:
        if os.getpid() != self._owner_pid:
            raise LLMProviderError(
                "This server belongs to the process that started it, and this is a fork of it.",
                hint="Start a server in the child, or attach to its base_url and api_key.",
            )


@atexit.register
def _stop_all() -> None:
    """An interpreter that ends takes its servers with it in order."""
    # Set for an exception that nobody caught; an interactive session goes on after one.
    last = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    reason = "the program ends" + (f" by an unhandled {type(last).__name__}" if last else "")
    for manager in list(_LIVE):
        with contextlib.suppress(LLMError):
            manager._stop(reason)  # noqa: SLF001 - this module's own class
