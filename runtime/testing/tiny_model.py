"""Tiny GGUF models with random weights: real files for real engines, built in under a second.

The chat model is a llama of two layers that speaks in short English-looking sentences, goes on
until its token budget is used up (up to a temperature of 1.5), and under a grammar comes to an end:
JSON by a schema is complete and valid within a few hundred tokens at any temperature. With
``tools`` it calls one whenever it is given some, and answers in words once a tool has answered. Its
layers are random, so what it says depends on every token before; a few fixed channels, which no
layer touches, carry which tokens like to follow which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtime.errors import LLMCapabilityError
from runtime.testing.tiny_vocabulary import (
    CHATML,
    CHATML_TOOLS,
    chat_vocabulary,
    embedding_vocabulary,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from runtime.testing.tiny_vocabulary import ChatVocabulary

    Matrix = NDArray[np.float32]

TensorType = Literal["f32", "f16", "q8_0", "q4_0", "q4_1"]

_STEADY = 4.0  # size of the fixed channels, against ±1 in the random ones
_NOISE = 0.6  # standard deviation of the random part of a logit


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyShape:
    """Sizes of a generated model; the defaults are the smallest that is useful.

    Attributes:
        layers: Blocks.
        heads: Attention heads.
        kv_heads: Key and value heads: as many as heads (multi-head attention) or fewer (grouped).
        key_length: Width of one head; a multiple of 32 allows a quantized KV cache.
        embedding_length: Width of a token's vector.
        feed_forward_length: Width of the feed-forward layer.
        context: Tokens it claims to be trained for; None for 8192, and for 512 in an embedding
            model, whose positions are weights.
        vocabulary: Tokens; None for as many as needed.
        tensor_type: Type of the matrices.
    """

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    key_length: int = 32
    embedding_length: int = 64
    feed_forward_length: int = 128
    context: int | None = None
    vocabulary: int | None = None
    tensor_type: TensorType = "q8_0"


def build_tiny_model(
    path: Path,
    kind: Literal["chat", "embedding"] = "chat",
    *,
    shape: TinyShape | None = None,
    seed: int = 1,
    tools: bool = False,
    name: str | None = None,
) -> Path:
    """Writes a tiny GGUF model to ``path`` and returns it. The same arguments give the same bytes.

    Args:
        path: The file to write; its folder is made when missing.
        kind: ``"chat"``: a llama with a byte-level vocabulary and a ChatML template.
            ``"embedding"``: a BERT with mean pooling.
        shape: Its sizes. A BERT's heads have the width that ``embedding_length`` leaves them.
        seed: Of the random weights.
        tools: The chat template knows tools.
        name: What the model calls itself.

    Raises:
        LLMCapabilityError: The packages gguf and numpy are not installed.
        ValueError: The vocabulary asked for is too small.
    """
    draft = GgufDraft(path, "llama" if kind == "chat" else "bert", shape or TinyShape(), seed)
    draft.file.add_name(name or f"tiny {kind}")
    if kind == "chat":
        _chat_model(draft, CHATML_TOOLS if tools else CHATML)
    else:
        _embedding_model(draft)
    draft.close()
    return path


class GgufDraft:
    """A GGUF file being filled with random tensors, for models of whatever architecture.

    Attributes:
        file: The ``gguf.GGUFWriter`` behind it, for metadata.
        gguf: The ``gguf`` package.
        np: The ``numpy`` package.
        shape: The sizes.
        context: Tokens it claims to be trained for.
    """

    def __init__(self, path: Path, architecture: str, shape: TinyShape, seed: int = 1) -> None:
        try:
            import gguf  # noqa: PLC0415 - a development tool: only who builds a model needs it
            import numpy as np  # noqa: PLC0415
        except ImportError as exc:
            raise LLMCapabilityError(
                f"Building a model needs the package {exc.name}, which is not installed.",
                hint="pip install 'llama-runtime[testing]'",
            ) from exc
        self.np = np
        self.shape = shape
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file: Any = gguf.GGUFWriter(path, architecture)
        self.gguf: Any = gguf
        # The stream of RandomState is frozen for ever; that of Generator is not.
        pool = np.random.RandomState(seed).standard_normal(1 << 18)
        self._pool: Matrix = pool.astype(np.float32)
        self._drawn = 0
        self.file.add_block_count(shape.layers)
        self.context = shape.context or (8192 if architecture == "llama" else 512)
        self.file.add_context_length(self.context)
        self.file.add_embedding_length(shape.embedding_length)
        self.file.add_feed_forward_length(shape.feed_forward_length)
        self.file.add_head_count(shape.heads)

    def random(self, rows: int, columns: int, scale: float = 1.0) -> Matrix:
        """Normally distributed numbers from a pool that is used in turns."""
        count = rows * columns
        start = self._drawn % len(self._pool)
        self._drawn += count + 7919  # a prime, so that tensors of one size do not repeat
        turned = self.np.roll(self._pool, -start)
        matrix: Matrix = self.np.resize(turned, (rows, columns)) * self.np.float32(scale)
        return matrix

    def matrix(self, name: str, values: Matrix) -> None:
        """Adds a matrix in the shape's tensor type."""
        kind = self.gguf.GGMLQuantizationType[self.shape.tensor_type.upper()]
        data = self.gguf.quants.quantize(values, kind)
        self.file.add_tensor(name, data, raw_dtype=kind)

    def vector(self, name: str, values: Matrix) -> None:
        """Adds a vector, which llama.cpp wants in full precision."""
        self.file.add_tensor(name, values.astype(self.np.float32))

    def add_chat_vocabulary(self, template: str) -> ChatVocabulary:
        """Adds the chat model's tokenizer and a template; the vocabulary that was added."""
        vocabulary = chat_vocabulary(self.shape.vocabulary)
        self.file.add_vocab_size(len(vocabulary.tokens))
        self.file.add_tokenizer_model("gpt2")
        self.file.add_tokenizer_pre("gpt-2")
        self.file.add_token_list(list(vocabulary.tokens))
        self.file.add_token_types(list(vocabulary.token_types))
        self.file.add_token_merges(list(vocabulary.merges))
        self.file.add_bos_token_id(1)
        self.file.add_eos_token_id(2)
        self.file.add_pad_token_id(0)
        self.file.add_add_bos_token(False)
        self.file.add_chat_template(template)
        return vocabulary

    def close(self) -> None:
        """Writes it all."""
        kind = self.gguf.LlamaFileType
        file_types = {
            "f32": kind.ALL_F32,
            "f16": kind.MOSTLY_F16,
            "q8_0": kind.MOSTLY_Q8_0,
            "q4_0": kind.MOSTLY_Q4_0,
            "q4_1": kind.MOSTLY_Q4_1,
        }
        self.file.add_file_type(file_types[self.shape.tensor_type])
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_tensors_to_file()
        self.file.close()


