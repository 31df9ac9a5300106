"""The gateway: an ASGI app that answers OpenAI's clients by the inference core."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.errors import LLMError, LLMInvalidRequestError
from runtime.gateway import anthropic, openai, openai_text, page
from runtime.gateway.endpoints import Answering, Counting, Detokenizing, Embedding, Tokenizing
from runtime.gateway.health import health_of
from runtime.gateway.kept import KeptResponses
from runtime.gateway.metrics import exposition
from runtime.gateway.responses import Responses
from runtime.gateway.security import is_trusted
from runtime.gateway.statuses import headers_of
from runtime.gateway.traffic import Traffic
from runtime.inference.async_transport import Threads

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request

    from runtime.gateway.dialect import CountingDialect
    from runtime.gateway.models import Models, Standing


def create_app(
    models: Models, *, address: str | None = None, instance: str | None = None
) -> Starlette:
    """The gateway's app.

    Args:
        models: Its models; closed when the app's lifespan ends.
        address: Where it can be reached, as the snapshot tells it.
        instance: The name by which other processes of this user know it.
    """
    traffic = Traffic()
    gateway = _Gateway(models, traffic, address, instance)
    reader = Threads(1)
    answers = partial(Answering, models, traffic, reader)
    counts = partial(Counting, models, traffic, reader)
    # mypy takes a module for a Dialect once, and for nothing more ever after.
    openai_counts = counts(cast("CountingDialect", openai))
    responses = Responses()
    kept = KeptResponses(responses)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with models:
            yield

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", answers(openai), methods=["POST"]),
            Route("/v1/chat/completions/input_tokens", openai_counts, methods=["POST"]),
            Route("/v1/completions", answers(openai_text), methods=["POST"]),
            Route("/v1/embeddings", Embedding(models, traffic, reader), methods=["POST"]),
            Route("/tokenize", Tokenizing(models, traffic, reader), methods=["POST"]),
            Route("/detokenize", Detokenizing(models, traffic, reader), methods=["POST"]),
            Route("/v1/responses", answers(responses), methods=["POST"]),
            Route("/v1/responses/input_tokens", counts(responses), methods=["POST"]),
            Route("/v1/responses/{response_id}", kept.get, methods=["GET"]),
            Route("/v1/responses/{response_id}", kept.delete, methods=["DELETE"]),
            Route("/v1/messages", answers(anthropic), methods=["POST"]),
            Route("/v1/messages/count_tokens", counts(anthropic), methods=["POST"]),
            Route("/v1/models", gateway.list_models, methods=["GET"]),
            Route("/v1/models/{model:path}", gateway.one_model, methods=["GET"]),
            Route("/health", gateway.health, methods=["GET"]),
            Route("/metrics", gateway.metrics, methods=["GET"]),
            Route("/snapshot", gateway.snapshot, methods=["GET"]),
            Route("/logs", gateway.logs, methods=["GET"]),
            *page.routes(),
        ],
        exception_handlers={HTTPException: _refused, Exception: _defect},
        lifespan=lifespan,
    )
    app.state.models = models
    app.state.traffic = traffic
    return app


class _Gateway:
    """The endpoints that tell of the gateway itself; none of them waits for an engine's answer."""

    def __init__(
        self, models: Models, traffic: Traffic, address: str | None, instance: str | None
    ) -> None:
        self._models = models
        self._traffic = traffic
        self._address = address
        self._instance = instance
        self._threads = Threads()

    async def health(self, request: Request) -> Response:
        """Whether requests are served; 503 while none would be. Says no more without the key."""
        found = health_of(self._models.listed(), default=self._models.default)
        whole = found.to_dict() if is_trusted(request.scope) else {"status": found.status}
        told = {**whole, "instance": self._instance}
        return JSONResponse(told, status_code=200 if found.serving else 503)

    async def metrics(self, _: Request) -> Response:
        """Counters and gauges for Prometheus."""
        text, kind = exposition(self._models, self._traffic)
        return Response(text, media_type=kind)

    async def list_models(self, _: Request) -> Response:
        """The models in OpenAI's form: those served first, then what else is on this machine."""
        listed = [_entry(each) for each in self._models.listed()]
        more = [
            _entry_of(name, state="unloaded", served=False) for name in await self._models.on_disk()
        ]
        return JSONResponse({"object": "list", "data": [*listed, *more]})

    async def one_model(self, request: Request) -> Response:
        """One model in OpenAI's form."""
        try:
            name = await self._models.find(request.path_params["model"])
        except LLMError as exc:
            return _error_response(exc)
        return JSONResponse(
            next(_entry(each) for each in self._models.listed() if each.name == name)
        )

    async def logs(self, request: Request) -> Response:
        """The last ``n`` lines of a model's engine; none while it is not loaded."""
        asked = request.query_params
        try:
            name = await self._models.find(asked.get("model"))
        except LLMError as exc:
            return _error_response(exc)
        count = asked.get("n", "100")
        lines = int(count) if count.isdecimal() and len(count) <= 6 else 0
        if not lines:
            return _error_response(
                LLMInvalidRequestError(f"n is {count!r}.", hint="It is 1 or more.")
            )
        served = next(each.served for each in self._models.listed() if each.name == name)
        server = served.server if served else None
        return JSONResponse({"model": name, "lines": server.logs(lines) if server else []})

    async def snapshot(self, _: Request) -> Response:
        """Everything that is known now."""
        standings = self._models.listed()
        made = [await self._threads.run(partial(_picture, each)) for each in standings]
        faults = [asdict(fault) for fault in self._traffic.faults]
        for each in made:
            each["errors"] = [fault for fault in faults if fault["model"] == each["name"]]
        held = sum(each.held_bytes for each in standings)
        gateway = {
            "version": version("llama-runtime"),
            "pid": os.getpid(),
            "started_at": self._traffic.started_at,
            "uptime_s": round(time.monotonic() - self._traffic.began, 3),
            "address": self._address,
            "default_model": self._models.default,
            **self._traffic.counts(),
            "history": self._traffic.history.to_dict(),
            "errors": faults,
        }
        memory = {"budget_bytes": self._models.budget_bytes, "held_bytes": held}
        return JSONResponse({"gateway": gateway, "models": made, "memory": memory})


