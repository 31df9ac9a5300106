"""A smolagents model on a local engine: `pip install smolagents`, then hand it to an agent.

python examples/smolagents_model.py [MODEL]
"""

from __future__ import annotations

import json
import sys
from typing import Any

from smolagents import Model, ToolCallingAgent, tool
from smolagents.models import (
    ChatMessage,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    MessageRole,
    get_clean_message_list,
    get_tool_json_schema,
    tool_role_conversions,
)
from smolagents.monitoring import TokenUsage

from runtime import LlamaClient, LLMClient, LLMMessage, LLMRequest, ToolSpec, Usage


class ContractModel(Model):  # type: ignore[misc]  # untyped where smolagents is not installed
    """Any client of the contract, as smolagents wants its models."""

    def __init__(self, client: LLMClient) -> None:
        super().__init__(flatten_messages_as_text=True, model_id=client.default_model())
        self._client = client

    def generate(
        self,
        messages: list[Any],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, object] | None = None,
        tools_to_call_from: list[Any] | None = None,
        **kwargs: Any,
    ) -> ChatMessage:
        """Answer, or call one of the tools."""
        plain = get_clean_message_list(
            messages, role_conversions=tool_role_conversions, flatten_messages_as_text=True
        )
        functions = [get_tool_json_schema(each)["function"] for each in tools_to_call_from or ()]
        options: dict[str, object] = {"stop": stop_sequences} if stop_sequences else {}
        if functions:
            options = {"tool_choice": "required"}  # its agents go on until final_answer is called
        reply = self._client.generate(
            LLMRequest(
                messages=[LLMMessage(role=m["role"].value, content=m["content"]) for m in plain],
                tools=[
                    ToolSpec(
                        name=f["name"],
                        description=f["description"],
                        input_schema=f["parameters"],
                        output_schema={},
                    )
                    for f in functions
                ],
                response_format=response_format,
                max_tokens=kwargs.get("max_tokens", 512),
                provider_options=options,
            )
        )
        usage = reply.usage if isinstance(reply.usage, Usage) else Usage()
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            content=reply.text,
            tool_calls=[
                ChatMessageToolCall(
                    id=call.call_id,
                    type="function",
                    function=ChatMessageToolCallFunction(
                        name=call.name, arguments=json.loads(call.arguments_json)
                    ),
                )
                for call in reply.tool_calls
            ]
            or None,
            raw=reply,
            token_usage=TokenUsage(usage.prompt_tokens or 0, usage.completion_tokens or 0),
        )


@tool  # type: ignore[untyped-decorator]
def price(thing: str) -> float:
    """The price of one piece of a thing, in euros.

    Args:
        thing: Its name.
    """
    return {"apple": 0.5, "bread": 3.2, "milk": 1.4}.get(thing, 1.0)


if __name__ == "__main__":
    with LlamaClient(*sys.argv[1:2], ctx_size=8192, parallel=1) as client:
        agent = ToolCallingAgent(tools=[price], model=ContractModel(client), max_steps=4)
        print(agent.run("What does a bread cost?"))
