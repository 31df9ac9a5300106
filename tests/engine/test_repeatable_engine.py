"""What docs/recovery.md says of when an engine repeats itself to the last bit."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.bare_engine import bare_engine

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.bare_engine import BareEngine

pytestmark = pytest.mark.engine

WORDS = ("river", "moon", "bread", "clock", "winter", "house", "ants", "glass", "stone", "fire")
SLOTS = 4


def prompt(words: int) -> str:
    chance = random.Random(words)
    return "Write about " + " ".join(chance.choice(WORDS) for _ in range(words))


def likely(engine: BareEngine, text: str, *, cached: bool, slot: int = -1) -> tuple[list[Any], int]:
    """The likeliest tokens at each place with their exact logarithms, and what was reused."""
    said = engine.post(
        "/completion",
        prompt=text,
        n_predict=8,
        temperature=0,
        n_probs=3,
        cache_prompt=cached,
        id_slot=slot,
    )
    places = said["completion_probabilities"]
    tokens = [[(each["id"], each["logprob"]) for each in place["top_logprobs"]] for place in places]
    return tokens, said["timings"]["cache_n"]


def test_small_batches_make_answers_independent_of_cache_and_company(
    tiny_model_path: Path,
) -> None:
    """Otherwise a replay after a crash, which finds no cache, could not be exact.

    Some name their slot, also one that is busy: a similarity above zero has the engine bring a copy
    of another prompt into it then, under the answer that is being written there.
    """
    texts = [prompt(words) for words in (5, 12, 20, 40, 60)]
    settings = {"slot_ctx": 512, "parallel": SLOTS, "physical_batch": 32, "threads": 1}
    with bare_engine(tiny_model_path, **settings, prompt_cache_bytes=64 << 20) as engine:
        alone = {text: likely(engine, text, cached=False)[0] for text in texts}
        chance, reused = random.Random(3), 0

        def one(_: int) -> None:
            nonlocal reused
            text = chance.choice(texts)
            slot = chance.choice((-1, *range(SLOTS)))
            tokens, from_cache = likely(engine, text, cached=chance.random() < 0.7, slot=slot)
            reused += from_cache > 0
            assert tokens == alone[text]

        with ThreadPoolExecutor(SLOTS) as pool:
            list(pool.map(one, range(80)))
    assert reused > 10
