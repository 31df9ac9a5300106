"""What fits into the memory there is: the check before a launch, and sizes chosen by themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from runtime.errors import ModelTooLargeError
from runtime.store.kv_cache import padded_context
from runtime.store.memory_plan import MemoryPlan, PlanRequest, plan

if TYPE_CHECKING:
    from runtime.hardware import Memory

_LEAST_MARGIN_BYTES: Final = 512 << 20
_MARGIN_SHARE: Final = 10  # a tenth of the memory
_GOOD_CONTEXT: Final = 8192
_ENGINE_PROMPT_CACHE_BYTES: Final = 8 << 30
_ENGINE_CHECKPOINTS: Final = 32
_SLOTS: Final = (4, 2, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedSizes:
    """Sizes that fit.

    Attributes:
        plan: What they take; they stand in its request.
        why: How they were chosen, one sentence.
    """

    plan: MemoryPlan
    why: str


def margin_bytes(memory: Memory) -> int:
    """Main memory that ``auto`` leaves free: a tenth of all there is, at least 512 MiB."""
    return max(_LEAST_MARGIN_BYTES, memory.effective_total_bytes // _MARGIN_SHARE)


def largest_context(request: PlanRequest, available_bytes: int, *, most: int | None = None) -> int:
    """The largest context of a slot with which the request fits into main memory; 0 for none.

    Args:
        request: Everything but the context.
        available_bytes: Main memory.
        most: Not more than this; None for what the model was trained for.
    """
    limit = most or request.facts.context_train or request.slot_ctx

    def fits(slot_ctx: int) -> bool:
        return plan(replace(request, slot_ctx=slot_ctx)).host_bytes <= available_bytes

    if fits(limit):
        return limit
    step = padded_context(1)
    low, high = 0, limit // step  # in steps: low fits (0 stands for none), more than high does not
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * step):
            low = middle
        else:
            high = middle - 1
    return low * step


def fit_sizes(
    request: PlanRequest,
    memory: Memory,
    *,
    ctx_size: int | Literal["auto"],
    parallel: int | Literal["auto"],
) -> FittedSizes:
    """The sizes to launch with, where ``auto`` stands for as much as fits.

    The context grows up to what the model was trained for; slots are given up (4, 2, 1) before a
    context of 8192 tokens is. Sizes that are given stay as they are, whether they fit or not.

    Args:
        request: Everything else; its own sizes do not matter.
        memory: What there is.
        ctx_size: Tokens one request may hold.
        parallel: Slots.

    Raises:
        ModelTooLargeError: Not even the smallest sizes fit.
    """
    margin = margin_bytes(memory)
    room = memory.effective_available_bytes - margin
    trained = request.facts.context_train
    wanted = ctx_size if ctx_size != "auto" else min(_GOOD_CONTEXT, trained or _GOOD_CONTEXT)
    slots = parallel if parallel != "auto" else _most_slots(replace(request, slot_ctx=wanted), room)
    request = replace(request, parallel=slots, slot_ctx=wanted)
    free = f"{_gib(margin)} of {_gib(memory.effective_available_bytes)} left free"
    why = "both were set"
    if ctx_size == "auto":
        found = largest_context(request, room, most=trained or None)
        request = replace(request, slot_ctx=found or padded_context(1))
        limit = "what the model was trained for" if found == trained else "the most that fits"
        why = f"{limit}, with {free}"
    elif parallel == "auto":
        why = f"as many slots as fit, up to {_SLOTS[0]}, with {free}"
    made = plan(request)
    if "auto" in (ctx_size, parallel) and made.host_bytes > room:
        raise _too_large(made, room, f"{memory.why}; {free}")
    return FittedSizes(plan=made, why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class ElasticLimits:
    """How far the engine may let its caches grow while memory is plentiful.

    Attributes:
        prompt_cache_bytes: Old prompts kept for reuse; whole mebibytes, 0 for none.
        checkpoints: Places in each slot's context that can be gone back to.
    """

    prompt_cache_bytes: int
    checkpoints: int


def elastic_limits(made: MemoryPlan, memory: Memory) -> ElasticLimits:
    """Limits within which the engine's optional caches leave the margin free.

    Left to itself llama.cpp keeps up to 8 GiB of old prompts, and up to 32 checkpoints for each
    slot of a model with sliding windows or recurrent layers, whatever memory there is. Half of what
    the plan and the margin leave goes to them, a quarter each.
    """
    room = memory.effective_available_bytes - margin_bytes(memory) - made.host_bytes
    share = max(0, room) // 4
    each = made.checkpoint_bytes * made.request.parallel
    return ElasticLimits(
        prompt_cache_bytes=min(_ENGINE_PROMPT_CACHE_BYTES, share >> 20 << 20),
        checkpoints=min(_ENGINE_CHECKPOINTS, share // each) if each else _ENGINE_CHECKPOINTS,
    )


def check_fits(made: MemoryPlan, memory: Memory) -> None:
    """Refuses a plan that needs more main memory than there is.

    Raises:
        ModelTooLargeError: With what is needed, what there is, and the largest setting that fits.
    """
    available = memory.effective_available_bytes
    if made.host_bytes > available:
        raise _too_large(made, available, memory.why)


def _most_slots(request: PlanRequest, room: int) -> int:
    for slots in _SLOTS:
        if plan(replace(request, parallel=slots)).host_bytes <= room:
            return slots
    return 1


def _too_large(made: MemoryPlan, available: int, why: str) -> ModelTooLargeError:
    parts = ", ".join(
        f"{name} {_gib(part.host_bytes)}" for name, part in made.parts.items() if part.host_bytes
    )
    return ModelTooLargeError(
        f"{_name(made)} needs {_gib(made.host_bytes)} of main memory ({parts}), and "
        f"{_gib(available)} can be had ({why}).",
        needed_bytes=made.host_bytes,
        available_bytes=available,
        hint=_smaller(made.request, available),
    )


def _smaller(request: PlanRequest, available: int) -> str:
    """The next step: the largest setting that would fit."""
    if request.standby and plan(replace(request, standby=False)).host_bytes <= available:
        return "It would fit without the standby engine (standby=False)."
    for slots in dict.fromkeys((request.parallel, 1)):
        fewer = replace(request, parallel=slots)
        if found := largest_context(fewer, available, most=request.slot_ctx):
            return f"ctx_size={found} with parallel={slots} would fit."
    bare = plan(replace(request, parallel=1, slot_ctx=padded_context(1))).host_bytes
    return (
        f"Even a context of {padded_context(1)} tokens needs {_gib(bare)}: use a smaller model or "
        "quantization, or end other programs."
    )


def _name(made: MemoryPlan) -> str:
    request = made.request
    name = request.facts.name or request.facts.files[0].name
    slots = f"{request.parallel} slots" if request.parallel > 1 else "one slot"
    return f"{name} with {slots} of {request.slot_ctx:,} tokens"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
