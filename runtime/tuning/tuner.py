"""Tuning a model: what to try, where, and what is kept of it."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import psutil

from runtime.contracts import Provenance
from runtime.errors import LLMCapabilityError
from runtime.hardware import cpu_budget, memory
from runtime.server import profiles
from runtime.server.plan import plan_launch
from runtime.server.tuning_profile import KeptProfile, key_for
from runtime.store.drafts import AUTO
from runtime.store.gguf import read_facts
from runtime.tuning.candidates import Candidate, candidates, permitted
from runtime.tuning.search import search
from runtime.tuning.trials import ALL, EngineArena

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.server.plan import LaunchPlan
    from runtime.server.tuning_profile import ProfileKey
    from runtime.settings import ServerConfig
    from runtime.store.drafts import Drafting
    from runtime.store.local import LocalModel
    from runtime.tuning.candidates import Changes
    from runtime.tuning.contest import Outcome, Progress

MOST_ENGINES: Final = 12
_MEMORY_SHARE: Final = 0.7
_WHOLE_CONTEXT: Final = 4096
"""Tokens that the workloads need at their whole length, with some to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """A tuning that can begin: everything about it is decided.

    Attributes:
        config: What the user set.
        model: The model.
        plan: The launch without a profile.
        key: What the profile will hold for.
        candidates: What will be tried.
        withheld: Names of what may not be tried, for it could change answers.
        kept: What was taken the last time under the same key, of what may be tried now.
        workloads: What it is measured by.
        most_engines: Engines that may run at once.
        allow: What may be done to answers.
    """

    config: ServerConfig
    model: LocalModel
    plan: LaunchPlan
    key: ProfileKey
    candidates: tuple[Candidate, ...]
    withheld: tuple[str, ...]
    kept: KeptProfile | None
    workloads: tuple[str, ...]
    most_engines: int
    allow: Changes


def busy_share() -> float:
    """How much of the processors others keep busy, looked at for half a second; 1 is all of it."""
    return psutil.cpu_percent(interval=0.5) / 100


def prepare(
    config: ServerConfig,
    model: LocalModel,
    *,
    model_sha256: str,
    workloads: tuple[str, ...] = ALL,
    draft: Drafting | None = None,
    allow: Changes = "none",
) -> Tuning:
    """Decide what will be tried.

    Args:
        config: What the user set.
        model: A model on this machine.
        model_sha256: Digest of its first file.
        workloads: What counts.
        draft: The model's draft model on this machine, for ``draft_model="auto"``.
        allow: What may be done to answers.

    Raises:
        LLMCapabilityError: The model gives no answers.
        LLMError: The model cannot be launched here.
    """
    if read_facts(model.path).is_embedding_model:
        raise LLMCapabilityError(
            f"{model.name} only embeds, and what is measured here are answers.",
            hint="Name a chat model.",
        )
    plan = plan_launch(config.model_copy(update={"tuned": False}), model, api_key=None)
    budget = cpu_budget()
    key = key_for(
        # Whether the pair is used is what the profile decides, so it does not rest on that.
        config.model_copy(update={"draft_model": None}) if config.draft_model == AUTO else config,
        model,
        plan.choice.info,
        model_sha256=model_sha256,
        budget=budget,
        gpu_layers=plan.placement.gpu_layers,
    )
    possible = candidates(
        config,
        plan.choice.engine.kind,
        budget=budget,
        default=plan.performance,
        slot_ctx=plan.spec.slot_ctx,
        draft=draft.name if draft and draft.path else None,
    )
    tried = permitted(possible, allow)
    room = _MEMORY_SHARE * memory().effective_available_bytes // plan.memory.resident_bytes
    return Tuning(
        config=config,
        model=model,
        plan=plan,
        key=key,
        candidates=tried,
        withheld=tuple(each.name for each in possible if each not in tried),
        kept=next(
            (
                each
                for _, each in profiles.kept(model)
                if not isinstance(each, str) and each.key == key and _made_of(each, tried)
            ),
            None,
        ),
        workloads=workloads,
        most_engines=int(min(MOST_ENGINES, max(1, room))),
        allow=allow,
    )


def tune(
    tuning: Tuning,
    *,
    budget_s: float,
    offline: bool | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[KeptProfile, Outcome]:
    """Measure, and say what is best; nothing is kept yet.

    Raises:
        LLMError: The default itself does not work.
    """
    kept = tuning.kept
    before = _before(kept.settings) if kept and kept.settings else None
    slots = tuning.plan.spec.parallel if tuning.key.engine != "llama-cpp-python" else 1
    with EngineArena(
        tuning.config,
        workloads=tuning.workloads,
        slots=slots,
        most_engines=tuning.most_engines,
        largest_scale=min(1.0, tuning.plan.spec.slot_ctx / _WHOLE_CONTEXT),
        offline=offline,
    ) as arena:
        outcome = search(
            arena,
            tuning.candidates,
            weights=dict.fromkeys(tuning.workloads, 1.0),
            budget_s=budget_s,
            kept=before,
            same_answers=tuning.allow == "none",
            on_progress=on_progress,
        )
        scale = arena.scale
    profile = KeptProfile(
        model=tuning.model.name,
        key=tuning.key,
        settings=dict(outcome.taken.settings),
        tuned_at=Provenance.now_iso(),
        summary=outcome.summary,
        evidence={
            "tried": [
                _row(outcome, name) for name in (s.candidate.name for s in outcome.standings)
            ],
            "workloads": list(tuning.workloads),
            "scale": round(scale, 3),
            "allow_changes": tuning.allow,
            "elapsed_s": round(outcome.elapsed_s, 1),
        },
        runtime_version=importlib.metadata.version("llama-runtime"),
    )
    return profile, outcome


def _made_of(kept: KeptProfile, tried: tuple[Candidate, ...]) -> bool:
    """Whether all of a profile may still be chosen: it may be from a tuning that allowed more."""
    open_now = [item for each in tried for item in each.settings.items()]
    return all(item in open_now for item in kept.settings.items())


def _before(settings: Mapping[str, object]) -> Candidate:
    told = ", ".join(f"{name}={value}" for name, value in settings.items())
    return Candidate(name=f"kept ({told})", dimension="all", settings=settings)


def _row(outcome: Outcome, name: str) -> dict[str, object]:
    standing = next(each for each in outcome.standings if each.candidate.name == name)
    found = outcome.estimates.get(name)
    return {
        "name": name,
        "settings": dict(standing.candidate.settings),
        "state": standing.state,
        "note": standing.note,
        "gain": None if standing.gain is None else round(standing.gain, 4),
        "rounds": standing.rounds,
        "estimate": None
        if found is None
        else {k: round(v, 4) if abs(v) < 1e9 else None for k, v in asdict(found).items()},
        "by_workload": {
            workload: round(gain, 4) for workload, gain in outcome.by_workload.get(name, {}).items()
        },
    }
