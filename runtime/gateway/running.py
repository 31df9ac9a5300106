"""Runs the gateway in a process of its own: its socket, its signals, its record, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
from typing import TYPE_CHECKING, Final

import uvicorn

from runtime.contracts import Provenance
from runtime.errors import EngineStartError, StorageError
from runtime.gateway.app import create_app
from runtime.gateway.connection import CorkedProtocol
from runtime.server import registry
from runtime.server.plan import refuse_taken_port

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from starlette.types import ASGIApp

    from runtime.gateway.models import Models
    from runtime.server.snapshot import ServerSnapshot

log = logging.getLogger(__name__)

DRAIN_S: Final = 3
"""Seconds that requests under way have to end once the gateway was told to end."""

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
        raise EngineStartError(
            f"Port {port} on {host} cannot be used: {exc.strerror or exc}.",
            diagnosis="port_taken",
            hint="Choose another port, or port 0 for any free one.",
        ) from exc
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
    ready: Callable[[ServerSnapshot], None],
    guard: Callable[[ASGIApp], ASGIApp] | None = None,
) -> None:
    """Serve until a signal; requests under way have a moment to end, then the engines are ended.

    ``/health`` answers from the first moment on, while the default model is still being loaded.

    Args:
        models: What to serve.
        listener: Where.
        ready: Called once with the default model's server when that is loaded.
        guard: Wraps the app.

    Raises:
        KeyboardInterrupt: A signal came before the default model was loaded.
        LLMError: The default model could not be loaded.
    """
    if not asyncio.run(_run(models, listener, ready, guard)):
        raise KeyboardInterrupt


async def _run(
    models: Models,
    listener: socket.socket,
    ready: Callable[[ServerSnapshot], None],
    guard: Callable[[ASGIApp], ASGIApp] | None,
) -> bool:
    """Returns whether it was ready before it was told to end."""
    address = address_of(listener)
    app: ASGIApp = create_app(models, address=address)
    server = _Server(
        uvicorn.Config(
            guard(app) if guard else app,
            http=CorkedProtocol,
            ws="none",
            proxy_headers=False,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
    )
    loading = asyncio.create_task(models.load())
    serving = asyncio.create_task(server.serve([listener]))
    try:
        await asyncio.wait({loading, serving}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            await loading
            snapshot = await models.default_snapshot()
            with _recorded(snapshot, address):
                ready(snapshot)
                await serving
            return True
    finally:
        server.should_exit = True
        await serving
    await asyncio.wait({loading})  # given up by the models' end
    return loading.exception() is None


class _Server(uvicorn.Server):
    """uvicorn's server, ended in order by each of the signals that end a command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        before = {number: signal.signal(number, self._told) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _told(self, *_: object) -> None:
        self.force_exit = self.should_exit  # the second one does not wait for requests
        self.should_exit = True


@contextlib.contextmanager
def _recorded(snapshot: ServerSnapshot, address: str) -> Generator[None]:
    """Lets other processes know of the gateway, for as long as it answers."""
    pid = os.getpid()
    record = registry.ServerRecord(
        name=f"{pid}-{secrets.token_hex(4)}",
        role="serve",
        owner_pid=pid,
        owner_birth=registry.birth(pid) or "",
        engine_pid=snapshot.pid,
        model=snapshot.api_model or "",
        engine=str(snapshot.engine["kind"]),
        base_url=address,
        state="ready",
        started_at=Provenance.now_iso(),
        log_path=snapshot.log_path,
    )
    try:
        registry.write(record)
    except StorageError as exc:
        log.warning("`llama-runtime ps` will not show this gateway: %s", exc.message)
    try:
        yield
    finally:
        registry.erase(record.name)
