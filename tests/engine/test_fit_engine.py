"""The memory plan against what an engine really takes. ``pytest -s`` prints the table."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from runtime.store.gguf import read_facts
from runtime.store.memory_plan import PlanRequest, plan
from runtime.testing.tiny_model import GgufDraft, TinyShape, build_tiny_model
from tests.engine.bare_engine import bare_engine

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.store.memory_plan import MemoryPlan
    from tests.engine.bare_engine import BareEngine

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(sys.platform != "linux", reason="resident size means something else there"),
]

MIB = 1 << 20
TOLERANCE = 0.15
# So large that what the process itself takes does not decide.
GROUPED = TinyShape(
    layers=4,
    heads=16,
    kv_heads=4,
    key_length=64,
    embedding_length=768,
    feed_forward_length=2048,
    vocabulary=8192,
)
MULTI_HEAD = TinyShape(
    layers=4, heads=12, kv_heads=12, key_length=64, embedding_length=768, feed_forward_length=2048
)


def resident(engine: BareEngine) -> int:
    """The process's resident size in bytes: pages of the mapped model file count too."""
    size: int = psutil.Process(engine.pid).memory_info().rss
    return size


def exercise(engine: BareEngine) -> None:
    """A batch as full as can be, whose every token is an output."""
    engine.post("/v1/embeddings", input=[[40] * 504])


def measure(name: str, path: Path, slot_ctx: int, parallel: int = 4, **options: Any) -> None:
    """Launches, exercises, compares and prints one line."""
    made = plan(
        PlanRequest(facts=read_facts(path), slot_ctx=slot_ctx, parallel=parallel, **options)
    )
    arguments = ("cache_ram_mib=0",)  # old prompts are kept within limits of their own
    with bare_engine(
        path, slot_ctx=slot_ctx, parallel=parallel, extra_args=arguments, **options
    ) as engine:
        at_rest = resident(engine)
        exercise(engine)
        peak = resident(engine)
    error = made.resident_bytes / peak - 1
    print(
        f"\n{name:18} {parallel} x {slot_ctx:5}: ready {at_rest / MIB:7.1f} MiB, in use "
        f"{peak / MIB:7.1f}, planned {made.resident_bytes / MIB:7.1f} ({error:+.1%})  "
        + ", ".join(f"{part} {size.host_bytes / MIB:.1f}" for part, size in made.parts.items()),
        end="",
    )
    assert abs(error) < TOLERANCE
    assert at_rest < peak


@pytest.mark.parametrize("slot_ctx", [512, 2048, 8192])
def test_smollm2_takes_what_was_planned(smollm2_path: Path, slot_ctx: int) -> None:
    measure("SmolLM2-135M Q4_1", smollm2_path, slot_ctx)


@pytest.mark.parametrize(
    ("name", "shape", "slot_ctx"),
    [("grouped-query f16", GROUPED, 4096), ("multi-head f16", MULTI_HEAD, 2048)],
)
def test_models_of_other_shapes_take_what_was_planned(
    tmp_path: Path, name: str, shape: TinyShape, slot_ctx: int
) -> None:
    measure(name, build_tiny_model(tmp_path / "model.gguf", shape=shape), slot_ctx)


def test_a_quantized_cache_takes_what_was_planned(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "model.gguf", shape=MULTI_HEAD)

    measure("with a q8_0 cache", path, 2048, cache_type_k="q8_0", cache_type_v="q8_0")


def test_weights_that_the_engine_copies_are_foreseen(tmp_path: Path) -> None:
    """On processors for which it rearranges a type, it keeps both the file's pages and a copy."""
    shape = TinyShape(embedding_length=512, feed_forward_length=1024, tensor_type="q4_0")
    path = build_tiny_model(tmp_path / "model.gguf", shape=shape)
    made = plan(PlanRequest(facts=read_facts(path), slot_ctx=256))

    with bare_engine(path, slot_ctx=256, parallel=1, extra_args=("verbosity=5",)) as engine:
        copied = logged(engine, r"CPU_REPACK model buffer")

    assert copied == pytest.approx(made.file_pages_bytes / MIB, abs=0.02)


def logged(engine: BareEngine, buffer: str) -> float:
    """Mebibytes of all buffers of a kind, as the engine logs them."""
    sizes = re.findall(rf"{buffer} size = +([\d.]+) MiB", "".join(engine.log))
    return sum(float(size) for size in sizes)


def logged_cache(engine: BareEngine) -> float:
    """Mebibytes of keys, values and recurrent states."""
    return logged(engine, "(?:KV|RS) buffer")


