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
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runtime import (
    LlamaClient,
    LLMBadResponseError,
    LLMChatParams,
    LLMError,
    LLMInvalidRequestError,
)
from runtime.inference import schema as schemas

PROMPT = "Write a plausible example as JSON."


@dataclass
class Tally:
    """How a series of requests went."""

    outcomes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        """A line of the table."""
        kinds = ("valid", "refused", "failed", "cut off", "silently wrong")
        counts = "".join(f"{self.outcomes[kind]:>9}" for kind in kinds)
        return f"{name:<10}{counts}{self.tokens:>9}{self.seconds:>9.1f}"


def judged(text: str, document: Any) -> bool:
    """Whether a text is valid; what is no schema judges nothing."""
    try:
        schemas.judge(text, schemas.check(document))
    except LLMBadResponseError:
        return False
    return True


def raw(client: LlamaClient, document: Any, args: argparse.Namespace, tally: Tally) -> None:
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
        "seed": 1,
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
    except (OSError, http.client.HTTPException):
        tally.outcomes["failed"] += 1
        return
    finally:
        connection.close()
        tally.seconds += time.monotonic() - started
    if answer.status != 200:
        tally.outcomes["refused"] += 1
        return
    tally.tokens += parsed["usage"]["completion_tokens"]
    choice = parsed["choices"][0]
    if judged(choice["message"]["content"] or "", document):
        tally.outcomes["valid"] += 1
    else:
        tally.outcomes["cut off" if choice["finish_reason"] == "length" else "silently wrong"] += 1


def ours(client: LlamaClient, name: str, document: Any, args: argparse.Namespace, tally: Tally) -> None:  # fmt: skip  # noqa: E501
    """Ask through the client."""
    params = LLMChatParams(
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        response_schema=document,
        provider_options={"seed": 1, "on_truncation": args.on_truncation},
    )
    started = time.monotonic()
    try:
        reply = client.chat(PROMPT, params=params)
    except LLMInvalidRequestError as exc:
        tally.outcomes["refused"] += 1
        tally.notes.append(f"refused {name}: {exc.message[:150]}")
    except LLMError as exc:
        tally.outcomes["failed"] += 1
        tally.notes.append(f"failed {name}: {type(exc).__name__}: {exc.message[:150]}")
    else:
        valid = judged(reply.text, document)
        tally.outcomes["valid" if valid else "silently wrong"] += 1
        if reply.raw and (note := reply.raw.get("structured_output")) and isinstance(note, dict):
            tally.outcomes["closed"] += bool(note["closed"])
        if not isinstance(reply.usage, dict) and reply.usage is not None:
            tally.tokens += reply.usage.completion_tokens or 0
    finally:
        tally.seconds += time.monotonic() - started


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("schemas", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--on-truncation", choices=["error", "close"], default="close")
    parser.add_argument("--limit", type=int, help="only so many schemas, evenly spread")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--skip-raw", action="store_true")
    parser.add_argument("--raw-timeout", type=float, default=60.0, help="seconds")
    args = parser.parse_args()
    with LlamaClient(args.model, ctx_size=4096, parallel=1, threads=args.threads) as client:
        entries = json.loads(args.schemas.read_text("utf-8"))
        entries = entries[:: max(1, len(entries) // args.limit)] if args.limit else entries
        engine, runtime = Tally(), Tally()
        for number, entry in enumerate(entries, 1):
            ours(client, entry["id"], entry["schema"], args, runtime)
            if not args.skip_raw:
                raw(client, entry["schema"], args, engine)
            if sys.stderr.isatty() or number % 10 == 0:
                print(f"{number}/{len(entries)} {dict(runtime.outcomes)}", file=sys.stderr)
    for note in runtime.notes:
        print(note)
    kinds = ("valid", "refused", "failed", "cut off", "wrong", "tokens", "seconds")
    print(f"{'':<10}" + "".join(f"{kind:>9}" for kind in kinds))
    if not args.skip_raw:
        print(engine.row("engine"))
    print(runtime.row("runtime"), f"  closed: {runtime.outcomes['closed']}")


if __name__ == "__main__":
    main()
