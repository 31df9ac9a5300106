"""What a model remembers of its context: bytes of cache, layer by layer.

Source: llama.cpp's ``create_memory`` and the ``load_arch_hparams`` of each architecture
(``src/llama-model.cpp``, ``src/models/*.cpp``, ``src/llama-kv-cache*.cpp``,
``src/llama-hparams.cpp``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.errors import ConfigError
from runtime.store import architectures as arch
from runtime.store.gguf_types import TENSOR_TYPES, tensor_size_bytes

if TYPE_CHECKING:
    from runtime.store.gguf import ModelFacts

_CELLS: Final = 256  # contexts are rounded up to whole multiples of so many tokens
_STATE_BYTES: Final = 4  # recurrent states are kept in full precision


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSizes:
    """The cache of all slots.

    Attributes:
        layers: Bytes of each layer, keys and values or recurrent state.
        window_cells: Tokens each slot keeps in sliding-window layers; 0 without such layers.
        checkpoint_bytes: What the engine copies when it marks a place in a slot's context that it
            may have to go back to; 0 for models that can go back without.
        uncertain: Why these figures may be wrong, one sentence each.
    """

    layers: tuple[int, ...]
    window_cells: int
    checkpoint_bytes: int
    uncertain: tuple[str, ...]


def padded_context(tokens: int) -> int:
    """The context that the engine really makes for a slot."""
    return -(-tokens // _CELLS) * _CELLS


def cache_sizes(
    facts: ModelFacts,
    *,
    slot_ctx: int,
    parallel: int,
    type_k: str,
    type_v: str,
    batch: int,
    flash_attn: bool,
) -> CacheSizes:
    """The cache that ``parallel`` slots of ``slot_ctx`` tokens need.

    Args:
        facts: The model.
        slot_ctx: Tokens of one slot.
        parallel: Slots.
        type_k: Type of the keys.
        type_v: Type of the values.
        batch: Tokens computed at once (the physical batch).
        flash_attn: Flash attention is on. Without it all layers' values are as wide as the widest.

    Raises:
        ConfigError: A quantized type that this model's heads do not divide into.
    """
    architecture = facts.architecture
    if architecture in arch.WITHOUT_CACHE:
        return CacheSizes(
            layers=(0,) * facts.layers, window_cells=0, checkpoint_bytes=0, uncertain=()
        )
    model = _Layers(facts)
    cells = padded_context(slot_ctx)
    window_cells = padded_context(min(cells, model.window + batch)) if model.windowed else 0
    _check_width("cache_type_k", type_k, model.key_lengths)
    _check_width("cache_type_v", type_v, () if model.latent else model.value_lengths)
    widest = max((model.value_width(layer) for layer in range(facts.layers)), default=0)
    sizes: list[int] = []
    checkpoint = 0
    for layer in range(facts.layers):
        size = 0
        if layer in model.attending:
            rows = window_cells if layer in model.windowed else cells
            values = 0 if model.latent else model.value_width(layer) if flash_attn else widest
            one = rows * (
                tensor_size_bytes(type_k, model.key_width(layer))
                + tensor_size_bytes(type_v, values)
            )
            size += one * parallel
            if layer in model.windowed:
                checkpoint += one * min(model.window, rows) // rows
        if layer in model.recurrent:
            one = model.state_elements * _STATE_BYTES
            size += one * parallel
            checkpoint += one
        sizes.append(size)
    return CacheSizes(
        layers=tuple(sizes),
        window_cells=window_cells,
        checkpoint_bytes=checkpoint,
        uncertain=_doubts(facts),
    )


class _Layers:
    """Which layer keeps what."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._own = facts.hyperparameters
        self.latent = bool(
            self._whole("attention.key_length_mla") and self._whole("attention.value_length_mla")
        )
        trunk = range(facts.layers - self._whole("nextn_predict_layers"))
        self.recurrent = self._recurrent(trunk)
        self.window, self.windowed = self._windows(trunk)
        self.attending = self._attending(trunk)
        self.state_elements = self._state_elements()
        swa_key = self._whole("attention.key_length_swa") or facts.key_length
        swa_value = self._whole("attention.value_length_swa") or facts.value_length
        self.key_lengths = (facts.key_length, swa_key)
        self.value_lengths = (facts.value_length, swa_value)

    def key_width(self, layer: int) -> int:
        """Numbers in one token's keys."""
        return self.key_lengths[layer in self.windowed] * self._per_layer(
            self._facts.kv_heads, layer
        )

    def value_width(self, layer: int) -> int:
        """Numbers in one token's values."""
        return self.value_lengths[layer in self.windowed] * self._per_layer(
            self._facts.kv_heads, layer
        )

    def _whole(self, key: str, default: int = 0) -> int:
        value = self._own.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    @staticmethod
    def _per_layer(value: int | tuple[int, ...], layer: int) -> int:
        return value if isinstance(value, int) else value[layer]

    def _recurrent(self, trunk: range) -> frozenset[int]:
        facts, architecture = self._facts, self._facts.architecture
        if architecture in arch.RECURRENT | arch.PARALLEL:
            return frozenset(trunk)
        listed = self._own.get("attention.recurrent_layers")
        if isinstance(listed, tuple):
            return frozenset(layer for layer in trunk if layer < len(listed) and listed[layer])
        if architecture in arch.INTERVAL:
            interval = self._whole("full_attention_interval", arch.INTERVAL[architecture]) or 1
            return frozenset(layer for layer in trunk if (layer + 1) % interval)
        if architecture in arch.RECURRENT_WITHOUT_HEADS:
            return frozenset(
                layer
                for layer in trunk
                if self._per_layer(facts.kv_heads, layer) == 0
                and (
                    architecture not in arch.ALTERNATING
                    or self._per_layer(facts.feed_forward_length, layer) == 0
                )
            )
        return frozenset()

    def _attending(self, trunk: range) -> frozenset[int]:
        facts, architecture = self._facts, self._facts.architecture
        if architecture in arch.RECURRENT:
            return frozenset()
        if architecture in arch.ALTERNATING:
            return frozenset(
                layer
                for layer in trunk
                if layer not in self.recurrent
                and self._per_layer(facts.feed_forward_length, layer) == 0
            )
        if architecture == "gemma3n":
            own = range(arch.GEMMA3N_LAYERS_WITH_CACHE)
        else:
            own = range(facts.layers - self._whole("attention.shared_kv_layers"))
        both = architecture in arch.PARALLEL
        return frozenset(
            layer for layer in trunk if layer in own and (both or layer not in self.recurrent)
        )

    def _windows(self, trunk: range) -> tuple[int, frozenset[int]]:
        facts, architecture = self._facts, self._facts.architecture
        if architecture not in arch.WINDOWS:
            return 0, frozenset()
        period, dense_first, default = arch.WINDOWS[architecture]
        stated = "attention.sliding_window" in self._own
        window = facts.sliding_window if stated else default
        if architecture in arch.FIXED_WINDOW and window:
            window = default
        if architecture == "exaone4" and len(trunk) != arch.EXAONE4_LAYERS_WITH_WINDOWS:
            window = 0
        if not window:
            return 0, frozenset()
        pattern = self._own.get("attention.sliding_window_pattern")
        if isinstance(pattern, tuple):
            return window, frozenset(i for i in trunk if i < len(pattern) and pattern[i])
        if architecture in {"lfm2", "lfm2moe"}:
            return window, frozenset(trunk) - self.recurrent
        if isinstance(pattern, int) and not isinstance(pattern, bool):
            period = pattern
        if period == 0:
            return window, frozenset(trunk)
        dense = 0 if dense_first else period - 1
        return window, frozenset(layer for layer in trunk if layer % period != dense)

    def _state_elements(self) -> int:
        """Numbers in one layer's recurrent state (``n_embd_r + n_embd_s`` of llama-hparams.cpp)."""
        width = self._facts.embedding_length
        heads = self._facts.heads
        heads = heads if isinstance(heads, int) else max(heads, default=0)
        if head := self._whole("wkv.head_size"):
            return width * (self._whole("token_shift_count", 2) + head)
        if taps := self._whole("shortconv.l_cache"):
            return width * (taps - 1)
        kernel = self._whole("ssm.conv_kernel")
        if head := self._whole("kda.head_dim"):
            return 3 * (kernel - 1 if kernel else 3) * heads * head + head * head * heads
        if self._facts.architecture == "minimax-01":
            return self._facts.key_length**2 * heads
        inner, state = self._whole("ssm.inner_size"), self._whole("ssm.state_size")
        groups = self._whole("ssm.group_count")
        return max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner


def _check_width(setting: str, type_name: str, widths: tuple[int, ...]) -> None:
    block = next(size for name, size, _ in TENSOR_TYPES.values() if name == type_name.upper())
    for width in widths:
        if width % block:
            raise ConfigError(
                f"{setting}={type_name!r} cannot hold this model's cache: its heads are {width} "
                f"wide, no multiple of {block}.",
                hint=f"Leave {setting} at 'f16'.",
            )


def _doubts(facts: ModelFacts) -> tuple[str, ...]:
    architecture = facts.architecture
    if architecture in arch.SPECIAL:
        return (f"{architecture} keeps more than keys and values; only these are counted.",)
    if architecture not in arch.KNOWN:
        doubt = (
            f"The architecture {architecture} is not known here; its cache is computed as if every "
            "layer attended to the whole context."
        )
        return (doubt,)
    return ()
