"""What decides the speed of a launch: each value chosen in one place, with the reason.

What the user set counts first, then what ``llama-runtime tune`` found on this machine, then the
defaults, which are measured (docs/performance.md). Nothing here is chosen that could change an
answer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar

from runtime.engines.base import SameBits, Speculation
from runtime.errors import ConfigError

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
        Speculation(kind="ngram-simple", match_tokens=4, draft_tokens=16),
        Speculation(kind="ngram-map-k", match_tokens=8, draft_tokens=16),
        Speculation(kind="ngram-mod", match_tokens=8, draft_tokens=16, draft_min_tokens=2),
    )
}
"""The sizes each method is used with.

With the draft a step must stay below 64 tokens: from there on flash attention uses another kernel.
Matches of llama.cpp's own lengths (12, 24) came too seldom in an agent's answers, and of its drafts
of 48 and 64 tokens too many were thrown away.
"""

EXACT_TYPES: Final = frozenset({"Q4_0", "Q4_1", "Q8_0"})
"""Tensor types whose products have the same bits for one token and for several at a time."""

SPLIT_CACHE_TYPES: Final = frozenset({"f32", "f16"})
"""Types of the cache's keys with which several threads share one token's attention among them.

Past 256 tokens each takes a part of the context, and the sum of the parts has other bits than the
whole, which is what a token gets that is computed together with others. Other types have neither
this nor the kernel for 64 tokens and more (``ggml_compute_forward_flash_attn_ext_f16`` in
``ggml/src/ggml-cpu/ops.cpp``).
"""

FEW_TOKENS: Final = 63
"""With keys of those types flash attention computes more tokens in a step by another kernel."""

UNSPLIT_TOKENS: Final = 256
"""Up to so much context no thread shares a token's attention with another."""

DRAFT_MODEL_TOKENS: Final = 16
"""The longest draft of a draft model: 3 tokens in newer llama.cpp builds, 16 in older ones."""

PROMPTS_AT_ONCE: Final = 2
"""Long prompts that an engine on a processor is given at a time, of those that come together.

It computes all it has in one step, and none has its first token before the last of them. A step
takes as long as it has tokens, so that two by two the first ones come in half the time, and the
others hardly later (docs/performance.md).
"""

SPINS: Final = 1000
"""How often a thread of the engine looks for the others before it gives its core away.

That is what libgomp takes itself when it has more threads than cores (``GOMP_SPINCOUNT`` in its
manual); else it looks 300 times as often, while a neighbour has the core that the others wait for.
"""

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
        prompts_at_once: Long prompts that are begun at a time; None for all that there are.
        drafts_show: Why answers may be others with drafts than without; None if they are not.
        same_bits: How far several tokens in a step have the bits that each has by itself; None: not
            at all.
    """

    threads: Chosen[int]
    threads_batch: Chosen[int]
    batch_size: Chosen[int | None]
    ubatch_size: Chosen[int | None]
    flash_attn: Chosen[FlashAttention]
    speculation: Chosen[Speculation | None]
    prompts_at_once: Chosen[int | None]
    drafts_show: str | None = None
    same_bits: SameBits | None = None

    def public(self) -> dict[str, dict[str, object]]:
        """Each value and its reason, as JSON values."""
        values = asdict(self)
        del values["drafts_show"], values["same_bits"]
        return values

    def applied(self, config: ServerConfig) -> ServerConfig:
        """The configuration with what was chosen in place of what was left open."""
        return config.model_copy(
            update={
                "batch_size": self.batch_size.value,
                "ubatch_size": self.ubatch_size.value,
                "flash_attn": self.flash_attn.value,
                "speculation": self.speculation.value.kind if self.speculation.value else "off",
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
    flash_attn: Chosen[FlashAttention] = chooser.choose("flash_attn", "auto", "the engine decides")
    doubt = _no_speculation(engine, on_gpu=on_gpu) or _several_differ(facts)
    same_bits = None
    if not (doubt or flash_attn.value == "off" or config.lora or config.mmproj):
        same_bits = _same_bits(config, threads=threads.value)
    doubt = doubt or _one_differs(config, threads=threads.value, flash_attn=flash_attn.value)
    return Performance(
        threads=threads,
        threads_batch=chooser.choose("threads_batch", threads.value, "as threads"),
        batch_size=chooser.choose("batch_size", None, "default"),
        ubatch_size=chooser.choose("ubatch_size", None, "as batch_size"),
        flash_attn=flash_attn,
        speculation=_speculation(chooser, doubt),
        prompts_at_once=_prompts_at_once(chooser, engine, on_gpu=on_gpu),
        drafts_show=doubt,
        same_bits=same_bits,
    )


def waiting(environ: Mapping[str, str]) -> dict[str, str]:
    """How the engine's threads wait for each other, as variables; what the user set holds."""
    if "GOMP_SPINCOUNT" in environ or "OMP_WAIT_POLICY" in environ:
        return {}
    return {"GOMP_SPINCOUNT": str(SPINS)}


