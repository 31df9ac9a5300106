"""Recorded requests and answers: what is kept of them, and how they are written down. No sockets.

A cassette is a JSON file that people read and that changes only where answers do. Ids, instants and
timings are not kept, nor are headers and keys; pieces of streamed text are plain strings.
"""

from __future__ import annotations

import copy
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMInvalidRequestError
from runtime.testing.events import event_of, value_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

VERSION: Final = 1
WIDTH: Final = 100

# What differs from one answer to the next although nothing happened.
_PASSING: Final = ("timings", "system_fingerprint", "__verbose", "models")
_NONCE: Final = re.compile(r"~[0-9a-f]{12}\Z")
# Of what a server tells of itself, what its clients read; the rest names files and builds.
_PROPS: Final = (
    "total_slots",
    "model_alias",
    "modalities",
    "endpoint_slots",
    "endpoint_metrics",
    "chat_template",
    "chat_template_caps",
)
_SECRET_NAMES: Final = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
REDACTED: Final = "[redacted]"


class CassetteError(LLMInvalidRequestError):
    """A cassette cannot be read, or has no answer to a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One request and its answer.

    Attributes:
        method: ``GET`` or ``POST``.
        path: The path.
        asked: The body, with the seed that was sent; None when there was none.
        status: The HTTP status.
        content_type: The media type.
        body: The answer's body as JSON, or as text where it is none; None for a stream.
        stream: The values of the events of a stream, in order; None for a whole answer.
    """

    method: str
    path: str
    asked: Any
    status: int
    content_type: str
    body: Any = None
    stream: tuple[Any, ...] | None = None

    def events(self) -> list[bytes]:
        """The stream, event by event."""
        return [
            each.encode() if isinstance(each, str) else event_of(each) for each in self.stream or ()
        ]


# --- what is kept -----------------------------------------------------------------------------


def kept(path: str, value: Any, *, call_ids: CallIds) -> Any:
    """An answer, or one event of it, without what passes and what is secret."""
    value = without_own_secrets(copy.deepcopy(value))
    if not isinstance(value, dict):
        return value
    for name in _PASSING:
        value.pop(name, None)
    if path == "/props":
        settings = value.get("default_generation_settings")
        context = settings.get("n_ctx") if isinstance(settings, dict) else None
        return {
            "default_generation_settings": {"n_ctx": context},
            **{name: value[name] for name in _PROPS if name in value},
        }
    if path == "/v1/models":
        value["data"] = [_listed(entry) for entry in _dicts(value.get("data"))]
    for entry in [value, *_dicts(value.get("data")), *_dicts(value.get("choices"))]:
        _settle(entry, call_ids)
    return value


def _listed(entry: dict[str, Any]) -> dict[str, Any]:
    """A model in a server's list: what its clients read."""
    meta = entry.get("meta")
    context = {"n_ctx": meta.get("n_ctx")} if isinstance(meta, dict) else None
    names = ("id", "aliases", "object", "created", "owned_by", "max_model_len")
    found = {name: entry[name] for name in names if name in entry}
    return found if context is None else {**found, "meta": context}


def _settle(entry: dict[str, Any], call_ids: CallIds) -> None:
    """What an engine makes up for every answer becomes the same in all."""
    if "created" in entry:
        entry["created"] = 0
    if isinstance(entry.get("id"), str) and entry["id"].startswith(("chatcmpl-", "cmpl-")):
        entry["id"] = "chatcmpl-recorded"
    if isinstance(aliases := entry.get("aliases"), list):
        entry["aliases"] = [name for name in aliases if not _NONCE.search(str(name))]
    for name in ("id", "model"):
        if isinstance(text := entry.get(name), str):
            entry[name] = _NONCE.sub("", text)
    if isinstance(usage := entry.get("usage"), dict):
        usage.pop("prompt_tokens_details", None)  # what the prompt cache had depends on the order
    for part in (entry.get("message"), entry.get("delta")):
        for call in _dicts(part.get("tool_calls")) if isinstance(part, dict) else ():
            if isinstance(call.get("id"), str):
                call["id"] = call_ids.known_as(call["id"])


class CallIds:
    """Names for tool calls: the n-th of a cassette is called the same in every recording."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def known_as(self, call_id: str) -> str:
        """The name of a call."""
        return self._names.setdefault(call_id, f"call_{len(self._names) + 1}")


def _dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def secrets_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Values in the environment whose names say that they are secret."""
    found = (value for name, value in environ.items() if _SECRET_NAMES.search(name))
    return tuple(value for value in found if len(value) >= 8)


def without_secrets(value: Any, secrets: Sequence[str]) -> Any:
    """A JSON value in which no secret is left."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, REDACTED)
        return value
    if isinstance(value, list):
        return [without_secrets(each, secrets) for each in value]
    if isinstance(value, dict):
        return {name: without_secrets(each, secrets) for name, each in value.items()}
    return value


def without_own_secrets(value: Any) -> Any:
    """A JSON value in which no secret of this process's environment is left."""
    return without_secrets(value, secrets_of(os.environ))


