"""What every engine kind has in common: the facts that go in and the facts that come out.

An engine is a child process that is llama.cpp's HTTP server. Each kind is an :class:`Engine`: it
says whether it is here, what it can do, how it is started, and how to read what it prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from runtime.engines.thinking import Thinking

EngineKind = Literal["xllamacpp", "llama-server", "llama-cpp-python"]
SpeculationKind = Literal["ngram-simple", "ngram-map-k", "ngram-mod"]
INSPECTION_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCapabilities:
    """What a running engine can do with the model it serves; None where it is not known.

    Attributes:
        embeddings: ``/v1/embeddings`` answers.
        json_schema: ``response_format`` with a JSON schema steers decoding.
        grammar: GBNF grammars steer decoding.
        llguidance: ``%llguidance`` grammars steer decoding.
        tools: The model's chat template knows tools.
        vision: Images are understood.
        token_counting: Rendered chats can be counted without decoding.
        slots: The state of each slot can be read.
        metrics: Counters of tokens and speeds can be read.
        logprobs: Each token's probability is told; False where tokens are drafted, as those come
            without.
        thinking: How the model thinks before it answers; None when it does not.
    """

    embeddings: bool | None = None
    json_schema: bool | None = None
    grammar: bool | None = None
    llguidance: bool | None = None
    tools: bool | None = None
    vision: bool | None = None
    token_counting: bool | None = None
    slots: bool | None = None
    metrics: bool | None = None
    logprobs: bool | None = None
    thinking: Thinking | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A compute device as the engine itself lists it.

    Attributes:
        name: The engine's name for it (``"CPU"``, ``"CUDA0"``).
        kind: Whether it is a GPU.
        description: The device's own name.
        memory_total_bytes: None where the engine does not say.
        memory_free_bytes: None where the engine does not say.
    """

    name: str
    kind: Literal["cpu", "gpu"]
    description: str = ""
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """One engine kind on this machine, as found by looking.

    Attributes:
        kind: Which engine.
        installed: Whether it can be started at all.
        path: The binary or package folder.
        version: Its version, as it prints it.
        devices: Devices it lists; empty when not asked.
        capabilities: What it can do whatever the model; what depends on the model is None.
        problem: Why it cannot be used, or None.
        install_hint: How to install it.
    """

    kind: EngineKind
    installed: bool
    path: Path | None = None
    version: str | None = None
    devices: tuple[Device, ...] = ()
    capabilities: EngineCapabilities = field(default_factory=EngineCapabilities)
    problem: str | None = None
    install_hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Speculative decoding by n-grams: no draft model, the text so far is what is drafted from.

    Attributes:
        kind: llama.cpp's name of the method.
        match_tokens: So many last tokens must have occurred before for a draft to be made.
        draft_tokens: The longest draft.
        draft_min_tokens: The shortest draft that is worth trying (``ngram-mod`` only).
    """

    kind: SpeculationKind
    match_tokens: int
    draft_tokens: int
    draft_min_tokens: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """Everything an engine needs to know to start, all of it decided.

    Attributes:
        model_path: The (first) GGUF file.
        alias: The model's name in the API.
        nonce: A second name that only this instance has; proves who answers on the port.
        api_key: The key to demand; None for none.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        slot_ctx: Tokens one request may hold.
        parallel: Slots.
        threads: Threads for decoding.
        gpu_layers: Layers on the GPU; -1 for as many as fit, as the engine decides; 0 for none.
        embeddings: Whether to serve embeddings.
        pooling: How token vectors become one; None for the model's own way.
        physical_batch: Tokens processed in one step; None for the engine's own default. A model
            that only embeds must take a whole input in one step.
        logical_batch: Tokens taken up at once, ``physical_batch`` of them in a step; None for as
            many as that.
        threads_batch: Threads for prompts; None for as many as ``threads``.
        speculation: Speculative decoding by n-grams; None for none.
        prompt_cache_bytes: Most memory for prompts kept from earlier requests.
        slot_folder: Where the engine may write what a slot holds, and read it from; None: nowhere.
        checkpoints: Most copies of a slot's state, for models that need them.
    """

    model_path: Path
    alias: str
    nonce: str
    api_key: str | None
    host: str
    port: int
    slot_ctx: int
    parallel: int
    threads: int
    gpu_layers: int
    embeddings: bool
    pooling: str | None
    cache_type_k: str
    cache_type_v: str
    flash_attn: Literal["auto", "on", "off"]
    lora: tuple[Path, ...] = ()
    mmproj: Path | None = None
    draft_model: Path | None = None
    chat_template: str | None = None
    physical_batch: int | None = None
    logical_batch: int | None = None
    threads_batch: int | None = None
    speculation: Speculation | None = None
    prompt_cache_bytes: int | None = None
    slot_folder: Path | None = None
    checkpoints: int | None = None
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCommand:
    """How to start an engine process.

    Attributes:
        argv: The command line; holds nothing secret.
        env: Variables added to the environment; may hold secrets.
        stdin: Bytes written to the process's standard input; may hold secrets.
        notes: What was left out or changed because this engine does not know it.
        drafts: Tokens will be drafted, by a model or from the context.
        told_by_input: What it does is all in ``stdin``, so that the process may be started before
            that is known.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    notes: tuple[str, ...] = ()
    drafts: bool = False
    told_by_input: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFacts:
    """What one line of an engine's output says; all None or empty for most lines.

    Attributes:
        base_url: It listens there and its model is loaded.
        layers_offloaded: Layers on the GPU.
        layers_total: Layers of the model, the output layer included.
        devices: Devices it lists.
        version: Its build.
    """

    base_url: str | None = None
    layers_offloaded: int | None = None
    layers_total: int | None = None
    devices: tuple[Device, ...] = ()
    version: str | None = None


