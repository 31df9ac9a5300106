"""What decides the speed of a launch: each value chosen in one place, with the reason.

What the user set counts first, then what ``llama-runtime tune`` found on this machine, then the
defaults, which are measured (docs/performance.md). Nothing here is chosen that could change an
answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar

from runtime.engines.base import Speculation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engines.base import EngineKind
    from runtime.hardware import CpuBudget
    from runtime.settings import ServerConfig
    from runtime.store.gguf import ModelFacts

T = TypeVar("T")
FlashAttention = Literal["auto", "on", "off"]

SPECULATIONS: Final[Mapping[str, Speculation]] = {
    made.kind: made
    for made in (
        Speculation(kind="ngram-simple", match_tokens=12, draft_tokens=48),
        Speculation(kind="ngram-map-k", match_tokens=12, draft_tokens=48),
        Speculation(kind="ngram-mod", match_tokens=24, draft_tokens=64, draft_min_tokens=48),
    )
}
"""The sizes each method is used with."""

DEFAULT_SPECULATION: Final = "ngram-simple"

EXACT_TYPES: Final = frozenset({"Q4_0", "Q4_1", "Q8_0"})
"""Tensor types whose products have the same bits for one token and for several at a time."""

SET: Final = "set"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen(Generic[T]):
    """A value and why it was taken."""

    value: T
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was found to be fastest on this machine, for one model and engine.

    Attributes:
        settings: Fields of :class:`~runtime.settings.ServerConfig` and their values; what is not
            named stays with the default.
        why: Where they come from, to be shown with each.
    """

    settings: Mapping[str, object] = field(default_factory=dict)
    why: str = "tuned profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """Everything that decides the speed of a launch.

    Attributes:
        threads: Threads for decoding.
        threads_batch: Threads for prompts.
        batch_size: Tokens taken up at once; None for the runtime's own way.
        ubatch_size: Tokens computed in one step; None for as many as ``batch_size``.
        flash_attn: Flash attention.
        speculation: Speculative decoding by n-grams; None for none.
    """

    threads: Chosen[int]
    threads_batch: Chosen[int]
    batch_size: Chosen[int | None]
    ubatch_size: Chosen[int | None]
    flash_attn: Chosen[FlashAttention]
    speculation: Chosen[Speculation | None]

    def public(self) -> dict[str, dict[str, object]]:
        """Each value and its reason, as JSON values."""
        return asdict(self)

    def applied(self, config: ServerConfig) -> ServerConfig:
        """The configuration with what was chosen in place of what was left open."""
        return config.model_copy(
            update={
                "batch_size": self.batch_size.value,
                "ubatch_size": self.ubatch_size.value,
                "flash_attn": self.flash_attn.value,
            }
        )


def choose_performance(
    config: ServerConfig,
    facts: ModelFacts,
    engine: EngineKind,
    *,
    budget: CpuBudget,
    on_gpu: bool,
    profile: Profile | None = None,
) -> Performance:
    """Decide what decides the speed.

    Args:
        config: What the user set.
        facts: The model.
        engine: The engine kind.
        budget: The processors that may be used.
        on_gpu: Whether layers go to a GPU.
        profile: What tuning found for this model, engine and machine.
    """
    chooser = _Chooser(config, profile or Profile())
    threads = chooser.choose("threads", budget.threads, budget.why)
    return Performance(
        threads=threads,
        threads_batch=chooser.choose("threads_batch", threads.value, "as threads"),
        batch_size=chooser.choose("batch_size", None, "default"),
        ubatch_size=chooser.choose("ubatch_size", None, "as batch_size"),
        flash_attn=chooser.choose("flash_attn", "auto", "the engine decides"),
        speculation=_speculation(chooser, facts, engine, on_gpu=on_gpu),
    )


@dataclass(frozen=True, slots=True)
class _Chooser:
    config: ServerConfig
    profile: Profile

    def choose(self, name: str, default: T, why: str) -> Chosen[T]:
        """The user's value, the profile's or the default, in this order."""
        given = getattr(self.config, name)
        if given not in {None, "auto"}:
            return Chosen(value=given, why=SET)
        if name in self.profile.settings:
            return Chosen(value=self.profile.settings[name], why=self.profile.why)  # type: ignore[arg-type]
        return Chosen(value=default, why=why)


def _speculation(
    chooser: _Chooser, facts: ModelFacts, engine: EngineKind, *, on_gpu: bool
) -> Chosen[Speculation | None]:
    if chooser.config.draft_model and chooser.config.speculation == "auto":
        return Chosen(value=None, why="a draft model drafts")
    if engine == "llama-cpp-python":
        default, why = "off", "llama-cpp-python has none that keeps answers the same"
    elif on_gpu:
        default, why = "off", "not measured on a GPU"
    elif doubt := _why_drafts_may_show(facts):
        default, why = "off", doubt
    else:
        default, why = DEFAULT_SPECULATION, "measured: the same answers, sooner"
    kind = chooser.choose("speculation", default, why)
    return Chosen(value=SPECULATIONS.get(kind.value), why=kind.why)


def _why_drafts_may_show(facts: ModelFacts) -> str | None:
    """Why the answers may differ when several tokens are computed in a step; None if they do not.

    Only what was compared counts as the same: dense models of tensor types whose products have the
    same bits either way.
    """
    types = set(facts.weights.matrices)
    if facts.weights.tied_output:
        types |= set(facts.weights.embedding)
    if inexact := sorted(types - EXACT_TYPES):
        return f"{', '.join(inexact)} tensors: several tokens at a time give other bits than one"
    recurrent = any("ssm." in key for key in facts.hyperparameters)
    if facts.experts or facts.sliding_window or recurrent:
        return "not shown to keep answers with experts, sliding windows or recurrent layers"
    return None
