"""The cache of each kind of layer, against sizes that llama.cpp logs for well-known models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ConfigError
from runtime.store import architectures
from runtime.store.kv_cache import cache_sizes, padded_context
from tests.unit.some_model import MIB, model

if TYPE_CHECKING:
    from runtime.store.gguf import ModelFacts
    from runtime.store.kv_cache import CacheSizes


def cache(facts: ModelFacts, slot_ctx: int = 8192, parallel: int = 1, **options: Any) -> CacheSizes:
    """Its cache in half precision, with flash attention."""
    settings: dict[str, Any] = {
        "type_k": "f16",
        "type_v": "f16",
        "batch": 512,
        "flash_attn": True,
    } | options
    return cache_sizes(facts, slot_ctx=slot_ctx, parallel=parallel, **settings)


@pytest.mark.parametrize(
    ("types", "mebibytes"),
    [
        ({}, 1024),
        ({"type_k": "f32", "type_v": "f32"}, 2048),
        ({"type_k": "q8_0", "type_v": "q8_0"}, 544),
        ({"type_k": "q8_0", "type_v": "q4_0"}, 416),
        ({"type_k": "iq4_nl", "type_v": "q5_1"}, 144 + 192),
    ],
)
def test_llama_3_8b(types: dict[str, Any], mebibytes: int) -> None:
    """8192 tokens take 1 GiB in half precision, and as much less as their blocks are smaller."""
    sizes = cache(model(), **types)

    assert sum(sizes.layers) == mebibytes * MIB
    assert len(set(sizes.layers)) == 1
    assert sizes.uncertain == ()
    assert sizes.checkpoint_bytes == 0


def test_slots_multiply_it_and_contexts_are_rounded_up() -> None:
    assert [padded_context(tokens) for tokens in (1, 256, 257)] == [256, 256, 512]
    assert sum(cache(model(), 1000, 4).layers) == 4 * 1024 * 128 * 1024


def test_heads_may_differ_by_layer() -> None:
    facts = model(layers=4, kv_heads=(8, 0, 2, 8))

    assert [size // (256 * 128 * 4) for size in cache(facts, 256).layers] == [8, 0, 2, 8]
    # Without flash attention values are stored transposed, all as wide as the widest.
    wide = cache(facts, 256, flash_attn=False).layers
    assert [size // (256 * 128 * 2) for size in wide] == [16, 8, 10, 16]


def test_gemma_3_4b_looks_back_through_a_window_in_five_of_six_layers() -> None:
    facts = model(
        "gemma3",
        layers=34,
        kv_heads=4,
        key_length=256,
        value_length=256,
        hyperparameters={"attention.sliding_window": 1024},
    )

    sizes = cache(facts)

    assert sizes.window_cells == 1536
    dense = [layer for layer, size in enumerate(sizes.layers) if size == 32 * MIB]
    assert dense == [5, 11, 17, 23, 29]
    assert sum(sizes.layers) == (160 + 174) * MIB
    assert sizes.checkpoint_bytes == 29 * 1024 * 4096


def test_a_window_is_no_larger_than_the_context() -> None:
    facts = model("gemma2", hyperparameters={})  # its window of 4096 stands in llama.cpp's code

    assert cache(facts, 1024).window_cells == 1024
    assert cache(facts, 8192).window_cells == 4608


def test_gpt_oss_20b() -> None:
    facts = model(
        "gpt-oss",
        layers=24,
        key_length=64,
        value_length=64,
        hyperparameters={"attention.sliding_window": 128},
    )

    sizes = cache(facts)

    assert sizes.window_cells == 768
    assert sum(sizes.layers[0::2]) == 18 * MIB
    assert sum(sizes.layers[1::2]) == 192 * MIB


def test_a_model_whose_file_lists_its_windows() -> None:
    facts = model(
        "gemma4",
        layers=6,
        kv_heads=(8, 8, 2, 8, 8, 2),
        key_length=512,
        value_length=512,
        hyperparameters={
            "attention.sliding_window": 512,
            "attention.sliding_window_pattern": (True, True, False, True, True, False),
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "attention.shared_kv_layers": 2,
        },
    )

    sizes = cache(facts, 4096)

    window, dense = 1024 * 8 * 256 * 4, 4096 * 2 * 512 * 4
    assert sizes.layers == (window, window, dense, window, 0, 0)


@pytest.mark.parametrize(
    ("architecture", "hyperparameters", "windowed"),
    [
        ("cohere2", {"attention.sliding_window": 256}, [0, 1, 2]),
        ("laguna", {"attention.sliding_window": 256}, [1, 2, 3]),
        ("olmo2", {}, []),
        ("phi3", {"attention.sliding_window": 256}, []),
        ("llama", {"attention.sliding_window": 256}, []),
        (
            "gemma3",
            {"attention.sliding_window": 256, "attention.sliding_window_pattern": 2},
            [0, 2],
        ),
        ("exaone4", {"attention.sliding_window": 256}, []),
        ("llama4", {"attention.sliding_window": 0}, []),
    ],
)
def test_which_layers_have_a_window(
    architecture: str, hyperparameters: dict[str, Any], windowed: list[int]
) -> None:
    facts = model(architecture, layers=4, hyperparameters=hyperparameters)

    sizes = cache(facts, 65536).layers

    assert [layer for layer, size in enumerate(sizes) if size < max(sizes)] == windowed


def test_deepseek_keeps_latent_keys_and_no_values() -> None:
    facts = model(
        "deepseek2",
        layers=27,
        kv_heads=1,
        key_length=576,
        value_length=512,
        hyperparameters={"attention.key_length_mla": 192, "attention.value_length_mla": 128},
    )

    assert sum(cache(facts, 4096).layers) == 27 * 4096 * 576 * 2


def test_mamba_130m_keeps_a_state_whatever_the_context() -> None:
    facts = model(
        "mamba",
        layers=24,
        heads=0,
        kv_heads=0,
        embedding_length=768,
        hyperparameters={"ssm.conv_kernel": 4, "ssm.inner_size": 1536, "ssm.state_size": 16},
    )

    sizes = cache(facts, 8192, 2)

    assert sum(sizes.layers) == 2 * 24 * 4 * (3 * 1536 + 16 * 1536)
    assert sum(cache(facts, 512, 2).layers) == sum(sizes.layers)
    assert sizes.checkpoint_bytes == sum(sizes.layers) // 2


def test_rwkv_keeps_its_own_kind_of_state() -> None:
    facts = model("rwkv6", embedding_length=2048, hyperparameters={"wkv.head_size": 64})

    assert cache(facts).layers == (4 * 2048 * (2 + 64),) * 32


def test_lfm2_has_both_kinds_of_layers() -> None:
    facts = model(
        "lfm2",
        layers=3,
        embedding_length=1024,
        kv_heads=(0, 8, 0),
        key_length=64,
        value_length=64,
        hyperparameters={"shortconv.l_cache": 3},
    )

    assert cache(facts, 4096).layers == (1024 * 2 * 4, 4096 * 512 * 4, 1024 * 2 * 4)


def test_every_fourth_layer_of_qwen3next_attends() -> None:
    facts = model(
        "qwen3next",
        layers=8,
        kv_heads=2,
        key_length=256,
        value_length=256,
        hyperparameters={
            "ssm.conv_kernel": 4,
            "ssm.inner_size": 4096,
            "ssm.state_size": 128,
            "ssm.group_count": 16,
        },
    )

    state = 4 * (3 * (4096 + 2 * 16 * 128) + 128 * 4096)
    attention = 256 * 512 * 4
    assert cache(facts, 256).layers == (state, state, state, attention) * 2


def test_falcon_h1_attends_and_keeps_a_state_in_every_layer() -> None:
    facts = model(
        "falcon-h1",
        layers=2,
        hyperparameters={"ssm.conv_kernel": 4, "ssm.inner_size": 8, "ssm.state_size": 2},
    )

    assert cache(facts, 256).layers == (256 * 1024 * 4 + 4 * (3 * 8 + 16),) * 2


def test_a_layer_of_nemotron_h_does_one_of_three_things() -> None:
    facts = model(
        "nemotron_h",
        layers=3,
        kv_heads=(0, 0, 8),
        feed_forward_length=(0, 21504, 0),
        hyperparameters={"ssm.conv_kernel": 4, "ssm.inner_size": 8, "ssm.state_size": 2},
    )

    assert cache(facts, 256).layers == (4 * (3 * 8 + 16), 0, 256 * 1024 * 4)


def test_layers_for_predicting_more_tokens_have_no_cache() -> None:
    facts = model("glm4moe", layers=4, hyperparameters={"nextn_predict_layers": 1})

    assert [size > 0 for size in cache(facts).layers] == [True, True, True, False]


def test_gemma3n_shares_the_cache_of_its_first_twenty_layers() -> None:
    facts = model("gemma3n", layers=35, hyperparameters={"attention.sliding_window": 512})

    assert [layer for layer, size in enumerate(cache(facts).layers) if size] == list(range(20))


def test_an_encoder_has_no_cache() -> None:
    assert sum(cache(model("bert", layers=12)).layers) == 0


def test_an_unknown_architecture_is_computed_with_a_doubt() -> None:
    sizes = cache(model("brand-new"))

    assert sum(sizes.layers) == 1024 * MIB
    assert "brand-new is not known" in sizes.uncertain[0]


def test_an_architecture_with_more_than_keys_and_values_is_computed_with_a_doubt() -> None:
    assert "keeps more" in cache(model("deepseek32")).uncertain[0]


@pytest.mark.parametrize("setting", ["type_k", "type_v"])
def test_a_quantized_cache_wants_heads_of_whole_blocks(setting: str) -> None:
    facts = model(key_length=80, value_length=80)

    options: dict[str, Any] = {setting: "q8_0"}

    with pytest.raises(ConfigError, match=f"cache_{setting}='q8_0'.* 80 wide"):
        cache(facts, **options)


def test_every_architecture_is_in_one_group() -> None:
    groups = [
        architectures.WITHOUT_CACHE,
        architectures.RECURRENT,
        architectures.PARALLEL,
        frozenset(architectures.INTERVAL),
        architectures.SPECIAL,
        architectures.PLAIN,
        architectures.RECURRENT_WITHOUT_HEADS | frozenset(architectures.WINDOWS),
    ]

    assert sum(len(group) for group in groups) == len(architectures.KNOWN)