def _chat_model(draft: GgufDraft, template: str) -> None:
    shape, file, np = draft.shape, draft.file, draft.np
    vocabulary = draft.add_chat_vocabulary(template)
    file.add_head_count_kv(shape.kv_heads)
    file.add_key_length(shape.key_length)
    file.add_value_length(shape.key_length)
    file.add_rope_dimension_count(shape.key_length)
    file.add_rope_freq_base(10000.0)
    file.add_layer_norm_rms_eps(1e-5)

    width, tokens = shape.embedding_length, len(vocabulary.tokens)
    fixed = 1 + vocabulary.class_count
    rows = np.arange(tokens)
    embedding = np.sign(draft.random(tokens, width))
    embedding[:, :fixed] = 0
    embedding[:, 0] = _STEADY
    embedding[rows, 1 + np.array(vocabulary.classes)] = _STEADY
    draft.matrix("token_embd.weight", embedding)

    # What the last normalisation divides by, as long as the layers add little.
    level = float(np.sqrt((2 * _STEADY**2 + (width - fixed)) / width))
    output = draft.random(tokens, width, _NOISE * level / np.sqrt(width - fixed))
    output[:, :fixed] = 0
    output[:, 0] = np.array(vocabulary.bias) * level / _STEADY
    for number, followers in vocabulary.followers.items():
        for token, strength in followers.items():
            output[token, 1 + number] = strength * level / _STEADY

    queries, keys = shape.heads * shape.key_length, shape.kv_heads * shape.key_length
    ones = np.ones(width, np.float32)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        draft.vector(f"{block}.attn_norm.weight", ones)
        draft.matrix(f"{block}.attn_q.weight", draft.random(queries, width, width**-0.5))
        draft.matrix(f"{block}.attn_k.weight", draft.random(keys, width, width**-0.5))
        draft.matrix(f"{block}.attn_v.weight", draft.random(keys, width, width**-0.5))
        for name, columns in (
            ("attn_output", queries),
            ("ffn_down", shape.feed_forward_length),
        ):
            back = draft.random(width, columns, 1.2 * columns**-0.5)
            back[:fixed] = 0  # no layer touches the fixed channels
            draft.matrix(f"{block}.{name}.weight", back)
        draft.vector(f"{block}.ffn_norm.weight", ones)
        for name in ("ffn_gate", "ffn_up"):
            weights = draft.random(shape.feed_forward_length, width, width**-0.5)
            draft.matrix(f"{block}.{name}.weight", weights)
    draft.vector("output_norm.weight", ones)
    draft.matrix("output.weight", output)


def _embedding_model(draft: GgufDraft) -> None:
    shape, file, np = draft.shape, draft.file, draft.np
    tokens, token_types = embedding_vocabulary()
    file.add_layer_norm_eps(1e-12)
    file.add_causal_attention(False)
    file.add_pooling_type(draft.gguf.PoolingType.MEAN)
    file.add_tokenizer_model("bert")
    file.add_token_list(list(tokens))
    file.add_token_types(list(token_types))
    file.add_token_type_count(2)
    file.add_pad_token_id(0)
    file.add_unk_token_id(1)
    file.add_bos_token_id(2)
    file.add_sep_token_id(3)
    file.add_eos_token_id(3)
    file.add_mask_token_id(4)

    width, inner = shape.embedding_length, shape.feed_forward_length
    ones, zeros = np.ones(width, np.float32), np.zeros(width, np.float32)
    draft.matrix("token_embd.weight", draft.random(len(tokens), width))
    draft.vector("token_types.weight", draft.random(2, width, 0.1))
    draft.vector("position_embd.weight", draft.random(draft.context, width, 0.1))
    draft.vector("token_embd_norm.weight", ones)
    draft.vector("token_embd_norm.bias", zeros)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        for name, rows, columns in (
            ("attn_q", width, width),
            ("attn_k", width, width),
            ("attn_v", width, width),
            ("attn_output", width, width),
            ("ffn_up", inner, width),
            ("ffn_down", width, inner),
        ):
            draft.matrix(f"{block}.{name}.weight", draft.random(rows, columns, columns**-0.5))
            draft.vector(f"{block}.{name}.bias", np.zeros(rows, np.float32))
        for name in ("attn_output_norm", "layer_output_norm"):
            draft.vector(f"{block}.{name}.weight", ones)
            draft.vector(f"{block}.{name}.bias", zeros)
