"""How much memory a model with its context will take.

What is counted: everything that must be in memory while all slots are full and the largest batch is
computed. Weights are mapped from the file and count in full, for every token touches all of them.
What the engine may keep beyond that while memory is plentiful (its cache of old prompts) does not
count. The formulas follow llama.cpp's allocations and were fitted to the buffer sizes it logs; the
engine tests hold them against a running engine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from runtime.errors import ConfigError
from runtime.hardware import cpu_features
from runtime.store import architectures as arch
from runtime.store.kv_cache import cache_sizes, padded_context

if TYPE_CHECKING:
    from runtime.store.gguf import ModelFacts
    from runtime.store.kv_cache import CacheSizes

ALL_LAYERS: Final = -1
DEFAULT_BATCH: Final = 512
"""Tokens that llama.cpp computes at once (its physical batch)."""

_FLOAT: Final = 4
_HALF: Final = 2
# The process at rest: Python, libraries, threads, HTTP. Measured with models of no size.
_PROCESS_BYTES: Final = 38 << 20
_TOKEN_BYTES: Final = 200
_MERGE_BYTES: Final = 250

_NGRAM_POOL_BYTES: Final = (4 << 20) * 4
"""The table of ``ngram-mod``, one for all slots: ``4*1024*1024`` entries of a token each.

Source: ``common_ngram_mod`` (``common/ngram-mod.h``), made in ``common/speculative.cpp``.
"""

_COPIED_X86: Final = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_COPIED_ARM: Final = _COPIED_X86 | {"Q5_K", "Q6_K", "Q8_0"}


@dataclass(frozen=True, slots=True)
class Split:
    """Bytes in main memory and on GPUs."""

    host_bytes: int = 0
    gpu_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.host_bytes + self.gpu_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What a memory plan is made for.

    Attributes:
        facts: The model.
        slot_ctx: Tokens one request may hold.
        parallel: Slots.
        cache_type_k: Type of the cache's keys.
        cache_type_v: Type of the cache's values.
        gpu_layers: Layers on the GPU; :data:`ALL_LAYERS` for all.
        flash_attn: Flash attention; ``auto`` counts as on, as engines decide where they can.
        embeddings: The engine also serves embeddings, which makes it compute the output of every
            token in a batch.
        batch: Tokens computed at once.
        projector: The vision projector, when there is one.
        draft: The draft model, when there is one.
        speculation: How n-grams draft; ``ngram-mod`` has a table of its own.
        adapter_bytes: Size of all LoRA adapters.
        standby: A second engine is kept loaded beside the one that serves.
        copied_types: Tensor types that the engine keeps a rearranged copy of; None for those of
            this machine's processor.
    """

    facts: ModelFacts
    slot_ctx: int
    parallel: int = 1
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    gpu_layers: int = 0
    flash_attn: Literal["auto", "on", "off"] = "auto"
    embeddings: bool = True
    batch: int = DEFAULT_BATCH
    projector: ModelFacts | None = None
    draft: ModelFacts | None = None
    speculation: str = "off"
    adapter_bytes: int = 0
    standby: bool = False
    copied_types: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a request will take.

    Attributes:
        request: What it is for.
        weights: The model's tensors and adapters.
        kv_cache: What all slots remember of their context.
        compute: Working memory of the largest batch, and its results.
        projector: The vision projector's weights.
        draft: All of the draft model.
        overhead: The engine's process, the vocabulary, and the table by which n-grams draft.
        standby: All of the second engine but the weights that both map from one file.
        file_pages_bytes: Pages of the model file that show in the process's resident size although
            a rearranged copy has taken their place. The system drops them when memory is short, so
            they do not count as needed.
        mapped_bytes: Weights in main memory that are the model file's own pages, draft included: a
            second process has them for nothing.
        checkpoint_bytes: One of the copies of a slot's state that the engine makes from time to
            time, up to 32 for each slot; 0 for models that need none. Not counted.
        uncertain: Why the figures may be wrong, one sentence each.
    """

    request: PlanRequest
    weights: Split
    kv_cache: Split
    compute: Split
    projector: Split
    draft: Split
    overhead: Split
    standby: Split
    file_pages_bytes: int
    mapped_bytes: int
    checkpoint_bytes: int
    uncertain: tuple[str, ...]

    @property
    def parts(self) -> dict[str, Split]:
        """The parts by name, in the order in which they are best shown."""
        return {
            "weights": self.weights,
            "KV cache": self.kv_cache,
            "compute buffers": self.compute,
            "projector": self.projector,
            "draft model": self.draft,
            "engine": self.overhead,
            "standby engine": self.standby,
        }

    @property
    def host_bytes(self) -> int:
        """Main memory that is needed."""
        return sum(part.host_bytes for part in self.parts.values())

    @property
    def gpu_bytes(self) -> int:
        """GPU memory that is needed."""
        return sum(part.gpu_bytes for part in self.parts.values())

    @property
    def total_bytes(self) -> int:
        """All memory that is needed."""
        return self.host_bytes + self.gpu_bytes

    @property
    def resident_bytes(self) -> int:
        """The largest resident size that the engine's process will show."""
        return self.host_bytes - self.standby.host_bytes + self.file_pages_bytes