def _picture(standing: Standing) -> dict[str, Any]:
    """One model of the snapshot (a worker thread: it looks at the process)."""
    served = standing.served
    server = served.server if served else None
    return {
        "name": standing.name,
        "state": standing.state,
        "loaded": standing.loaded,
        "users": standing.users,
        "error": standing.error.message if standing.error else None,
        "snapshot": server.snapshot().to_dict() if server else None,
        "queue": asdict(served.queue) if served else None,
        "counters": standing.counters,
    }


def _entry(standing: Standing) -> dict[str, object]:
    aliases = [name for name in standing.names if name != standing.name and "/" not in name]
    context = standing.served.context_tokens if standing.served else None
    return {
        **_entry_of(standing.name, state=standing.state, served=True),
        "aliases": aliases,
        "meta": {"n_ctx": context, "vision": standing.served.vision if standing.served else None},
    }


def _entry_of(name: str, *, state: str, served: bool) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": 0,  # a file says nothing of when its model was made
        "owned_by": "llama-runtime",
        "state": state,
        "served": served,
    }


def _error_response(exc: LLMError) -> Response:
    status, body = openai.error(exc)
    return JSONResponse(body, status_code=status, headers=headers_of(exc))


async def _refused(request: Request, exc: Exception) -> Response:
    """A path or a method that is not there."""
    assert isinstance(exc, HTTPException)  # noqa: S101 - that is what it is registered for
    problem = LLMInvalidRequestError(
        f"{request.method} {request.url.path}: {exc.detail}.",
        hint="GET /v1/models and POST /v1/chat/completions are where most begin.",
    )
    _, body = openai.error(problem)
    return JSONResponse(body, status_code=exc.status_code, headers=exc.headers)


async def _defect(_request: Request, exc: Exception) -> Response:
    """A defect of ours; the server logs the traceback."""
    message = f"This is a defect of the gateway ({type(exc).__name__}); its log says where."
    problem = {"message": message, "type": "server_error", "param": None, "code": "defect"}
    return JSONResponse({"error": problem}, status_code=500)
