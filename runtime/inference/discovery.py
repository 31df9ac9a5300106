"""What a running server is and can do, found out by looking.

Any OpenAI-compatible server lists its models; llama.cpp's also tells its context, its template and
what that can do. What a server does not tell stays None: unknown is not the same as no.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.engines.thinking import is_separated, separation_trial, thinking_of
from runtime.errors import ConfigError, ModelNotFoundError
from runtime.inference import failures, schema
from runtime.inference.clock import Clock
from runtime.inference.effects import HttpRequest
from runtime.inference.exchange import CHAT_PATH, fetch, post

if TYPE_CHECKING:
    from runtime.engines.thinking import Thinking
    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow, HttpHead

GATEWAY: Final = "llama-runtime"
"""Whose models our gateway says they are."""

_SAID = [{"role": "user", "content": "."}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """A running server.

    Attributes:
        endpoint: How to talk to it; names its default model.
        models: The names it answers to, aliases included; empty when it does not say.
        served: Those of models that it serves already. Our gateway also lists what it would load
            when asked for.
    """

    endpoint: Endpoint
    models: tuple[str, ...]
    served: tuple[str, ...]


def origin(base_url: str) -> str:
    """A server's address without the ``/v1`` and slashes it may have been given with.

    Raises:
        ConfigError: It is no HTTP address.
    """
    try:
        parts = urlsplit(base_url)
        _ = parts.port  # checked when read
    except ValueError as exc:
        raise ConfigError(f"base_url is {base_url!r}: {exc}.") from exc
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"base_url is {base_url!r}.", hint="It looks like http://127.0.0.1:8080.")
    if parts.username or parts.query or parts.fragment:
        raise ConfigError(
            "base_url holds more than scheme, host, port and path.", hint="Give keys as api_key."
        )
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def discover(
    base_url: str, *, api_key: str | None, model: str | None, limits: Limits
) -> Flow[Discovered]:
    """Look at a server.

    Args:
        base_url: An address that :func:`origin` made.
        api_key: The key to send.
        model: The model to use by default; None takes the first it lists.
        limits: Deadlines.

    Raises:
        ModelNotFoundError: It lists its models, and not this one, or none at all.
        LLMError: It cannot be reached, or refuses.
    """
    clock = Clock(limits)
    head, listed = yield from _get(base_url, "/v1/models", api_key, clock)
    if head.status != 200 and head.status not in {404, 405, 501}:
        raise failures.from_answer(head, listed)
    entries = _entries(head, listed)
    names = tuple(dict.fromkeys(name for entry in entries for name in _names(entry)))
    if names and model is not None and model not in names:
        raise unknown_model(model, names)
    chosen = model or next(iter(names), None)
    if chosen is None:
        raise ModelNotFoundError(
            f"The server at {base_url} lists no models.",
            reference="",
            hint="Give the model's name to the client.",
        )
    entry = next((entry for entry in entries if chosen in _names(entry)), {})
    ours = entry.get("owned_by") == GATEWAY
    endpoint = Endpoint(
        base_url=base_url,
        api_key=api_key,
        kind="openai",
        model=chosen,
        capabilities=_of_gateway(entry) if ours else EngineCapabilities(),
        context_tokens=_context(entry),
    )
    if not ours:
        endpoint = yield from _look_closer(endpoint, clock)
    served = [name for entry in entries if entry.get("served", True) for name in _names(entry)]
    return Discovered(
        endpoint=endpoint, models=names or (chosen,), served=tuple(served) or (chosen,)
    )


def unknown_model(model: str, names: tuple[str, ...]) -> ModelNotFoundError:
    """The error for a model that is not among ``names``."""
    return ModelNotFoundError(
        f"There is no model {model!r} here.",
        reference=model,
        nearest=names,
        hint=f"There is: {', '.join(names[:10])}.",
    )


def _of_gateway(entry: dict[str, Any]) -> EngineCapabilities:
    """What our gateway can do with a model: its core keeps schemas and calls tools on any model.

    Grammars are left to it: it knows its engine, and checks what comes by the schema itself.
    """
    meta = entry.get("meta")
    vision = meta.get("vision") if isinstance(meta, dict) else None
    return EngineCapabilities(
        json_schema=True, tools=True, vision=vision if isinstance(vision, bool) else None
    )


def _look_closer(endpoint: Endpoint, clock: Clock) -> Flow[Endpoint]:
    """The endpoint with what llama.cpp's server tells; as it was when it is another."""
    head, body = yield from _get(endpoint.base_url, "/props", endpoint.api_key, clock)
    props = _object(head, body)
    settings = props.get("default_generation_settings")
    if not isinstance(settings, dict) or "total_slots" not in props:
        return endpoint
    caps = props.get("chat_template_caps")
    modalities = props.get("modalities")
    tools = isinstance(caps, dict) and bool(caps.get("supports_tools"))
    known = EngineCapabilities(
        json_schema=True,
        grammar=True,
        tools=tools and bool(caps.get("supports_tool_calls")) if caps is not None else None,
        vision=isinstance(modalities, dict) and bool(modalities.get("vision")),
        token_counting=True,
        slots=props.get("endpoint_slots") is True,
        metrics=props.get("endpoint_metrics") is True,
    )
    context = settings.get("n_ctx")
    found = replace(
        endpoint,
        kind="llama-server",
        capabilities=known,
        context_tokens=context if isinstance(context, int) else endpoint.context_tokens,
        slots=slots if isinstance(slots := props["total_slots"], int) and slots > 0 else None,
    )
    llguidance = yield from _takes_llguidance(found, clock)
    thinking = yield from _thinking(found, props.get("chat_template"), clock)
    return replace(found, capabilities=replace(known, llguidance=llguidance, thinking=thinking))