def plan(request: PlanRequest) -> MemoryPlan:
    """What a request will take.

    Raises:
        ConfigError: A cache type that this model's heads or the other settings do not allow.
    """
    made = _one_engine(replace(request, standby=False))
    if not request.standby:
        return made
    second = Split(max(0, made.host_bytes - made.mapped_bytes), made.gpu_bytes)
    return replace(made, request=request, standby=second)


def _one_engine(request: PlanRequest) -> MemoryPlan:
    facts = request.facts
    flash = request.flash_attn != "off"
    if not flash and request.cache_type_v not in {"f32", "f16", "bf16"}:
        raise ConfigError(
            f"cache_type_v={request.cache_type_v!r} needs flash attention, which is off.",
            hint="Set flash_attn='auto', or cache_type_v='f16'.",
        )
    cache = cache_sizes(
        facts,
        slot_ctx=request.slot_ctx,
        parallel=request.parallel,
        type_k=request.cache_type_k,
        type_v=request.cache_type_v,
        batch=request.batch,
        flash_attn=flash,
    )
    offloaded, output_offloaded = _offloaded(facts, request.gpu_layers)
    on_host = facts.layers - offloaded
    weights = _weights(request, on_host, output_offloaded=output_offloaded)
    kv = Split(sum(cache.layers[:on_host]), sum(cache.layers[on_host:]))
    copied = request.copied_types if request.copied_types is not None else copied_types()
    share = _share(sum(facts.weights.layers[:on_host]), sum(facts.weights.layers))
    file_pages = int(
        share * sum(size for name, size in facts.weights.matrices.items() if name in copied)
    )
    on_file = facts.weights.input + sum(facts.weights.layers[:on_host])
    on_file += 0 if output_offloaded else facts.weights.output
    draft = _draft(request)
    draft_split = Split(draft.host_bytes - _PROCESS_BYTES, draft.gpu_bytes) if draft else Split()
    doubts = list(cache.uncertain)
    if offloaded:
        doubts.append("What the GPU's driver takes for itself is not counted.")
    if request.projector:
        doubts.append("The projector's working memory depends on the image and is not counted.")
    return MemoryPlan(
        request=request,
        weights=weights,
        kv_cache=kv,
        compute=_compute(request, cache, on_gpu=offloaded, on_host=on_host),
        projector=_projector(request.projector, on_gpu=offloaded > 0),
        draft=draft_split,
        overhead=Split(
            _PROCESS_BYTES
            + facts.vocab_size * _TOKEN_BYTES
            + facts.merges * _MERGE_BYTES
            + (_NGRAM_POOL_BYTES if request.speculation == "ngram-mod" else 0)
        ),
        standby=Split(),
        file_pages_bytes=file_pages + (draft.file_pages_bytes if draft else 0),
        mapped_bytes=max(0, on_file - file_pages) + (draft.mapped_bytes if draft else 0),
        checkpoint_bytes=cache.checkpoint_bytes,
        uncertain=tuple(doubts),
    )


def copied_types(
    machine: str | None = None, features: frozenset[str] | None = None
) -> frozenset[str]:
    """Tensor types that llama.cpp rearranges for a processor, which makes it keep a copy of them.

    Source: ``ggml_repack_get_optimal_repack_type`` in ``ggml/src/ggml-cpu/repack.cpp``.
    """
    found_machine, found_features = cpu_features()
    machine = found_machine if machine is None else machine
    features = found_features if features is None else features
    if machine in {"arm64", "aarch64"}:
        return _COPIED_ARM if features & {"asimddp", "i8mm"} or not features else frozenset()
    return _COPIED_X86 if "avx2" in features else frozenset()