def planned_cache(made: MemoryPlan) -> float:
    return made.kv_cache.host_bytes / MIB


def test_the_cache_of_plain_layers_is_exact(tiny_model_path: Path) -> None:
    made = plan(PlanRequest(facts=read_facts(tiny_model_path), slot_ctx=1000, parallel=2))

    with bare_engine(
        tiny_model_path, slot_ctx=1000, parallel=2, extra_args=("verbosity=5",)
    ) as engine:
        assert logged_cache(engine) == pytest.approx(planned_cache(made), abs=0.01)


def test_the_cache_of_sliding_windows_is_exact(tmp_path: Path) -> None:
    path = windowed_model(tmp_path / "model.gguf")
    made = plan(PlanRequest(facts=read_facts(path), slot_ctx=4096, parallel=2))

    with bare_engine(path, slot_ctx=4096, parallel=2, extra_args=("verbosity=5",)) as engine:
        assert logged_cache(engine) == pytest.approx(planned_cache(made), abs=0.02)
    plain = plan(PlanRequest(facts=read_facts(tmp_path / "model.gguf"), slot_ctx=512, parallel=2))
    assert planned_cache(made) < 8 * planned_cache(plain)


def windowed_model(path: Path) -> Path:
    """A Gemma 2 with random weights: every other of its layers looks back 300 tokens."""
    width, heads, length, inner = 64, 4, 32, 128
    draft = GgufDraft(path, "gemma2", TinyShape(layers=5, context=8192))
    file = draft.file
    file.add_head_count_kv(heads)
    file.add_key_length(length)
    file.add_value_length(length)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_sliding_window(300)
    tokens = draft.add_chat_vocabulary("{{ messages[0]['content'] }}").tokens
    draft.matrix("token_embd.weight", draft.random(len(tokens), width))
    ones = np.ones(width, np.float32)
    for layer in range(5):
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            draft.vector(f"blk.{layer}.{name}.weight", ones)
        for name, rows, columns in (
            ("attn_q", heads * length, width),
            ("attn_k", heads * length, width),
            ("attn_v", heads * length, width),
            ("attn_output", width, heads * length),
            ("ffn_gate", inner, width),
            ("ffn_up", inner, width),
            ("ffn_down", width, inner),
        ):
            draft.matrix(f"blk.{layer}.{name}.weight", draft.random(rows, columns, 0.1))
    draft.vector("output_norm.weight", ones)
    draft.close()
    return path


def test_the_state_of_recurrent_layers_is_exact(tmp_path: Path) -> None:
    path = recurrent_model(tmp_path / "model.gguf")
    made = plan(PlanRequest(facts=read_facts(path), slot_ctx=1024, parallel=2))

    with bare_engine(path, slot_ctx=1024, parallel=2, extra_args=("verbosity=5",)) as engine:
        assert logged_cache(engine) == pytest.approx(planned_cache(made), abs=0.01)


def recurrent_model(path: Path) -> Path:
    """A Mamba with random weights."""
    width, inner, state, kernel, rank = 64, 128, 16, 4, 8
    draft = GgufDraft(
        path, "mamba", TinyShape(layers=4, heads=0, feed_forward_length=0, tensor_type="f16")
    )
    file = draft.file
    file.add_ssm_conv_kernel(kernel)
    file.add_ssm_inner_size(inner)
    file.add_ssm_state_size(state)
    file.add_ssm_time_step_rank(rank)
    file.add_layer_norm_rms_eps(1e-5)
    tokens = draft.add_chat_vocabulary("{{ messages[0]['content'] }}").tokens
    draft.matrix("token_embd.weight", draft.random(len(tokens), width))
    for layer in range(4):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("ssm_in", 2 * inner, width),
            ("ssm_x", rank + 2 * state, inner),
            ("ssm_dt", inner, rank),
            ("ssm_out", width, inner),
        ):
            draft.matrix(f"{block}.{name}.weight", draft.random(rows, columns, 0.1))
        draft.vector(f"{block}.attn_norm.weight", np.ones(width, np.float32))
        draft.vector(f"{block}.ssm_conv1d.weight", draft.random(inner, kernel))
        draft.vector(f"{block}.ssm_conv1d.bias", np.zeros(inner, np.float32))
        draft.vector(f"{block}.ssm_dt.bias", np.zeros(inner, np.float32))
        draft.vector(f"{block}.ssm_a", -np.ones((inner, state), np.float32))
        draft.vector(f"{block}.ssm_d", np.ones(inner, np.float32))
    draft.vector("output_norm.weight", np.ones(width, np.float32))
    draft.close()
    return path
