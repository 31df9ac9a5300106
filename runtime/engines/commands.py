"""Pure builders: from a launch specification to each engine's own command.

Nothing here touches a file, a socket or a process.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from runtime.engines.base import EngineCommand
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from runtime.engines.base import LaunchSpec, Speculation

# A CORS origin that no browser page can have: the engine answers pages by default.
NO_ORIGIN = "http://origin.invalid"

# Zero: a request that names no slot gets the one that is idle for longest, with the best copy from
# the cache of earlier prompts in it. With the engine's default, a tenth in common makes a slot like
# a request, and conversations that begin alike cut off one another: six agents on four slots found
# 77 % of their prompts again (0.9: 93 %, this: all). Never above zero beside that cache: for one
# that names a busy slot, llama.cpp (11434 to 11549) would load a copy into it, under the answer
# that is being written there, which goes on as if that had been its prompt.
SLOT_SIMILARITY = 0.0

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
    )


def _speculation_params(speculation: Speculation) -> dict[str, object]:
    method = f"speculative.{speculation.kind.replace('-', '_')}"
    sizes: dict[str, object]
    if speculation.kind == "ngram-mod":
        sizes = {
            "n_match": speculation.match_tokens,
            "n_min": speculation.draft_min_tokens,
            "n_max": speculation.draft_tokens,
        }
    else:
        sizes = {"size_n": speculation.match_tokens, "size_m": speculation.draft_tokens}
    return {
        "speculative.types": {"speculative_types": [speculation.kind]},
        **{f"{method}.{name}": value for name, value in sizes.items()},
    }


class _Argv:
    """A command line under negotiation with the flags that a build knows."""

    def __init__(self, binary: Path, flags: AbstractSet[str]) -> None:
        self.binary = binary
        self.flags = flags
        self.words = [str(binary)]
        self.notes: list[str] = []

    def need(self, flag: str, *values: str) -> None:
        """Add a flag without which the engine would not do what was asked."""
        if flag not in self.flags:
            raise ConfigError(
                f"{self.binary} does not know {flag}, which this configuration needs.",
                hint="Use a newer llama.cpp build, or leave that setting at its default.",
            )
        self.words.extend((flag, *values))

    def want(self, *names: str, value: str | None = None) -> None:
        """Add the first of ``names`` that the build knows, or note that it knows none."""
        for flag in names:
            if flag in self.flags:
                self.words.extend((flag,) if value is None else (flag, value))
                return
        self.notes.append(f"left out {names[0]}: this build does not know it")

    def hint(self, flag: str, *values: str) -> None:
        """Add a flag that older builds do well without."""
        if flag in self.flags:
            self.words.extend((flag, *values))

    def speculate(self, speculation: Speculation) -> bool:
        """Draft by n-grams if the build can, which changes speed alone; else note that it cannot.

        All of it or nothing: with a build's own sizes the answers might not be the same ones.
        """
        sizes = {"size-n": speculation.match_tokens, "size-m": speculation.draft_tokens}
        if speculation.kind == "ngram-mod":
            sizes = {
                "n-match": speculation.match_tokens,
                "n-min": speculation.draft_min_tokens,
                "n-max": speculation.draft_tokens,
            }
        wanted = {f"--spec-{speculation.kind}-{name}": str(n) for name, n in sizes.items()}
        unknown = {"--spec-type", *wanted} - self.flags
        if unknown:
            self.notes.append(
                f"left out speculation {speculation.kind}: this build does not know "
                + ", ".join(sorted(unknown))
            )
            return False
        self.words.extend(("--spec-type", speculation.kind))
        for flag, value in wanted.items():
            self.words.extend((flag, value))
        return True

    def users(self, arguments: Sequence[str]) -> None:
        """Add the user's own words."""
        for argument in arguments:
            name = argument.partition("=")[0]
            if name.startswith("--") and name not in self.flags:
                raise ConfigError(
                    f"{self.binary} does not know {name} (from extra_args).",
                    hint=f"`{self.binary} --help` lists what it knows.",
                )
            self.words.append(argument)


def llama_server_command(
    spec: LaunchSpec, *, binary: Path, flags: AbstractSet[str]
) -> EngineCommand:
    """Start a native llama-server with the flags its own ``--help`` lists.

    What a build does not know is left out with a note when the engine works without it, and refused
    when the user asked for it.

    Raises:
        ConfigError: The build lacks a flag that the configuration needs.
    """
    argv = _Argv(binary, flags)
    argv.need("--model", str(spec.model_path))
    argv.need("--ctx-size", str(spec.slot_ctx * spec.parallel))
    argv.need("--parallel", str(spec.parallel))
    argv.need("--host", spec.host)
    argv.need("--port", str(spec.port))
    argv.want("--threads", value=str(spec.threads))
    argv.want("--threads-batch", value=str(spec.threads_batch or spec.threads))
    argv.want("--alias", value=f"{spec.alias},{spec.nonce}")
    argv.want("--jinja")
    argv.want("--metrics")
    argv.want("--slots")
    argv.want("--no-ui", "--no-webui")
    argv.want("--offline")
    argv.want("--cors-origins", value=NO_ORIGIN)
    # A unified cache would let one request take another's share of the context.
    argv.hint("--no-kv-unified")
    if spec.gpu_layers >= 0:
        argv.want("--n-gpu-layers", "--gpu-layers", value=str(spec.gpu_layers))
        argv.hint("--fit", "off")
    if spec.gpu_layers == 0:
        argv.hint("--device", "none")
    else:
        argv.hint("--log-verbosity", "4")  # prints how many layers went to the GPU
    if spec.embeddings:
        argv.want("--embeddings", "--embedding")
    if spec.physical_batch:
        argv.need("--batch-size", str(spec.logical_batch or spec.physical_batch))
        argv.need("--ubatch-size", str(spec.physical_batch))
    if spec.prompt_cache_bytes is not None:
        argv.hint("--cache-ram", str(spec.prompt_cache_bytes >> 20))
    if spec.prompt_cache_bytes:
        argv.hint("--slot-prompt-similarity", str(SLOT_SIMILARITY))
    if spec.slot_folder:
        argv.hint("--slot-save-path", f"{spec.slot_folder}/")
    if spec.checkpoints is not None:
        argv.hint("--ctx-checkpoints", str(spec.checkpoints))
    asked_for: tuple[tuple[str, object, object], ...] = (
        ("--pooling", spec.pooling, None),
        ("--cache-type-k", spec.cache_type_k, "f16"),
        ("--cache-type-v", spec.cache_type_v, "f16"),
        ("--flash-attn", spec.flash_attn, "auto"),
        ("--mmproj", spec.mmproj, None),
        ("--model-draft", spec.draft_model, None),
        ("--chat-template", spec.chat_template, None),
        *(("--lora", path, None) for path in spec.lora),
    )
    for flag, value, default in asked_for:
        if value != default:
            argv.need(flag, str(value))
    drafts = spec.draft_model is not None
    if spec.draft_model:
        argv.hint("--spec-type", "draft-simple")  # newer builds let it lie idle without
        if spec.gpu_layers >= 0:
            argv.hint("--spec-draft-ngl", str(spec.gpu_layers))
    if spec.speculation:
        drafts = argv.speculate(spec.speculation) or drafts
    argv.users(spec.extra_args)
    env = dict(spec.env)
    if spec.api_key:
        env["LLAMA_API_KEY"] = spec.api_key  # not in argv: every user can read a command line
    return EngineCommand(argv=tuple(argv.words), env=env, notes=tuple(argv.notes), drafts=drafts)


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


def _json_or_text(value: str) -> object:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
