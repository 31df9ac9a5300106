"""A launch that is decided, and what a native llama-server says that it knows."""

from __future__ import annotations

from pathlib import Path

from runtime.engines.base import LaunchSpec
from runtime.engines.output import help_flags

HELP = (Path(__file__).parents[1] / "fakes" / "recorded" / "llama-server-help.txt").read_text()
FLAGS = help_flags(HELP)
SPEC = LaunchSpec(
    model_path=Path("/models/m.gguf"),
    alias="m",
    nonce="~1234",
    api_key="secret-key",
    host="127.0.0.1",
    port=0,
    slot_ctx=1000,
    parallel=4,
    threads=2,
    gpu_layers=0,
    embeddings=True,
    pooling="mean",
    cache_type_k="f16",
    cache_type_v="q8_0",
    flash_attn="auto",
)
