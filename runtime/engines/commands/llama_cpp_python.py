"""How llama-cpp-python's server is started: its settings, for our host module."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from runtime.engines.base import EngineCommand
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.engines.base import LaunchSpec

# ggml's type numbers, as llama-cpp-python wants them (ggml.h, enum ggml_type).
_GGML_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}


def llama_cpp_python_command(spec: LaunchSpec, *, python: str, host: Path) -> EngineCommand:
    """Start ``llama_cpp.server`` in our child, which reads its settings from standard input.

    It decodes one request at a time whatever ``parallel`` says, so the whole context is one slot's.

    Raises:
        ConfigError: The configuration asks for what this server does not have.
    """
    unsupported = {
        "mmproj": spec.mmproj,
        "draft_model": spec.draft_model,
        "chat_template": spec.chat_template,
        "more than one lora": spec.lora[1:],
    }
    for name, value in unsupported.items():
        if value:
            raise ConfigError(
                f"The engine llama-cpp-python does not take {name}.",
                hint="Use engine='xllamacpp' or 'llama-server' for it.",
            )
    # The server knows the model under one name only, so that name has to carry the nonce.
    settings: dict[str, object] = {
        "MODEL": spec.model_path,
        "MODEL_ALIAS": nonce_name(spec),
        "N_CTX": spec.slot_ctx,
        "N_THREADS": spec.threads,
        "N_THREADS_BATCH": spec.threads_batch or spec.threads,
        "N_GPU_LAYERS": spec.gpu_layers,
        "EMBEDDING": str(spec.embeddings).lower(),
        "TYPE_K": _GGML_TYPES[spec.cache_type_k],
        "TYPE_V": _GGML_TYPES[spec.cache_type_v],
        "FLASH_ATTN": str(spec.flash_attn == "on").lower(),
        "LOGITS_ALL": "false",
        "USE_MLOCK": "false",
        # Without this, a second request aborts the one that runs.
        "INTERRUPT_REQUESTS": "false",
        "HOST": spec.host,
        "PORT": spec.port,
    }
    if spec.physical_batch:
        settings["N_BATCH"] = spec.logical_batch or spec.physical_batch
        settings["N_UBATCH"] = spec.physical_batch
    if spec.lora:
        settings["LORA_PATH"] = spec.lora[0]
    if spec.api_key:
        settings["API_KEY"] = spec.api_key
    notes = []
    if spec.parallel > 1:
        notes.append("llama-cpp-python decodes one request at a time: 1 slot")
    if spec.speculation:
        notes.append("left out speculation: llama-cpp-python has none that keeps answers the same")
    if spec.pooling:
        notes.append("llama-cpp-python takes no pooling type: the model's own is used")
    given = {**{name: str(value) for name, value in settings.items()}, **spec.env}
    return EngineCommand(
        argv=(python, "-u", "-P", str(host), *spec.extra_args),
        env=spec.env,
        stdin=json.dumps(given).encode() + b"\n",
        notes=tuple(notes),
    )


def nonce_name(spec: LaunchSpec) -> str:
    """The single model name of an engine that allows only one: it carries the nonce."""
    return f"{spec.alias}{spec.nonce}"
