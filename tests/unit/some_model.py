"""Facts of models that are on no disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.store.gguf import ModelFacts, WeightSizes

MIB = 1 << 20


def model(architecture: str = "llama", **changes: Any) -> ModelFacts:
    """Facts as a file of this architecture would give them; by default those of Llama 3 8B."""
    values: dict[str, Any] = {
        "files": (Path("model.gguf"),),
        "gguf_version": 3,
        "byte_order": "little",
        "kind": "model",
        "architecture": architecture,
        "name": "A model",
        "license": None,
        "quantization": "Q4_K_M",
        "parameters": 8_000_000_000,
        "size_bytes": 4_900_000_000,
        "file_size_bytes": 4_910_000_000,
        "tensor_count": 291,
        "context_train": 8192,
        "layers": 32,
        "embedding_length": 4096,
        "heads": 32,
        "kv_heads": 8,
        "key_length": 128,
        "value_length": 128,
        "feed_forward_length": 14336,
        "experts": 0,
        "experts_used": 0,
        "sliding_window": 0,
        "vocab_size": 128_256,
        "merges": 280_147,
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "llama-bpe",
        "chat_template": None,
        "pooling": None,
        "is_embedding_model": False,
        "split": None,
        "hyperparameters": {},
    }
    values |= changes
    window = values["hyperparameters"].get("attention.sliding_window")
    values["sliding_window"] = window if isinstance(window, int) else 0
    layers = values["layers"]
    values.setdefault(
        "weights",
        WeightSizes(
            layers=(130 * MIB,) * layers,
            input=280 * MIB,
            output=410 * MIB,
            matrices={"Q4_K": 100 * MIB * layers, "Q6_K": 30 * MIB * layers + 410 * MIB},
            embedding={"Q4_K": 280 * MIB},
            tied_output=False,
        ),
    )
    return ModelFacts(**values)
