"""A model's facts, and how they follow from what its files say."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.errors import ModelFormatError
from runtime.store.gguf_types import FILE_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from runtime.settings import Pooling
    from runtime.store.gguf_reader import GgufContents, Tensor, Value
    from runtime.store.gguf_types import ByteOrder

_POOLING: Final[dict[int, Pooling]] = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}
_GUESSED_FILE_TYPE: Final = 1024  # LLAMA_FTYPE_GUESSED
_MAX_LAYERS: Final = 1024  # llama.cpp allows 512
_LAYER: Final = re.compile(r"blk\.(\d+)\.")
# Looked up row by row, so llama.cpp leaves them in main memory whatever is offloaded.
_INPUT_TENSORS: Final = (
    "token_embd.",
    "token_embd_norm.",
    "token_types.",
    "position_embd.",
    "per_layer_token_embd.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSizes:
    """Where the bytes of a model's tensors are.

    Attributes:
        layers: Tensor data of each layer, in bytes.
        input: Tensor data of the embedding tables, in bytes.
        output: Tensor data of the output layer and all that is in no layer, in bytes.
        matrices: Bytes of the matrices that activations are multiplied with, by tensor type.
        embedding: Bytes of the token embedding, by tensor type.
        tied_output: The output layer shares the token embedding's data.
    """

    layers: tuple[int, ...] = field(repr=False)
    input: int
    output: int
    matrices: Mapping[str, int]
    embedding: Mapping[str, int]
    tied_output: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model, as its file (or all files of a split model) describes it.

    Numbers that the file does not give are 0, texts None.

    Attributes:
        files: The file, or every file of a split model in order.
        gguf_version: 2 or 3.
        byte_order: How its numbers are written.
        kind: ``"model"``, or ``"mmproj"``, ``"adapter"``, … for files that are only a part of one.
        architecture: llama.cpp's name for it (``"llama"``, ``"qwen3"``, ``"bert"``).
        name: The model's own name.
        license: Its licence, as the file says.
        quantization: The usual name (``"Q4_K_M"``).
        parameters: How many numbers all tensors hold.
        size_bytes: All tensor data.
        file_size_bytes: Length of all files.
        tensor_count: Tensors in all files.
        context_train: Tokens of context it was trained for.
        layers: Blocks, the extra ones of multi-token prediction included.
        embedding_length: Width of a token's vector.
        heads: Attention heads, or a number for each layer where they differ.
        kv_heads: Key and value heads, or a number for each layer where they differ.
        key_length: Width of one head's key.
        value_length: Width of one head's value.
        feed_forward_length: Width of the feed-forward layer, or a number for each layer.
        experts: Experts in a layer; 0 for a dense model.
        experts_used: Experts used for a token.
        sliding_window: Tokens a sliding-window layer looks back; 0 without such layers.
        vocab_size: Tokens the model knows.
        merges: Byte-pair merges of its tokenizer.
        tokenizer_model: Kind of tokenizer (``"gpt2"``, ``"llama"``, ``"bert"``).
        tokenizer_pre: How text is cut before tokenizing (``"smollm"``).
        chat_template: The Jinja text.
        pooling: How token vectors become one, where the model says so.
        is_embedding_model: It is made for embeddings, not for chat.
        split: (which file was asked for, how many there are), counted from 1; None when not split.
        hyperparameters: Everything below ``<architecture>.`` that is a number, a short text or a
            list of numbers for the layers.
        weights: Where the bytes of its tensors are.
    """

    files: tuple[Path, ...]
    gguf_version: int
    byte_order: ByteOrder
    kind: str
    architecture: str
    name: str | None
    license: str | None
    quantization: str
    parameters: int
    size_bytes: int
    file_size_bytes: int
    tensor_count: int
    context_train: int
    layers: int
    embedding_length: int
    heads: int | tuple[int, ...]
    kv_heads: int | tuple[int, ...]
    key_length: int
    value_length: int
    feed_forward_length: int | tuple[int, ...]
    experts: int
    experts_used: int
    sliding_window: int
    vocab_size: int
    merges: int
    tokenizer_model: str | None
    tokenizer_pre: str | None
    chat_template: str | None = field(repr=False)
    pooling: Pooling | None
    is_embedding_model: bool
    split: tuple[int, int] | None
    hyperparameters: Mapping[str, Value] = field(repr=False)
    weights: WeightSizes


