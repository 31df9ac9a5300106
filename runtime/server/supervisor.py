"""The supervisor: one thread owns everything that changes about a managed server.

Callers post requests and wait; readers take the latest :class:`View`, which is replaced whole.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.contracts import Provenance
from runtime.errors import EngineStartError, LLMError, LLMProviderError
from runtime.server import lifecycle
from runtime.server.engine_run import EngineRun
from runtime.server.lifecycle import Event, State, Transition
from runtime.server.logs import LogTail
from runtime.server.loop import Loop, Timers
from runtime.server.restarts import Restarts
from runtime.server.spare import Spare
from runtime.server.view import LastExit, View

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engines.base import Endpoint
    from runtime.server.diagnosis import Ending
    from runtime.server.plan import LaunchPlan
    from runtime.server.standby import Standby
    from runtime.server.view import StandbyView
    from runtime.server.watchdog import Verdict
    from runtime.settings import ServerConfig

log = logging.getLogger(__name__)

HISTORY_KEPT = 50


class Supervisor:
    """Owns the engine process that serves, its spare or standby, and the thread that watches them.

    Attributes:
        tail: The last lines of the engine that serves or was last started.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        replan: Callable[[], LaunchPlan],
        on_change: Callable[[View], None],
        name: str,
    ) -> None:
        """Prepare; no thread runs before :meth:`begin`.

        Args:
            config: The server's configuration.
            replan: Decides the next launch before a restart, from what is on disk then.
            on_change: Called in the supervisor's thread with each new view.
            name: The server's, as in its record.
        """
        self._config = config
        self._replan = replan
        self._on_change = on_change
        self._name = name
        self._view = View()
        self._changed = threading.Condition()
        self._loop = Loop("llama-runtime-supervisor", on_defect=self._abandon)
        self._timers = Timers(self._loop, "supervisor")
        self._run: EngineRun | None = None
        self._standby = self._make_standby() if config.standby else None
        self._spare = Spare(
            self._loop,
            config,
            name=name,
            is_busy=self._is_busy,
            on_change=lambda pid: self._publish(spare_pid=pid),
        )
        self._restarts = Restarts(config.restart)
        self._ready_s: float | None = None
        self._was_ready = False
        self.tail = LogTail()

    def _make_standby(self) -> Standby:
        from runtime.server.standby import Standby  # noqa: PLC0415 - few want one

        return Standby(
            self._loop,
            self._config,
            name=self._name,
            is_busy=self._is_busy,
            on_change=self._standby_is,
        )

    @property
    def view(self) -> View:
        """The latest view."""
        return self._view

    def wait_for(self, ready: Callable[[View], bool], timeout_s: float | None) -> View:
        """Wait until a view fulfils ``ready`` or the time is up; returns the latest view."""
        with self._changed:
            self._changed.wait_for(lambda: ready(self._view), timeout_s)
            return self._view

    def nudge(self) -> None:
        """Have everyone who waits look again."""
        with self._changed:
            self._changed.notify_all()

    # --- requests: any thread -----------------------------------------------------------------

    def begin(self) -> bool:
        """Ask for a start. True when the caller is the one who has to resolve and launch.

        Raises:
            EngineStartError: The system allows no further thread.
        """
        while True:
            try:
                self._loop.start()
            except OSError as exc:
                raise EngineStartError(
                    f"The system refused a new thread: {exc.strerror or exc}.",
                    diagnosis="no_process",
                    hint="Close programs, or raise the limits of processes and open files.",
                ) from exc
            reply = self._loop.call(self._do_begin)
            if reply is not None:
                return reply

    def launch(self, plan: LaunchPlan) -> None:
        """Hand in the decided launch; ignored when a stop came meanwhile."""
        self._loop.call(lambda: self._do_launch(plan))

    def unresolved(self, error: BaseException) -> None:
        """Tell that no launch could be decided."""
        self._loop.call(lambda: self._do_unresolved(error))

    def stop(self, reason: str) -> None:
        """Ask for the end; wait with :meth:`wait_for`, then :meth:`join`."""
        self._loop.call(lambda: self._do_stop(reason))

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end after a stop."""
        self._loop.join(timeout_s)

    # --- from here on: the supervisor's thread only -------------------------------------------

    def _abandon(self, exc: Exception) -> None:
        """A defect of ours: leave no engine behind, and no caller waiting."""
        log.error("the supervisor of %s ended by a defect", self._config.model, exc_info=exc)
        self._spare.abandon()
        if self._standby is not None:
            self._standby.abandon()
        if self._run is not None:
            self._run.abandon()
            self._run = None
        self._publish(
            state=State.FAILED,
            error=LLMProviderError(f"The supervisor ended by a defect of its own: {exc!r}."),
            pid=None,
            keeper_pid=None,
            spare_pid=None,
            endpoint=None,
            properties=None,
        )

    def _publish(self, **changes: object) -> None:
        view = replace(self._view, generation=self._view.generation + 1, **changes)  # type: ignore[arg-type]
        self._on_change(view)  # first, so that whoever sees the view finds its traces on disk
        with self._changed:
            self._view = view
            self._changed.notify_all()

    def _step(self, event: Event, reason: str, **changes: object) -> None:
        before = self._view.state
        after = lifecycle.next_state(before, event)
        transition = Transition(
            at=Provenance.now_iso(), before=before, event=event, after=after, reason=reason
        )
        log.info("%s: %s -> %s: %s", self._config.model, before, after, reason)
        history = (*self._view.history, transition)[-HISTORY_KEPT:]
        self._loop.ending = after in lifecycle.RESTING_STATES
        if after is State.STOPPING or self._loop.ending:
            self._spare.discard(reason)
        self._publish(state=after, history=history, **changes)

    # --- what callers ask for -----------------------------------------------------------------

    def _do_begin(self) -> bool:
        if not lifecycle.accepts(self._view.state, Event.START):
            return False
        self._was_ready = False
        self._restarts.forget()
        if self._standby is not None:
            self._standby.forget()
        self._step(
            Event.START,
            "a start was asked for",
            restarts=0,
            error=None,
            last_exit=None,
            standby=self._standby.view if self._standby else None,
        )
        return True

    def _do_launch(self, plan: LaunchPlan) -> None:
        if lifecycle.accepts(self._view.state, Event.RESOLVED):
            self._launch(plan)

    def _do_unresolved(self, error: BaseException) -> None:
        if lifecycle.accepts(self._view.state, Event.UNRESOLVED):
            known = error if isinstance(error, LLMError) else LLMProviderError(repr(error))
            self._step(Event.UNRESOLVED, known.message, error=known)

    def _do_stop(self, reason: str) -> None:
        state = self._view.state
        if lifecycle.accepts(state, Event.STOP):
            self._timers.cancel_all()
            self._step(Event.STOP, reason, endpoint=None, properties=None)
            if self._standby is not None:
                self._standby.discard(reason)  # first: it must not take over
            if self._view.state is State.STOPPING and self._run is not None:
                self._run.terminate(reason)
                self._timers.after(self._config.stop_grace_s, "grace", self._grace_is_over)

    def _grace_is_over(self) -> None:
        if self._run is not None:
            log.warning("%s: still there after the grace period: killed", self._config.model)
            self._run.kill("it did not end within the grace period")

    # --- the process --------------------------------------------------------------------------

    def _launch(self, plan: LaunchPlan) -> None:
        self._ready_s = None
        self.tail = LogTail()
        self._resolved(plan, started_at=Provenance.now_iso())
        try:
            self._run = EngineRun(
                self._loop,
                self,
                plan,
                name=self._name,
                stall_timeout_s=self._config.startup_stall_timeout_s,
                process=self._spare.take(plan),
            )
        except EngineStartError as exc:
            self._step(Event.DOOMED, exc.message, error=exc)
            return
        self.tail = self._run.tail
        if self._run.pid is not None:
            self.run_spawned(self._run)

    def _resolved(self, plan: LaunchPlan, *, started_at: str) -> None:
        self._step(
            Event.RESOLVED,
            f"{plan.choice.engine.kind}, because {plan.choice.why}",
            plan=plan,
            started_at=started_at,
            ready_at=None,
            devices=plan.choice.info.devices,
            engine_version=plan.choice.info.version,
            layers_offloaded=None,
            log_path=plan.log_path,
        )

    def run_spawned(self, run: EngineRun) -> None:
        """The engine process exists."""
        if self._view.state is State.STARTING:
            self._step(Event.SPAWNED, f"process {run.pid}", pid=run.pid, keeper_pid=run.keeper_pid)

    def run_told(self, run: EngineRun) -> None:
        """The engine said something about itself."""
        self._publish(
            engine_version=run.engine_version,
            devices=run.devices,
            layers_offloaded=run.layers_offloaded,
        )

    def run_ready(self, run: EngineRun) -> None:
        """The engine is loaded: let requests in."""
        if self._view.state is not State.LOADING:
            return
        self._serve(run, Event.HEALTHY, f"listens on {run.base_url} and answers")
        self._keep_standby(run)
        self._spare.want(run.plan, run.devices)

    def _serve(self, run: EngineRun, event: Event, reason: str, **changes: object) -> None:
        self._timers.cancel_all()
        last = self._view.last_exit
        endpoint: Endpoint = run.serve(
            generation=self._view.generation + 1,
            predecessor_died_of=last.died_of if last else None,
            floor_s=self._config.wedge_timeout_s,
            on_verdict=self._judged,
        )
        self._ready_s = time.monotonic()
        self._was_ready = True
        self._step(
            event,
            reason,
            ready_at=run.ready_at,
            properties=run.properties,
            endpoint=endpoint,
            **changes,
        )

    def _judged(self, verdict: Verdict, standing: str) -> None:
        """A suspect takes no new requests; one that is stuck is replaced."""
        run, state = self._run, self._view.state
        if run is None or run.watch is None:
            return
        if verdict == "fine" and state is State.SUSPECT:
            self._step(Event.RECOVERED, "tokens move again", endpoint=run.watch.endpoint)
        elif verdict != "fine" and state is State.READY:
            self._step(Event.SUSPECTED, standing, endpoint=None)
        if verdict == "stuck":
            run.kill_stuck(f"it was stuck: {standing}")

    # --- its end ------------------------------------------------------------------------------

    def run_gone(self, run: EngineRun, end: Ending) -> None:
        """The engine has ended: decide what follows."""
        self._run = None
        self._timers.cancel_all()
        state = self._view.state
        changes: dict[str, object] = {
            "pid": None,
            "keeper_pid": None,
            "endpoint": None,
            "properties": None,
            "last_exit": LastExit(
                at=Provenance.now_iso(),
                code=end.code,
                signal=end.signal,
                diagnosis=end.diagnosis,
                reason=end.sentence,
                while_state=state,
            ),
        }
        if state is State.STOPPING:
            self._step(Event.GONE, f"the engine {end.how}", **changes)
            return
        plan = run.plan
        error = end.error(
            plan.choice.engine.kind, was_ready=self._was_ready, log_path=plan.log_path
        )
        self._decide(error, end, changes)

    def _decide(self, error: EngineStartError, end: Ending, changes: dict[str, object]) -> None:
        """Let the standby take over, start again, or fail."""
        delay_s = None
        standby = self._standby
        if self._was_ready and (not end.repeats or (standby is not None and standby.is_ready)):
            # One that was ready for long but never gave an answer has proven nothing.
            delay_s = self._restarts.next_delay_s(self._ready_s if end.answered else None)
        if delay_s is None:
            if standby is not None:
                standby.discard("the server has failed")
            self._step(Event.DOOMED, end.sentence, error=error, **changes)
            return
        heir = standby.take() if standby is not None else None
        if heir is None and end.repeats:
            self._step(Event.DOOMED, end.sentence, error=error, **changes)
            return
        follows = "the standby takes over" if heir else f"next start in {delay_s:.2f} s"
        self._step(Event.CRASHED, f"{end.sentence}; {follows}", **changes)
        if heir is not None:
            self._succeed(heir, pause_s=delay_s)
        else:
            self._timers.after(delay_s, "retry", self._retry)

    def _retry(self) -> None:
        self._step(Event.RETRY, "starting again", restarts=self._view.restarts + 1)
        try:
            plan = self._replan()
        except LLMError as exc:
            self._do_unresolved(exc)
            return
        self._launch(plan)

    # --- the standby --------------------------------------------------------------------------

    def _succeed(self, heir: EngineRun, *, pause_s: float) -> None:
        """The standby in the place of the engine that is gone, loaded or still loading."""
        self._run, heir.owner, self.tail = heir, self, heir.tail
        restarts = self._view.restarts + 1
        if heir.base_url is not None:
            self._serve(
                heir,
                Event.PROMOTED,
                f"the standby, process {heir.pid}, takes over",
                restarts=restarts,
                plan=heir.plan,
                pid=heir.pid,
                keeper_pid=heir.keeper_pid,
                started_at=heir.started_at,
                devices=heir.devices,
                engine_version=heir.engine_version,
                layers_offloaded=heir.layers_offloaded,
                log_path=heir.plan.log_path,
            )
            self._keep_standby(heir, pause_s=pause_s)
            return
        self._ready_s = None
        self._step(Event.RETRY, "the standby, which is still loading", restarts=restarts)
        self._resolved(heir.plan, started_at=heir.started_at)
        self.run_told(heir)
        if heir.pid is not None:
            self.run_spawned(heir)

    def _keep_standby(self, run: EngineRun, *, pause_s: float = 0.0) -> None:
        if self._standby is not None and run.properties is not None:
            self._standby.want(run.plan, run.properties, after_s=pause_s)

    def _standby_is(self, view: StandbyView) -> None:
        self._publish(standby=view)

    def _is_busy(self) -> bool:
        watch = self._run.watch if self._run is not None else None
        return watch is not None and watch.at_work()
