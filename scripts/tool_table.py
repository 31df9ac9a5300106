"""Tool calls, measured: required calls over a dozen sets of tools of this script's own.

    python scripts/tool_table.py [--model REF] [--engine KIND] [--calls N] [--several] ...

Every call is judged by its tool's own schema. The table tells for each set how many answers were
valid, failed by name, or were wrong and yet a success; the last must stay 0.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import Any

from runtime import LlamaClient, LLMBadResponseError, LLMError, LLMMessage, LLMRequest, ToolSpec
from runtime.inference import schema as schemas

_TEXT: dict[str, Any] = {"type": "string", "maxLength": 40}
_UNIT = {"type": "number", "minimum": 0, "maximum": 1}
_POINT = {
    "type": "object",
    "properties": {"x": _UNIT, "y": {"$ref": "#/properties/to/properties/x"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
_KINDS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("get_weather", {"city": _TEXT, "unit": {"enum": ["C", "F"]}}, ["city", "unit"]),
    ("add", {"x": {"type": "integer"}, "y": {"type": "integer"}}, ["x", "y"]),
    (
        "search",
        {
            "query": {**_TEXT, "minLength": 1},
            "limit": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        ["query"],
    ),
    ("send", {"to": {**_TEXT, "format": "email"}, "body": _TEXT}, ["to", "body"]),
    ("book", {"day": {"type": "string", "format": "date"}}, ["day"]),
    ("tag", {"tags": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 4}}, ["tags"]),
    ("move", {"to": _POINT}, ["to"]),
    ("order", {"code": {"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"}}, ["code"]),
    ("now", {}, []),
    ("set", {"value": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}}, ["value"]),
]


def _tool(index: int) -> ToolSpec:
    name, properties, required = _KINDS[index % len(_KINDS)]
    document: dict[str, object] = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    ending = f"_{index // len(_KINDS)}" if index >= len(_KINDS) else ""
    return ToolSpec(
        name=name + ending,
        description=f"Use it to {name}.",
        input_schema=document,
        output_schema={},
    )


def tool_sets() -> list[list[ToolSpec]]:
    """A dozen sets of tools, 1 to 20 in each."""
    alone = [[_tool(index)] for index in range(8)]
    return [
        *alone,
        [_tool(index) for index in range(5)],
        [_tool(index) for index in range(5, 10)],
        [_tool(index) for index in range(10)],
        [_tool(index) for index in range(20)],
    ]


def _valid(arguments: str, document: dict[str, object]) -> bool:
    try:
        schemas.judge(arguments, schemas.check(document))
    except LLMBadResponseError:
        return False
    return True


def _outcome(
    client: LlamaClient, tools: list[ToolSpec], args: argparse.Namespace, seed: int
) -> str:
    request = LLMRequest(
        messages=[LLMMessage(role="user", content="Do what is most useful in Paris.")],
        tools=tools,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        provider_options={
            "tool_choice": "required",
            "parallel_tool_calls": args.several,
            "on_truncation": args.on_truncation,
            "seed": seed,
        },
    )
    box = {tool.name: tool for tool in tools}
    try:
        calls = client.generate(request).tool_calls
    except LLMError as exc:
        print(f"  {type(exc).__name__}: {exc.message[:150]}", file=sys.stderr)
        return "failed"
    if not calls or any(call.name not in box for call in calls):
        return "wrong"
    right = all(_valid(call.arguments_json, box[call.name].input_schema) for call in calls)
    return "valid" if right else "wrong"


def tool_table(client: LlamaClient, args: argparse.Namespace) -> None:
    """Required calls, set by set."""
    print(f"tools: {client.capabilities().tool_calling}")
    print(f"{'tools':<34}{'valid':>7}{'failed':>7}{'wrong':>7}{'seconds':>9}")
    total: Counter[str] = Counter()
    began = time.monotonic()
    for tools in tool_sets():
        started = time.monotonic()
        outcomes = Counter(_outcome(client, tools, args, seed) for seed in range(args.calls))
        total += outcomes
        _row(f"{len(tools)}: {tools[0].name}", outcomes, time.monotonic() - started)
    _row("all", total, time.monotonic() - began)


def _row(name: str, outcomes: Counter[str], seconds: float) -> None:
    counts = "".join(f"{outcomes[kind]:>7}" for kind in ("valid", "failed", "wrong"))
    print(f"{name:<34}{counts}{seconds:>9.1f}", flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--engine-path")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--on-truncation", choices=["error", "close"], default="error")
    parser.add_argument("--several", action="store_true", help="several calls in one answer")
    parser.add_argument("--calls", type=int, default=17, help="calls for each set of tools")
    args = parser.parse_args()
    named: dict[str, Any] = {"engine_path": args.engine_path} if args.engine_path else {}
    with LlamaClient(
        args.model, ctx_size=4096, parallel=1, threads=args.threads, engine=args.engine, **named
    ) as client:
        tool_table(client, args)


if __name__ == "__main__":
    main()
