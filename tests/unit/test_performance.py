"""What decides the speed of a launch, and why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engines.base import SameBits, Speculation
from runtime.engines.commands.llama_cpp_python import llama_cpp_python_command
from runtime.engines.commands.llama_server import llama_server_command
from runtime.engines.commands.xllamacpp import xllamacpp_command
from runtime.errors import ConfigError
from runtime.server.performance import (
    SPECULATIONS,
    Profile,
    choose_performance,
    waiting,
    within_batch,
)
from runtime.settings import ServerConfig
from tests.unit.some_cpu import budget
from tests.unit.some_launch import FLAGS, SPEC
from tests.unit.some_model import model

if TYPE_CHECKING:
    from runtime.server.performance import Performance

BUDGET = budget(4)
EXACT = replace(
    model().weights, matrices={"Q4_1": 60 << 20}, embedding={"Q8_0": 30 << 20}, tied_output=True
)


@pytest.fixture(autouse=True)
def no_threads_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_RUNTIME_THREADS", raising=False)


def performance(
    *, profile: Profile | None = None, on_gpu: bool = False, facts: Any = None, **settings: Any
) -> Performance:
    return choose_performance(
        ServerConfig(**settings),
        facts or model(weights=EXACT),
        "xllamacpp",
        budget=BUDGET,
        on_gpu=on_gpu,
        profile=profile,
    )


def test_the_user_s_word_counts_before_the_profile_and_the_profile_before_the_default() -> None:
    tuned = Profile(settings={"threads": 3, "flash_attn": "on"}, why="tuned")
    alone = performance()
    assert (alone.threads.value, alone.threads.why) == (4, BUDGET.why)
    assert (alone.threads_batch.value, alone.threads_batch.why) == (4, "as threads")
    profiled = performance(profile=tuned)
    assert (profiled.threads.value, profiled.threads.why) == (3, "tuned")
    assert profiled.threads_batch.value == 3
    assert (profiled.flash_attn.value, profiled.flash_attn.why) == ("on", "tuned")
    mine = performance(profile=tuned, threads=1, threads_batch=2, speculation="ngram-mod")
    assert (mine.threads.value, mine.threads.why) == (1, "set")
    assert mine.threads_batch.value == 2
    assert mine.speculation.value == SPECULATIONS["ngram-mod"]
    assert json.loads(json.dumps(mine.public()))["threads_batch"] == {"value": 2, "why": "set"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"on_gpu": True}, "GPU"),
        ({"facts": model()}, "Q4_K, Q6_K tensors"),
        ({"facts": model(weights=replace(EXACT, embedding={"Q6_K": 1}))}, "Q6_K tensors"),
        ({"facts": model(weights=EXACT, experts=8)}, "experts"),
        (
            {"facts": model(weights=EXACT, hyperparameters={"attention.sliding_window": 9})},
            "sliding windows",
        ),
        ({"facts": model(weights=EXACT, hyperparameters={"ssm.inner_size": 9})}, "recurrent"),
        ({"draft_model": "/d.gguf"}, "draft model"),
        ({"speculation": "off"}, "set"),
        ({"threads": 2}, "2 threads share"),
        ({"threads": 2, "cache_type_k": "f32"}, "2 threads share"),
        (
            {
                "threads": None,
                "profile": Profile(settings={"threads": 3}),
            },
            "3 threads share",
        ),
        ({"flash_attn": "off"}, "without flash attention"),
        (
            {"profile": Profile(settings={"flash_attn": "off"})},
            "without flash attention",
        ),
    ],
)
def test_speculation_is_off_where_it_was_not_shown_to_keep_answers(
    changes: dict[str, Any], why: str
) -> None:
    given: dict[str, Any] = {"threads": 1}
    chosen = performance(**(given | changes))
    assert chosen.speculation.value is None
    assert why in chosen.speculation.why


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, SameBits(step=63, context=256)),
        ({"threads": 1}, SameBits(step=63, context=None)),
        ({"cache_type_k": "q8_0"}, SameBits(step=None, context=None)),
        ({"flash_attn": "off"}, None),
        ({"facts": model()}, None),
        ({"on_gpu": True}, None),
        ({"lora": ("adapter.gguf",)}, None),
        ({"extra_args": ("n_ubatch=7",)}, None),
    ],
)
def test_where_several_tokens_have_the_bits_of_one(
    settings: dict[str, Any], expected: SameBits | None
) -> None:
    assert performance(**settings).same_bits == expected


def test_long_prompts_are_begun_two_at_a_time_where_that_was_measured() -> None:
    assert performance().prompts_at_once.value == 2
    assert performance(on_gpu=True).prompts_at_once.value is None
    assert performance(prompts_at_once=7, on_gpu=True).prompts_at_once.value == 7
    assert performance().public()["prompts_at_once"]["why"]


def test_how_threads_wait_is_chosen_unless_the_user_has() -> None:
    assert waiting({"PATH": "/bin"}) == {"GOMP_SPINCOUNT": "1000"}
    assert waiting({"GOMP_SPINCOUNT": "7"}) == {}
    assert waiting({"OMP_WAIT_POLICY": "active"}) == {}


def test_tuning_turns_speculation_on_where_it_keeps_answers() -> None:
    tuned = Profile(settings={"speculation": "ngram-simple"})
    assert performance(threads=1).speculation.value is None
    assert "logprobs" in performance(threads=1).speculation.why
    chosen = performance(threads=1, profile=tuned).speculation
    assert (chosen.value, chosen.why) == (SPECULATIONS["ngram-simple"], tuned.why)
    exact = performance(threads=8, cache_type_k="q8_0", profile=tuned)
    assert exact.speculation.value is not None
    assert exact.drafts_show is None
    allowed = performance(threads=8, profile=tuned).speculation
    assert allowed.value is not None
    assert allowed.why.startswith("tuned profile, although: 8 threads share")
    asked_for = performance(threads=8, speculation="ngram-mod").speculation
    assert asked_for.value == SPECULATIONS["ngram-mod"]
    assert asked_for.why.startswith("set, although: 8 threads share")
    # An embedding that is not multiplied with does not count.
    apart = replace(EXACT, embedding={"Q6_K": 1}, tied_output=False)
    chosen = performance(threads=1, facts=model(weights=apart), profile=tuned).speculation
    assert chosen.value is not None


def test_no_draft_makes_a_step_of_64_tokens() -> None:
    assert all(made.draft_tokens + 1 < 64 for made in SPECULATIONS.values())


def test_drafts_that_no_batch_can_hold_are_refused_or_left_out() -> None:
    """Seen with 5 slots and a batch of 32: the engine aborts, whatever is asked."""
    set_so = performance(speculation="ngram-simple")
    tuned = performance(profile=Profile(settings={"speculation": "ngram-simple"}))

    assert within_batch(set_so, slots=4, batch_tokens=68, draft_model=None) == set_so
    with pytest.raises(ConfigError, match="drafts of 4 slots take 68 tokens a step") as caught:
        within_batch(set_so, slots=4, batch_tokens=67, draft_model=None)
    assert "batch_size=68" in (caught.value.hint or "")
    left_out = within_batch(tuned, slots=4, batch_tokens=67, draft_model=None).speculation
    assert (left_out.value, left_out.why[:4]) == (None, "off:")
    with pytest.raises(ConfigError, match="and a batch 32"):
        within_batch(performance(), slots=2, batch_tokens=32, draft_model="small")


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="ubatch_size = 512 is part of batch_size = 256"):
        ServerConfig(batch_size=256, ubatch_size=512)
    with pytest.raises(ConfigError, match="only one can"):
        ServerConfig(draft_model="/d.gguf", speculation="ngram-mod")


def test_each_engine_is_told_of_threads_and_batches() -> None:
    spec = replace(SPEC, threads_batch=3, physical_batch=128, logical_batch=1024)
    params = json.loads(xllamacpp_command(spec, python="p", host=Path("h")).stdin)
    assert (params["cpuparams.n_threads"], params["cpuparams_batch.n_threads"]) == (2, 3)
    assert (params["n_batch"], params["n_ubatch"]) == (1024, 128)
    native = " ".join(llama_server_command(spec, binary=Path("/b"), flags=FLAGS).argv)
    assert "--threads 2 --threads-batch 3" in native
    assert "--batch-size 1024 --ubatch-size 128" in native
    bound = json.loads(llama_cpp_python_command(spec, python="p", host=Path("h")).stdin)
    assert (bound["N_THREADS"], bound["N_THREADS_BATCH"]) == ("2", "3")
    assert (bound["N_BATCH"], bound["N_UBATCH"]) == ("1024", "128")
    alone = replace(SPEC, physical_batch=64)
    params = json.loads(xllamacpp_command(alone, python="p", host=Path("h")).stdin)
    assert (params["n_batch"], params["n_ubatch"]) == (64, 64)
    assert params["cpuparams_batch.n_threads"] == 2


def test_each_engine_is_told_how_to_draft() -> None:
    simple = replace(
        SPEC, speculation=Speculation(kind="ngram-simple", match_tokens=5, draft_tokens=15)
    )
    params = json.loads(xllamacpp_command(simple, python="p", host=Path("h")).stdin)
    assert params["speculative.types"] == {"speculative_types": ["ngram-simple"]}
    assert params["speculative.ngram_simple.size_n"] == 5
    assert params["speculative.ngram_simple.size_m"] == 15
    native = " ".join(llama_server_command(simple, binary=Path("/b"), flags=FLAGS).argv)
    assert (
        "--spec-type ngram-simple --spec-ngram-simple-size-n 5 --spec-ngram-simple-size-m 15"
        in native
    )
    pooled = replace(
        SPEC,
        speculation=Speculation(
            kind="ngram-mod", match_tokens=6, draft_tokens=20, draft_min_tokens=2
        ),
    )
    params = json.loads(xllamacpp_command(pooled, python="p", host=Path("h")).stdin)
    sizes = [params[f"speculative.ngram_mod.n_{name}"] for name in ("match", "min", "max")]
    assert sizes == [6, 2, 20]
    native = " ".join(llama_server_command(pooled, binary=Path("/b"), flags=FLAGS).argv)
    assert "--spec-ngram-mod-n-match 6" in native
    assert "--spec-ngram-mod-n-min 2 --spec-ngram-mod-n-max 20" in native


@pytest.mark.parametrize("lacking", ["--spec-type", "--spec-ngram-simple-size-m"])
def test_an_engine_that_cannot_draft_so_does_not_and_says_it(lacking: str) -> None:
    spec = replace(SPEC, speculation=SPECULATIONS["ngram-simple"])
    native = llama_server_command(spec, binary=Path("/b"), flags=FLAGS - {lacking})
    assert not any(word.startswith("--spec") for word in native.argv)
    assert any("left out speculation ngram-simple" in note for note in native.notes)
    bound = llama_cpp_python_command(spec, python="p", host=Path("h"))
    assert any("left out speculation" in note for note in bound.notes)
