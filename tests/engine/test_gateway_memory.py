"""What requests leave behind in the gateway: nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from typing import TYPE_CHECKING, Any

from runtime.gateway.app import create_app
from runtime.gateway.models import Models, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp, Message

ASK = {"messages": [{"role": "user", "content": "Hi."}], "max_tokens": 3, "seed": 1}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
KINDS: dict[str, dict[str, Any]] = {
    "whole": ASK,
    "stream": {**ASK, "stream": True},
    "left": {**ASK, "stream": True, "max_tokens": 400, "ignore_eos": True},
    "json": {
        **ASK,
        "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    },
    "refused": {**ASK, "seed": -7},
}
WARM, MEASURED = 15, 40
MOST_BLOCKS = 3
"""A request. One takes hundreds while it runs; the engine's last log lines, which are kept up to
a bound, take about one."""


async def ask(app: ASGIApp, kind: str) -> int:
    """Ask the app itself; returns the status. A client that leaves does so at the second piece."""
    said: list[Message] = []
    gone = asyncio.Event()
    waiting: list[Message] = [{"type": "http.request", "body": json.dumps(KINDS[kind]).encode()}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        said.append(message)
        if kind == "left" and len(said) > 2:
            gone.set()

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [],
    }
    await app(scope, receive, send)
    return int(said[0]["status"])


def test_requests_leave_nothing_behind(tiny_model_path: Path) -> None:
    """Blocks of memory that are in use, all of them, before and after hundreds of requests."""

    async def blocks_after(app: ASGIApp, times: int) -> int:
        for _ in range(times):
            statuses = await asyncio.gather(*(ask(app, kind) for kind in KINDS))
            assert statuses == [400 if kind == "refused" else 200 for kind in KINDS]
        gc.collect()
        return sys.getallocatedblocks()

    async def grown() -> int:
        settings: Any = {"threads": 1, "parallel": 4, "ctx_size": 512}
        models = Models(Plan(models=(str(tiny_model_path),), settings=settings))
        app = create_app(models)
        async with models:
            await models.load()
            before = await blocks_after(app, WARM)
            return await blocks_after(app, MEASURED) - before

    requests = MEASURED * len(KINDS)
    assert asyncio.run(grown()) < MOST_BLOCKS * requests
