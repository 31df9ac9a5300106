"""Drafts change when an answer comes, never the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime import LlamaClient, LLMCapabilityError, LLMChatParams

if TYPE_CHECKING:
    from pathlib import Path

    from runtime import LLMResponse

pytestmark = pytest.mark.engine

TEXT = "one two three four five six seven eight " * 20
SHAPES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.0, "provider_options": {"stop": ["zzz", "e f"]}},
)


def answers(
    model: Path, options: dict[str, Any], speculation: Any
) -> tuple[list[LLMResponse], Any]:
    """What is said to the same questions, and what the server tells of its drafts."""
    with LlamaClient(
        str(model), ctx_size=1024, threads=1, parallel=1, speculation=speculation, **options
    ) as client:
        said = []
        for seed, shape in enumerate(SHAPES):
            own = {"seed": seed, **shape.get("provider_options", {})}
            params = LLMChatParams(max_tokens=96, **{**shape, "provider_options": own})
            said.append(client.chat(TEXT, params=params))
        assert client.server
        return said, client.server.snapshot().performance["speculation"]


def accepted(said: list[LLMResponse]) -> int:
    timings: list[Any] = [(each.raw or {}).get("timings") or {} for each in said]
    return sum(each.get("draft_n_accepted", 0) for each in timings)


def test_answers_are_the_same_with_drafts_and_without(
    tiny_model_path: Path, engine_options: dict[str, Any]
) -> None:
    """Where an engine cannot draft, it says so; nothing is compared with itself unseen."""
    plain, off = answers(tiny_model_path, engine_options, "auto")
    drafted, on = answers(tiny_model_path, engine_options, "ngram-mod")

    assert off["value"] is None
    assert on["why"].startswith("set")
    assert [each.text for each in drafted] == [each.text for each in plain]
    assert [each.usage for each in drafted] == [each.usage for each in plain]
    assert [each.finish_reason for each in drafted] == [each.finish_reason for each in plain]
    assert accepted(plain) == 0
    assert (accepted(drafted) > 0) == (engine_options["engine"] != "llama-cpp-python")


def test_probabilities_that_drafts_would_falsify_are_refused(tiny_model_path: Path) -> None:
    """The engine tells 0.0 for a drafted token; by default there are none, so they are told."""
    params = LLMChatParams(max_tokens=8, provider_options={"logprobs": True, "top_logprobs": 2})
    for speculation in ("auto", "ngram-mod"):
        with LlamaClient(
            str(tiny_model_path), engine="xllamacpp", threads=1, speculation=speculation
        ) as client:
            if speculation == "auto":
                assert client.chat(TEXT, params=params).raw_output
            else:
                with pytest.raises(LLMCapabilityError, match="drafts tokens"):
                    client.chat(TEXT, params=params)
