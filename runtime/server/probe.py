"""Asking an engine about itself over HTTP, each question bounded in time."""

from __future__ import annotations

import functools
import http.client
import io
import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from runtime.engines.base import EngineCapabilities
from runtime.engines.thinking import is_separated, separation_trial, thinking_of
from runtime.memo import Memo, file_identity
from runtime.server.listeners import holder

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.engines.base import EngineKind
    from runtime.engines.thinking import Thinking
    from runtime.server.listeners import Verdict

PROBE_TIMEOUT_S = 1.0
TRIAL_TIMEOUT_S = 5.0
ANSWER_MAX_BYTES = 16 << 20
_MEMO = "engine-build"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An HTTP answer.

    Attributes:
        status: The HTTP status; 0 when there was no answer.
        body: The body as JSON, or as text where it is none.
        problem: Why there was no answer.
    """

    status: int
    body: object = None
    problem: str | None = None

    def field(self, *path: str | int) -> object:
        """The value at ``path`` in the body, or None."""
        value = self.body
        for key in path:
            if isinstance(value, dict) and isinstance(key, str):
                value = value.get(key)
            elif isinstance(value, list) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                return None
        return value


class _Response(http.client.HTTPResponse):
    """An answer that must be complete at an instant, not piece by piece."""

    def __init__(self, deadline_s: float, sock: socket.socket, **options: Any) -> None:
        super().__init__(sock, **options)
        unbounded, self.fp = self.fp, io.BufferedReader(_Timed(sock, deadline_s))
        unbounded.close()


class _Timed(io.RawIOBase):
    """A socket's bytes until an instant on the steady clock."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self._sock = sock
        # http.client closes the socket before the answer is read: this keeps it open.
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline_s = deadline_s

    def close(self) -> None:
        self._raw.close()
        super().close()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer) or 0


