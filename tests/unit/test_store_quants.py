"""What the names of model files say, and which of them is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.store.quants import (
    candidates,
    is_projector,
    projector,
    quant_of,
    select,
    split_of,
    stem_of,
)

if TYPE_CHECKING:
    import random


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("smollm2-1.7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Qwen3-30B-A3B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("model-IQ2_XXS.gguf", "IQ2_XXS"),
        ("gemma-3-4b-it-qat-q4_0.gguf", "Q4_0"),
        ("Q8_0/big-BF16-Q8_0-00001-of-00003.gguf", "Q8_0"),
        ("model.f16.gguf", "F16"),
        ("nomic-embed-text-v1.5.F32.gguf", "F32"),
        ("ggml-model.gguf", None),
        ("FREQ4_KMODEL.gguf", None),
        ("Q4_K_M/weights.gguf", None),
    ],
)
def test_the_quantization_in_a_name(file: str, quant: str | None) -> None:
    assert quant_of(file) == quant


def test_the_parts_of_a_split_name() -> None:
    assert split_of("d/big-Q8_0-00002-of-00003.gguf") == (2, 3)
    assert stem_of("d/big-Q8_0-00002-of-00003.gguf") == "d/big-Q8_0"
    assert split_of("big-Q8_0.gguf") is None
    assert stem_of("big-Q8_0.GGUF") == "big-Q8_0"


def test_what_is_no_model_is_no_candidate() -> None:
    files = ["README.md", "imatrix.gguf", "mmproj-F16.gguf", "m-Q8_0.gguf", "m-Q8_0.gguf.part"]
    assert [candidate.files for candidate in candidates(files)] == [("m-Q8_0.gguf",)]
    assert is_projector("x/mmproj-model.gguf")
    assert not is_projector("mmproj/model.gguf")


def test_two_splits_of_one_stem_stay_apart() -> None:
    files = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf"]
    assert [(len(c.files), c.missing) for c in candidates(files)] == [(2, 0), (1, 2)]


@pytest.mark.parametrize(
    ("offered", "quant", "taken"),
    [
        (["F16", "BF16", "F32"], "Q4_K_M", "F16"),
        (["F16", "Q8_0"], "Q8_0", "Q8_0"),
        (["BF16", "Q8_0"], "Q4_K_M", "BF16"),
        (["F32", "Q8_0"], None, "Q8_0"),
    ],
)
def test_the_projector_is_quantized_as_the_model_or_of_16_bits(
    offered: list[str], quant: str | None, taken: str
) -> None:
    assert projector([f"mmproj-{q}.gguf" for q in offered], quant) == f"mmproj-{taken}.gguf"


def test_a_wish_without_ud_is_met_by_ud_when_nothing_else_meets_it() -> None:
    found = candidates(["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"])
    assert [c.quant for c in select(found, quant="Q4_K_XL")] == ["UD-Q4_K_XL"]
    assert [c.quant for c in select(found, quant="Q4_K_M")] == ["Q4_K_M"]
    assert select(found, quant="Q2_K") == ()
    assert select((), quant=None) == ()


_QUANTS = ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0", "F16", "BF16", "IQ3_XXS"]


@given(st.lists(st.sampled_from(_QUANTS), min_size=1, unique=True), st.randoms())
def test_the_choice_does_not_hang_on_the_order_of_files(
    quants: list[str], chance: random.Random
) -> None:
    files = [f"m-{quant}.gguf" for quant in quants]
    first = select(candidates(files))
    chance.shuffle(files)
    assert select(candidates(files)) == first
    assert len(first) == 1
    assert "Q4_K_M" not in quants or first[0].quant == "Q4_K_M"