class Engine(Protocol):
    """One kind of engine."""

    kind: EngineKind
    health_path: str
    """Answers 200 when the engine is ready."""

    def inspect(
        self, *, devices: bool = False, timeout_s: float = INSPECTION_TIMEOUT_S
    ) -> EngineInfo:
        """Look whether the engine is here.

        With ``devices``, also ask it for its devices, which starts a short-lived child. All
        of it takes no longer than ``timeout_s``, and nothing of a child is left running.
        """
        ...

    def command(self, spec: LaunchSpec) -> EngineCommand:
        """How to start it.

        Raises:
            ConfigError: The specification asks for something this engine cannot do.
        """
        ...

    def served_name(self, spec: LaunchSpec) -> str:
        """The name under which a request reaches the model."""
        ...

    def read_line(self, line: str) -> LogFacts | None:
        """What a line of its output says, or None."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SameBits:
    """How far tokens computed together have the same bits as those computed one by one.

    Attributes:
        step: Most tokens in one step; None for any number.
        context: Most tokens of context; None for any number.
    """

    step: int | None
    context: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where and how to talk to a server that is ready.

    Attributes:
        base_url: Scheme, host and port, without a path (``http://127.0.0.1:34587``).
        api_key: The key to send, or None.
        kind: The engine kind, or ``"openai"`` for a server that is not ours.
        model: The model name to send.
        capabilities: What it can do.
        context_tokens: Tokens one request may hold, or None when it is not known.
        generation: Grows with each engine process, so that a client sees a restart.
        predecessor_died_of: How the process before this one died while it served, if that may have
            been a request's doing ("SIGSEGV", "stuck"); None when it was told to end.
        slots: Requests it decodes at once, or None when it is not known.
        batch_tokens: Tokens it computes at once, which no text to embed may exceed; None when it is
            not known.
        slot_folder: Where it writes what a slot holds when asked to; None: nowhere.
        same_bits: How far a text that it is given is to it as one that it has written; None: not
            at all, as far as is known.
        prompts_at_once: How many long prompts it is best given at a time; None: all there are.
    """

    base_url: str
    api_key: str | None = field(repr=False)
    kind: str
    model: str
    capabilities: EngineCapabilities
    context_tokens: int | None
    generation: int = 0
    predecessor_died_of: str | None = None
    slots: int | None = None
    batch_tokens: int | None = None
    slot_folder: Path | None = None
    same_bits: SameBits | None = None
    prompts_at_once: int | None = None
