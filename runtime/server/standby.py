"""The warm standby: a second engine of the same launch, loaded and proven, that gets no requests.

It lives in the supervisor's thread, which gives it away when the serving engine is gone. Only its
proof, a token that it has to compute now and then, is waited for in a thread of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.contracts import Provenance
from runtime.errors import LLMError
from runtime.hardware import memory
from runtime.server import probe
from runtime.server.engine_run import EngineRun
from runtime.server.loop import Timers
from runtime.server.plan import once_more
from runtime.server.restarts import Restarts
from runtime.server.view import StandbyView

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.server.diagnosis import Ending
    from runtime.server.loop import Loop
    from runtime.server.plan import LaunchPlan
    from runtime.server.probe import Properties, Reply
    from runtime.settings import ServerConfig

log = logging.getLogger(__name__)

FIRST_LOOK_S = 0.25
"""The first requests after a start come at once: they are let ahead."""
IDLE_LOOK_S = 0.25
IDLE_PATIENCE_S = 10.0
"""A server that is never idle gets its standby after this, beside its requests."""
ROOM_LOOK_S = 30.0
PROOF_EVERY_S = 30.0
PROOF_TIMEOUT_S = 30.0
HEALTH_TIMEOUT_S = 0.5
"""Longest time that taking over waits for the standby to answer; a healthy one takes 1 to 4 ms."""


class Standby:
    """Keeps one engine ready beside the one that serves."""

    def __init__(
        self,
        loop: Loop,
        config: ServerConfig,
        *,
        name: str,
        is_busy: Callable[[], bool],
        on_change: Callable[[StandbyView], None],
    ) -> None:
        """Prepare; :meth:`want` starts one.

        Args:
            loop: The supervisor's thread.
            config: The server's configuration.
            name: The server's, as in its record.
            is_busy: Whether the serving engine has a request at work now.
            on_change: Told what is known about the standby.
        """
        self._loop = loop
        self._config = config
        self._name = name
        self._is_busy = is_busy
        self._on_change = on_change
        self._timers = Timers(loop, "standby")
        self._run: EngineRun | None = None
        self._plan: LaunchPlan | None = None
        self._properties: Properties | None = None
        self._wait_until_s = 0.0
        self._restarts = Restarts(config.restart)
        self._ready_s: float | None = None
        self.view = StandbyView()

    def forget(self) -> None:
        """A start of the whole server: what was counted before does not count."""
        self._restarts.forget()
        self.view = StandbyView()

    def want(self, plan: LaunchPlan, properties: Properties, *, after_s: float = 0.0) -> None:
        """Have one started in a while, when the serving engine is idle.

        Args:
            plan: The launch of the serving engine.
            properties: What that engine said about itself.
            after_s: Not sooner than in so many seconds.
        """
        self._plan, self._properties = plan, properties
        self._schedule(after_s)

    def take(self) -> EngineRun | None:
        """Give it away: ready and answering, or still loading; None when there is none like that.

        One that does not answer is ended here.
        """
        run = self._run
        self._timers.cancel_all()
        if run is None:
            return None
        if run.base_url is not None and not self._answers(run, run.base_url):
            self._end("it did not answer when it was to take over")
            return None
        self._run = None
        took_over = run.base_url is not None
        self._say(
            state="waiting",
            why="the last one took over",
            pid=None,
            keeper_pid=None,
            ready_at=None,
            proven_at=None,
            promotions=self.view.promotions + took_over,
        )
        return run

    def discard(self, reason: str) -> None:
        """End it, and start no other."""
        self._timers.cancel_all()
        self._end(reason)

    def abandon(self) -> None:
        """End it and its keeper after a defect of ours."""
        run, self._run = self._run, None
        if run is not None:
            run.abandon()

    @property
    def is_ready(self) -> bool:
        """Whether one is loaded, as far as is known."""
        return self._run is not None and self._run.base_url is not None

    # --- starting it --------------------------------------------------------------------------

    def _schedule(self, after_s: float) -> None:
        self._wait_until_s = time.monotonic() + after_s + IDLE_PATIENCE_S
        self._timers.after(max(FIRST_LOOK_S, after_s), "start", self._start_when_idle)

    def _start_when_idle(self) -> None:
        if self._is_busy() and time.monotonic() < self._wait_until_s:
            self._say(state="waiting", why="until no request is at work")
            self._timers.after(IDLE_LOOK_S, "start", self._start_when_idle)
            return
        if self._plan is None:
            return
        needed, has = self._plan.memory.standby.host_bytes, memory().effective_available_bytes
        if needed > has:
            self._say(
                state="waiting",
                why=f"for memory: it needs {needed >> 20:,} MiB, and {has >> 20:,} MiB can be had",
            )
            self._timers.after(ROOM_LOOK_S, "start", self._start_when_idle)
            return
        self._start(self._plan)

    def _start(self, plan: LaunchPlan) -> None:
        self._ready_s = None
        try:
            again = once_more(plan, self._config)
            self._run = EngineRun(
                self._loop,
                self,
                again,
                name=self._name,
                stall_timeout_s=self._config.startup_stall_timeout_s,
                properties=self._properties,
            )
        except LLMError as exc:
            self._failed(exc.message)
            return
        self._say(state="loading", why="", log_path=again.log_path)

    def run_spawned(self, run: EngineRun) -> None:
        """The process exists."""
        self._say(pid=run.pid, keeper_pid=run.keeper_pid)

    def run_told(self, run: EngineRun) -> None:
        """What it says about itself counts when it takes over."""

    def run_ready(self, run: EngineRun) -> None:
        """It is loaded; a token proves that it can do what it is for."""
        self._ready_s = time.monotonic()
        self._say(state="ready", why="", ready_at=run.ready_at)
        self._prove()

    def run_gone(self, run: EngineRun, end: Ending) -> None:  # noqa: ARG002 - there is but one
        """It died while nobody needed it: another one, unless that would end the same way."""
        self._run = None
        if end.repeats:
            self._failed(end.sentence)
        else:
            self._again(end.sentence)

    def _again(self, why: str) -> None:
        """Start another one, with the pauses and within the budget of the restart policy."""
        delay_s = self._restarts.next_delay_s(self._ready_s)
        if delay_s is None:
            self._failed(why)
            return
        self._gone_view(state="waiting", why=why)
        self._schedule(delay_s)

    def _failed(self, why: str) -> None:
        log.warning("%s: there will be no standby: %s", self._config.model, why)
        self._gone_view(state="failed", why=why)

    # --- its health ---------------------------------------------------------------------------

    def _answers(self, run: EngineRun, url: str) -> bool:
        reply = probe.ask(
            url,
            run.plan.choice.engine.health_path,
            api_key=run.plan.spec.api_key,
            timeout_s=HEALTH_TIMEOUT_S,
        )
        return reply.status == 200

    def _prove(self) -> None:
        """Have it compute a token: `/health` answers also when the part that computes is stuck."""
        run = self._run
        if run is None or run.base_url is None:
            return
        plan, url = run.plan, run.base_url
        body: dict[str, object] = {"model": plan.served_name}
        path = "/v1/completions"
        if plan.facts.is_embedding_model:
            path, body["input"] = "/v1/embeddings", "a"
        else:
            body |= {"prompt": "a", "max_tokens": 1, "temperature": 0}

        def ask() -> None:
            reply = probe.ask(
                url, path, api_key=plan.spec.api_key, body=body, timeout_s=PROOF_TIMEOUT_S
            )
            self._loop.call(lambda: self._proven(run, reply))

        threading.Thread(target=ask, name="llama-runtime-standby-proof", daemon=True).start()

    def _proven(self, run: EngineRun, reply: Reply) -> None:
        if run is not self._run:
            return  # it serves by now, or it is gone
        if reply.status == 200:
            self._say(proven_at=Provenance.now_iso())
            self._timers.after(PROOF_EVERY_S, "proof", self._prove)
            return
        why = f"it computed no token when it was tried ({reply.problem or f'HTTP {reply.status}'})"
        self._end(why)
        self._again(why)

    # --- its end ------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        """It serves nobody, so it gets no time."""
        run, self._run = self._run, None
        if run is not None:
            run.end_now(f"the standby: {reason}")
            self._gone_view(state="waiting", why=reason)

    def _gone_view(self, **changes: object) -> None:
        self._say(pid=None, keeper_pid=None, ready_at=None, proven_at=None, **changes)

    def _say(self, **changes: object) -> None:
        before, self.view = self.view, replace(self.view, **changes)  # type: ignore[arg-type]
        if self.view != before:
            if self.view.state != before.state:
                why = f": {self.view.why}" if self.view.why else ""
                log.info("%s: standby %s%s", self._config.model, self.view.state, why)
            self._on_change(self.view)
