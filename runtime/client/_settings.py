"""A client's own settings, and what it says of itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from runtime.client import _options
from runtime.contracts import BackendCapabilities
from runtime.inference import discovery
from runtime.inference.names import public_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.client._sources import EndpointSource
    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits
    from runtime.inference.policy import Policy
    from runtime.settings import ServerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """What a client was made with, checked.

    Attributes:
        name: How responses name the client.
        model: The model reference that was asked for, or None.
        base_url: The running server to attach to, without ``/v1``; None for a managed one.
        api_key: The key to send to it.
        embedding_model: A model of its own for embeddings.
        offline: Whether the network is never used to get models; None: as the environment says.
        policy: What is wanted of structured answers.
        limits: Deadlines and bounds.
        max_queue: How many requests may wait for a slot.
        server: The managed server's configuration; None when attached.
    """

    name: str
    model: str | None
    base_url: str | None
    api_key: str | None = field(repr=False)
    embedding_model: str | None
    offline: bool | None
    policy: Policy
    limits: Limits
    max_queue: int
    server: ServerConfig | None

    def public(self) -> dict[str, object]:
        """The settings that belong to the client alone; no secrets."""
        return {
            "name": self.name,
            "model": self.model,
            "embedding_model": self.embedding_model,
            "offline": self.offline,
            **asdict(self.policy),
            **asdict(self.limits),
            "max_queue": self.max_queue,
        }

    def hash(self) -> str:
        """A short digest that changes when, and only when, the configuration does.

        Secrets take part in it by their own digest, never in the clear.
        """
        key = self.api_key
        values = {
            **self.public(),
            "server": self.server.hash() if self.server else None,
            "base_url": self.base_url,
            "api_key": None if key is None else hashlib.sha256(key.encode()).hexdigest(),
        }
        text = json.dumps(values, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def client_settings(
    *,
    model: str | None,
    config: ServerConfig | None,
    base_url: str | None,
    api_key: str | None,
    name: str,
    embedding_model: str | None,
    offline: bool | None,
    policy: Policy,
    limits: Limits,
    max_queue: int,
    server_options: Mapping[str, Any],
) -> ClientSettings:
    """The arguments of a client, checked and brought together.

    Raises:
        ConfigError: One is unknown, cannot work, or can have no effect.
    """
    _options.check_key(api_key)
    server: ServerConfig | None = None
    if base_url is not None:
        _options.check_attachable(config, server_options)
    else:
        server = _options.server_config(model, config, server_options, api_key=api_key)
        _options.check_key(server.api_key)
    return ClientSettings(
        name=name,
        model=server.model if server else model,
        base_url=None if base_url is None else discovery.origin(base_url),
        api_key=api_key if server is None else None,
        embedding_model=embedding_model,
        offline=offline,
        policy=policy,
        limits=limits,
        max_queue=max_queue,
        server=server,
    )


def config_snapshot(settings: ClientSettings, source: EndpointSource) -> dict[str, object]:
    """A client's configuration as JSON values, without secrets."""
    endpoint = source.current
    return {
        **settings.public(),
        "kind": endpoint.kind,
        "default_model": public_name(endpoint),
        "base_url": endpoint.base_url,
        "config_hash": settings.hash(),
        "model_patterns": list(source.models),
        "context_window": endpoint.context_tokens,
        "recommended_sampling": dict(source.sampling),
        "server": settings.server.public() if settings.server else None,
    }


def capabilities(endpoint: Endpoint) -> BackendCapabilities:
    """What can be done with an endpoint's model.

    Tools are native where the model's chat template knows them; else they are told in the prompt
    and enforced by a grammar. Whether a server that is not llama.cpp's knows tools cannot be seen
    from outside: then they are sent, and what comes back is checked.
    """
    known = endpoint.capabilities
    enforced = known.llguidance or known.json_schema or known.grammar
    return BackendCapabilities(
        streaming=True,
        tool_calling="native" if known.tools else "best_effort",
        json_mode="native" if enforced else "prompt+validate",
        vision=bool(known.vision),
        max_context_tokens=endpoint.context_tokens,
    )
