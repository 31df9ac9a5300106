"""How a native llama-server is started: a command line of the flags that the build knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.engines.base import EngineCommand
from runtime.engines.commands import NO_ORIGIN, SLOT_SIMILARITY, speculation_sizes
from runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from runtime.engines.base import LaunchSpec, Speculation


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
        sizes = speculation_sizes(speculation)
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
