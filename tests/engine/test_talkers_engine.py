"""Who answers a workload: each of the three gets the same answer from the same server."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import jsonschema_rs
import openai
import pytest
from bench_talkers import HttpTalker, OpenAITalker

from runtime import LlamaClient
from runtime.errors import LLMProviderError
from runtime.tuning.running import run
from runtime.tuning.talkers import ClientTalker
from runtime.tuning.workloads import workload
from tests.engine.conftest import KEY

if TYPE_CHECKING:
    from runtime.tuning.talkers import Talker
    from tests.gateways import Gateway

pytestmark = pytest.mark.engine

SCALE = 0.1


def test_all_who_can_be_asked_get_the_same_answers(gateway_of_tools: Gateway) -> None:
    gateway = gateway_of_tools
    with (
        LlamaClient(base_url=gateway.url, api_key=KEY) as own,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as foreign,
    ):
        model = own.default_model()
        talkers: list[Talker] = [
            ClientTalker(own),
            HttpTalker(gateway.url, model=model, api_key=KEY),
            OpenAITalker(foreign, model),
        ]
        for name in ("free-text", "agent-loop", "json"):
            asked = workload(name, scale=SCALE)
            runs = [run(asked, talker) for talker in talkers]
            assert len({each.texts for each in runs}) == 1
            for number, each in enumerate(runs):
                (said,) = each.answers
                for question, answer in zip(asked.conversations[0], said, strict=True):
                    assert 0 < answer.first_token_s <= answer.total_s <= each.wall_s
                    assert 0 < answer.completion_tokens <= question.max_tokens
                    assert answer.prompt_tokens
                    if question.schema:
                        jsonschema_rs.validate(dict(question.schema), json.loads(answer.text))
                if number:  # the same prompts again
                    assert all((answer.cached_tokens or 0) > 0 for answer in said)


def test_a_refusal_is_no_answer(gateway_of_tools: Gateway) -> None:
    url = gateway_of_tools.url
    ((question,),) = workload("free-text", scale=SCALE).conversations
    with pytest.raises(LLMProviderError, match="401"):
        HttpTalker(url, api_key="wrong").ask(question)
    foreign = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with foreign, pytest.raises(LLMProviderError, match="401"):
        OpenAITalker(foreign, "tiny-chat").ask(question)
    with pytest.raises(LLMProviderError, match="hung up"):
        HttpTalker("http://127.0.0.1:1").ask(replace(question, max_tokens=1))
