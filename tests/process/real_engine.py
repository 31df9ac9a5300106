"""Asking a real engine without the client, and making it sick: what the fault battery shares."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

from runtime.server.probe import ask
from runtime.testing.tiny_model import build_tiny_model
from runtime.testing.tiny_vocabulary import CHATML
from tests.conftest import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.server.manager import ServerManager

NO_SLOTS = "it shows no slots, so nothing tells stuck from slow"
GREEDY = (
    "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}"
    "{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
)
"""A template that takes all memory there is."""


def complete(manager: ServerManager, *, tokens: int = 4, timeout_s: float = 30) -> Any:
    """One completion, asked for without the client."""
    endpoint = manager.endpoint(30)
    return ask(
        endpoint.base_url,
        "/v1/completions",
        api_key=endpoint.api_key,
        body={"model": endpoint.model, "prompt": "a", "max_tokens": tokens},
        timeout_s=timeout_s,
    )


def long_request(manager: ServerManager) -> threading.Thread:
    """A request that is at work when this returns."""
    thread = threading.Thread(target=complete, args=(manager,), kwargs={"tokens": 1900})
    thread.start()
    endpoint = manager.endpoint(30)
    wait_until(
        "a slot is at work",
        lambda: (
            '"is_processing": true'
            in json.dumps(ask(endpoint.base_url, "/slots", api_key=endpoint.api_key).body)
        ),
    )
    return thread


def hostile(path: Path, template: str) -> Path:
    """A tiny model with this chat template."""
    plain = path.with_suffix(".plain")
    build_tiny_model(plain)
    data = plain.read_bytes()
    old, new = CHATML.encode(), template.encode()
    at = data.index(len(old).to_bytes(8, "little") + old)
    # Tensor data starts at a multiple of 32: keep the header's length a multiple longer.
    new += b" " * (-(len(new) - len(old)) % 32)
    path.write_bytes(data[:at] + len(new).to_bytes(8, "little") + new + data[at + 8 + len(old) :])
    plain.unlink()
    return path


def raw(
    manager: ServerManager,
    method: str,
    path: str,
    *,
    key: str | None,
    headers: dict[str, str] | None = None,
    body: str | None = None,
) -> tuple[int, dict[str, str], str]:
    """An HTTP exchange as a stranger or a browser would make it."""
    port = manager.snapshot().port
    with closing(http.client.HTTPConnection("127.0.0.1", port or 0, timeout=10)) as connection:
        sent = {"Connection": "close", **(headers or {})}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        connection.request(method, path, body=body, headers=sent)
        response = connection.getresponse()
        return (
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            response.read().decode("utf-8", "replace"),
        )
