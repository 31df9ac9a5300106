"""What is read from a GGUF file, and what is said about one that is none."""

from __future__ import annotations

import math
import os
import struct
import sys
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import gguf
import pytest

from runtime.errors import ModelFormatError, ModelNotFoundError, StorageError
from runtime.store.gguf import read_facts, shard_paths
from runtime.store.gguf_types import FILE_TYPES, TENSOR_TYPES
from tests.unit.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    TENSORS,
    U16,
    U32,
    U64,
    GgufFile,
    TensorEntry,
    changed,
)

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.store.gguf import ModelFacts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def facts_of(path: Path, **options: Any) -> ModelFacts:
    """Facts read afresh."""
    return read_facts(path, cache_dir=path.parent / "no cache" / os.urandom(4).hex(), **options)


# --- facts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_the_facts_of_a_little_model(path: Path, version: int) -> None:
    data = GgufFile(version=version).write(path).read_bytes()

    facts = facts_of(path)

    assert facts.files == (path,)
    assert facts.gguf_version == version
    assert (facts.kind, facts.architecture, facts.name) == ("model", "llama", "Tiny")
    assert facts.quantization == "F16"
    assert facts.parameters == 64 * 4 + 64 * 64 * 2 + 64 + 64
    assert facts.size_bytes == 64 * 4 * 2 + 64 * 64 * 2 + 256 + 64 * 64 // 32 * 18 + 256
    assert facts.file_size_bytes == len(data)
    assert facts.tensor_count == 5
    assert (facts.context_train, facts.layers, facts.embedding_length) == (4096, 2, 64)
    assert (facts.heads, facts.kv_heads) == (4, 2)
    assert (facts.key_length, facts.value_length) == (16, 16)
    assert facts.feed_forward_length == 128
    assert facts.vocab_size == 4
    assert facts.tokenizer_model == "gpt2"
    assert facts.chat_template == "{{ messages }}"
    assert facts.pooling is None
    assert not facts.is_embedding_model
    assert facts.split is None
    assert facts.hyperparameters["rope.freq_base"] == 10000.0
    assert facts.weights.layers == (64 * 64 * 2 + 256, 64 * 64 // 32 * 18)
    assert facts.weights.input == 64 * 4 * 2
    assert facts.weights.output == 256
    assert facts.weights.matrices == {"F16": 64 * 64 * 2, "Q4_0": 64 * 64 // 32 * 18}
    assert facts.weights.embedding == {"F16": 64 * 4 * 2}
    assert facts.weights.tied_output


def test_a_file_of_the_other_byte_order_is_described_but_not_accepted(path: Path) -> None:
    GgufFile(order="big" if sys.byteorder == "little" else "little").write(path)

    with pytest.raises(ModelFormatError, match="endian machines; this one is") as caught:
        facts_of(path)
    assert caught.value.offset == 4

    foreign = facts_of(path, foreign_byte_order=True)
    GgufFile(order=sys.byteorder).write(path)
    own = facts_of(path)
    assert foreign.byte_order != own.byte_order
    for name in ("architecture", "parameters", "heads", "vocab_size", "weights", "hyperparameters"):
        assert getattr(foreign, name) == getattr(own, name)


def test_heads_that_differ_by_layer_are_listed(path: Path) -> None:
    lists = {
        "llama__attention__head_count": (ARRAY, (I32, [4, 8])),
        "llama__attention__head_count_kv": (ARRAY, (U32, [0, 2, 9])),  # one entry too many
        "llama__feed_forward_length": (ARRAY, (I32, [128, 128])),
    }
    GgufFile(values=changed(**lists)).write(path)

    facts = facts_of(path)

    assert facts.heads == (4, 8)
    assert facts.kv_heads == (0, 2)
    assert facts.feed_forward_length == 128
    assert facts.key_length == 16


def test_what_a_model_does_not_say_follows_from_what_it_says(path: Path) -> None:
    GgufFile(values=changed(llama__attention__head_count_kv=None, general__name=None)).write(path)

    facts = facts_of(path)

    assert facts.kv_heads == facts.heads == 4
    assert facts.name is None


def test_head_widths_are_taken_from_the_file(path: Path) -> None:
    widths = {
        "llama__attention__key_length": (U32, 576),
        "llama__attention__value_length": (U32, 512),
    }
    GgufFile(values=changed(**widths)).write(path)

    facts = facts_of(path)

    assert (facts.key_length, facts.value_length) == (576, 512)


@pytest.mark.parametrize(
    ("number", "name", "embedding"),
    [
        (0, "none", False),
        (1, "mean", True),
        (2, "cls", True),
        (3, "last", True),
        (4, "rank", False),
        (77, None, False),
    ],
)
def test_how_a_model_pools(path: Path, number: int, name: str | None, embedding: bool) -> None:
    GgufFile(values=changed(llama__pooling_type=(U32, number))).write(path)

    facts = facts_of(path)

    assert facts.pooling == name
    assert facts.is_embedding_model is embedding


def test_a_model_that_sees_what_comes_later_is_for_embeddings(path: Path) -> None:
    GgufFile(values=changed(llama__attention__causal=(BOOL, False))).write(path)

    assert facts_of(path).is_embedding_model


def test_a_projector_is_not_taken_for_a_model(path: Path) -> None:
    values = {"general.architecture": (STRING, "clip"), "clip.vision.block_count": (U32, 12)}
    GgufFile(values=values).write(path)

    facts = facts_of(path)

    assert facts.kind == "mmproj"
    assert facts.layers == 0
    assert not facts.is_embedding_model


def test_an_adapter_says_that_it_is_one(path: Path) -> None:
    values = {"general.architecture": (STRING, "llama"), "general.type": (STRING, "adapter")}
    GgufFile(values=values).write(path)

    assert facts_of(path).kind == "adapter"


@pytest.mark.parametrize(
    ("file_type", "kind", "name"),
    [(15, 1, "Q4_K_M"), (7, 1, "Q8_0"), (1024, 8, "Q8_0"), (None, 8, "Q8_0"), (999, 8, "Q8_0")],
)
def test_the_quantization_is_named_as_usual(
    path: Path, file_type: int | None, kind: int, name: str
) -> None:
    """By the file's own word, or by the type that most numbers have."""
    values = changed(general__file_type=None if file_type is None else (U32, file_type))
    tensors = (TensorEntry("token_embd.weight", (64, 4)), TensorEntry("x", (64, 64), kind=kind))
    GgufFile(values=values, tensors=tensors).write(path)

    assert facts_of(path).quantization == name


def test_an_output_of_its_own_is_seen(path: Path) -> None:
    GgufFile(tensors=(*TENSORS, TensorEntry("output.weight", (64, 4)))).write(path)

    weights = facts_of(path).weights

    assert not weights.tied_output
    assert weights.output == 256 + 64 * 4 * 2


def test_another_alignment_is_kept(path: Path) -> None:
    file = GgufFile(values=changed(general__alignment=(U32, 4096)), alignment=4096)

    assert facts_of(file.write(path)).tensor_count == 5


def test_long_texts_and_lists_are_stepped_over(path: Path) -> None:
    values = changed(
        llama__note=(STRING, "x" * 300_000),
        llama__long=(ARRAY, (U64, list(range(5000)))),
        tokenizer__chat_template=(STRING, "t" * 300_000),
    )
    GgufFile(values=values).write(path)

    facts = facts_of(path)

    assert "note" not in facts.hyperparameters
    assert "long" not in facts.hyperparameters
    assert facts.chat_template == "t" * 300_000


def test_tensor_types_are_those_of_the_gguf_package() -> None:
    known = {
        int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind])
        for kind in gguf.GGMLQuantizationType
        if kind.name != "Q8_1"  # the package has 40 bytes where ggml-common.h has 36
    }

    assert known
    assert {number: TENSOR_TYPES[number] for number in known} == known


