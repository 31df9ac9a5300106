"""Structured answers, measured: the bare engine beside this runtime.

    python scripts/schema_bench.py SCHEMAS.json [--model REF] [--max-tokens N] [--limit N] ...

SCHEMAS.json is a list of objects with ``id`` and ``schema``. Each schema goes through the engine's
own ``response_format`` and through the client; every answer is judged by the schema itself. The
tool-call table is scripts/tool_table.py.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from runtime import (
    LlamaClient,
    LLMBadResponseError,
    LLMChatParams,
    LLMError,
    LLMInvalidRequestError,
    Usage,
)
from runtime.errors import CutOffError
from runtime.inference import schema as schemas

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT = "Write a plausible example as JSON."


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one request.

    Attributes:
        kind: valid, refused, failed, cut off, or silently wrong.
        seconds: How long it took.
        tokens: How many were decoded, as far as is known.
        closed: Whether the answer was completed by the client.
        attempts: How often the model was asked.
        reason: Why it is not valid.
    """

    kind: str
    seconds: float
    tokens: int = 0
    closed: bool = False
    attempts: int = 1
    reason: str = ""


KINDS = ("valid", "refused", "failed", "cut off", "silently wrong")


def row(name: str, outcomes: Sequence[Outcome]) -> str:
    """A line of the table."""
    counts = Counter(each.kind for each in outcomes)
    share = counts["valid"] / max(1, len(outcomes))
    tokens = sum(each.tokens for each in outcomes)
    seconds = sum(each.seconds for each in outcomes)
    numbers = "".join(f"{counts[kind]:>15}" for kind in KINDS)
    return f"{name:<9}{share:>7.1%}{numbers}{tokens:>9}{seconds:>9.1f}"


def judged(text: str, document: Any) -> bool:
    """Whether a text is valid; what is no schema judges nothing."""
    try:
        schemas.judge(text, schemas.check(document))
    except LLMBadResponseError:
        return False
    return True


def raw(client: LlamaClient, document: Any, args: argparse.Namespace) -> Outcome:
    """Ask the engine itself, in its own way."""
    server = client.server
    if server is None:
        raise SystemExit("The bench starts its own server.")
    endpoint = server.endpoint(60)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": document}}
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": PROMPT}],
        "response_format": form,
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {endpoint.api_key}"}
    connection = http.client.HTTPConnection(
        urlsplit(endpoint.base_url).netloc, timeout=args.raw_timeout
    )
    started = time.monotonic()
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        parsed = json.loads(answer.read())
    except (OSError, http.client.HTTPException) as exc:
        return Outcome(kind="failed", seconds=time.monotonic() - started, reason=repr(exc))
    finally:
        connection.close()
    seconds = time.monotonic() - started
    if answer.status != 200:
        return Outcome(kind="refused", seconds=seconds, reason=str(parsed)[:300])
    choice = parsed["choices"][0]
    kind = "cut off" if choice["finish_reason"] == "length" else "silently wrong"
    if judged(choice["message"]["content"] or "", document):
        kind = "valid"
    return Outcome(kind=kind, seconds=seconds, tokens=parsed["usage"]["completion_tokens"])


def ours(client: LlamaClient, document: Any, args: argparse.Namespace) -> Outcome:
    """Ask through the client."""
    params = LLMChatParams(
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        response_schema=document,
        provider_options={"seed": args.seed, "on_truncation": args.on_truncation},
    )
    started = time.monotonic()
    try:
        reply = client.chat(PROMPT, params=params)
    except LLMError as exc:
        kind = "refused" if isinstance(exc, LLMInvalidRequestError) else "failed"
        kind = "cut off" if type(exc) is CutOffError else kind
        reason = f"{type(exc).__name__}: {exc.message[:300]}"
        return Outcome(kind=kind, seconds=time.monotonic() - started, reason=reason)
    seconds = time.monotonic() - started
    note = (reply.raw or {}).get("structured_output")
    noted: dict[str, Any] = note if isinstance(note, dict) else {}
    tokens = reply.usage.completion_tokens if isinstance(reply.usage, Usage) else None
    return Outcome(
        kind="valid" if judged(reply.text, document) else "silently wrong",
        seconds=seconds,
        tokens=tokens or 0,
        closed=bool(noted.get("closed")),
        attempts=noted.get("attempts", 1),
    )


def as_json(found: dict[str, dict[str, Outcome]]) -> str:
    """Every outcome by schema and by who was asked."""
    return json.dumps(
        {name: {k: asdict(o) for k, o in each.items()} for name, each in found.items()}
    )


def schema_table(client: LlamaClient, entries: list[Any], args: argparse.Namespace) -> None:
    """Every schema through the client, and through the bare engine unless that is skipped."""
    lock = threading.Lock()
    found: dict[str, dict[str, Outcome]] = {}
    began = time.monotonic()

    def one(entry: Any) -> None:
        made = {"runtime": ours(client, entry["schema"], args)}
        if not args.skip_raw:
            made["engine"] = raw(client, entry["schema"], args)
        with lock:
            found[entry["id"]] = made
            mine = made["runtime"]
            if mine.kind != "valid":
                print(f"{mine.kind}: {entry['id']}: {mine.reason}", flush=True)
            if len(found) % 10 == 0 or sys.stderr.isatty():
                counts = dict(Counter(each["runtime"].kind for each in found.values()))
                elapsed = time.monotonic() - began
                print(f"{len(found)}/{len(entries)} {elapsed:.0f} s {counts}", file=sys.stderr)
            if args.json:
                args.json.write_text(as_json(found), "utf-8")

    with ThreadPoolExecutor(args.slots) as pool:
        list(pool.map(one, entries))
    print(f"{'':<9}{'share':>7}" + "".join(f"{kind:>15}" for kind in KINDS) + "   tokens  seconds")
    for name in ("runtime",) if args.skip_raw else ("engine", "runtime"):
        print(row(name, [each[name] for each in found.values()]))
    mine = [each["runtime"] for each in found.values()]
    closed, again = sum(each.closed for each in mine), sum(each.attempts > 1 for each in mine)
    print(f"closed: {closed}, asked again: {again}, {time.monotonic() - began:.0f} s in all")


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("schemas", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--on-truncation", choices=["error", "close"], default="close")
    parser.add_argument("--offset", type=int, default=0, help="leave out so many schemas")
    parser.add_argument("--limit", type=int, help="only so many schemas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slots", type=int, default=1, help="schemas at a time")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--skip-raw", action="store_true")
    parser.add_argument("--raw-timeout", type=float, default=60.0, help="seconds")
    args = parser.parse_args()
    with LlamaClient(
        args.model, ctx_size=4096, parallel=args.slots, threads=args.threads
    ) as client:
        entries = json.loads(args.schemas.read_text("utf-8"))[args.offset :]
        schema_table(client, entries[: args.limit], args)


if __name__ == "__main__":
    main()
