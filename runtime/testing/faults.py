"""Faults on request: what engines and networks do to an agent, in one line of its test.

A fault waits for the next request that generates something, happens to it, and is used up after
``times`` of them. What was asked for and never happened is an error of the test.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from runtime.errors import ConfigError
from runtime.testing.events import is_token
from runtime.testing.mangling import mangled_stream, mangled_whole
from runtime.testing.relay import CutError, error_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.server.manager import ServerManager
    from runtime.testing.relay import Asked, Handler, Reply

_Met: TypeAlias = "Callable[[], None]"
_Do: TypeAlias = "Callable[[Asked, Handler, _Met], Reply]"

_LET_GO_S: Final = 5.0
# Where something is generated.
_PATHS: Final = (
    "/chat/completions",
    "/completions",
    "/completion",
    "/embeddings",
    "/responses",
    "/messages",
)


@dataclass(slots=True, kw_only=True, eq=False)
class _Fault:
    """A fault that waits for requests, or had them.

    Attributes:
        name: What it is, as the test called for it.
        wanted: How many requests it is to happen to; None for all.
        taken: Requests that it was set on.
        met: Requests that it happened to.
    """

    name: str
    wanted: int | None
    taken: int = 0
    met: int = 0


class Faults:
    """What the fixture ``llama_faults`` gives: each method arms a fault for this test alone.

    Several are used in the order of their arming, one request each. ``at_token`` counts the pieces
    of a streamed answer that were delivered before; an answer that comes whole is lost whole.
    """

    def __init__(self, private_engine: Callable[[bool], ServerManager]) -> None:
        self._private_engine = private_engine
        self._armed: list[tuple[_Fault, _Do]] = []
        self._changed = threading.Condition()
        self._held = 0
        self._over, self._over_writer = socket.socketpair()

    # --- the faults ---------------------------------------------------------------------------

    def crash(self, *, at_token: int = 0, restart: bool = True, times: int = 1) -> None:
        """Kill the engine (SIGKILL) once ``at_token`` tokens were delivered.

        The test gets an engine of its own for that; the others' goes on.

        Args:
            at_token: Tokens delivered before.
            restart: Whether the engine is started again, as a managed one would be.
            times: How many requests it happens to.

        Raises:
            ConfigError: The test replays a cassette, so there is no engine to kill.
            LLMError: The engine of its own cannot be started.
        """
        manager = self._private_engine(restart)

        def kill() -> None:
            if (pid := manager.pid) is not None:
                os.kill(pid, signal.SIGKILL)

        self._arm(f"crash(at_token={at_token})", _breaking(at_token, kill), times)

    def cut(self, *, at_token: int = 0, times: int | None = 1) -> None:
        """Break the connection once ``at_token`` tokens were delivered; the engine lives."""
        self._arm(f"cut(at_token={at_token})", _breaking(at_token, lambda: None), times)

    def stall(
        self, *, at_token: int = 0, seconds: float | None = None, times: int | None = 1
    ) -> None:
        """Say nothing more once ``at_token`` tokens were delivered.

        Args:
            at_token: Tokens delivered before; 0 holds back the whole answer.
            seconds: How long, after which the answer goes on; None until the client gives up or
                the test is over.
            times: How many requests it happens to; None for all.
        """

        def stalling(asked: Asked, reply: Reply, met: _Met) -> Iterator[bytes]:
            for count, piece in _counted(reply):
                if count == at_token:
                    met()
                    self._hold(asked, seconds)
                yield piece

        def do(asked: Asked, ask: Handler, met: _Met) -> Reply:
            if at_token == 0:
                met()
                self._hold(asked, seconds)
                return ask(asked)
            reply = ask(asked)
            return replace(reply, pieces=stalling(asked, reply, met))

        self._arm(f"stall(at_token={at_token})", do, times)

    def status(
        self,
        code: int = 500,
        message: str = "an injected fault",
        *,
        retry_after_s: float | None = None,
        times: int | None = 1,
    ) -> None:
        """Answer with an HTTP error instead of asking the engine.

        Args:
            code: The HTTP status.
            message: What the error says.
            retry_after_s: What the header ``Retry-After`` says, in seconds.
            times: How many requests it happens to; None for all.
        """
        fields = {} if retry_after_s is None else {"Retry_After": f"{retry_after_s:g}"}

        def do(_asked: Asked, _ask: Handler, met: _Met) -> Reply:
            met()
            return error_reply(code, message, "injected_error", **fields)

        self._arm(f"status({code})", do, times)

    def malformed_tool_json(self, *, times: int | None = 1) -> None:
        """Take the last character away from the arguments of a tool call: no JSON any more.

        Where a model's calls come as text (its template knows no tools), from the text. Happens to
        the requests whose answers call a tool; what is not one passes as it is.
        """

        def do(asked: Asked, ask: Handler, met: _Met) -> Reply:
            reply = ask(asked)
            mangled = mangled_stream if reply.streams else mangled_whole
            return replace(reply, pieces=mangled(reply.pieces, met))

        self._arm("malformed_tool_json()", do, times)

    # --- the relay's side ---------------------------------------------------------------------

    def answer(self, asked: Asked, ask: Handler) -> Reply:
        """The answer to a request, faulty if a fault waits for it."""
        if asked.method != "POST" or not asked.path.endswith(_PATHS):
            return ask(asked)
        with self._changed:
            waiting = ((f, d) for f, d in self._armed if f.wanted is None or f.taken < f.wanted)
            fault, do = next(waiting, (None, None))
            if fault is None or do is None:
                return ask(asked)
            fault.taken += 1

        def met() -> None:
            with self._changed:
                fault.met += 1

        return do(asked, ask, met)

    @property
    def happened(self) -> tuple[str, ...]:
        """Names of the faults that happened, in the order of their arming."""
        with self._changed:
            return tuple(fault.name for fault, _ in self._armed for _ in range(fault.met))

    @property
    def unmet(self) -> tuple[str, ...]:
        """Faults that did not happen as often as they were to, in words."""
        with self._changed:
            return tuple(
                f"{fault.name} happened {fault.met} of {fault.wanted} times"
                for fault, _ in self._armed
                if fault.wanted is not None and fault.met < fault.wanted
            )

    def close(self) -> None:
        """Disarm, and let go of whoever is held."""
        with self._changed:
            self._armed.clear()
            self._over_writer.close()
            self._changed.wait_for(lambda: not self._held, _LET_GO_S)
            self._over.close()

    def _arm(self, name: str, do: _Do, times: int | None) -> None:
        if times is not None and times < 1:
            raise ConfigError(f"times is {times}.", hint="It is 1 or more; None means every time.")
        with self._changed:
            self._armed.append((_Fault(name=name, wanted=times), do))

    def _hold(self, asked: Asked, seconds: float | None) -> None:
        """Wait; ends the connection when the test is over meanwhile."""
        with self._changed:
            self._held += 1
        try:
            if asked.peer.wait_for(self._over, seconds):
                raise CutError
        finally:
            with self._changed:
                self._held -= 1
                self._changed.notify_all()


def _counted(reply: Reply) -> Iterator[tuple[int, bytes]]:
    """The pieces of an answer, each with the tokens before it; a whole answer has none."""
    count = 0
    for piece in reply.pieces:
        is_one = reply.streams and is_token(piece)
        yield count if is_one else -1, piece
        count += is_one


def _breaking(at_token: int, and_then: Callable[[], None]) -> _Do:
    """Break the connection before the token after ``at_token``."""

    def broken(reply: Reply, met: _Met) -> Iterator[bytes]:
        for count, piece in _counted(reply):
            if count == at_token or not reply.streams:
                met()
                and_then()
                raise CutError
            yield piece

    def do(asked: Asked, ask: Handler, met: _Met) -> Reply:
        reply = ask(asked)
        return replace(reply, pieces=broken(reply, met))

    return do
