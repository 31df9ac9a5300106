"""Counting tokens by the engine's own count."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from runtime.errors import ContextOverflowError, LLMBadResponseError, LLMCapabilityError
from runtime.inference import failures, payload
from runtime.inference.clock import Clock
from runtime.inference.effects import locate
from runtime.inference.exchange import CHAT_PATH, fetch, post

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow, HttpRequest
    from runtime.inference.wishes import Wish

_MISSING = {404, 405, 501}


def count_text(text: str, limits: Limits) -> Flow[int]:
    """Tokens of ``text`` by itself, without what a chat puts around it.

    Raises:
        LLMCapabilityError: The server cannot count.
    """
    endpoint, found = yield from ask("/tokenize", {"content": text}, limits)
    if found is None:
        # llama-cpp-python's way, which counts the token that begins every text along.
        endpoint, found = yield from ask("/extras/tokenize/count", {"input": text}, limits)
        if found is not None:
            _, empty = yield from ask("/extras/tokenize/count", {"input": ""}, limits)
            return count_of(found, "count") - count_of(empty or {}, "count")
    if found is None:
        raise _incapable(endpoint)
    tokens = found.get("tokens")
    if not isinstance(tokens, list):
        raise _malformed()
    return len(tokens)


def count_prompt(wish: Wish, limits: Limits) -> Flow[int]:
    """Tokens of the prompt that a request becomes, with its tools and all that is told besides.

    What would be sent is sent to be counted: the result is what ``usage.prompt_tokens`` will be.

    Raises:
        LLMCapabilityError: The server cannot count.
    """

    def asked(endpoint: Endpoint) -> dict[str, object]:
        made, _ = payload.body(wish, endpoint, seed=0, stream=False)
        return made

    endpoint = yield from locate(limits.request_timeout_s)
    if endpoint.kind == "llama-cpp-python":
        return (yield from _count_by_asking(asked, limits))
    endpoint, found = yield from ask(f"{CHAT_PATH}/input_tokens", asked, limits)
    if found is not None:
        return count_of(found, "input_tokens")
    endpoint, found = yield from ask("/apply-template", asked, limits)
    if found is None:
        raise _incapable(endpoint)
    prompt = found.get("prompt")
    if not isinstance(prompt, str):
        raise _malformed()
    rendered = {"content": prompt, "add_special": True, "parse_special": True}
    endpoint, found = yield from ask("/tokenize", rendered, limits)
    if found is None or not isinstance(found.get("tokens"), list):
        raise _incapable(endpoint)
    return len(found["tokens"])


def _count_by_asking(
    asked: Callable[[Endpoint], Mapping[str, object]], limits: Limits
) -> Flow[int]:
    """What llama-cpp-python says of an answer of one token: it has no other way to count a chat.

    The prompt that it computes for that is still there when the request itself comes.
    """

    def short(endpoint: Endpoint) -> dict[str, object]:
        steering = {"grammar", "response_format"}  # of no effect on the prompt
        made = {name: value for name, value in asked(endpoint).items() if name not in steering}
        return {**made, "max_tokens": 1}

    try:
        endpoint, found = yield from ask(CHAT_PATH, short, limits)
    except ContextOverflowError as exc:
        if exc.prompt_tokens is None:
            raise
        return exc.prompt_tokens
    if found is None:
        raise _incapable(endpoint)
    return count_of(found.get("usage") or {}, "prompt_tokens")


def ask(
    path: str,
    body: Mapping[str, object] | Callable[[Endpoint], Mapping[str, object]],
    limits: Limits,
) -> Flow[tuple[Endpoint, dict[str, Any] | None]]:
    """What a path answers; None when the server does not have it."""

    def request(endpoint: Endpoint) -> HttpRequest:
        made = body(endpoint) if callable(body) else body
        return post(endpoint, path, {"model": endpoint.model, **made})

    endpoint, head, answer = yield from fetch(request, Clock(limits))
    if head.status in _MISSING:
        return endpoint, None
    if head.status != 200:
        raise failures.from_answer(head, answer, model=endpoint.model)
    try:
        parsed = json.loads(answer)
    except ValueError as exc:
        raise failures.not_a_completion(head, answer) from exc
    return endpoint, parsed if isinstance(parsed, dict) else None


def count_of(found: Mapping[str, Any], name: str) -> int:
    """A count out of an answer."""
    value = found.get(name)
    if not isinstance(value, int):
        raise _malformed()
    return value


def _incapable(endpoint: Endpoint) -> LLMCapabilityError:
    return LLMCapabilityError(
        f"The server at {endpoint.base_url} cannot count tokens.",
        hint="Use the xllamacpp or llama-server engine, which can.",
    )


def _malformed() -> LLMBadResponseError:
    return LLMBadResponseError("The server's token count is malformed.")
