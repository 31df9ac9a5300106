"""Context and slots of a launch: what is asked for, what the model can, what memory allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from runtime.hardware import memory
from runtime.settings import DEFAULT_CTX_SIZE
from runtime.store.fit import check_fits, elastic_limits, fit_sizes
from runtime.store.gguf import read_facts
from runtime.store.memory_plan import ALL_LAYERS, DEFAULT_BATCH, PlanRequest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runtime.settings import ServerConfig
    from runtime.store.fit import ElasticLimits
    from runtime.store.gguf import ModelFacts
    from runtime.store.memory_plan import MemoryPlan

# A multiple of every number of slots that "auto" may find.
_ANY_SLOTS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large a launch is.

    Attributes:
        plan: What it will take; its request holds context, slots and batch.
        why: Why the context has this size, one sentence.
        elastic: Limits for what the engine keeps as long as there is room.
    """

    plan: MemoryPlan
    why: str
    elastic: ElasticLimits


def size_launch(
    config: ServerConfig,
    facts: ModelFacts,
    *,
    gpu_layers: int = 0,
    parallel: int | None = None,
    projector: Path | None = None,
    draft: Path | None = None,
    lora: Sequence[Path] = (),
) -> Sizes:
    """Decide context and slots, and refuse what main memory cannot hold.

    Args:
        config: What is asked for.
        facts: The model.
        gpu_layers: Layers on the GPU; below 0 for as many as the engine finds room for.
        parallel: The slots, when the engine decides them and not the configuration.
        projector: The vision projector's file.
        draft: The draft model's file.
        lora: The adapters' files.

    Raises:
        ModelTooLargeError: It does not fit; with the numbers and the largest setting that would.
        ConfigError: A cache type that this model does not allow.
    """
    ctx_size, why = _wanted_context(config, facts)
    slots = parallel if parallel is not None else config.parallel
    has = memory()
    found = fit_sizes(
        PlanRequest(
            facts=facts,
            slot_ctx=DEFAULT_CTX_SIZE,
            cache_type_k=config.cache_type_k,
            cache_type_v=config.cache_type_v,
            gpu_layers=gpu_layers if gpu_layers >= 0 else ALL_LAYERS,
            flash_attn=config.flash_attn,
            embeddings=config.embeddings,
            batch=_largest_batch(config, facts),
            projector=read_facts(projector) if projector else None,
            draft=read_facts(draft) if draft else None,
            speculation=config.speculation,
            standby=config.standby,
            adapter_bytes=sum(path.stat().st_size for path in lora),
        ),
        has,
        ctx_size=ctx_size,
        parallel=slots,
    )
    if gpu_layers == 0:
        # What the engine will put on a GPU is known only once it has looked at it.
        check_fits(found.plan, has)
    return Sizes(
        plan=found.plan,
        why=found.why if "auto" in (ctx_size, slots) else why,
        elastic=elastic_limits(found.plan, has),
    )


def _wanted_context(config: ServerConfig, facts: ModelFacts) -> tuple[int | Literal["auto"], str]:
    trained = facts.context_train
    if config.ctx_size is None:
        if trained and trained < DEFAULT_CTX_SIZE:
            return trained, "the model's training context, which is below the default"
        return DEFAULT_CTX_SIZE, "the default"
    if config.ctx_size != "auto" and trained and config.ctx_size > trained:
        # The engine would cut it in silence.
        return trained, (
            f"ctx_size={config.ctx_size} is more than the {trained} tokens it was trained for"
        )
    return config.ctx_size, "ctx_size was set"


def _largest_batch(config: ServerConfig, facts: ModelFacts) -> int:
    """Tokens computed at once.

    llama.cpp embeds a text in one step only, so a model that only embeds gets room for a whole
    context. A chat model does not: when it also embeds, it computes the output of every token.
    """
    if not config.embeddings:
        return config.ubatch_size or config.batch_size or DEFAULT_BATCH
    # llama.cpp aborts when it serves embeddings and its batch is no multiple of the slots.
    slots = config.parallel if isinstance(config.parallel, int) else _ANY_SLOTS
    asked_for = config.ubatch_size or config.batch_size
    if asked_for is None and not facts.is_embedding_model:
        return max(1, DEFAULT_BATCH // slots) * slots
    wanted = config.ctx_size if isinstance(config.ctx_size, int) else DEFAULT_CTX_SIZE
    wanted = min(asked_for or wanted, facts.context_train or wanted)
    return -(-wanted // slots) * slots
