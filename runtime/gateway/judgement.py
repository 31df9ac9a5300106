"""Whether a request may come in, told by its head alone."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.gateway.rules import HOST, KEY_VARIABLE, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from runtime.gateway.rules import Rules

_SHOWN_CHARS: Final = 100
# What Anthropic's clients expect in place of OpenAI's types.
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    413: "request_too_large",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not let in.

    Attributes:
        status: HTTP status.
        code: The reason for programs.
        message: The reason and the remedy for people.
    """

    status: int
    code: str
    message: str

    def body(self, path: str) -> bytes:
        """The answer: OpenAI's error shape, or Anthropic's on the path of its dialect."""
        error: dict[str, object] = {"message": self.message, "type": "invalid_request_error"}
        if path.startswith("/v1/messages"):
            error["type"] = _ANTHROPIC_TYPES.get(self.status, error["type"])
            return json.dumps({"type": "error", "error": error}).encode()
        return json.dumps({"error": {**error, "param": None, "code": self.code}}).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The head of a request.

    Attributes:
        method: Its method.
        path: Its path, decoded.
        scheme: ``"http"`` or ``"https"``.
        server: The address and port that the client connected to.
        headers: Every value of each header, by its name in lower case.
    """

    method: str
    path: str
    scheme: str
    server: tuple[str, int | None] | None
    headers: Mapping[bytes, Sequence[str]]

    def all(self, name: bytes) -> Sequence[str]:
        """Every value of a header."""
        return self.headers.get(name, ())

    def one(self, name: bytes) -> str | None:
        """The value of a header that is there once; None for one that is not."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None

    @property
    def has_body(self) -> bool:
        """Whether something comes after the head."""
        return bool(self.all(b"transfer-encoding")) or self.one(b"content-length") not in {
            None,
            "0",
        }

    @property
    def is_preflight(self) -> bool:
        """Whether a browser asks for leave, without a key, before it sends the request."""
        return self.method == "OPTIONS" and bool(self.all(b"access-control-request-method"))


def head_of(scope: Mapping[str, Any]) -> Asked:
    """The head in an ASGI scope."""
    headers: defaultdict[bytes, list[str]] = defaultdict(list)
    for name, value in scope["headers"]:
        headers[name.lower()].append(value.decode("latin-1"))
    return Asked(
        method=scope["method"],
        path=scope["path"],
        scheme=scope.get("scheme", "http"),
        server=scope.get("server"),
        headers=headers,
    )


def judge(asked: Asked, rules: Rules) -> Refusal | None:
    """Why the request is refused; None when it may go on to its body."""
    return (
        _judge_size(asked, rules)
        or _judge_host(asked, rules)
        or _judge_origin(asked, rules)
        or _judge_key(asked, rules)
        or _judge_body(asked, rules)
    )


def _judge_size(asked: Asked, rules: Rules) -> Refusal | None:
    size = sum(len(name) + len(value) for name, values in asked.headers.items() for value in values)
    if size <= rules.max_header_bytes:
        return None
    return Refusal(
        status=431,
        code="headers_too_large",
        message=f"The headers hold {size} bytes, and {rules.max_header_bytes} are the limit. "
        "Send fewer or shorter ones.",
    )


def _judge_host(asked: Asked, rules: Rules) -> Refusal | None:
    given = asked.one(b"host") or ""
    parsed = HOST.fullmatch(given)
    if parsed is not None and _is_ours(parsed[1].lower(), parsed[2], asked, rules):
        return None
    return Refusal(
        status=421,
        code="host_not_allowed",
        message=f"This gateway does not answer to the host {shown(given)}, which keeps foreign "
        "web pages out. Use the address that it printed at its start, or start it with "
        f"--allow-host {given if parsed else 'NAME'}.",
    )


def _is_ours(name: str, port: str | None, asked: Asked, rules: Rules) -> bool:
    if name in rules.hosts or (port is not None and f"{name}:{port}" in rules.hosts):
        return True
    address, listening = asked.server or ("", None)
    implied = 443 if asked.scheme == "https" else 80
    if listening is not None and int(port or implied) != listening:
        return False
    return is_loopback(name) or name.strip("[]") == address


