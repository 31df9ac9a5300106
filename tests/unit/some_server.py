"""Servers without a process: the requests of a flow are answered by a function."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.inference.effects import Enter, HttpHead, Locate, Open, Read

if TYPE_CHECKING:
    from collections.abc import Callable

    from runtime.inference.effects import Flow

T = TypeVar("T")


def endpoint(
    kind: str = "xllamacpp",
    *,
    model: str = "m",
    context: int | None = None,
    batch: int | None = None,
    embeddings: bool | None = None,
) -> Endpoint:
    """An endpoint at which nothing listens."""
    return Endpoint(
        base_url="http://127.0.0.1:1",
        api_key=None,
        kind=kind,
        model=model,
        capabilities=EngineCapabilities(embeddings=embeddings),
        context_tokens=context,
        batch_tokens=batch,
    )


def performed(
    flow: Flow[T], at: Endpoint, answer: Callable[[str, dict[str, Any]], tuple[int, object]]
) -> T:
    """What a flow comes to.

    Args:
        flow: A flow that emits nothing.
        at: Where it is told that the server is.
        answer: Takes path and body of a request; returns the status, and the body as bytes or as
            what is to be JSON.
    """
    result: Any = None
    parts: list[bytes] = []
    while True:
        try:
            effect = flow.send(result)
        except StopIteration as stop:
            made: T = stop.value
            return made
        if isinstance(effect, Enter):
            result = None
        elif isinstance(effect, Locate):
            result = at
        elif isinstance(effect, Open):
            asked = effect.request
            status, said = answer(asked.path, json.loads(asked.body or b"null"))
            parts = [said if isinstance(said, bytes) else json.dumps(said).encode(), b""]
            result = HttpHead(status=status, headers={"content-type": "application/json"})
        else:
            assert isinstance(effect, Read)
            result = parts.pop(0)
