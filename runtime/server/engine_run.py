"""One engine process from its launch to its end: started, confirmed, watched, and read to its end.

It lives in the supervisor's thread and tells its owner what happens; the owner decides.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Protocol

from runtime.contracts import Provenance
from runtime.engines.base import Endpoint
from runtime.errors import EngineStartError
from runtime.hardware import oom_kills
from runtime.server import probe
from runtime.server.diagnosis import Diagnosis, Ending, diagnose, ending, signal_name
from runtime.server.launcher import ExecFailed, Exited, Spawned, launch
from runtime.server.listeners import who_listens
from runtime.server.logs import LogTail
from runtime.server.loop import Timers
from runtime.server.templates import begins
from runtime.server.watching import ServiceWatch, StartWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.engines.base import Device
    from runtime.server.launcher import EngineProcess
    from runtime.server.loop import Loop
    from runtime.server.plan import LaunchPlan
    from runtime.server.probe import Properties
    from runtime.server.watchdog import Verdict

CONFIRM_AGAIN_S = 0.02
READ_AGAIN_S = 0.05
"""Once it serves, its lines are for the log alone: some 7 a request, and a wake-up for each took
4 % of the processor time of a gateway, on the cores that the engine computes on."""
KILL_PATIENCE_S = 2.0
ERROR_TAIL_LINES = 20
DIAGNOSIS_LINES = 200  # a traceback may push the telling line far up

_numbers = itertools.count()


class RunOwner(Protocol):
    """Told what happens to an engine process, in the supervisor's thread."""

    def run_spawned(self, run: EngineRun) -> None:
        """The process exists."""
        ...

    def run_told(self, run: EngineRun) -> None:
        """It said something about itself: its version, its devices, its layers."""
        ...

    def run_ready(self, run: EngineRun) -> None:
        """It is loaded, and it is the one that answers."""
        ...

    def run_gone(self, run: EngineRun, end: Ending) -> None:
        """It has ended and nothing of it is left."""
        ...


