"""The spare: the next engine process, started ahead as far as it needs no model.

An engine whose process learns from its input what to do can be started before there is anything to
do: keeper, interpreter and libraries are there when the serving engine dies, and only the model is
left to be loaded. It takes the memory of an interpreter with the engine's library, most of which it
shares with the engine that serves. A standby is more, and makes this needless.

It lives in the supervisor's thread.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

from runtime.errors import EngineStartError
from runtime.server.launcher import KeptProcess, Spawned
from runtime.server.loop import Timers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.engines.base import Device, EngineCommand
    from runtime.server.loop import Loop
    from runtime.server.plan import LaunchPlan
    from runtime.settings import ServerConfig

log = logging.getLogger(__name__)

FIRST_LOOK_S = 0.5
"""The first requests after a start come at once: they are let ahead."""
IDLE_LOOK_S = 0.25
IDLE_PATIENCE_S = 2.0
"""Starting it takes a tenth of a second of one core: a server that is never idle can bear that."""


def is_of_use(command: EngineCommand, devices: Sequence[Device], config: ServerConfig) -> bool:
    """Whether a restart would be faster with a spare, and nothing speaks against one.

    A library that sees a GPU takes memory of it as soon as it looks.
    """
    return (
        command.told_by_input
        and not config.standby
        and config.restart.max_restarts > 0
        and not any(device.kind == "gpu" for device in devices)
        and sys.platform != "win32"  # where a process has no keeper that would hold it back
    )


class Spare:
    """Keeps one engine process waiting beside the one that serves."""

    def __init__(
        self,
        loop: Loop,
        config: ServerConfig,
        *,
        name: str,
        is_busy: Callable[[], bool],
        on_change: Callable[[int | None], None],
    ) -> None:
        """Prepare; :meth:`want` starts one.

        Args:
            loop: The supervisor's thread.
            config: The server's configuration.
            name: The server's, as in its record.
            is_busy: Whether the serving engine has a request at work now.
            on_change: Told its process id, or None when there is none any more.
        """
        self._loop = loop
        self._config = config
        self._name = name
        self._is_busy = is_busy
        self._on_change = on_change
        self._timers = Timers(loop, "spare")
        self._process: KeptProcess | None = None
        self._plan: LaunchPlan | None = None
        self._wait_until_s = 0.0

    def want(self, plan: LaunchPlan, devices: Sequence[Device]) -> None:
        """Have one started in a while, when the serving engine is idle.

        Args:
            plan: The launch of the serving engine.
            devices: Those that this engine sees.
        """
        if self._process is None and is_of_use(plan.command, devices, self._config):
            self._plan = plan
            self._wait_until_s = time.monotonic() + IDLE_PATIENCE_S
            self._timers.after(FIRST_LOOK_S, "start", self._start_when_idle)

    def take(self, plan: LaunchPlan) -> KeptProcess | None:
        """Give it away, at work on a launch; None when there is none that could do it.

        One that could not is ended here.
        """
        before = self._plan
        process = self._let_go()
        if process is None or before is None:
            return None
        self._on_change(None)
        lives = all(isinstance(event, Spawned) for event in process.read_events())
        old, new = before.choice.info, plan.choice.info
        same_library = (old.path, old.version) == (new.path, new.version)
        if not (lives and same_library and process.is_for(plan.command)):
            _end(process, "the next launch is another one")
            return None
        process.begin(plan.command, log_path=plan.log_path)
        return process

    def discard(self, reason: str) -> None:
        """End it, and start no other."""
        if process := self._let_go():
            _end(process, reason)
            self._on_change(None)

    def abandon(self) -> None:
        """End it and its keeper after a defect of ours."""
        process, self._process = self._process, None
        if process is not None:
            process.kill_keeper()
            process.close()

    def _start_when_idle(self) -> None:
        if self._is_busy() and time.monotonic() < self._wait_until_s:
            self._timers.after(IDLE_LOOK_S, "start", self._start_when_idle)
            return
        if self._plan is None:
            return
        try:
            self._process = KeptProcess(self._plan.command, name=self._name)
        except EngineStartError as exc:
            log.info("%s: no spare engine process: %s", self._config.model, exc.message)
            return
        self._loop.watch(self._process.events_fd, self._read_events)

    def _read_events(self) -> None:
        if self._process is None:
            return
        for event in self._process.read_events():
            if not isinstance(event, Spawned):
                log.info("%s: the spare engine process ended: %s", self._config.model, event)
                self.discard("it ended")
                return
            self._on_change(event.pid)

    def _let_go(self) -> KeptProcess | None:
        self._timers.cancel_all()
        process, self._process = self._process, None
        if process is not None:
            self._loop.unwatch(process.events_fd)
        return process


def _end(process: KeptProcess, reason: str) -> None:
    process.kill(f"the spare: {reason}")
    process.close()
