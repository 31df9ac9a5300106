"""The supervisor: one thread owns everything that changes about a managed server.

Callers post requests and wait; readers take the latest :class:`View`, which is replaced whole.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.contracts import Provenance
from runtime.engines.base import Endpoint
from runtime.errors import EngineStartError, LLMError, LLMProviderError
from runtime.hardware import oom_kills
from runtime.server import lifecycle, probe
from runtime.server.diagnosis import Diagnosis, diagnose, ending, signal_name
from runtime.server.launcher import ExecFailed, Exited, Spawned, launch
from runtime.server.lifecycle import Event, State, Transition
from runtime.server.listeners import who_listens
from runtime.server.logs import LogTail
from runtime.server.loop import Loop
from runtime.server.templates import begins
from runtime.server.view import LastExit, View
from runtime.server.watching import ServiceWatch, StartWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.server.launcher import EngineProcess
    from runtime.server.plan import LaunchPlan
    from runtime.server.watchdog import Verdict
    from runtime.settings import ServerConfig

log = logging.getLogger(__name__)

HISTORY_KEPT = 50
CONFIRM_AGAIN_S = 0.02
KILL_PATIENCE_S = 2.0
ERROR_TAIL_LINES = 20
DIAGNOSIS_LINES = 200  # a traceback may push the telling line far up


class Supervisor:
    """Owns one engine process at a time and the thread that watches it."""

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
        self._process: EngineProcess | None = None
        self._restarted_s: list[float] = []
        self._candidate: str | None = None
        self._ready_s: float | None = None
        self._was_ready = False
        self._doom: EngineStartError | None = None
        self._start_watch: StartWatch | None = None
        self._watch: ServiceWatch | None = None
        self._wedged: str | None = None
        self._oom_kills = 0
        self.tail = LogTail()

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
        if self._process is not None:
            self._process.kill_keeper()
            self._process.close()
            self._process = None
        self._publish(
            state=State.FAILED,
            error=LLMProviderError(f"The supervisor ended by a defect of its own: {exc!r}."),
            pid=None,
            keeper_pid=None,
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
        self._publish(state=after, history=history, **changes)

    # --- what callers ask for -----------------------------------------------------------------

    def _do_begin(self) -> bool:
        if not lifecycle.accepts(self._view.state, Event.START):
            return False
        self._was_ready = False
        self._restarted_s.clear()
        self._step(Event.START, "a start was asked for", restarts=0, error=None, last_exit=None)
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
            self._loop.cancel_timers()
            self._step(Event.STOP, reason, endpoint=None, properties=None)
            if self._view.state is State.STOPPING and self._process is not None:
                self._process.terminate(reason)
                self._loop.after(self._config.stop_grace_s, "grace", self._grace_is_over)

    def _grace_is_over(self) -> None:
        if self._process is not None:
            log.warning("%s: still there after the grace period: killed", self._config.model)
            self._kill(self._process, "it did not end within the grace period")

    # --- the process --------------------------------------------------------------------------

    def _launch(self, plan: LaunchPlan) -> None:
        self._candidate = None
        self._ready_s = None
        self.tail = LogTail()
        self._step(
            Event.RESOLVED,
            f"{plan.choice.engine.kind}, because {plan.choice.why}",
            plan=plan,
            started_at=Provenance.now_iso(),
            ready_at=None,
            devices=plan.choice.info.devices,
            engine_version=plan.choice.info.version,
            layers_offloaded=None,
            log_path=plan.log_path,
        )
        try:
            process = launch(plan.command, log_path=plan.log_path, name=self._name)
        except EngineStartError as exc:
            self._step(Event.DOOMED, exc.message, error=exc)
            return
        self._process = process
        self._oom_kills = oom_kills() or 0
        self._loop.watch(process.events_fd, self._read_events)
        self._loop.watch(process.output_fd, self._read_output)
        self._start_watch = StartWatch(
            self._loop,
            process,
            stall_timeout_s=self._config.startup_stall_timeout_s,
            on_hopeless=self._fail_start,
        )

    def _read_events(self) -> None:
        process = self._process
        for event in process.read_events() if process is not None else ():
            match event:
                case Spawned(pid=pid):
                    self._spawned(pid)
                case ExecFailed(errno=number, path=path):
                    reason = f"{path} cannot be executed: {os.strerror(number)}"
                    self._gone(Exited(code=127), reason, refused=number)
                case Exited() as gone:
                    self._gone(gone, None)

    def _spawned(self, pid: int) -> None:
        if self._view.state is State.STARTING and self._process is not None:
            self._step(
                Event.SPAWNED,
                f"process {pid}",
                pid=pid,
                keeper_pid=self._process.keeper_pid,
            )
            self._confirm()  # it may have said that it listens before the keeper said that it is

    def _read_output(self) -> None:
        if self._process is None:
            return
        data = self._process.read_output()
        if data == b"":
            self._loop.unwatch(self._process.output_fd)
        elif data:
            self._take_lines(self.tail.feed(data))

    def _take_lines(self, lines: list[str]) -> None:
        plan, watch = self._view.plan, self._start_watch
        if self._view.state not in {State.STARTING, State.LOADING} or plan is None or watch is None:
            return  # what a serving engine prints is for the log
        watch.heard()
        for line in lines:
            # A host's own line overtakes the engine's, which another thread prints: what comes
            # after "listening" is old.
            if self._candidate is None and begins(line):
                watch.at_template(plan)
            facts = plan.choice.engine.read_line(line)
            if facts is None:
                continue
            if facts.layers_offloaded is not None and facts.layers_total is not None:
                self._publish(layers_offloaded=(facts.layers_offloaded, facts.layers_total))
            if facts.version is not None:
                self._publish(engine_version=facts.version, devices=facts.devices)
            if facts.base_url is not None and self._candidate is None:
                self._candidate = facts.base_url
                watch.past_template()
                self._confirm()

    def _confirm(self) -> None:
        """The engine says that it listens: see for ourselves."""
        plan, url, process = self._view.plan, self._candidate, self._process
        pid = self._view.pid
        if process is None or plan is None or url is None or pid is None:
            return
        if self._view.state is not State.LOADING:
            return
        spec = plan.spec
        seen = probe.confirm(
            url,
            listens=who_listens(url, pid=pid),
            health_path=plan.choice.engine.health_path,
            nonce=spec.nonce,
            api_key=spec.api_key,
        )
        if seen.verdict == "stranger":
            self._fail_start(
                "stranger",
                f"Something else answers at {url}, where the engine said it listens "
                f"({seen.detail}).",
                "Choose another port, or port=0 for any free one.",
            )
        elif seen.verdict == "ready":
            self._ready(process, plan, url)
        else:
            self._loop.after(CONFIRM_AGAIN_S, "confirm", self._confirm)

    def _ready(self, process: EngineProcess, plan: LaunchPlan, url: str) -> None:
        spec = plan.spec
        model = plan.served_name
        info = plan.choice.info
        properties = probe.properties(
            url,
            api_key=spec.api_key,
            model=model,
            kind=info.kind,
            engine_file=info.path,
            embeddings=spec.embeddings,
        )
        endpoint = Endpoint(
            base_url=url,
            api_key=spec.api_key,
            kind=plan.choice.engine.kind,
            model=model,
            capabilities=properties.capabilities,
            context_tokens=properties.slot_ctx or spec.slot_ctx,
            generation=self._view.generation + 1,
            predecessor_died_of=self._view.last_exit.died_of if self._view.last_exit else None,
            slots=properties.slots or spec.parallel,
            batch_tokens=plan.batch_tokens,
        )
        self._loop.cancel_timers()
        self._watch = ServiceWatch(  # before anyone can send it a request
            self._loop,
            process,
            plan,
            endpoint,
            floor_s=self._config.wedge_timeout_s,
            on_verdict=self._judged,
        )
        self._ready_s = time.monotonic()
        self._was_ready = True
        self._step(
            Event.HEALTHY,
            f"listens on {url} and answers",
            ready_at=Provenance.now_iso(),
            properties=properties,
            endpoint=endpoint,
        )

    def _judged(self, verdict: Verdict, standing: str) -> None:
        """A suspect takes no new requests; one that is stuck is replaced."""
        process, watch, state = self._process, self._watch, self._view.state
        if process is None or watch is None:
            return
        if verdict == "fine" and state is State.SUSPECT:
            self._step(Event.RECOVERED, "tokens move again", endpoint=watch.endpoint)
        elif verdict != "fine" and state is State.READY:
            self._step(Event.SUSPECTED, standing, endpoint=None)
        if verdict == "stuck":
            self._wedged = f"it was stuck: {standing}"
            self._kill(process, self._wedged)

    def _kill(self, process: EngineProcess, reason: str) -> None:
        process.kill(reason)
        self._loop.after(KILL_PATIENCE_S, "keeper", process.kill_keeper)

    def _fail_start(self, diagnosis: str, message: str, hint: str) -> None:
        """End a process that will never be ready; its end then tells why."""
        self._loop.cancel_timers()
        self._doom = EngineStartError(
            message,
            diagnosis=diagnosis,
            log_tail=self.tail.last(ERROR_TAIL_LINES),
            log_path=self._view.log_path,
            hint=hint,
        )
        if self._process is not None:
            self._kill(self._process, message)

    # --- its end ------------------------------------------------------------------------------

    def _gone(self, gone: Exited, reason: str | None, *, refused: int | None = None) -> None:
        """The process has ended: read its last words, name the cause, decide what follows."""
        process, plan = self._process, self._view.plan
        if process is None or plan is None:
            return
        while (data := process.read_output()) is not None and data:
            self.tail.feed(data)
        self.tail.end()
        self._loop.unwatch(process.events_fd)
        self._loop.unwatch(process.output_fd)
        process.close()
        self._process = None
        self._loop.cancel_timers()
        state = self._view.state
        doom, self._doom = self._doom, None
        tail = self.tail.last(ERROR_TAIL_LINES)
        found = diagnose(
            code=gone.code,
            signal=gone.signal,
            log_tail=self.tail.last(DIAGNOSIS_LINES),
            was_ready=state in {State.READY, State.SUSPECT},
            out_of_memory=(oom_kills() or 0) > self._oom_kills,
            refused=refused,
        )
        how = ending(code=gone.code, signal=gone.signal)
        watch, self._watch, self._start_watch = self._watch, None, None
        if self._wedged is not None:
            found = Diagnosis(code="wedged", sentence=self._wedged, hint=None, repeats=False)
            self._wedged = None
        if gone.keeper_lost:
            how = "ended together with its keeper"
        sentence = reason or (doom.message if doom else f"{found.sentence} ({how})")
        last_exit = LastExit(
            at=Provenance.now_iso(),
            code=gone.code,
            signal=signal_name(gone.signal) if gone.signal else None,
            diagnosis=doom.diagnosis if doom else found.code,
            reason=sentence,
            while_state=state,
        )
        changes: dict[str, object] = {
            "pid": None,
            "keeper_pid": None,
            "endpoint": None,
            "properties": None,
            "last_exit": last_exit,
        }
        if state is State.STOPPING:
            self._step(Event.GONE, f"the engine {how}", **changes)
            return
        error = doom or EngineStartError(
            f"The engine {plan.choice.engine.kind} did not start: {reason or found.sentence} "
            f"({how})."
            if not self._was_ready
            else f"The engine {plan.choice.engine.kind} died: {found.sentence} ({how}).",
            diagnosis=found.code,
            exit_code=gone.code,
            signal=signal_name(gone.signal) if gone.signal else None,
            log_tail=tail,
            log_path=self._view.log_path,
            hint=found.hint,
        )
        self._decide(
            error,
            sentence,
            repeats=found.repeats or doom is not None,
            answered=watch is not None and watch.has_answered,
            changes=changes,
        )

    def _decide(
        self,
        error: EngineStartError,
        sentence: str,
        *,
        repeats: bool,
        answered: bool,
        changes: dict[str, object],
    ) -> None:
        """Restart, or fail."""
        now = time.monotonic()
        # One that was ready for long but never gave an answer has proven nothing.
        ready_for_s = now - self._ready_s if answered and self._ready_s is not None else None
        policy = self._config.restart
        delay_s = None
        if self._was_ready and not repeats:
            delay_s = lifecycle.restart_delay_s(
                policy,
                now_s=now,
                earlier_s=self._restarted_s,
                ready_for_s=ready_for_s,
                chance=random.random(),  # noqa: S311 - spreads restarts, guards nothing
            )
        if delay_s is None:
            self._step(Event.DOOMED, sentence, error=error, **changes)
            return
        if ready_for_s is not None and ready_for_s >= policy.stable_after_s:
            self._restarted_s.clear()
        self._restarted_s.append(now)
        self._step(Event.CRASHED, f"{sentence}; next start in {delay_s:.2f} s", **changes)
        self._loop.after(delay_s, "retry", self._retry)

    def _retry(self) -> None:
        self._step(Event.RETRY, "starting again", restarts=self._view.restarts + 1)
        try:
            plan = self._replan()
        except LLMError as exc:
            self._do_unresolved(exc)
            return
        self._launch(plan)