def test_file_types_are_those_of_the_gguf_package() -> None:
    known = {
        int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for kind in gguf.LlamaFileType
        if kind.name != "GUESSED"
    }

    assert {number: FILE_TYPES[number] for number in known} == known


# --- what is no model ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\n <!DOCTYPE html>\n<html lang='en'><body>", "an HTML page"),
        (b"<head><title>404</title>", "an HTML page"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document"),
        (b'{"error": "Repository not found"}', "that says 'Repository not found'"),
        (b"[1, 2", "a JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        ("Ein Text über Modelle".encode() * 40, "a text file"),
        (b"plain words", "a text file"),
        (struct.pack("<Q", 2000) + b'{"__metadata__":{}', "a safetensors file"),
        (b"lmgg\x01\0\0\0", "a GGML file"),
        (b"tjgg\x03\0\0\0", "a GGJT file"),
        (b"PK\x03\x04\x14\0", "a zip archive"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
        (b"\x7fELF\x02\x01", "a program"),
        (bytes(4096), "full of zero bytes"),
        (bytes(range(1, 256)), "binary data of an unknown kind"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(
    path: Path, content: bytes, what: str
) -> None:
    path.write_bytes(content)

    with pytest.raises(ModelFormatError) as caught:
        facts_of(path)

    assert f"{what}" in caught.value.message
    assert caught.value.path == path
    assert caught.value.offset == 0
    assert caught.value.hint


def test_an_empty_file_is_called_empty(path: Path) -> None:
    path.touch()

    with pytest.raises(ModelFormatError, match="is empty"):
        facts_of(path)


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match="a folder"):
        facts_of(tmp_path)


def test_a_pipe_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)

    with pytest.raises(ModelFormatError, match="no regular file"):
        facts_of(path)


def test_a_missing_file_is_called_missing(path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        facts_of(path)

    assert caught.value.reference == str(path)


def test_a_path_that_cannot_be_walked_is_the_disk_s_fault(path: Path) -> None:
    GgufFile().write(path)

    with pytest.raises(StorageError, match="Not a directory"):
        facts_of(path / "inner.gguf")


@pytest.mark.parametrize(
    ("version", "hint"), [(1, "newer conversion"), (4, "Update"), (0, "newer conversion")]
)
def test_other_versions_are_refused(path: Path, version: int, hint: str) -> None:
    GgufFile(version=version).write(path)

    with pytest.raises(ModelFormatError, match=f"version {version};") as caught:
        facts_of(path)

    assert hint in (caught.value.hint or "")


# --- what is damaged ----------------------------------------------------------------------------


def test_a_file_cut_off_in_its_data_is_told_by_both_sizes(path: Path) -> None:
    data = GgufFile().data()
    needed = len(data) - 0  # the last tensor is 256 bytes long and needs no padding
    path.write_bytes(data[:-1])

    with pytest.raises(ModelFormatError) as caught:
        facts_of(path)

    assert f"is cut off: needs {needed:,} bytes, has {needed - 1:,}" in caught.value.message
    assert caught.value.offset == needed - 1


def test_padding_after_the_last_tensor_may_be_missing(path: Path) -> None:
    tensors = (TensorEntry("token_embd.weight", (3,), kind=0),)
    data = GgufFile(tensors=tensors).data()
    path.write_bytes(data[: len(data) - 20])

    assert facts_of(path).size_bytes == 12


def test_a_file_cut_off_in_its_metadata_is_told_too(path: Path) -> None:
    path.write_bytes(GgufFile().data()[:300])

    with pytest.raises(ModelFormatError, match=r"cut off: needs at least [\d,]+ bytes, has 300"):
        facts_of(path)


def test_a_file_that_shrinks_while_it_is_read_is_cut_off(path: Path) -> None:
    """Its size was taken before: the reader meets the end where it expected more."""
    from runtime.store.gguf_window import Window  # noqa: PLC0415

    path.write_bytes(b"x" * 10)
    with path.open("rb", buffering=0) as file:
        window = Window(file, path, 1_000_000)
        with pytest.raises(ModelFormatError, match="cut off"):
            window.take(500_000)


HUGE = (1 << 63) + 5
WRONG: dict[str, tuple[GgufFile, str]] = {
    "2^63 tensors": (GgufFile(tensor_count=HUGE), "it claims 9,223,372,036,854,775,813 tensors"),
    "2^63 values": (GgufFile(value_count=HUGE), "claims .* metadata values"),
    "a million tensors": (GgufFile(tensor_count=1 << 20), "claims 1,048,576 tensors"),
    "more values than bytes": (GgufFile(value_count=16_000), "cut off"),
    "a text of 2^63 bytes": (
        GgufFile(values=changed(general__name=(STRING, struct.pack("<Q", HUGE)))),
        "a text of 9,223",
    ),
    "a text past the end": (
        GgufFile(values=changed(general__name=(STRING, struct.pack("<Q", 1 << 29)))),
        "cut off",
    ),
    "a list of 2^63 numbers": (
        GgufFile(values=changed(x__y=(ARRAY, struct.pack("<IQ", U32, HUGE)))),
        "'x.y' is a list of 9,223",
    ),
    "a list of 2^63 texts": (
        GgufFile(values=changed(x__y=(ARRAY, struct.pack("<IQ", STRING, HUGE)))),
        "'x.y' is a list of 9,223",
    ),
    "a list of a billion texts": (
        GgufFile(values=changed(x__y=(ARRAY, struct.pack("<IQ", STRING, 1 << 30)))),
        "'x.y' is a list of 1,073,741,824 texts",
    ),
    "a list past the end": (
        GgufFile(values=changed(x__y=(ARRAY, struct.pack("<IQ", U64, 1 << 20)))),
        "cut off",
    ),
    "a text in a list of 2^63 bytes": (
        GgufFile(values=changed(x__y=(ARRAY, struct.pack("<IQQ", STRING, 1, HUGE)))),
        "a value of 9,223",
    ),
    "a list of lists": (
        GgufFile(values=changed(x__y=(ARRAY, (ARRAY, [(U32, [1])])))),
        "'x.y' is a list of lists",
    ),
    "a list of nothing known": (
        GgufFile(values=changed(x__y=(ARRAY, struct.pack("<IQ", 99, 1)))),
        "unknown value type 99",
    ),
    "a value of no known type": (GgufFile(values=changed(x__y=(99, b""))), "value type 99"),
    "a key without a name": (GgufFile(values={"": (U32, 1)}), "a key of 0 bytes"),
    "a key of a megabyte": (GgufFile(values={"k" * (1 << 20): (U32, 1)}), "a key of 1,048,576"),
    "megabytes of keys": (
        GgufFile(values={f"{number}{'k' * 60_000}": (U32, 1) for number in range(150)}),
        "more than 8 MiB of metadata",
    ),
    "a template of megabytes": (
        GgufFile(values=changed(tokenizer__chat_template=(STRING, "x" * (5 << 20)))),
        "a chat template of 5,242,880",
    ),
    "an alignment of 3": (GgufFile(values=changed(general__alignment=(U32, 3))), "power of two"),
    "an alignment of 0": (GgufFile(values=changed(general__alignment=(U32, 0))), "power of two"),
    "an alignment in words": (
        GgufFile(values=changed(general__alignment=(STRING, "32"))),
        "power of two",
    ),
    "a tensor name of 64 bytes": (
        GgufFile(tensors=(TensorEntry("n" * 64, (32,)),)),
        "a tensor name of 64 bytes",
    ),
    "five dimensions": (GgufFile(tensors=(TensorEntry("t", (1,) * 5),)), "5 dimensions"),
    "a shape of 2^63": (GgufFile(tensors=(TensorEntry("t", (HUGE,)),)), "has the shape"),
    "a shape whose product overflows": (
        GgufFile(tensors=(TensorEntry("t", (1 << 32, 1 << 32)),)),
        "has the shape",
    ),
    "a tensor larger than the file": (
        GgufFile(tensors=(TensorEntry("t", (1 << 30, 1 << 10)),), with_data=False),
        "cut off: needs 2,199,023,2",
    ),
    "a tensor of an unknown type": (
        GgufFile(tensors=(TensorEntry("t", (32,), kind=77),)),
        "unknown type 77",
    ),
    "a tensor of a removed type": (
        GgufFile(tensors=(TensorEntry("t", (32,), kind=31),)),
        "Q4_0_4_4, which llama.cpp no longer reads",
    ),
    "rows of no whole blocks": (
        GgufFile(tensors=(TensorEntry("t", (33, 32), kind=2),)),
        "rows of 33, no multiple of 32",
    ),
    "a tensor in the wrong place": (
        GgufFile(tensors=(TensorEntry("t", (32,), offset=64),)),
        "begin at 64 of the data, not at 0",
    ),
    "a tensor twice": (
        GgufFile(tensors=(TensorEntry("t", (32,)), TensorEntry("t", (32,)))),
        "'t' appears twice",
    ),
    "no architecture": (GgufFile(values=changed(general__architecture=None)), "no general.arch"),
    "no layers": (GgufFile(values=changed(llama__block_count=None)), "no llama.block_count"),
    "no context": (GgufFile(values=changed(llama__context_length=None)), "no llama.context_length"),
    "layers in words": (GgufFile(values=changed(llama__block_count=(STRING, "2"))), "is '2', not"),
    "half a layer": (GgufFile(values=changed(llama__block_count=(F32, 2.5))), "is '2.5', not"),
    "layers that are true": (GgufFile(values=changed(llama__block_count=(BOOL, True))), "'True'"),
    "layers below zero": (GgufFile(values=changed(llama__block_count=(I32, -2))), "'-2'"),
    "a billion layers": (GgufFile(values=changed(llama__block_count=(U32, 1 << 30))), "1073741824"),
    "an architecture that is a number": (
        GgufFile(values=changed(general__architecture=(U32, 7))),
        "general.architecture is '7', not a text",
    ),
    "heads for one of two layers": (
        GgufFile(values=changed(llama__attention__head_count_kv=(ARRAY, (U32, [2])))),
        "not a list of 2 whole numbers",
    ),
    "heads that are texts": (
        GgufFile(values=changed(llama__attention__head_count=(ARRAY, (STRING, ["a", "b"])))),
        "head_count",
    ),
    "heads below zero": (
        GgufFile(values=changed(llama__attention__head_count=(ARRAY, (I32, [4, -4])))),
        "not a list of 2",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_place(path: Path, name: str) -> None:
    file, message = WRONG[name]
    file.write(path)
    began = time.process_time()

    with pytest.raises(ModelFormatError, match=message) as caught:
        facts_of(path)

    assert time.process_time() - began < 0.5
    assert caught.value.path == path
    assert caught.value.hint
    if "no " not in message:
        assert caught.value.offset is not None
        assert 0 < caught.value.offset <= path.stat().st_size


def test_a_key_twice_is_refused(path: Path) -> None:
    file = GgufFile(value_count=3, tensors=())
    head = file.data()[:24]
    value = file.string("general.name") + file.pack("I", STRING) + file.string("x")
    path.write_bytes(head + value + value + bytes(64))

    with pytest.raises(ModelFormatError, match=r"'general\.name' appears twice"):
        facts_of(path)


# --- models in several files --------------------------------------------------------------------


def shards(folder: Path, count: int = 3, **changes: Any) -> list[Path]:
    """A model in ``count`` files: the first has the metadata, each some tensors."""
    paths = []
    total = changes.pop("tensors_said", len(TENSORS))
    for index in range(count):
        mine = TENSORS[index::count]
        marks: dict[str, tuple[int, Any]] = {
            "split.no": (U16, changes.get("numbers", range(count))[index]),
            "split.count": (U16, count),
            "split.tensors.count": (I32, total),
        }
        values = {**changed(), **marks} if index == 0 else marks
        path = folder / f"tiny-{index + 1:05}-of-{count:05}.gguf"
        paths.append(GgufFile(values=values, tensors=mine).write(path))
    return paths


@pytest.mark.parametrize("asked", [0, 1, 2])
def test_a_split_model_is_one_model(tmp_path: Path, path: Path, asked: int) -> None:
    paths = shards(tmp_path)
    whole = facts_of(GgufFile().write(path))

    facts = facts_of(paths[asked])

    assert facts.files == tuple(paths)
    assert facts.split == (asked + 1, 3)
    assert facts.tensor_count == 5
    assert facts.parameters == whole.parameters
    assert facts.size_bytes == whole.size_bytes
    assert facts.file_size_bytes == sum(shard.stat().st_size for shard in paths)
    assert facts.weights == whole.weights
    assert facts.vocab_size == 4


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    paths[1].unlink()

    with pytest.raises(ModelFormatError, match=r"missing: tiny-00002-of-00003\.gguf") as caught:
        facts_of(paths[0])

    assert caught.value.path == paths[1]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:40])

    with pytest.raises(ModelFormatError, match="cut off") as caught:
        facts_of(paths[0])

    assert caught.value.path == paths[2]


def test_parts_under_wrong_names_are_refused(tmp_path: Path) -> None:
    paths = shards(tmp_path, numbers=(0, 2, 1))

    with pytest.raises(ModelFormatError, match="says it is file 3 of 3, its name says 2"):
        facts_of(paths[0])


def test_a_part_under_a_name_of_its_own_is_refused(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    renamed = paths[0].rename(tmp_path / "model.gguf")

    with pytest.raises(ModelFormatError, match="which its name does not show"):
        facts_of(renamed)


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    paths = shards(tmp_path, tensors_said=9)

    with pytest.raises(ModelFormatError, match="hold 5 tensors, not 9"):
        facts_of(paths[0])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("m-00002-of-00003.gguf", 3),
        ("m-00004-of-00003.gguf", 1),
        ("m-00000-of-00003.gguf", 1),
        ("m.gguf", 1),
        ("m-2-of-3.gguf", 1),
    ],
)
def test_which_names_are_parts(tmp_path: Path, name: str, count: int) -> None:
    assert len(shard_paths(tmp_path / name)) == count
    assert tmp_path / name in shard_paths(tmp_path / name)


# --- remembering --------------------------------------------------------------------------------


def remembered(path: Path) -> ModelFacts:
    """Facts by way of the cache."""
    return read_facts(path, cache_dir=path.parent / "cache")


def forge(path: Path) -> None:
    """Changes a model behind the cache's back: same size, same time, another name inside."""
    before = path.stat()
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(data.index(b"Tiny"))
        file.write(b"Tony")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_facts_are_remembered(path: Path) -> None:
    GgufFile().write(path)
    first = remembered(path)
    forge(path)

    assert remembered(path) == first
    assert facts_of(path).name == "Tony"


def test_a_changed_file_is_read_again(path: Path) -> None:
    GgufFile().write(path)
    assert remembered(path).context_train == 4096

    GgufFile(values=changed(llama__context_length=(U32, 8192))).write(path)
    os.utime(path, ns=(1, 1))

    assert remembered(path).context_train == 8192


def test_a_changed_part_of_a_split_model_is_read_again(tmp_path: Path) -> None:
    paths = shards(tmp_path)
    remembered(paths[0])
    paths[2].unlink()

    with pytest.raises(ModelFormatError, match="missing"):
        remembered(paths[0])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"Tiny", b"Tony"),
        lambda data: b"[" * 100_000 + b"\n{}",
        lambda data: b'{"version": 3}\n{}',
        lambda data: b"null\nnull",
        lambda data: os.urandom(200),
        lambda data: data.replace(b'"files"', b'"folders"', 1),
        lambda data: b"x" * (9 << 20),
    ],
)
def test_a_damaged_cache_is_survived(path: Path, damage: Any) -> None:
    GgufFile().write(path)
    first = remembered(path)
    (entry,) = (path.parent / "cache").iterdir()
    entry.write_bytes(damage(entry.read_bytes()))

    assert remembered(path) == first
    assert remembered(path) == first