def facts_from(parts: Sequence[GgufContents], path: Path) -> ModelFacts:
    """The facts of the model in ``parts``, of which ``path`` is the one that was asked for.

    Raises:
        ModelFormatError: A value is missing or of the wrong kind.
    """
    head = Head(parts[0])
    tensors = [tensor for part in parts for tensor in part.tensors]
    architecture = head.text("general.architecture", required=True) or ""
    kind = "mmproj" if architecture == "clip" else head.text("general.type") or "model"
    own = head.own(architecture)
    required = kind == "model"
    layers = head.whole(f"{architecture}.block_count", required=required, most=_MAX_LAYERS)
    embedding_length = head.whole(f"{architecture}.embedding_length", required=required)
    heads = head.per_layer(f"{architecture}.attention.head_count", layers)
    kv_heads = head.per_layer(f"{architecture}.attention.head_count_kv", layers, heads)
    first_heads = heads if isinstance(heads, int) else next((n for n in heads if n), 0)
    head_length = embedding_length // first_heads if first_heads else 0
    pooling = _pooling(head, architecture)
    causal = own.get("attention.causal", True)
    return ModelFacts(
        files=tuple(part.path for part in parts),
        gguf_version=head.contents.version,
        byte_order=head.contents.byte_order,
        kind=kind,
        architecture=architecture,
        name=head.text("general.name"),
        license=head.text("general.license"),
        quantization=_quantization(head, tensors),
        parameters=sum(tensor.elements for tensor in tensors),
        size_bytes=sum(tensor.size_bytes for tensor in tensors),
        file_size_bytes=sum(part.status.st_size for part in parts),
        tensor_count=len(tensors),
        context_train=head.whole(f"{architecture}.context_length", required=required),
        layers=layers,
        embedding_length=embedding_length,
        heads=heads,
        kv_heads=kv_heads,
        key_length=head.whole(f"{architecture}.attention.key_length") or head_length,
        value_length=head.whole(f"{architecture}.attention.value_length") or head_length,
        feed_forward_length=head.per_layer(f"{architecture}.feed_forward_length", layers),
        experts=head.whole(f"{architecture}.expert_count"),
        experts_used=head.whole(f"{architecture}.expert_used_count", first=True),
        sliding_window=head.whole(f"{architecture}.attention.sliding_window", first=True),
        vocab_size=head.contents.array_lengths.get("tokenizer.ggml.tokens")
        or head.whole(f"{architecture}.vocab_size"),
        merges=head.contents.array_lengths.get("tokenizer.ggml.merges", 0),
        tokenizer_model=head.text("tokenizer.ggml.model"),
        tokenizer_pre=head.text("tokenizer.ggml.pre"),
        chat_template=head.text("tokenizer.chat_template"),
        pooling=pooling,
        is_embedding_model=kind == "model"
        and (pooling in {"mean", "cls", "last"} or (causal is False and pooling != "rank")),
        split=([part.path for part in parts].index(path) + 1, len(parts))
        if len(parts) > 1
        else None,
        hyperparameters=own,
        weights=_weights(tensors, layers),
    )


class Head:
    """Typed access to the metadata of one file."""

    def __init__(self, contents: GgufContents) -> None:
        self.contents = contents

    def own(self, architecture: str) -> dict[str, Value]:
        """The values below ``<architecture>.``."""
        prefix = f"{architecture}."
        return {
            key.removeprefix(prefix): value
            for key, value in self.contents.values.items()
            if key.startswith(prefix)
        }

    def text(self, key: str, *, required: bool = False) -> str | None:
        """A text, or None when absent."""
        value = self._get(key, required=required)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, "a text")

    def whole(
        self, key: str, *, required: bool = False, first: bool = False, most: int = 1 << 62
    ) -> int:
        """A number that is not negative; of a list its first when ``first``. 0 when absent."""
        value = self._get(key, required=required)
        if value is None and key not in self.contents.array_lengths:
            return 0
        if first and isinstance(value, tuple) and value:
            value = max(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self._wrong(key, "a whole number that can be")
        return value

    def per_layer(
        self, key: str, layers: int, default: int | tuple[int, ...] = 0
    ) -> int | tuple[int, ...]:
        """One number for all layers, or a number for each of ``layers``."""
        value = self._get(key)
        if value is None and key not in self.contents.array_lengths:
            return default
        if not isinstance(value, tuple):
            return self.whole(key)
        numbers = tuple(
            number
            for number in value
            if isinstance(number, int) and not isinstance(number, bool) and number >= 0
        )
        if len(numbers) != len(value) or len(numbers) < layers:
            raise self._wrong(key, f"a list of {layers} whole numbers")
        numbers = numbers[:layers]
        return numbers[0] if numbers and len(set(numbers)) == 1 else numbers

    def _get(self, key: str, *, required: bool = False) -> Value | None:
        value = self.contents.values.get(key)
        if value is None and required:
            raise ModelFormatError(
                f"{self.contents.path} is a GGUF file but no model: it has no {key}.",
                path=self.contents.path,
                offset=self.contents.value_offsets.get(key),
                hint="Check that this is a language model converted for llama.cpp.",
            )
        return value

    def _wrong(self, key: str, wanted: str) -> ModelFormatError:
        value = self.contents.values.get(key, "a list of another kind")
        offset = self.contents.value_offsets.get(key)
        return ModelFormatError(
            f"{self.contents.path} is damaged: {key} is {str(value)[:60]!r}, not {wanted} "
            f"(at byte {offset or 0:,}).",
            path=self.contents.path,
            offset=offset,
            hint="Fetch the file again.",
        )


def _pooling(head: Head, architecture: str) -> Pooling | None:
    key = f"{architecture}.pooling_type"
    if key not in head.contents.values:
        return None
    return _POOLING.get(head.whole(key))


def _quantization(head: Head, tensors: Sequence[Tensor]) -> str:
    file_type = head.whole("general.file_type")
    if "general.file_type" in head.contents.values and file_type != _GUESSED_FILE_TYPE:
        name = FILE_TYPES.get(file_type)
        if name:
            return name
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.type_name] += tensor.elements
    return elements.most_common(1)[0][0] if elements else "unknown"


def _weights(tensors: Sequence[Tensor], layers: int) -> WeightSizes:
    by_layer = [0] * layers
    matrices: Counter[str] = Counter()
    inputs = outputs = 0
    for tensor in tensors:
        match = _LAYER.match(tensor.name)
        is_input = tensor.name.startswith(_INPUT_TENSORS)
        if match and int(match[1]) < layers:
            by_layer[int(match[1])] += tensor.size_bytes
        elif is_input:
            inputs += tensor.size_bytes
        else:
            outputs += tensor.size_bytes
        if tensor.rows > 1 and not is_input:
            matrices[tensor.type_name] += tensor.size_bytes
    return WeightSizes(
        layers=tuple(by_layer),
        input=inputs,
        output=outputs,
        matrices=dict(matrices),
        embedding={
            tensor.type_name: tensor.size_bytes
            for tensor in tensors
            if tensor.name == "token_embd.weight"
        },
        tied_output=not any(tensor.name == "output.weight" for tensor in tensors),
    )
