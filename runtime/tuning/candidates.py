"""What can be tried for a launch: settings that may be faster than the defaults on some machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from runtime.server.performance import SPECULATIONS, SPLIT_CACHE_TYPES
from runtime.server.tuning_profile import open_settings
from runtime.store.drafts import AUTO
from runtime.store.memory_plan import DEFAULT_BATCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.engines.base import EngineKind
    from runtime.hardware import CpuBudget
    from runtime.server.performance import Performance
    from runtime.settings import ServerConfig

Changes = Literal["none", "rounding"]
"""What a setting may do to answers: nothing, or round the same numbers otherwise."""

_BATCHES: Final = (256, 1024, 2048)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Settings that are tried against the default.

    Attributes:
        name: For people: ``"threads 4"``.
        dimension: What it is a choice of; of each dimension one is taken at most.
        settings: Fields of :class:`~runtime.settings.ServerConfig`.
        changes: What it does to answers as far as is known; what is said to change nothing is
            compared besides, as far as the engine tells its numbers.
    """

    name: str
    dimension: str
    settings: Mapping[str, object]
    changes: Changes = "none"


DEFAULT: Final = Candidate(name="default", dimension="default", settings={})


def candidates(
    config: ServerConfig,
    engine: EngineKind,
    *,
    budget: CpuBudget,
    default: Performance,
    slot_ctx: int,
    draft: str | None = None,
) -> tuple[Candidate, ...]:
    """What is worth a try, of each dimension the simplest first.

    What the user has set is not up for choice.

    Args:
        config: What the user set.
        engine: The engine kind.
        budget: The processors that may be used.
        default: What a launch takes without a profile.
        slot_ctx: Tokens one request may hold: a larger batch is never filled.
        draft: The draft model that is on this machine, if one may be used.
    """
    left_open = open_settings(config)
    found: list[Candidate] = []
    named = config.draft_model not in {None, AUTO}
    if "speculation" in left_open and engine != "llama-cpp-python" and not named:
        found += _speculations(default, draft)
    if "threads" in left_open:
        found += _threads(budget, default, changes=_threads_change(config, engine))
    if "batch_size" in left_open:
        found += [
            Candidate(
                name=f"batch {size}",
                dimension="batch",
                settings={"batch_size": size},
                changes=_batches_change(config, default),
            )
            for size in _BATCHES
            if size != (default.batch_size.value or DEFAULT_BATCH) and size <= slot_ctx
        ]
    if "flash_attn" in left_open:
        found += _attention(config, engine)
    return tuple(found)


def permitted(of: Sequence[Candidate], allow: Changes) -> tuple[Candidate, ...]:
    """Those that do no more to answers than is allowed."""
    return tuple(each for each in of if allow == "rounding" or each.changes == "none")


def combined(parts: tuple[Candidate, ...]) -> Candidate:
    """Several candidates of different dimensions as one."""
    if len(parts) == 1:
        return parts[0]
    return Candidate(
        name=" + ".join(part.name for part in parts),
        dimension=" + ".join(part.dimension for part in parts),
        settings={name: value for part in parts for name, value in part.settings.items()},
        changes="rounding" if any(part.changes == "rounding" for part in parts) else "none",
    )


def in_turns(of: Sequence[Candidate]) -> list[Candidate]:
    """The first of each dimension, then the second of each: the order in which to do without."""
    places: Counter[str] = Counter()
    turns: list[tuple[int, Candidate]] = []
    for each in of:
        turns.append((places[each.dimension], each))
        places[each.dimension] += 1
    return [each for _, each in sorted(turns, key=lambda turn: turn[0])]


def _speculations(default: Performance, draft: str | None) -> list[Candidate]:
    taken = default.speculation.value
    drafting: Changes = "none" if default.drafts_show is None else "rounding"
    kinds = [kind for kind in SPECULATIONS if taken is None or kind != taken.kind]
    off = [] if taken is None else ["off"]
    found = [
        Candidate(
            name="no speculation" if kind == "off" else f"speculation {kind}",
            dimension="speculation",
            settings={"speculation": kind},
            changes="none" if kind == "off" else drafting,
        )
        for kind in (*off, *kinds)
    ]
    if draft is not None:
        found.append(
            Candidate(
                name=f"draft model {draft}",
                dimension="speculation",
                settings={"draft_model": draft},
                changes=drafting,
            )
        )
    return found


def _batches_change(config: ServerConfig, default: Performance) -> Changes:
    """Which tokens of a prompt are computed together, and which alone, is what a batch decides.

    So it keeps answers where drafts do, and where there is no other kernel from 64 tokens on.
    """
    same = default.drafts_show is None and config.cache_type_k not in SPLIT_CACHE_TYPES
    return "none" if same else "rounding"


def _threads_change(config: ServerConfig, engine: EngineKind) -> Changes:
    """Only flash attention shares one token's sum among threads.

    Where the engine tells its numbers they show it; llama-cpp-python tells none.
    """
    shared = config.flash_attn == "on" and config.cache_type_k in SPLIT_CACHE_TYPES
    return "rounding" if engine == "llama-cpp-python" and shared else "none"


def _attention(config: ServerConfig, engine: EngineKind) -> list[Candidate]:
    """The other way of computing attention than the engine's own."""
    if engine == "llama-cpp-python":  # which has it off
        name, value = "flash attention", "on"
    elif config.cache_type_v in {"f32", "f16", "bf16"}:
        name, value = "no flash attention", "off"
    else:
        return []
    settings = {"flash_attn": value}
    return [Candidate(name=name, dimension="flash_attn", settings=settings, changes="rounding")]


def _threads(budget: CpuBudget, default: Performance, *, changes: Changes) -> list[Candidate]:
    """Other numbers of threads: memory is often full of fewer, and twin threads may help prompts.

    A neighbour on one of the cores makes all others wait, hence one fewer, too.
    """
    now = default.threads.value
    most = int(min(budget.affinity, budget.quota or budget.affinity)) or 1
    other = sorted({n for n in (now - 1, now // 2, most) if 1 <= n != now}, reverse=True)
    fewer = [
        Candidate(
            name=f"threads {n}", dimension="threads", settings={"threads": n}, changes=changes
        )
        for n in other
    ]
    # Prompts are computed, answers are read out of memory: they need not agree on the best.
    apart = [
        Candidate(
            name=f"threads {decode}, {prompt} for prompts",
            dimension="threads",
            settings={"threads": decode, "threads_batch": prompt},
            changes=changes,
        )
        for decode, prompt in ((now, most), (max(1, now // 2), now))
        if decode < prompt
    ]
    return fewer + apart