def _judge_origin(asked: Asked, rules: Rules) -> Refusal | None:
    origins = asked.all(b"origin")
    if origins:
        own = f"{asked.scheme}://{asked.one(b'host')}"  # which was found to be ours
        if len(origins) == 1 and origins[0].lower() in {own.lower(), *rules.origins}:
            return None
        source = ", ".join(map(shown, origins))
        remedy = f"start it with --allow-origin {origins[0] if len(origins) == 1 else 'ORIGIN'}"
    else:
        # Browsers send no Origin with a GET of their own page, a link or an image, and tell here
        # where it came from. Following a link from elsewhere shows our page and tells nobody.
        site = asked.one(b"sec-fetch-site")
        followed = (
            asked.method == "GET"
            and asked.one(b"sec-fetch-mode") == "navigate"
            and asked.one(b"sec-fetch-dest") == "document"
        )
        if site in {None, "same-origin", "none"} or followed:
            return None
        source, remedy = f"elsewhere ({shown(site or '')})", "start it with --allow-origin ORIGIN"
    return Refusal(
        status=403,
        code="origin_not_allowed",
        message=f"A web page from {source} may not use this gateway. If it is yours, {remedy}.",
    )


def _judge_key(asked: Asked, rules: Rules) -> Refusal | None:
    if asked.is_preflight or _is_open(asked, rules) or shows_key(asked, rules):
        return None
    problem = "The API key is not one of this gateway's."
    if not _shown_keys(asked):
        problem = "An API key is missing."
    return Refusal(
        status=401,
        code="invalid_api_key",
        message=f"{problem} Send it as `Authorization: Bearer KEY` or `x-api-key: KEY`; it is the "
        f"one that the gateway was started with, by {KEY_VARIABLE} or --api-key-file.",
    )


def shows_key(asked: Asked, rules: Rules) -> bool:
    """Whether the request may be told everything: it brings a key, or none is asked for."""
    if not rules.keys:
        return True
    # Not any(): the time must not tell which key came near, or how near.
    return bool(sum([_same(key, one) for key in rules.keys for one in _shown_keys(asked)]))


def _shown_keys(asked: Asked) -> list[str]:
    found = list(asked.all(b"x-api-key"))
    for value in asked.all(b"authorization"):
        scheme, _, key = value.partition(" ")
        if scheme.lower() == "bearer":
            found.append(key.strip())
    return found


def _same(key: str, given: str) -> bool:
    """Compare in a time that depends on neither, their lengths included."""
    ours, theirs = (hashlib.sha256(text.encode()).digest() for text in (key, given))
    return hmac.compare_digest(ours, theirs)


def _is_open(asked: Asked, rules: Rules) -> bool:
    return asked.method in {"GET", "HEAD"} and any(
        asked.path == path or (path.endswith("/") and path != "/" and asked.path.startswith(path))
        for path in rules.open_paths
    )


def _judge_body(asked: Asked, rules: Rules) -> Refusal | None:
    length = asked.one(b"content-length")
    if length is not None and length.isdigit() and int(length) > rules.max_body_bytes:
        return too_long(rules)
    # A page elsewhere may send three types of body without asking first (fetch standard,
    # CORS-safelisted request-header), and JSON is none of them.
    media = (asked.one(b"content-type") or "").partition(";")[0].strip().lower()
    if not asked.has_body or media == "application/json" or media.endswith("+json"):
        return None
    return Refusal(
        status=415,
        code="not_json",
        message=f"The body is declared as {shown(media) if media else 'nothing'}, and this "
        "gateway takes JSON alone. Send the header `Content-Type: application/json`.",
    )


def too_long(rules: Rules) -> Refusal:
    """The refusal of a body that holds too much."""
    return Refusal(
        status=413,
        code="body_too_large",
        message=f"The body is longer than {rules.max_body_bytes} bytes. Send less, or start the "
        "gateway with a larger --max-body-bytes.",
    )


def shown(text: str) -> str:
    """A stranger's words, safe to print."""
    return repr(text[:_SHOWN_CHARS])
