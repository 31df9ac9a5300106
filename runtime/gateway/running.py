"""Runs the gateway in a process of its own: its socket, its signals, its record, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import uvicorn

from runtime.contracts import Provenance
from runtime.errors import StorageError
from runtime.gateway.app import create_app
from runtime.gateway.rules import Rules
from runtime.gateway.security import Guard
from runtime.gateway.wire import uvicorn_options
from runtime.server import registry
from runtime.server.ports import refuse_taken_port, unusable
from runtime.server.registry import ServerRecord

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable, Generator
    from pathlib import Path

    from runtime.gateway.models import Models
    from runtime.server.snapshot import ServerSnapshot

log = logging.getLogger(__name__)

DRAIN_S: Final = 3.0
"""Seconds that requests under way have to end once the gateway was told to end."""

_CUT_S: Final = 1.0
"""Seconds that clients then have to read that their requests were cut off."""

_LONGEST_END_S: Final = 10
"""Seconds after which what still runs is cancelled, whatever it does."""

_BACKLOG: Final = 2048
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address, bound at once: a port that is taken is known before a model loads.

    Raises:
        EngineStartError: It cannot be had; says who holds it, if that can be seen.
    """
    refuse_taken_port(host, port)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(_BACKLOG)
    except OSError as exc:
        made.close()
        raise unusable(host, port, exc) from exc
    return made


def address_of(listener: socket.socket) -> str:
    """The address under which a socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - the other way round
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    models: Models,
    listener: socket.socket,
    *,
    ready: Callable[[ServerSnapshot, str], None],
    rules: Rules | None = None,
    own_log: Path | None = None,
) -> None:
    """Serve until a signal; requests under way have a moment to end, then the engines are ended.

    ``/health`` answers from the first moment on, while the default model is still being loaded.

    Args:
        models: What to serve.
        listener: Where.
        ready: Called once with the default model's server when that is loaded, and with the name
            by which other processes know the gateway.
        rules: What requests must keep to.
        own_log: The file with what this process prints, where it was detached.

    Raises:
        KeyboardInterrupt: A signal came before the default model was loaded.
        LLMError: The default model could not be loaded.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        if not runner.run(_run(models, listener, ready, rules or Rules(), own_log)):
            raise KeyboardInterrupt


def _loop_factory() -> Callable[[], AbstractEventLoop] | None:
    """uvloop, where there is one: a token costs an eighth less, and the engine needs the cores."""
    if sys.platform == "win32":
        return None
    import uvloop  # noqa: PLC0415 - is not to be had on Windows

    return uvloop.new_event_loop


async def _run(
    models: Models,
    listener: socket.socket,
    ready: Callable[[ServerSnapshot, str], None],
    rules: Rules,
    own_log: Path | None,
) -> bool:
    """Returns whether it was ready before it was told to end."""
    begun = _record(models, address_of(listener), own_log)
    app = create_app(models, address=begun.base_url, instance=begun.name)
    server = _Server(
        uvicorn.Config(
            Guard(app, rules),
            **uvicorn_options(rules),
            lifespan="on",
            log_config=None,
            date_header=False,
            timeout_graceful_shutdown=_LONGEST_END_S,
        ),
        models=models,
    )
    with _recorded(begun) as note:
        loading = asyncio.create_task(models.load())
        serving = asyncio.create_task(server.serve([listener]))
        try:
            await asyncio.wait({loading, serving}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and not server.should_exit:
                snapshot = await loading
                _spare_collector()
                note(_of_engine(begun, snapshot))
                ready(snapshot, begun.name)
                await serving
                return True
        finally:
            server.should_exit = True
            await serving
    await asyncio.wait({loading})  # given up by the models' end
    return loading.exception() is None


def _spare_collector() -> None:
    """Have the garbage collector walk over what requests leave, not over the whole program.

    That is some 50,000 objects, for which it would hold up every stream for 20 to 40 ms.
    """
    gc.collect()
    gc.freeze()


class _Server(uvicorn.Server):
    """uvicorn's server, ended in order by each of the signals that end a command.

    Requests that wait for a model to be loaded are refused at once. Those under way have
    ``DRAIN_S``; then, or at a second signal, they are cut off and told so. uvicorn itself would
    cancel them, which their clients could not tell from a crash.
    """

    def __init__(self, config: uvicorn.Config, *, models: Models) -> None:
        super().__init__(config)
        self._models = models
        self._hurry = asyncio.Event()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new request, and end those under way."""
        ending = [
            asyncio.create_task(work)
            for work in (self._models.give_up_loading(), self._end_requests())
        ]
        try:
            await super().shutdown(sockets)
        finally:
            for task in ending:
                task.cancel()
            await asyncio.wait(ending)

    async def _end_requests(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), DRAIN_S)
        self._models.cut()
        await asyncio.sleep(_CUT_S)
        for connection in list(self.server_state.connections):  # whose clients do not read
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        told = partial(loop.call_soon_threadsafe, self._told)
        before = {number: signal.signal(number, lambda *_: told()) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self) -> None:
        if self.should_exit:
            self._hurry.set()
        self.should_exit = True


def _record(models: Models, address: str, own_log: Path | None) -> ServerRecord:
    """What other processes know of the gateway from its first moment on."""
    pid = os.getpid()
    return ServerRecord(
        name=f"{pid}-{secrets.token_hex(4)}",
        role="serve",
        owner_pid=pid,
        owner_birth=registry.birth(pid) or "",
        engine_pid=None,
        model=models.default,
        engine="",
        base_url=address,
        state="loading",
        started_at=Provenance.now_iso(),
        log_path=None,
        own_log_path=str(own_log) if own_log else None,
    )


def _of_engine(begun: ServerRecord, snapshot: ServerSnapshot) -> ServerRecord:
    """The record once the default model's engine answers."""
    return replace(
        begun,
        engine_pid=snapshot.pid,
        engine=str(snapshot.engine["kind"]),
        model=snapshot.api_model or begun.model,
        state="ready",
        log_path=snapshot.log_path,
    )


@contextlib.contextmanager
def _recorded(begun: ServerRecord) -> Generator[Callable[[ServerRecord], None]]:
    """Lets other processes know of the gateway for as long as it listens; gives what notes news."""

    def note(record: ServerRecord) -> None:
        try:
            registry.write(record)
        except StorageError as exc:
            log.warning("`llama-runtime ps` will not show this gateway: %s", exc.message)

    note(begun)
    try:
        yield note
    finally:
        registry.erase(begun.name)