# --- the file ---------------------------------------------------------------------------------


def read(path: Path) -> tuple[Recorded, ...]:
    """The answers of a cassette; none when there is no such file.

    Raises:
        CassetteError: It is none that this version reads.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        if value["version"] != VERSION:
            raise CassetteError(
                f"The cassette {path} has version {value['version']}, not {VERSION}.",
                hint="Record it again with --llama-record=all.",
            )
        return tuple(_from_file(entry) for entry in value["interactions"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CassetteError(
            f"The cassette {path} cannot be read: {exc!r}.",
            hint="Record it again with --llama-record=all.",
        ) from exc


def write(path: Path, interactions: Sequence[Recorded]) -> bool:
    """Write a cassette, unless it is the same already; whether it was written."""
    text = as_text({"version": VERSION, "interactions": [_to_file(each) for each in interactions]})
    if path.is_file() and path.read_text("utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text, "utf-8")
    draft.replace(path)
    return True


def _to_file(each: Recorded) -> dict[str, Any]:
    request = {"method": each.method, "path": each.path}
    answer: dict[str, Any] = {"status": each.status, "content_type": each.content_type}
    if each.stream is None:
        answer["body"] = each.body
    else:
        common = _common(each.stream)
        answer["common"] = common
        answer["stream"] = [_short(value, common) for value in each.stream]
    return {
        "request": {**request, **({} if each.asked is None else {"body": each.asked})},
        "answer": answer,
    }


def _from_file(entry: dict[str, Any]) -> Recorded:
    request, answer = entry["request"], entry["answer"]
    stream = None
    if "stream" in answer:
        stream = tuple(_long(value, answer["common"]) for value in answer["stream"])
    return Recorded(
        method=request["method"],
        path=request["path"],
        asked=request.get("body"),
        status=answer["status"],
        content_type=answer["content_type"],
        body=answer.get("body"),
        stream=stream,
    )


def _common(stream: Sequence[Any]) -> dict[str, Any]:
    """What all events of a stream say alike."""
    events = [event for event in stream if isinstance(event, dict)]
    first = events[0] if events else {}
    return {
        name: value
        for name, value in first.items()
        if name != "choices" and all(event.get(name) == value for event in events)
    }


def _piece(delta: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"finish_reason": None, "index": 0, "delta": delta}
    return {**common, "choices": [choice]}


def _short(value: Any, common: Mapping[str, Any]) -> Any:
    """An event as it is written: text as a string, what is no JSON as ``{"raw": …}``."""
    if isinstance(value, str):
        return {"raw": value}
    match value:
        case {"choices": [{"delta": {"content": str(text)}}]}:
            short: Any = text
        case {"choices": [{"delta": {"tool_calls": [{"index": i, "function": {"arguments": a}}]}}]}:
            short = {"call": i, "arguments": a}
        case _:
            short = None
    if short is not None and _long(short, common) == value:
        return short
    return {name: each for name, each in value.items() if common.get(name, ...) != each}


def _long(value: Any, common: Mapping[str, Any]) -> Any:
    match value:
        case str():
            return _piece({"content": value}, common)
        case {"raw": str(text)}:
            return text
        case {"call": index, "arguments": arguments}:
            call = {"index": index, "function": {"arguments": arguments}}
            return _piece({"tool_calls": [call]}, common)
    return {**common, **value}


def event_value(event: bytes) -> Any:
    """An event as it is kept: its JSON value, or its text where it has none."""
    value = value_of(event)
    return event.decode("utf-8", "replace") if value is None else value


def as_text(value: Any) -> str:
    """A JSON value as people like to read it: what fits on one line stands on one line."""
    return _lines(value, 0, 0) + "\n"


def _lines(value: Any, indent: int, used: int) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if indent + used + len(flat) < WIDTH or not isinstance(value, list | dict) or not value:
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        rows = []
        for name, each in value.items():
            head = f"{json.dumps(name, ensure_ascii=False)}: "
            rows.append(head + _lines(each, indent + 2, len(head) + 1))
        return "{\n" + ",\n".join(inner + row for row in rows) + "\n" + " " * indent + "}"
    rows = []
    filling = False  # whether the last row takes further plain values
    for each in value:
        text = _lines(each, indent + 2, 1)
        plain = len(text) < WIDTH / 3 and "\n" not in text
        if plain and filling and len(rows[-1]) + len(text) < WIDTH - indent - 6:
            rows[-1] += f", {text}"
        else:
            rows.append(text)
        filling = plain
    return "[\n" + ",\n".join(inner + row for row in rows) + "\n" + " " * indent + "]"