def test_a_cache_that_cannot_be_written_is_survived(path: Path) -> None:
    GgufFile().write(path)
    (path.parent / "cache").write_text("a file where the folder should be")

    assert remembered(path).name == "Tiny"


def test_the_cache_leaves_one_file_and_only_for_its_owner(path: Path) -> None:
    GgufFile().write(path)
    remembered(path)
    os.utime(path, ns=(1, 1))
    remembered(path)

    (entry,) = (path.parent / "cache").iterdir()
    assert entry.stat().st_mode & 0o077 == 0


def test_by_default_the_runtime_s_own_cache_is_used(path: Path, isolated_home: Path) -> None:
    GgufFile().write(path)

    read_facts(path)

    assert list((isolated_home / "cache" / "gguf-facts").iterdir())


def test_numbers_that_are_none_are_remembered_too(path: Path) -> None:
    GgufFile(values=changed(llama__scale=(F32, math.inf), llama__odd=(F32, math.nan))).write(path)

    first, second = remembered(path), remembered(path)

    assert first.hyperparameters["scale"] == second.hyperparameters["scale"] == math.inf
    assert math.isnan(float(str(second.hyperparameters["odd"])))


# --- speed and memory ---------------------------------------------------------------------------


def vocabulary(tokens: int) -> dict[str, tuple[int, Any]]:
    """Metadata with so many tokens, and twice as many merges."""
    texts = [struct.pack("<Q", 7) + b"token%02d" % (number % 100) for number in range(tokens)]
    lists = {
        "tokenizer__ggml__tokens": struct.pack("<IQ", STRING, tokens) + b"".join(texts),
        "tokenizer__ggml__merges": struct.pack("<IQ", STRING, 2 * tokens) + b"".join(texts) * 2,
        "tokenizer__ggml__token_type": struct.pack("<IQ", I32, tokens) + bytes(4 * tokens),
    }
    return changed(**{key: (ARRAY, value) for key, value in lists.items()})


def test_the_largest_vocabularies_are_read_quickly(path: Path) -> None:
    """262,144 tokens and twice as many merges, as Gemma 4 has: under 300 ms, then under 5."""
    GgufFile(values=vocabulary(262_144)).write(path)
    remembered(GgufFile().write(path.with_name("other.gguf")))  # what is imported late is there

    began = time.process_time()
    facts = remembered(path)
    first_s = time.process_time() - began
    began = time.process_time()
    again = remembered(path)
    second_s = time.process_time() - began

    assert (facts.vocab_size, facts.merges) == (262_144, 524_288)
    assert again == facts
    assert first_s < 0.3
    assert second_s < 0.005


def test_a_vocabulary_is_kept_nowhere(path: Path) -> None:
    GgufFile(values=vocabulary(65_536)).write(path)
    tracemalloc.start()

    facts = facts_of(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert facts.merges == 131_072
    assert peak < 1 << 20
    assert path.stat().st_size > 2 << 20