def _takes_llguidance(endpoint: Endpoint, clock: Clock) -> Flow[bool]:
    """Whether the server compiles llguidance grammars; one without it refuses the syntax.

    One token is decoded: a server that took the grammar and ignored it could not answer with the
    opening quote that the grammar demands by chance alone, so that is looked at too.
    """
    probe = schema.check({"const": "x"}, what="probe")
    enforced = schema.enforcement(probe, EngineCapabilities(llguidance=True))
    body = {
        "model": endpoint.model,
        "messages": _SAID,
        "max_tokens": 1,
        "seed": 0,
        **enforced.fields,
    }
    _, head, answer = yield from fetch(lambda _: post(endpoint, CHAT_PATH, body), clock)
    match _object(head, answer):
        case {"choices": [{"message": {"content": content, **rest}}, *_]}:
            said = content or rest.get("reasoning_content")  # where its template begins a thought
            return isinstance(said, str) and said.startswith('"')
    return False


def _thinking(endpoint: Endpoint, template: object, clock: Clock) -> Flow[Thinking | None]:
    """How the model thinks: seen in its template, in a prompt, and tried out."""
    found = thinking_of(template)
    if found is None:
        return None
    short = {"messages": [{"role": "user", "content": "a"}]}
    _, head, body = yield from fetch(lambda _: post(endpoint, "/apply-template", short), clock)
    found = thinking_of(template, _object(head, body).get("prompt")) or found
    trial = {"model": endpoint.model, **separation_trial(found)}
    _, head, body = yield from fetch(lambda _: post(endpoint, CHAT_PATH, trial), clock)
    match _object(head, body):
        case {"choices": [{"message": message}, *_]}:
            return replace(found, separated=is_separated(message))
    return found


def is_trial(body: object) -> bool:
    """Whether a chat request's body is of this module's making, and not of its callers' wishes."""
    return isinstance(body, dict) and body.get("messages") == _SAID and "grammar" in body


def _get(
    base_url: str, path: str, api_key: str | None, clock: Clock
) -> Flow[tuple[HttpHead, bytes]]:
    request = HttpRequest(base_url=base_url, path=path, method="GET", api_key=api_key)
    _, head, body = yield from fetch(lambda _: request, clock)
    return head, body


def _object(head: HttpHead, body: bytes) -> dict[str, Any]:
    """The object a path answered with; empty when it did not."""
    if head.status != 200:
        return {}
    try:
        parsed = json.loads(body)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _entries(head: HttpHead, body: bytes) -> list[dict[str, Any]]:
    if head.status != 200:
        return []
    listed = _object(head, body).get("data")
    if not isinstance(listed, list):
        raise failures.not_a_completion(head, body)
    return [entry for entry in listed if isinstance(entry, dict)]


def _names(entry: dict[str, Any]) -> list[str]:
    aliases = entry.get("aliases")
    names = [entry.get("id"), *(aliases if isinstance(aliases, list) else ())]
    return [name for name in names if isinstance(name, str) and name]


def _context(entry: dict[str, Any]) -> int | None:
    """The context a server tells in its model list: vLLM's name for it, or llama.cpp's."""
    meta = entry.get("meta")
    values = (entry.get("max_model_len"), meta.get("n_ctx") if isinstance(meta, dict) else None)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def instance(base_url: str, *, limits: Limits) -> Flow[str | None]:
    """What our gateway calls itself; None when another answers. No key is shown.

    Raises:
        LLMError: Nothing answers.
    """
    head, body = yield from _get(base_url, "/health", None, Clock(limits))
    name = _object(head, body).get("instance")
    return name if isinstance(name, str) else None


def health(base_url: str, *, api_key: str | None, limits: Limits) -> Flow[str]:
    """One sentence when the server works.

    Raises:
        LLMError: It does not.
    """
    clock = Clock(limits)
    head, body = yield from _get(base_url, "/health", api_key, clock)
    if head.status in {404, 405, 501}:
        head, body = yield from _get(base_url, "/v1/models", api_key, clock)
    if head.status != 200:
        raise failures.from_answer(head, body)
    return f"{base_url} answers."