class EngineRun:
    """One engine process. The supervisor's thread owns it.

    Attributes:
        owner: Who is told; may be replaced.
        plan: How it was launched.
        tail: Its last lines.
        started_at: When it was started, ISO 8601, UTC.
        ready_at: When it was ready, or None.
        properties: What it says about itself, once it is ready.
        engine_version: As it prints it.
        devices: As it lists them.
        layers_offloaded: Layers on the GPU and layers in all, when it says so.
        watch: The look at its tokens, once it serves.
    """

    def __init__(
        self,
        loop: Loop,
        owner: RunOwner,
        plan: LaunchPlan,
        *,
        name: str,
        stall_timeout_s: float,
        properties: Properties | None = None,
        process: EngineProcess | None = None,
    ) -> None:
        """Launch it.

        Args:
            loop: The thread.
            owner: Who is told.
            plan: How it is launched.
            name: The server's, as in its record.
            stall_timeout_s: How long nothing may move while it starts.
            properties: What the same launch was found to be; None: it is asked.
            process: It, where it was started already; it has its input.

        Raises:
            EngineStartError: The system allows no further process or descriptor.
        """
        self.owner = owner
        self.plan = plan
        self.tail = LogTail()
        self.started_at = Provenance.now_iso()
        self.ready_at: str | None = None
        self.properties: Properties | None = None
        self.engine_version = plan.choice.info.version
        self.devices: tuple[Device, ...] = plan.choice.info.devices
        self.layers_offloaded: tuple[int, int] | None = None
        self.watch: ServiceWatch | None = None
        self._known = properties
        self._candidate: str | None = None
        self._doom: EngineStartError | None = None
        self._wedged: str | None = None
        self._ended = False
        self._loop = loop
        self._process = process or launch(plan.command, log_path=plan.log_path, name=name)
        self._timers = Timers(loop, f"engine {next(_numbers)}")
        self._oom_kills = oom_kills() or 0
        loop.watch(self._process.events_fd, self._read_events)
        loop.watch(self._process.output_fd, self._read_output)
        self._start_watch = StartWatch(
            self._timers,
            self._process,
            stall_timeout_s=stall_timeout_s,
            on_hopeless=self._fail_start,
        )

    @property
    def pid(self) -> int | None:
        """The engine's process id, once it exists."""
        return self._process.pid

    @property
    def keeper_pid(self) -> int | None:
        """Its keeper's, where there is one."""
        return self._process.keeper_pid

    @property
    def base_url(self) -> str | None:
        """Where it answers, once it is ready."""
        return self._candidate if self.ready_at else None

    # --- orders -------------------------------------------------------------------------------

    def serve(
        self,
        *,
        generation: int,
        predecessor_died_of: str | None,
        floor_s: float,
        on_verdict: Callable[[Verdict, str], None],
    ) -> Endpoint:
        """From now on it gets requests, and its tokens are watched.

        Args:
            generation: Of its endpoint.
            predecessor_died_of: What the process died of in whose place it is.
            floor_s: Least time that tokens may stand still.
            on_verdict: Told what each look gave.
        """
        plan, properties = self.plan, self.properties
        if properties is None or self._candidate is None:
            raise AssertionError("what is not ready cannot serve")
        endpoint = Endpoint(
            base_url=self._candidate,
            api_key=plan.spec.api_key,
            kind=plan.choice.engine.kind,
            model=plan.served_name,
            capabilities=properties.capabilities,
            context_tokens=properties.slot_ctx or plan.spec.slot_ctx,
            generation=generation,
            predecessor_died_of=predecessor_died_of,
            slots=properties.slots or plan.spec.parallel,
            batch_tokens=plan.batch_tokens,
            slot_folder=plan.spec.slot_folder,
            same_bits=plan.performance.same_bits,
            prompts_at_once=plan.performance.prompts_at_once.value,
        )
        self.watch = ServiceWatch(  # before anyone can send it a request
            self._timers,
            self._process,
            plan,
            endpoint,
            floor_s=floor_s,
            on_verdict=on_verdict,
        )
        return endpoint

    def terminate(self, reason: str) -> None:
        """Ask it to end."""
        self._timers.cancel_all()
        self._listen()
        self._process.terminate(reason)

    def kill(self, reason: str) -> None:
        """End it at once; its end is told."""
        self._process.kill(reason)
        self._timers.after(KILL_PATIENCE_S, "keeper", self._process.kill_keeper)

    def kill_stuck(self, reason: str) -> None:
        """End it at once because it is stuck."""
        self._wedged = reason
        self.kill(reason)

    def end_now(self, reason: str) -> None:
        """End it at once and wait for that; nobody is told. For one that has no request."""
        self._process.kill(reason)
        self._let_go()

    def abandon(self) -> None:
        """End it and its keeper, whatever state we are in."""
        self._process.kill_keeper()
        self._process.close()

    def _let_go(self) -> None:
        self._ended = True
        self._timers.cancel_all()
        self._loop.unwatch(self._process.events_fd)
        self._loop.unwatch(self._process.output_fd)
        self._process.close()

    # --- what happens -------------------------------------------------------------------------

    def _read_events(self) -> None:
        if self._ended:  # both descriptors were readable at once
            return
        for event in self._process.read_events():
            match event:
                case Spawned():
                    self.owner.run_spawned(self)
                    self._confirm()  # it may have said that it listens before the keeper that it is
                case ExecFailed(errno=number, path=path):
                    reason = f"{path} cannot be executed: {os.strerror(number)}"
                    self._gone(Exited(code=127), reason, refused=number)
                case Exited() as gone:
                    self._gone(gone, None)

    def _read_output(self) -> None:
        if self._ended:
            return
        data = self._process.read_output()
        if data:
            self._take_lines(self.tail.feed(data))
        if data == b"":
            self._loop.unwatch(self._process.output_fd)
        elif self.ready_at is not None:
            self._loop.unwatch(self._process.output_fd)
            self._timers.after(READ_AGAIN_S, "output", self._listen)

    def _listen(self) -> None:
        if self._ended:
            return
        self._loop.unwatch(self._process.output_fd)
        self._loop.watch(self._process.output_fd, self._read_output)

    def _take_lines(self, lines: list[str]) -> None:
        if self.ready_at is not None:
            return  # what a serving engine prints is for the log
        self._start_watch.heard()
        for line in lines:
            # A host's own line overtakes the engine's, which another thread prints: what comes
            # after "listening" is old.
            if self._candidate is None and begins(line):
                self._start_watch.at_template(self.plan)
            facts = self.plan.choice.engine.read_line(line)
            if facts is None:
                continue
            if facts.layers_offloaded is not None and facts.layers_total is not None:
                self.layers_offloaded = (facts.layers_offloaded, facts.layers_total)
                self.owner.run_told(self)
            if facts.version is not None:
                self.engine_version, self.devices = facts.version, facts.devices
                self.owner.run_told(self)
            if facts.base_url is not None and self._candidate is None:
                self._candidate = facts.base_url
                self._start_watch.past_template()
                self._confirm()

    def _confirm(self) -> None:
        """The engine says that it listens: see for ourselves."""
        plan, url, pid = self.plan, self._candidate, self.pid
        if url is None or pid is None or self._doom is not None:
            return
        seen = probe.confirm(
            url,
            listens=who_listens(url, pid=pid),
            health_path=plan.choice.engine.health_path,
            nonce=plan.spec.nonce,
            api_key=plan.spec.api_key,
        )
        if seen.verdict == "stranger":
            self._fail_start(
                "stranger",
                f"Something else answers at {url}, where the engine said it listens "
                f"({seen.detail}).",
                "Choose another port, or port=0 for any free one.",
            )
        elif seen.verdict == "ready":
            self._timers.cancel_all()
            self.properties = self._known or probe.properties(
                url,
                api_key=plan.spec.api_key,
                model=plan.served_name,
                kind=plan.choice.info.kind,
                engine_file=plan.choice.info.path,
                embeddings=plan.spec.embeddings,
                drafts=plan.command.drafts,
            )
            self.ready_at = Provenance.now_iso()
            self.owner.run_ready(self)
        else:
            self._timers.after(CONFIRM_AGAIN_S, "confirm", self._confirm)

    def _fail_start(self, diagnosis: str, message: str, hint: str) -> None:
        """End a process that will never be ready; its end then tells why."""
        self._timers.cancel_all()
        self._doom = EngineStartError(
            message,
            diagnosis=diagnosis,
            log_tail=self.tail.last(ERROR_TAIL_LINES),
            log_path=self.plan.log_path,
            hint=hint,
        )
        self.kill(message)

    def _gone(self, gone: Exited, reason: str | None, *, refused: int | None = None) -> None:
        """The process has ended: read its last words, and name the cause."""
        while (data := self._process.read_output()) is not None and data:
            self.tail.feed(data)
        self.tail.end()
        self._let_go()
        found = diagnose(
            code=gone.code,
            signal=gone.signal,
            log_tail=self.tail.last(DIAGNOSIS_LINES),
            was_ready=self.ready_at is not None,
            out_of_memory=(oom_kills() or 0) > self._oom_kills,
            refused=refused,
        )
        if self._wedged is not None:
            found = Diagnosis(code="wedged", sentence=self._wedged, hint=None, repeats=False)
        how = ending(code=gone.code, signal=gone.signal)
        if gone.keeper_lost:
            how = "ended together with its keeper"
        cause, doom = reason or found.sentence, self._doom
        self.owner.run_gone(
            self,
            Ending(
                code=gone.code,
                signal=signal_name(gone.signal) if gone.signal else None,
                how=how,
                diagnosis=doom.diagnosis if doom else found.code,
                cause=cause,
                sentence=reason or (doom.message if doom else f"{found.sentence} ({how})"),
                hint=found.hint,
                repeats=found.repeats or doom is not None,
                answered=self.watch is not None and self.watch.has_answered,
                log_tail=self.tail.last(ERROR_TAIL_LINES),
                doom=doom,
            ),
        )
