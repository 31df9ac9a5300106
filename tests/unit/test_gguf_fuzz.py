"""Hostile GGUF files: facts or ModelFormatError come out, within bounds, and nothing else.

Longer runs: ``GGUF_FUZZ_EXAMPLES=100000 pytest tests/unit/test_gguf_fuzz.py``.
"""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import ModelFormatError
from runtime.store.gguf import read_facts
from tests.unit.gguf_files import ARRAY, STRING, U32, GgufFile, TensorEntry, changed

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = int(os.environ.get("GGUF_FUZZ_EXAMPLES", "300"))
SMALL = (
    TensorEntry("token_embd.weight", (32, 4)),
    TensorEntry("blk.0.attn_q.weight", (32, 2), kind=2),
    TensorEntry("output_norm.weight", (32,), kind=0),
)
VALID = GgufFile(tensors=SMALL).data()
HEAD_BYTES = len(GgufFile(tensors=SMALL, with_data=False).data())
_SHIFTS = (31, 32, 40, 63, 64)
INTERESTING = (*range(16), 32, 255, 256, *(((1 << bits) - 1) for bits in _SHIFTS), 1 << 63)

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def survives(path: Path, data: bytes) -> ModelFormatError | None:
    """Reads it; the error when there was one. Anything else is a failure of the test."""
    path.write_bytes(data)
    began = time.process_time()
    error = None
    try:
        read_facts(path, cache_dir=path.parent / "cache", foreign_byte_order=True)
    except ModelFormatError as exc:
        error = exc
    assert time.process_time() - began < 1.0
    assert error is None or error.path == path
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # A folder in the way of the cache: every read is a fresh one.
    (tmp_path / "cache").write_text("")
    return tmp_path / "model.gguf"


def test_every_prefix_of_a_valid_file_is_refused_with_its_place(path: Path) -> None:
    for length in range(len(VALID)):
        error = survives(path, VALID[:length])
        assert error is not None, length
        assert error.offset is not None
        assert error.offset <= length
    assert survives(path, VALID) is None


def test_every_single_flipped_byte_of_the_head_is_survived(path: Path) -> None:
    for place in range(HEAD_BYTES):
        data = bytearray(VALID)
        data[place] ^= 0xFF
        survives(path, bytes(data))


@fuzz
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=12
    )
)
def test_random_mutations_are_survived(path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for place, value in edits:
        data[place] = value
    survives(path, bytes(data))


@fuzz
@given(
    place=st.integers(0, len(VALID) - 8),
    number=st.sampled_from(INTERESTING) | st.integers(0, (1 << 64) - 1),
    width=st.sampled_from(["<I", "<Q", ">I", ">Q"]),
)
def test_any_number_anywhere_is_survived(path: Path, place: int, number: int, width: str) -> None:
    size = struct.calcsize(width)
    written = struct.pack(width, number & ((1 << (8 * size)) - 1))
    survives(path, VALID[:place] + written + VALID[place + size :])


@fuzz
@given(
    cut=st.tuples(st.integers(0, len(VALID)), st.integers(0, len(VALID))),
    extra=st.binary(max_size=64),
)
def test_parts_left_out_and_put_in_are_survived(
    path: Path, cut: tuple[int, int], extra: bytes
) -> None:
    first, second = sorted(cut)
    survives(path, VALID[:first] + extra + VALID[second:])


@fuzz
@given(rest=st.binary(max_size=400), version=st.sampled_from([b"\x02\0\0\0", b"\x03\0\0\0"]))
def test_noise_behind_the_magic_is_survived(path: Path, rest: bytes, version: bytes) -> None:
    survives(path, b"GGUF" + version + rest)


_scalars = st.one_of(
    st.tuples(st.sampled_from([0, 2, 4, 10]), st.integers(0, 255)),
    st.tuples(st.sampled_from([1, 3, 5, 11]), st.integers(-128, 127)),
    st.tuples(st.sampled_from([6, 12]), st.floats(width=32)),
    st.tuples(st.just(7), st.booleans()),
    st.tuples(st.just(8), st.text(max_size=20)),
)
_values = _scalars | st.tuples(
    st.just(ARRAY),
    st.one_of(
        st.tuples(st.just(STRING), st.lists(st.text(max_size=8), max_size=4)),
        st.tuples(st.just(U32), st.lists(st.integers(0, 1 << 31), max_size=4)),
        st.tuples(st.just(7), st.lists(st.booleans(), max_size=4)),
        st.tuples(st.just(ARRAY), st.lists(st.just((U32, [1])), max_size=2)),
    ),
)
_KEYS = (
    "general.architecture",
    "general.type",
    "general.alignment",
    "general.file_type",
    "llama.block_count",
    "llama.context_length",
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.attention.head_count",
    "llama.attention.head_count_kv",
    "llama.attention.key_length",
    "llama.attention.sliding_window",
    "llama.attention.causal",
    "llama.expert_count",
    "llama.expert_used_count",
    "llama.pooling_type",
    "llama.vocab_size",
    "tokenizer.ggml.tokens",
    "tokenizer.chat_template",
    "split.count",
    "split.no",
)


@fuzz
@given(values=st.dictionaries(st.sampled_from(_KEYS), _values, min_size=1, max_size=6))
def test_values_of_any_type_are_survived(path: Path, values: dict[str, Any]) -> None:
    survives(path, GgufFile(values=changed() | values).data())


@fuzz
@given(
    tensors=st.lists(
        st.builds(
            TensorEntry,
            name=st.sampled_from(["blk.0.a", "blk.9.a", "output.weight", "blk.99999999999999.b"])
            | st.text(max_size=10),
            shape=st.lists(st.integers(0, 300) | st.sampled_from(INTERESTING), max_size=5).map(
                tuple
            ),
            kind=st.integers(0, 45),
            offset=st.none() | st.sampled_from(INTERESTING),
        ),
        max_size=4,
    )
)
def test_tensors_of_any_shape_are_survived(path: Path, tensors: list[TensorEntry]) -> None:
    survives(path, GgufFile(tensors=tuple(tensors)).data())


def test_hostile_files_cost_no_memory(path: Path) -> None:
    """Of each kind the largest that passes for a file: at most 64 MiB are used."""
    worst = (
        GgufFile(tensors=tuple(TensorEntry(f"t{i:060}", (16,)) for i in range(10_000))),
        GgufFile(
            values=changed() | {f"llama.{i}{'k' * 400}": (STRING, "v" * 100) for i in range(10_000)}
        ),
        GgufFile(values=changed(tokenizer__chat_template=(STRING, "x" * (4 << 20)))),
        GgufFile(
            values=changed(x__y=(ARRAY, struct.pack("<IQ", STRING, 400_000) + bytes(8 * 400_000)))
        ),
    )
    for file in worst:
        data = file.data()
        tracemalloc.start()
        survives(path, data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 << 20
