"""How xllamacpp is started: the attributes of its ``CommonParams``, for our host module."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from runtime.engines.base import EngineCommand
from runtime.engines.commands import NO_ORIGIN, SLOT_SIMILARITY, speculation_sizes
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.engines.base import LaunchSpec, Speculation


def xllamacpp_command(spec: LaunchSpec, *, python: str, host: Path) -> EngineCommand:
    """Start our host module, which takes its configuration on standard input.

    ``extra_args`` are ``name=value`` pairs of xllamacpp's ``CommonParams`` (``n_batch=256``,
    ``cpuparams.n_threads=2``); values are JSON where they parse as JSON, else text.

    Raises:
        ConfigError: An extra argument has no ``=``.
    """
    params: dict[str, object] = {
        "model.path": str(spec.model_path),
        "n_ctx": spec.slot_ctx * spec.parallel,
        "n_parallel": spec.parallel,
        "hostnames": [spec.host],
        "port": spec.port,
        "cpuparams.n_threads": spec.threads,
        "cpuparams_batch.n_threads": spec.threads_batch or spec.threads,
        "n_gpu_layers": spec.gpu_layers,
        # Without a GPU there is nothing to fit, and the fitting loads the model twice.
        "fit_params": spec.gpu_layers == -1,
        "use_jinja": True,
        "endpoint_slots": True,
        # Reading is always allowed; this would allow changing them, too.
        "endpoint_props": False,
        "endpoint_metrics": True,
        "api_keys": [spec.api_key] if spec.api_key else [],
        "cors_origins": NO_ORIGIN,
        "cors_credentials": False,
        "ui": False,
        "offline": True,
        "model_alias": [spec.alias, spec.nonce],
        "embedding": spec.embeddings,
        # With no layer on a GPU, none of the work goes there either.
        "no_op_offload": spec.gpu_layers == 0,
        "cache_type_k": {"ggml_type": spec.cache_type_k},
        "cache_type_v": {"ggml_type": spec.cache_type_v},
        "flash_attn_type": {"flash_attn": spec.flash_attn},
        "lora_adapters": {"lora": [str(path) for path in spec.lora]},
        # Level 4 prints how many layers went to the GPU; level 3 is quieter.
        "verbosity": 4 if spec.gpu_layers else 3,
    }
    if spec.physical_batch:
        params["n_batch"] = spec.logical_batch or spec.physical_batch
        params["n_ubatch"] = spec.physical_batch
    if spec.prompt_cache_bytes is not None:
        params["cache_ram_mib"] = spec.prompt_cache_bytes >> 20
    if spec.prompt_cache_bytes:
        params["slot_prompt_similarity"] = SLOT_SIMILARITY
    if spec.slot_folder:
        params["slot_save_path"] = f"{spec.slot_folder}/"
    if spec.checkpoints is not None:
        params["n_ctx_checkpoints"] = spec.checkpoints
    if spec.pooling:
        params["pooling_type"] = {"pooling": spec.pooling}
    if spec.mmproj:
        params["mmproj.path"] = str(spec.mmproj)
    if spec.draft_model:
        params["speculative.draft.mparams.path"] = str(spec.draft_model)
        params["speculative.types"] = {"speculative_types": ["draft-simple"]}  # else it lies idle
        params["speculative.draft.n_gpu_layers"] = spec.gpu_layers
        params["speculative.draft.cpuparams.n_threads"] = spec.threads
        params["speculative.draft.cpuparams_batch.n_threads"] = spec.threads_batch or spec.threads
    if spec.speculation:
        params |= _speculation_params(spec.speculation)
    if spec.chat_template is not None:
        params["chat_template"] = spec.chat_template
    for argument in spec.extra_args:
        name, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(
                f"extra_args for xllamacpp are name=value pairs, and {argument!r} is none.",
                hint="For example extra_args=['n_batch=256'].",
            )
        params[name.strip()] = _json_or_text(value)
    return EngineCommand(
        argv=(python, "-u", "-P", str(host)),
        env=dict(spec.env),
        stdin=json.dumps(params).encode() + b"\n",
        drafts=bool(spec.draft_model or spec.speculation),
        told_by_input=True,
    )


def _speculation_params(speculation: Speculation) -> dict[str, object]:
    sizes = {
        f"speculative.{speculation.kind}.{name}".replace("-", "_"): size
        for name, size in speculation_sizes(speculation).items()
    }
    return {"speculative.types": {"speculative_types": [speculation.kind]}, **sizes}


def _json_or_text(value: str) -> object:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
