"""The stream of a chat completion, checked against the types of OpenAI's own client."""

from __future__ import annotations

import json

from openai.types.chat import ChatCompletionChunk

from runtime.gateway import openai
from tests.unit.gateway_answers import call, pieces, response


def test_thoughts_are_told_apart() -> None:
    whole = response("So.", call(), raw={"reasoning": "Hm, well."})
    encoder = openai.encoder(openai.request({"messages": [{"role": "user", "content": "Hi."}]}))
    data = encoder.begin("tiny") + b"".join(map(encoder.piece, pieces(whole)))
    data += encoder.end(whole)

    *events, done = [part.removeprefix("data: ") for part in data.decode().split("\n\n")[:-1]]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]

    assert done == "[DONE]"
    for event in events:
        ChatCompletionChunk.model_validate_json(event)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, well."
    assert "".join(delta.get("content", "") for delta in deltas) == "So."
    assert [next(iter(delta)) for delta in deltas[1:4]] == ["reasoning_content"] * 3
