"""Structured answers and tool calls, measured: the bare engine beside this runtime.

    python scripts/schema_bench.py SCHEMAS.json [--model REF] [--max-tokens N] [--limit N] ...

SCHEMAS.json is a list of objects with ``id`` and ``schema``. Each schema goes through the engine's
own ``response_format`` and through the client; every answer is judged by the schema itself. With
``--tools`` the tool-call table over a dozen sets of tools is measured instead.
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
    LLMMessage,
    LLMRequest,
    ToolSpec,
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


def tool_sets() -> list[list[ToolSpec]]:
    """A dozen sets of tools, 1 to 20 in each."""
    text: dict[str, Any] = {"type": "string", "maxLength": 40}
    kinds: list[tuple[str, dict[str, Any], list[str]]] = [
        ("get_weather", {"city": text, "unit": {"enum": ["C", "F"]}}, ["city", "unit"]),
        ("add", {"x": {"type": "integer"}, "y": {"type": "integer"}}, ["x", "y"]),
        ("search", {"query": {**text, "minLength": 1}, "limit": {"minimum": 1, "maximum": 9,
                    "type": "integer"}}, ["query"]),
        ("send", {"to": {**text, "format": "email"}, "body": text}, ["to", "body"]),
        ("book", {"day": {"type": "string", "format": "date"}}, ["day"]),
        ("tag", {"tags": {"type": "array", "items": text, "maxItems": 4, "minItems": 1}}, ["tags"]),
        ("move", {"to": {"type": "object", "properties": {"x": {"type": "number", "minimum": 0,
                  "maximum": 1}, "y": {"$ref": "#/properties/to/properties/x"}},
                  "required": ["x", "y"], "additionalProperties": False}}, ["to"]),
        ("order", {"code": {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"}}, ["code"]),
        ("now", {}, []),
        ("set", {"value": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}}, ["value"]),
    ]  # fmt: skip

    def made(index: int) -> ToolSpec:
        name, properties, required = kinds[index % len(kinds)]
        document: dict[str, object] = {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
        ending = f"_{index // len(kinds)}" if index >= len(kinds) else ""
        return ToolSpec(
            name=name + ending,
            description=f"Use it to {name}.",
            input_schema=document,
            output_schema={},
        )

    alone = [[made(index)] for index in range(8)]
    return [*alone, [made(i) for i in range(5)], [made(i) for i in range(5, 10)],
            [made(i) for i in range(10)], [made(i) for i in range(20)]]  # fmt: skip


def tool_table(client: LlamaClient, args: argparse.Namespace) -> None:
    """Required calls, set by set."""
    print(f"{'tools':<34}{'valid':>7}{'failed':>7}{'wrong':>7}{'seconds':>9}")
    for tools in tool_sets():
        outcomes: Counter[str] = Counter()
        box = {tool.name: tool for tool in tools}
        started = time.monotonic()
        for seed in range(args.calls):
            request = LLMRequest(
                messages=[LLMMessage(role="user", content="Do what is most useful in Paris.")],
                tools=tools,
                max_tokens=args.max_tokens,
                temperature=args.temperature,
                provider_options={"tool_choice": "required", "seed": seed},
            )
            try:
                calls = client.generate(request).tool_calls
            except LLMError as exc:
                outcomes["failed"] += 1
                print(f"  {type(exc).__name__}: {exc.message[:150]}", file=sys.stderr)
                continue
            right = bool(calls) and all(
                judged(call.arguments_json, box[call.name].input_schema) for call in calls
            )
            outcomes["valid" if right else "wrong"] += 1
        counts = "".join(f"{outcomes[kind]:>7}" for kind in ("valid", "failed", "wrong"))
        name = f"{len(tools)}: {tools[0].name}"
        print(f"{name:<34}{counts}{time.monotonic() - started:>9.1f}", flush=True)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("schemas", type=Path, nargs="?")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--on-truncation", choices=["error", "close"], default="close")
    parser.add_argument("--limit", type=int, help="only so many schemas, evenly spread")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--skip-raw", action="store_true")
    parser.add_argument("--raw-timeout", type=float, default=60.0, help="seconds")
    parser.add_argument("--tools", action="store_true", help="the tool-call table")
    parser.add_argument("--calls", type=int, default=17, help="calls for each set of tools")
    args = parser.parse_args()
    with LlamaClient(args.model, ctx_size=4096, parallel=1, threads=args.threads) as client:
        if args.tools:
            tool_table(client, args)
            return
        if args.schemas is None:
            parser.error("a schema file is needed, or --tools")
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
