"""An engine that is given what an answer had goes on as the one that wrote it, to the last bit."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from runtime import LlamaClient, LLMChatParams, RestartPolicy
from runtime.engines.base import SameBits
from runtime.inference.taking_up import WRITTEN_AGAIN, steps
from tests.engine.bare_engine import bare_engine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine

PROMPT = "Once upon a time in a house by the river there was a clock that"
TOKENS = 150


@pytest.mark.parametrize(
    ("threads", "settings", "same_bits"),
    [
        pytest.param(1, {}, SameBits(step=63, context=None), id="1 thread"),
        pytest.param(2, {}, SameBits(step=63, context=256), id="2 threads, up to 256 tokens"),
        pytest.param(
            2, {"cache_type_k": "q8_0"}, SameBits(step=None, context=None), id="2 threads, q8_0"
        ),
    ],
)
def test_the_bits_are_the_same(
    tiny_model_path: Path, threads: int, settings: dict[str, Any], same_bits: SameBits
) -> None:
    """The logarithms of the likeliest tokens, digit for digit, of all that comes afterwards."""
    sizes = {"slot_ctx": 512, "parallel": 2, "physical_batch": 512}
    with bare_engine(tiny_model_path, threads=threads, **sizes, **settings) as engine:

        def said(prompt: list[int], tokens: int, slot: int) -> list[Any]:
            answer = engine.post(
                "/completion",
                prompt=prompt,
                n_predict=tokens,
                temperature=0,
                n_probs=3,
                ignore_eos=True,
                cache_prompt=True,
                id_slot=slot,
            )
            return [
                (place["id"], [(each["id"], each["logprob"]) for each in place["top_logprobs"]])
                for place in answer["completion_probabilities"]
            ]

        prompt = engine.post("/tokenize", content=PROMPT)["tokens"]
        written = said(prompt, TOKENS, 0)
        ids = [token for token, _ in written]
        planned = steps(100, prompt_tokens=len(prompt), same_bits=same_bits)
        assert planned[-1] == 100 - WRITTEN_AGAIN
        for given in planned[:-1]:
            said(prompt + ids[:given], 1, 1)
        assert said(prompt + ids[: planned[-1]], TOKENS - planned[-1], 1) == written[planned[-1] :]


def test_a_stream_goes_on_from_what_it_had(tiny_model_path: Path) -> None:
    options: dict[str, Any] = {"engine": "xllamacpp", "threads": 1, "ctx_size": 512}
    params = LLMChatParams(temperature=0, max_tokens=TOKENS, provider_options={"ignore_eos": True})
    at_once = RestartPolicy(backoff_base_s=0.0)
    with LlamaClient(str(tiny_model_path), use_gateway=False, restart=at_once, **options) as client:
        expected = client.chat(PROMPT, params=params)
        assert client.server
        for came in (40, 120):
            text, response = "", None
            for number, part in enumerate(client.stream_chat(PROMPT, params=params), 1):
                text += part.delta_text or ""
                response = part.response
                if number == came:
                    assert client.server.pid
                    os.kill(client.server.pid, signal.SIGKILL)
            assert response
            assert text == response.text == expected.text
            assert response.usage == expected.usage
            recovery: Any = (response.raw or {})["recovery"]
            (interruption,) = recovery["interruptions"]
            assert recovery["exact"]
            assert interruption["token"] >= came
            assert interruption["given"] >= came - WRITTEN_AGAIN - 8
