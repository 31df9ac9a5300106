"""What a launch needs, what fits, and what is said about what does not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import ConfigError, ModelTooLargeError
from runtime.hardware import Memory
from runtime.settings import ServerConfig
from runtime.store.fit import (
    check_fits,
    elastic_limits,
    fit_sizes,
    largest_context,
    margin_bytes,
)
from runtime.store.gguf import WeightSizes
from runtime.store.memory_plan import (
    ALL_LAYERS,
    PlanRequest,
    Split,
    copied_types,
    plan,
)
from runtime.store.sizing import _largest_batch
from tests.unit.some_model import MIB, model

if TYPE_CHECKING:
    from runtime.store.gguf import ModelFacts

GIB = 1 << 30
NOTHING: frozenset[str] = frozenset()


def ram(available: int, total: int | None = None) -> Memory:
    """A machine with so much memory."""
    return Memory(
        total_bytes=total or available,
        available_bytes=available,
        limit_bytes=None,
        effective_total_bytes=total or available,
        effective_available_bytes=available,
        why="this machine's memory",
    )


def request(facts: ModelFacts | None = None, **changes: Any) -> PlanRequest:
    """A launch of Llama 3 8B on a processor that copies nothing."""
    values: dict[str, Any] = {"slot_ctx": 4096, "copied_types": NOTHING} | changes
    return PlanRequest(facts=facts or model(), **values)


def smollm2() -> ModelFacts:
    """SmolLM2-135M Q4_1, the figures its file gives."""
    return model(
        layers=30,
        embedding_length=576,
        heads=9,
        kv_heads=3,
        key_length=64,
        value_length=64,
        feed_forward_length=1536,
        vocab_size=49_152,
        merges=48_900,
        weights=WeightSizes(
            layers=(2_216_448,) * 30,
            input=30_081_024,
            output=2304,
            matrices={"Q4_1": 66_355_200},
            embedding={"Q8_0": 30_081_024},
            tied_output=True,
        ),
    )


# --- the parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "logged_mib"),
    [
        ({"slot_ctx": 1024}, 102.65),
        ({"slot_ctx": 4096}, 105.65),
        ({"slot_ctx": 8192}, 109.65),
        ({"slot_ctx": 1024, "embeddings": False}, 15.64),
        ({"slot_ctx": 8192, "embeddings": False}, 22.64),
        ({"slot_ctx": 4096, "flash_attn": "off"}, 110.40),
    ],
)
def test_compute_buffers_are_those_that_the_engine_logs(
    options: dict[str, Any], logged_mib: float
) -> None:
    """Beside them stand the results of a batch: with embeddings, those of all 512 tokens."""
    made = plan(request(smollm2(), parallel=4, **options))

    outputs, width = (4, 0) if options.get("embeddings") is False else (512, 576)
    results = outputs * (49_152 + width) * 4
    assert (made.compute.host_bytes - results) / MIB == pytest.approx(logged_mib, rel=0.01)


def test_a_mixture_computes_with_the_experts_in_use() -> None:
    dense = plan(request(embeddings=False)).compute.host_bytes
    few = model(experts=64, experts_used=2, hyperparameters={"expert_feed_forward_length": 1024})
    many = model(experts=64, experts_used=16, hyperparameters={"expert_feed_forward_length": 1024})

    less, more = (
        plan(request(facts, embeddings=False)).compute.host_bytes for facts in (few, many)
    )

    assert less == dense  # the dense layers at its beginning decide
    assert more - dense == 512 * 4 * (16 * 4096 - 3 * 14336)


def test_weights_count_in_full() -> None:
    made = plan(request())

    assert made.weights == Split((130 * 32 + 280 + 410) * MIB)
    assert made.file_pages_bytes == 0
    assert made.resident_bytes == made.host_bytes == made.total_bytes
    assert made.host_bytes == sum(part.host_bytes for part in made.parts.values())


def test_a_copy_of_weights_shows_in_the_resident_size_but_is_not_needed_twice() -> None:
    made = plan(request(copied_types=frozenset({"Q4_K"})))

    assert made.weights == plan(request()).weights
    assert made.file_pages_bytes == 3200 * MIB
    assert made.resident_bytes - made.host_bytes == 3200 * MIB


def test_a_tied_output_in_a_copied_type_is_needed_twice() -> None:
    tied = replace(model().weights, tied_output=True)

    plain = plan(request(model(weights=tied)))
    copied = plan(request(model(weights=tied), copied_types=frozenset({"Q4_K"})))

    assert copied.weights.host_bytes - plain.weights.host_bytes == 280 * MIB


@pytest.mark.parametrize(
    ("machine", "features", "types"),
    [
        ("x86_64", {"avx", "avx2"}, {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"}),
        ("x86_64", {"avx"}, set()),
        ("aarch64", {"asimddp"}, {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q5_K", "Q6_K", "Q8_0"}),
        ("aarch64", {"asimd"}, set()),
        ("arm64", set(), {"Q4_0", "Q4_K", "IQ4_NL", "MXFP4", "Q5_K", "Q6_K", "Q8_0"}),
        ("riscv64", {"v"}, set()),
    ],
)
def test_what_is_copied_depends_on_the_processor(
    machine: str, features: set[str], types: set[str]
) -> None:
    assert copied_types(machine, frozenset(features)) == types


def test_the_vocabulary_counts_with_the_process() -> None:
    """Measured: 200 bytes for a token, 250 for a merge, 38 MiB for a process without either."""
    assert plan(request(model(vocab_size=0, merges=0))).overhead == Split(38 * MIB)
    assert plan(request(smollm2())).overhead == Split(38 * MIB + 49_152 * 200 + 48_900 * 250)


def test_layers_go_to_the_gpu_from_the_end() -> None:
    made = plan(request(gpu_layers=10))

    assert made.weights == Split((130 * 22 + 280 + 410) * MIB, 1300 * MIB)
    assert made.kv_cache == Split(22 * 16 * MIB, 10 * 16 * MIB)
    assert made.compute.gpu_bytes
    assert made.uncertain


@pytest.mark.parametrize("layers", [33, ALL_LAYERS])
def test_the_output_goes_to_the_gpu_last(layers: int) -> None:
    made = plan(request(gpu_layers=layers))

    assert made.weights == Split(280 * MIB, (130 * 32 + 410) * MIB)
    assert made.kv_cache == Split(0, 512 * MIB)
    assert made.compute.host_bytes < made.compute.gpu_bytes


def test_a_tied_output_on_the_gpu_is_a_copy_of_the_embedding() -> None:
    tied = replace(model().weights, tied_output=True, output=0)

    made = plan(request(model(weights=tied), gpu_layers=ALL_LAYERS))

    assert made.weights == Split(280 * MIB, (130 * 32 + 280) * MIB)


def test_projector_draft_and_adapters_are_added() -> None:
    projector = model("clip", kind="mmproj", size_bytes=600 * MIB)
    bare = plan(request())

    made = plan(request(projector=projector, draft=smollm2(), adapter_bytes=50 * MIB))

    assert made.projector == Split(600 * MIB)
    assert made.weights.host_bytes - bare.weights.host_bytes == 50 * MIB
    draft = plan(request(smollm2()))
    assert 0 < draft.host_bytes - made.draft.host_bytes < 64 * MIB  # one process for both
    assert made.draft.host_bytes > draft.weights.host_bytes + draft.kv_cache.host_bytes
    assert any("projector" in doubt for doubt in made.uncertain)


@pytest.mark.parametrize(
    ("context", "width", "logged_mib"), [(512, 384, 7.26), (512, 768, 14.01), (2048, 768, 62.05)]
)
def test_an_encoder_computes_its_whole_context_at_once_and_keeps_nothing(
    context: int, width: int, logged_mib: float
) -> None:
    facts = model(
        "bert",
        layers=12,
        is_embedding_model=True,
        context_train=context,
        embedding_length=width,
        heads=12,
        kv_heads=12,
        key_length=width // 12,
        value_length=width // 12,
        feed_forward_length=4 * width,
        vocab_size=256,
    )

    made = plan(request(facts, slot_ctx=context, batch=context))

    assert made.kv_cache == Split()
    results = context * (256 + width) * 4
    assert (made.compute.host_bytes - results) / MIB == pytest.approx(logged_mib, rel=0.01)


def test_a_quantized_value_cache_needs_flash_attention() -> None:
    with pytest.raises(ConfigError, match="flash attention, which is off"):
        plan(request(cache_type_v="q8_0", flash_attn="off"))

    plan(request(cache_type_v="q8_0", flash_attn="auto"))


def test_ngram_mod_has_one_table_for_all_slots_of_each_engine() -> None:
    def needed(**settings: Any) -> int:
        return plan(request(parallel=4, draft=smollm2(), **settings)).host_bytes

    table = needed(speculation="ngram-mod") - needed(speculation="off")
    assert table == 16 * MIB
    assert needed(speculation="ngram-simple") == needed(speculation="off")
    both = needed(speculation="ngram-mod", standby=True) - needed(speculation="off", standby=True)
    assert both == 2 * table


def test_doubts_about_the_architecture_reach_the_plan() -> None:
    assert plan(request(model("brand-new"))).uncertain


# --- what fits ----------------------------------------------------------------------------------


@given(available=st.integers(0, 12 * GIB), parallel=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_the_largest_context_fits_and_the_next_does_not(available: int, parallel: int) -> None:
    asked = request(parallel=parallel)

    found = largest_context(asked, available)

    assert found % 256 == 0
    assert found <= 8192
    if found:
        assert plan(replace(asked, slot_ctx=found)).host_bytes <= available
    if found < 8192:
        assert plan(replace(asked, slot_ctx=found + 256)).host_bytes > available


def test_a_training_context_of_odd_length_is_given_whole() -> None:
    assert largest_context(request(model(context_train=1000)), 64 * GIB) == 1000


def test_the_largest_context_can_be_bounded() -> None:
    assert largest_context(request(), 64 * GIB, most=2048) == 2048


def test_a_plan_that_fits_passes() -> None:
    check_fits(plan(request()), ram(16 * GIB))


def test_what_cannot_fit_is_refused_with_the_numbers_and_what_would() -> None:
    made = plan(request(slot_ctx=8192, parallel=4))
    available = made.host_bytes - GIB

    with pytest.raises(ModelTooLargeError) as caught:
        check_fits(made, ram(available))

    error = caught.value
    assert (error.needed_bytes, error.available_bytes) == (made.host_bytes, available)
    assert "A model with 4 slots of 8,192 tokens needs" in error.message
    assert f"{made.host_bytes / GIB:.2f} GiB" in error.message
    assert "KV cache 4.00 GiB" in error.message
    found = largest_context(made.request, available)
    assert error.hint == f"ctx_size={found} with parallel=4 would fit."


def test_slots_are_given_up_where_no_context_fits_them() -> None:
    smallest = plan(request(slot_ctx=256, parallel=1)).host_bytes
    made = plan(request(slot_ctx=8192, parallel=64))

    with pytest.raises(ModelTooLargeError) as caught:
        check_fits(made, ram(smallest + 64 * MIB))

    assert caught.value.hint is not None
    assert caught.value.hint.endswith("with parallel=1 would fit.")


def test_where_nothing_fits_a_smaller_model_is_named() -> None:
    with pytest.raises(ModelTooLargeError) as caught:
        check_fits(plan(request()), ram(GIB))

    assert "use a smaller model or quantization" in (caught.value.hint or "")


# --- sizes chosen by themselves -----------------------------------------------------------------


def test_with_plenty_the_training_context_and_four_slots_are_taken() -> None:
    sizes = fit_sizes(request(), ram(64 * GIB), ctx_size="auto", parallel="auto")

    assert (sizes.plan.request.slot_ctx, sizes.plan.request.parallel) == (8192, 4)
    assert sizes.why.startswith("what the model was trained for, with 6.40 GiB of 64.00 GiB left")


def test_a_margin_is_left_free() -> None:
    memory = ram(9 * GIB)

    sizes = fit_sizes(request(), memory, ctx_size="auto", parallel=4)

    assert margin_bytes(memory) == 9 * GIB // 10
    room = 9 * GIB - margin_bytes(memory)
    assert sizes.plan.host_bytes <= room
    made = sizes.plan.request
    assert plan(replace(made, slot_ctx=made.slot_ctx + 256)).host_bytes > room
    assert "the most that fits" in sizes.why


def test_slots_are_given_up_before_a_good_context() -> None:
    two = plan(request(slot_ctx=8192, parallel=2)).host_bytes

    sizes = fit_sizes(
        request(), ram(two + 600 * MIB, total=4 * GIB), ctx_size="auto", parallel="auto"
    )

    assert (sizes.plan.request.slot_ctx, sizes.plan.request.parallel) == (8192, 2)


def test_slots_alone_can_be_chosen() -> None:
    two = plan(request(slot_ctx=4096, parallel=2)).host_bytes

    sizes = fit_sizes(request(), ram(two + 600 * MIB, total=GIB), ctx_size=4096, parallel="auto")

    assert (sizes.plan.request.slot_ctx, sizes.plan.request.parallel) == (4096, 2)
    assert "as many slots as fit" in sizes.why


def test_sizes_that_were_set_stay() -> None:
    sizes = fit_sizes(request(), ram(GIB), ctx_size=512, parallel=3)

    made = sizes.plan.request
    assert (made.slot_ctx, made.parallel, sizes.why) == (512, 3, "both were set")


@pytest.mark.parametrize("sizes", [("auto", "auto"), ("auto", 2), (4096, "auto")])
def test_where_not_even_the_smallest_fits_it_is_refused(sizes: tuple[Any, Any]) -> None:
    with pytest.raises(ModelTooLargeError, match="left free"):
        fit_sizes(request(), ram(2 * GIB), ctx_size=sizes[0], parallel=sizes[1])


def test_optional_caches_get_half_of_what_is_left() -> None:
    windowed = model("gemma2", hyperparameters={"attention.sliding_window": 1024})
    made = plan(request(windowed, parallel=2))
    room = 4 * GIB
    memory = ram(made.host_bytes + margin_bytes(ram(GIB)) + room, total=GIB)

    limits = elastic_limits(made, memory)

    assert limits.prompt_cache_bytes == GIB
    assert made.checkpoint_bytes == 16 * 1024 * 4096
    assert limits.checkpoints == GIB // (2 * made.checkpoint_bytes) == 8


def test_optional_caches_are_never_larger_than_the_engine_s_own() -> None:
    limits = elastic_limits(plan(request()), ram(256 * GIB))

    assert (limits.prompt_cache_bytes, limits.checkpoints) == (8 * GIB, 32)


def test_where_nothing_is_left_there_are_no_optional_caches() -> None:
    windowed = model("gemma2", hyperparameters={"attention.sliding_window": 1024})

    limits = elastic_limits(plan(request(windowed)), ram(4 * GIB))

    assert (limits.prompt_cache_bytes, limits.checkpoints) == (0, 0)


def test_the_margin_is_a_tenth_and_never_small() -> None:
    assert margin_bytes(ram(2 * GIB)) == 512 * MIB
    assert margin_bytes(ram(4 * GIB, total=64 * GIB)) == 64 * GIB // 10


@pytest.mark.parametrize("embedder", [False, True])
@pytest.mark.parametrize("parallel", [1, 3, 5, 256, "auto"])
@pytest.mark.parametrize("batch_size", [None, 1000])
def test_the_batch_is_a_multiple_of_the_slots_where_texts_are_embedded(
    embedder: bool, parallel: Any, batch_size: int | None
) -> None:
    """llama.cpp aborts otherwise. What only embeds has room for a whole context in one batch."""
    facts = replace(model(), is_embedding_model=embedder)
    config = ServerConfig(parallel=parallel, ctx_size=768, batch_size=batch_size)
    batch = _largest_batch(config, facts)
    assert batch % (4 if parallel == "auto" else parallel) == 0
    least = 768 if embedder and not batch_size else batch_size or 512
    slots = parallel if isinstance(parallel, int) else 4
    assert least - slots < batch < least + slots
    if embedder or batch_size:
        assert batch >= least
    alone = config.model_copy(update={"embeddings": False})
    assert _largest_batch(alone, facts) == batch_size or 512


def test_a_standby_takes_all_of_a_second_engine_but_the_mapped_weights() -> None:
    """Rearranged copies of tensors, the cache and the working memory are its own."""
    alone, doubled = plan(request()), plan(request(standby=True))
    assert doubled.standby.host_bytes == alone.host_bytes - alone.weights.host_bytes
    assert doubled.host_bytes == alone.host_bytes + doubled.standby.host_bytes
    assert doubled.resident_bytes == alone.resident_bytes, "the serving engine's own is the same"
    assert alone.standby == Split()
    copied = plan(request(copied_types=frozenset(model().weights.matrices), standby=True))
    assert copied.standby.host_bytes >= doubled.standby.host_bytes + copied.file_pages_bytes
    on_gpu = plan(request(gpu_layers=ALL_LAYERS, standby=True))
    assert on_gpu.standby.gpu_bytes > on_gpu.weights.gpu_bytes, "a GPU maps no file"


def test_a_standby_that_does_not_fit_is_refused_with_the_way_out() -> None:
    doubled = plan(request(standby=True))
    check_fits(doubled, ram(doubled.host_bytes))
    with pytest.raises(ModelTooLargeError, match="standby engine") as caught:
        check_fits(doubled, ram(doubled.host_bytes - MIB))
    assert caught.value.hint == "It would fit without the standby engine (standby=False)."
    with pytest.raises(ModelTooLargeError) as caught:
        check_fits(doubled, ram(plan(request()).host_bytes - MIB))
    assert "standby" not in str(caught.value.hint)