def within_batch(
    performance: Performance, *, slots: int, batch_tokens: int, draft_model: str | None
) -> Performance:
    """The same, without drafts that a batch cannot hold.

    A step takes a token and its draft from every slot. Where those are more than a batch, llama.cpp
    ends itself ("batch must be large enough to hold the sampled and draft tokens"), here from twice
    as many on.

    Raises:
        ConfigError: The drafts were asked for.
    """
    speculation = performance.speculation
    if speculation.value is None and draft_model is None:
        return performance
    longest = speculation.value.draft_tokens if speculation.value else DRAFT_MODEL_TOKENS
    needed = slots * (longest + 1)
    if needed <= batch_tokens:
        return performance
    problem = f"drafts of {slots} slots take {needed} tokens a step, and a batch {batch_tokens}"
    if draft_model is None and not speculation.why.startswith(SET):
        off: Chosen[Speculation | None] = Chosen(value=None, why=f"off: {problem}")
        return replace(performance, speculation=off)
    raise ConfigError(
        f"The {problem}.",
        hint=f"Set batch_size={needed} or more, fewer slots, or no draft model and no speculation.",
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


def _speculation(chooser: _Chooser, doubt: str | None) -> Chosen[Speculation | None]:
    """Off until it is asked for or tuning found it to be faster."""
    if chooser.config.draft_model and chooser.config.speculation == "auto":
        return Chosen(value=None, why="a draft model drafts")
    why = doubt or "default: drafted tokens come without logprobs; the text would be the same"
    kind = chooser.choose("speculation", "off", why)
    if doubt and kind.value != "off":
        return Chosen(value=SPECULATIONS[kind.value], why=f"{kind.why}, although: {doubt}")
    return Chosen(value=SPECULATIONS.get(kind.value), why=kind.why)


def _prompts_at_once(chooser: _Chooser, engine: EngineKind, *, on_gpu: bool) -> Chosen[int | None]:
    default: tuple[int | None, str] = (
        PROMPTS_AT_ONCE,
        "default: of long prompts the first answer sooner",
    )
    if on_gpu:
        default = None, "not measured on a GPU"
    if engine == "llama-cpp-python":
        default = None, "llama-cpp-python takes one request at a time"
    return chooser.choose("prompts_at_once", *default)


def _no_speculation(engine: EngineKind, *, on_gpu: bool) -> str | None:
    if engine == "llama-cpp-python":
        return "llama-cpp-python has none that keeps answers the same"
    return "not measured on a GPU" if on_gpu else None


def _several_differ(facts: ModelFacts) -> str | None:
    """Why several tokens in a step may give other answers than one by one; None if they do not.

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


def _same_bits(config: ServerConfig, *, threads: int) -> SameBits | None:
    """What was compared, and only that (docs/recovery.md)."""
    if config.extra_args:
        return None  # they may say anything
    if config.cache_type_k not in SPLIT_CACHE_TYPES:
        return SameBits(step=None, context=None)
    return SameBits(step=FEW_TOKENS, context=None if threads == 1 else UNSPLIT_TOKENS)


def _one_differs(config: ServerConfig, *, threads: int, flash_attn: FlashAttention) -> str | None:
    """Why a token computed alone may be another than among several; None if it is the same."""
    if flash_attn == "off":
        return "without flash attention several tokens at a time give other bits than one"
    if threads > 1 and config.cache_type_k in SPLIT_CACHE_TYPES:
        return (
            f"{threads} threads share a token's attention when it is computed alone, which gives "
            "other bits than several at a time; threads=1 or cache_type_k='q8_0' would not"
        )
    return None