def ask(
    base_url: str,
    path: str,
    *,
    api_key: str | None,
    body: Mapping[str, object] | None = None,
    timeout_s: float = PROBE_TIMEOUT_S,
) -> Reply:
    """One question, one answer; a failure is a fact, not an exception.

    ``timeout_s`` is for all of it: an engine that sends a byte now and then gets no more.
    """
    deadline_s = time.monotonic() + timeout_s
    parts = urlsplit(base_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    connection.response_class = functools.partial(_Response, deadline_s)  # type: ignore[assignment]
    headers = {"Connection": "close"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    data = None
    if body is not None:
        data = json.dumps(body)
        headers["Content-Type"] = "application/json"
    try:
        connection.request("POST" if data else "GET", path, body=data, headers=headers)
        response = connection.getresponse()
        data_read = response.read(ANSWER_MAX_BYTES + 1)
    except (OSError, http.client.HTTPException) as exc:
        return Reply(status=0, problem=str(exc) or type(exc).__name__)
    finally:
        connection.close()
    if len(data_read) > ANSWER_MAX_BYTES:
        return Reply(status=0, problem=f"its answer is longer than {ANSWER_MAX_BYTES >> 20} MiB")
    text = data_read.decode("utf-8", "replace")
    try:
        return Reply(status=response.status, body=json.loads(text))
    except json.JSONDecodeError:
        return Reply(status=response.status, body=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """Whether the process that we started is the one that answers, and ready.

    Attributes:
        verdict: ``"ready"``; ``"loading"`` or ``"silent"``: ask again; ``"stranger"``: something
            else answers on that port.
        detail: What was seen.
    """

    verdict: Literal["ready", "loading", "silent", "stranger"]
    detail: str = ""


def confirm(
    base_url: str, *, listens: Verdict, health_path: str, nonce: str, api_key: str | None
) -> Confirmation:
    """Ask whoever listens for health, and for the name that only our instance has.

    The key is sent to nobody but the engine's own process. Where the system does not tell whose the
    socket is, an answer without the name to a question without the key gives a stranger away.

    Args:
        base_url: Where it said that it listens.
        listens: Whose the listening socket is.
        health_path: What answers 200 when it is ready.
        nonce: The name that only our instance has.
        api_key: The key that it asks for.
    """
    if listens == "other":
        by = holder(urlsplit(base_url).port or 0)
        return Confirmation(verdict="stranger", detail=f"the port is held by {by or 'another'}")
    if listens == "unknown":
        unasked = ask(base_url, "/v1/models", api_key=None)
        if unasked.status == 0:
            return Confirmation(verdict="silent", detail=unasked.problem or "")
        if unasked.status not in {401, 403, 503} and not _names(unasked, nonce):
            return Confirmation(verdict="stranger", detail=f"HTTP {unasked.status} on /v1/models")
    health = ask(base_url, health_path, api_key=api_key)
    if health.status == 0:
        return Confirmation(verdict="silent", detail=health.problem or "")
    if health.status == 503:
        return Confirmation(verdict="loading", detail="HTTP 503")
    models = health if health_path == "/v1/models" else ask(base_url, "/v1/models", api_key=api_key)
    if models.status == 0:
        return Confirmation(verdict="silent", detail=models.problem or "")
    if health.status != 200 or not _names(models, nonce):
        return Confirmation(
            verdict="stranger",
            detail=f"HTTP {health.status} on {health_path}, HTTP {models.status} on /v1/models",
        )
    return Confirmation(verdict="ready")


def _names(models: Reply, nonce: str) -> bool:
    return nonce in json.dumps(models.body, ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Properties:
    """What a ready engine says about itself.

    Attributes:
        slots: How many, or None when it does not say.
        slot_ctx: Tokens one request may hold, or None when it does not say.
        chat_template: The template in use, or None.
        capabilities: What it can do.
    """

    slots: int | None
    slot_ctx: int | None
    chat_template: str | None
    capabilities: EngineCapabilities


def properties(
    base_url: str,
    *,
    api_key: str | None,
    model: str,
    kind: EngineKind,
    engine_file: Path | None,
    embeddings: bool,
    drafts: bool = False,
) -> Properties:
    """Look at the cheap facts, and try out what only trying tells, once for each engine build."""
    props = ask(base_url, "/props", api_key=api_key)
    slots = ask(base_url, "/slots", api_key=api_key)
    metrics = ask(base_url, "/metrics", api_key=api_key)
    count = ask(
        base_url,
        "/v1/chat/completions/input_tokens",
        api_key=api_key,
        body={"model": model, "messages": [{"role": "user", "content": "a"}]},
    )
    listed = ask(base_url, "/v1/models", api_key=api_key)
    fails = breaks_llguidance(listed.field("data", 0, "meta", "n_vocab"))
    tried = _tried(
        base_url,
        api_key=api_key,
        model=model,
        kind=kind,
        engine_file=engine_file,
        memorable=not fails,
    )
    if fails or kind == "llama-cpp-python":  # which ends its process at such a grammar
        tried = {**tried, "llguidance": False}
    caps = props.field("chat_template_caps")
    template = props.field("chat_template")
    thinking = _thinking(template, base_url, api_key=api_key)
    total = props.field("total_slots")
    context = props.field("default_generation_settings", "n_ctx")
    return Properties(
        slots=total if isinstance(total, int) else None,
        slot_ctx=context if isinstance(context, int) else None,
        chat_template=template if isinstance(template, str) else None,
        capabilities=EngineCapabilities(
            embeddings=embeddings and tried.get("embeddings") is not False,
            json_schema=tried.get("json_schema"),
            grammar=tried.get("grammar"),
            llguidance=tried.get("llguidance"),
            tools=bool(caps.get("supports_tools")) if isinstance(caps, dict) else False,
            vision=props.field("modalities", "vision") is True,
            token_counting=isinstance(count.field("input_tokens"), int),
            slots=slots.status == 200,
            metrics=metrics.status == 200,
            thinking=thinking,
            logprobs=False if drafts else None,
        ),
    )


def _thinking(template: object, base_url: str, *, api_key: str | None) -> Thinking | None:
    """How the model thinks: seen in its template, in a prompt, and tried out."""
    found = thinking_of(template)
    if found is None:
        return None
    short = {"messages": [{"role": "user", "content": "a"}]}
    prompt = ask(base_url, "/apply-template", api_key=api_key, body=short).field("prompt")
    found = thinking_of(template, prompt) or found
    trial = separation_trial(found)
    path = "/v1/chat/completions"
    reply = ask(base_url, path, api_key=api_key, body=trial, timeout_s=TRIAL_TIMEOUT_S)
    return replace(found, separated=is_separated(reply.field("choices", 0, "message")))


def _tried(
    base_url: str,
    *,
    api_key: str | None,
    model: str,
    kind: EngineKind,
    engine_file: Path | None,
    memorable: bool,
) -> dict[str, bool]:
    """What decoding under a constraint really does: a property of the build, so tried once."""
    if known := remembered_trials(engine_file):
        return known
    found = {
        name: _obeys(base_url, api_key=api_key, request={"model": model, **request})
        for name, request in _trials(kind).items()
    }
    certain = {name: value for name, value in found.items() if value is not None}
    identity = _identity(engine_file)
    if identity and len(certain) == len(found) and memorable:
        Memo(_MEMO).put(identity, certain)
    return certain


def breaks_llguidance(vocabulary: object) -> bool:
    """Whether the llguidance within engines fails at a vocabulary of this size.

    Seen with derivre 0.3.8 (xllamacpp 2026.10): one less than a multiple of 32 panics at the first
    token, and the engine goes on without the grammar.
    """
    return isinstance(vocabulary, int) and vocabulary % 32 == 31


def remembered_trials(engine_file: Path | None) -> dict[str, bool]:
    """What an engine build was found to obey; empty when it has not been tried yet."""
    identity = _identity(engine_file)
    known = Memo(_MEMO).get(identity) if identity else None
    return {name: value for name, value in (known or {}).items() if isinstance(value, bool)}


def _identity(engine_file: Path | None) -> str | None:
    try:
        return file_identity(engine_file) if engine_file else None
    except OSError:
        return None


def _trials(kind: EngineKind) -> dict[str, dict[str, object]]:
    """Requests that make an engine that obeys them begin its answer with the letter Q."""
    schema = {"const": "Q"}
    if kind == "llama-cpp-python":
        # Never llguidance: a grammar that it cannot parse may end its process.
        return {
            "grammar": {"prompt": "a", "grammar": 'root ::= "Q"'},
            "json_schema": {
                "messages": [{"role": "user", "content": "a"}],
                "response_format": {"type": "json_object", "schema": schema},
            },
        }
    return {
        "grammar": {"prompt": "a", "grammar": 'root ::= "Q"'},
        "llguidance": {"prompt": "a", "grammar": '%llguidance {}\nstart: "Q"'},
        "json_schema": {"prompt": "a", "json_schema": schema},
    }


def _obeys(base_url: str, *, api_key: str | None, request: Mapping[str, object]) -> bool | None:
    """Whether the engine follows a constraint; None when it did not answer."""
    reply = ask(
        base_url,
        "/v1/chat/completions" if "messages" in request else "/v1/completions",
        api_key=api_key,
        body={"max_tokens": 3, "temperature": 0, "seed": 1, **request},
        timeout_s=TRIAL_TIMEOUT_S,
    )
    if reply.status == 0:
        return None
    text = reply.field("choices", 0, "message", "content") or reply.field("choices", 0, "text")
    return isinstance(text, str) and text.strip(' "\n').startswith("Q")
