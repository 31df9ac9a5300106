"""An agent of a foreign framework on a local model: tools, results fed back, a structured answer.

python examples/agent_loop.py [MODEL]
"""

from __future__ import annotations

import json
import sys

from foreign_agent import Agent, Tool

from runtime import LlamaClient

PRICES = {"apple": 0.5, "bread": 3.2, "milk": 1.4}

look_up = Tool(
    name="price",
    description="The price of one piece of a thing, in euros.",
    input_schema={
        "type": "object",
        "properties": {"thing": {"type": "string", "enum": sorted(PRICES)}},
        "required": ["thing"],
        "additionalProperties": False,
    },
    function=lambda thing: {"euros": PRICES[thing]},
)
answer_schema: dict[str, object] = {
    "type": "object",
    "properties": {
        "thing": {"type": "string", "enum": sorted(PRICES)},
        "euros": {"type": "number", "minimum": 0, "maximum": 1000},
    },
    "required": ["thing", "euros"],
    "additionalProperties": False,
}

with LlamaClient(*sys.argv[1:2]) as client:
    agent = Agent(client, [look_up], system="You answer questions about prices. Use the tool.")
    result = agent.run(
        "What does a bread cost?",
        answer_schema=answer_schema,
        on_text=lambda text: print(text, end="", file=sys.stderr, flush=True),
    )
    for turn in result.turns:
        calls = ", ".join(f"{call.name}({call.arguments_json})" for call in turn.tool_calls)
        print(f"{turn.role}: {turn.content or calls}", file=sys.stderr)
    print(json.dumps(result.answer))