def _offloaded(facts: ModelFacts, gpu_layers: int) -> tuple[int, bool]:
    """Layers on the GPU, and whether the output layer, which counts as one more, is too."""
    wanted = facts.layers + 1 if gpu_layers == ALL_LAYERS else gpu_layers
    return min(wanted, facts.layers), wanted > facts.layers


def _weights(request: PlanRequest, on_host: int, *, output_offloaded: bool) -> Split:
    weights = request.facts.weights
    embedding = sum(weights.embedding.values())
    copied = request.copied_types if request.copied_types is not None else copied_types()
    # A tied output is the embedding once more where it has to be in another place or order.
    twice = embedding if weights.tied_output and request.facts.kind == "model" else 0
    host = weights.input + sum(weights.layers[:on_host])
    gpu = sum(weights.layers[on_host:])
    if output_offloaded:
        gpu += weights.output + twice
    else:
        host += weights.output + (twice if copied & set(weights.embedding) else 0)
    adapters = request.adapter_bytes
    return Split(host + (0 if gpu else adapters), gpu + (adapters if gpu else 0))


def _compute(request: PlanRequest, cache: CacheSizes, *, on_gpu: int, on_host: int) -> Split:
    """Working memory of a batch, and the results kept for all its tokens.

    llama.cpp reserves one region that every step of a layer uses in turn: the largest step decides.
    """
    facts = request.facts
    flash = request.flash_attn != "off"
    cached = any(cache.layers)
    cells = padded_context(request.slot_ctx)
    tokens = min(request.batch, cells * request.parallel) if cached else request.batch
    if not cached:
        cells = tokens  # an encoder's tokens see each other
    outputs = tokens if request.embeddings else request.parallel
    heads, kv_heads = _most(facts.heads), _most(facts.kv_heads)
    attention = 2 * heads * facts.key_length + kv_heads * (facts.key_length + facts.value_length)
    if not flash:
        attention += heads * cells  # one layer's scores; those that see most decide
    logits = 0 if facts.architecture in arch.ENCODERS else facts.vocab_size * outputs
    step = max(tokens * attention, tokens * _feed_forward(facts), logits)
    mask = tokens * (cells + cache.window_cells) * (_HALF if flash else _FLOAT)
    kept = 1 if facts.architecture in arch.ENCODERS else 5
    work = mask + _FLOAT * (kept * facts.embedding_length * tokens + step)
    results = (
        _FLOAT
        * outputs
        * (facts.vocab_size + (facts.embedding_length if request.embeddings else 0))
    )
    if not on_gpu:
        return Split(work + results)
    # The embeddings are looked up in main memory; layers left there work as on a machine without.
    there = work if on_host else _FLOAT * 2 * facts.embedding_length * tokens
    return Split(there + results, work)


def _feed_forward(facts: ModelFacts) -> int:
    """Numbers that the feed-forward step keeps for one token."""
    width = facts.embedding_length
    dense = (2 if facts.architecture in arch.UNGATED else 3) * _most(facts.feed_forward_length)
    recurrent = facts.hyperparameters.get("ssm.inner_size")
    state = 4 * recurrent if isinstance(recurrent, int) else 0
    if not facts.experts:
        return max(dense, state)
    inner = facts.hyperparameters.get("expert_feed_forward_length")
    inner = _most(inner) if isinstance(inner, int | tuple) else _most(facts.feed_forward_length)
    experts = facts.experts_used * max(3 * inner, width)
    return max(dense if inner != _most(facts.feed_forward_length) else 0, experts, state)


def _most(value: object) -> int:
    if isinstance(value, tuple):
        return max((number for number in value if isinstance(number, int)), default=0)
    return value if isinstance(value, int) else 0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _projector(projector: ModelFacts | None, *, on_gpu: bool) -> Split:
    size = projector.size_bytes if projector else 0
    return Split(0, size) if on_gpu else Split(size)


def _draft(request: PlanRequest) -> MemoryPlan | None:
    if request.draft is None:
        return None
    return _one_engine(
        replace(
            request,
            facts=request.draft,
            draft=None,
            speculation="off",
            projector=None,
            adapter_bytes=0,
            cache_type_k="f16",
            cache_type_v="f16",
            gpu_layers=ALL_LAYERS if request.gpu_layers else 0,
        )
    )
