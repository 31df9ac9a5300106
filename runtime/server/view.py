"""What is known about a managed server at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runtime.server.lifecycle import State

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.engines.base import Device, Endpoint
    from runtime.errors import LLMError
    from runtime.server.lifecycle import Transition
    from runtime.server.plan import LaunchPlan
    from runtime.server.probe import Properties


_TOLD = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LastExit:
    """How the last engine process ended.

    Attributes:
        at: When, ISO 8601, UTC.
        code: Exit code, or None.
        signal: The signal's name, or None.
        diagnosis: A short machine-readable cause.
        reason: The cause in words.
        while_state: What the server was doing.
    """

    at: str
    code: int | None
    signal: str | None
    diagnosis: str
    reason: str
    while_state: State

    @property
    def died_of(self) -> str | None:
        """What it died of, if a request may have done that: a crash, or being stuck, while serving.

        None when it was told to end, by us or by another: a request does not send signals.
        """
        if self.while_state not in {State.READY, State.SUSPECT}:
            return None
        if self.diagnosis == "wedged":
            return "stuck"
        if self.signal is not None:
            return None if self.signal in _TOLD else self.signal
        return f"exit code {self.code}" if self.code else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyView:
    """The second engine, which takes over when the first one is gone.

    Attributes:
        state: ``waiting`` to be started, ``loading``, ``ready``, or ``failed``: none will be
            started any more.
        why: What it waits for or why it failed; empty when it loads or is ready.
        pid: Its process id while it exists.
        keeper_pid: Its keeper's process id while it exists.
        ready_at: When it was loaded, ISO 8601, UTC.
        proven_at: When it last computed a token.
        promotions: How often a standby has taken over since start() was called.
        log_path: The file with its output.
    """

    state: Literal["waiting", "loading", "ready", "failed"] = "waiting"
    why: str = ""
    pid: int | None = None
    keeper_pid: int | None = None
    ready_at: str | None = None
    proven_at: str | None = None
    promotions: int = 0
    log_path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Everything known about the server at one moment; a new one replaces it at each change.

    Attributes:
        generation: Grows with each change.
        state: Where the server is in its life.
        plan: The launch that is running or was last tried.
        pid: The engine's process id while it exists.
        keeper_pid: The keeper's process id while it exists.
        spare_pid: The process id of the spare engine process while it exists.
        started_at: When the engine process was started, ISO 8601, UTC.
        ready_at: When it became ready.
        restarts: How often it was started again by itself since start() was called.
        last_exit: How the last process ended.
        endpoint: Where to send requests, while ready.
        properties: What the engine says about itself, while ready.
        devices: Devices the engine lists.
        engine_version: As the engine prints it.
        layers_offloaded: Layers on the GPU and layers in all, when the engine says so.
        error: Why it failed, while failed.
        log_path: The file with the engine's output.
        history: The last transitions, oldest first.
        standby: The second engine, where one is wanted.
    """

    generation: int = 0
    state: State = State.STOPPED
    plan: LaunchPlan | None = None
    pid: int | None = None
    keeper_pid: int | None = None
    spare_pid: int | None = None
    started_at: str | None = None
    ready_at: str | None = None
    restarts: int = 0
    last_exit: LastExit | None = None
    endpoint: Endpoint | None = None
    properties: Properties | None = None
    devices: tuple[Device, ...] = ()
    engine_version: str | None = None
    layers_offloaded: tuple[int, int] | None = None
    error: LLMError | None = None
    log_path: Path | None = None
    history: tuple[Transition, ...] = ()
    standby: StandbyView | None = None
