"""A draft model that really drafts, and changes no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime import LlamaClient, LLMChatParams
from runtime.errors import ConfigError
from runtime.testing.tiny_model import TinyShape, build_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engine


def test_answers_are_the_same_with_a_draft_model(
    tiny_model_path: Path, tmp_path: Path, engine_options: dict[str, Any]
) -> None:
    """The model drafts for itself, so that its drafts are taken; `auto` without a gain is off."""
    if engine_options["engine"] == "llama-cpp-python":
        pytest.skip("it takes no draft model")
    twin = tmp_path / "twin.gguf"
    twin.write_bytes(tiny_model_path.read_bytes())
    settings = {"ctx_size": 512, "parallel": 1, "threads": 1, **engine_options}

    def answers(client: LlamaClient) -> list[str]:
        options: dict[str, object] = {"seed": 5, "ignore_eos": True}
        both = (
            LLMChatParams(temperature=heat, max_tokens=40, provider_options=options)
            for heat in (0.0, 0.8)
        )
        return [client.chat("Tell me more.", params=params).text for params in both]

    with LlamaClient(str(tiny_model_path), speculation="off", draft_model="auto", **settings) as c:
        assert c.server is not None
        plain, auto = answers(c), c.server.snapshot().draft
    assert auto["path"] is None
    assert "names no draft model" in str(auto["why"])
    with LlamaClient(str(tiny_model_path), draft_model=str(twin), **settings) as c:
        assert c.server is not None
        drafted, told = answers(c), c.server.snapshot().draft
    assert drafted == plain
    assert told["path"] == str(twin)
    assert int(str(told["accepted"])) > 0


def test_a_draft_model_of_another_vocabulary_is_refused_by_name(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    other = build_tiny_model(tmp_path / "other.gguf", shape=TinyShape(vocabulary=600))
    with pytest.raises(ConfigError, match=r"other\.gguf cannot draft for tiny-chat\.gguf"):
        LlamaClient(str(tiny_model_path), draft_model=str(other))
