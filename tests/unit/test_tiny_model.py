"""The tiny models that tests run on: small, quick to build, always the same."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest

from runtime.store.gguf import read_facts
from runtime.testing.tiny_model import TinyShape, build_tiny_model
from runtime.testing.tiny_vocabulary import chat_vocabulary

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_tiny_model.py"


@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_it_is_small_and_built_in_under_a_second(tmp_path: Path, kind: str) -> None:
    began = time.monotonic()

    path = build_tiny_model(tmp_path / "new" / "tiny.gguf", kind)  # type: ignore[arg-type]

    assert time.monotonic() - began < 1.0
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("kind", ["chat", "embedding"])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    first = build_tiny_model(tmp_path / "a.gguf", kind)  # type: ignore[arg-type]
    second = build_tiny_model(tmp_path / "b.gguf", kind)  # type: ignore[arg-type]
    other = build_tiny_model(tmp_path / "c.gguf", kind, seed=2)  # type: ignore[arg-type]

    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_its_shape_is_the_one_asked_for(tmp_path: Path) -> None:
    shape = TinyShape(
        layers=3,
        heads=6,
        kv_heads=3,
        key_length=16,
        embedding_length=96,
        feed_forward_length=160,
        context=1000,
        vocabulary=600,
        tensor_type="q8_0",
    )

    facts = read_facts(build_tiny_model(tmp_path / "t.gguf", shape=shape), cache_dir=tmp_path)

    assert facts.layers == 3
    assert facts.heads == 6
    assert facts.kv_heads == 3
    assert facts.key_length == facts.value_length == 16
    assert facts.embedding_length == 96
    assert facts.feed_forward_length == 160
    assert facts.context_train == 1000
    assert facts.vocab_size == 600
    assert facts.quantization == "Q8_0"


def test_the_chat_model_knows_every_byte_and_has_a_template(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "t.gguf")

    tokens = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    facts = read_facts(path, cache_dir=tmp_path)

    assert sum(len(token) == 1 for token in tokens) == 256
    assert len(set(tokens)) == len(tokens)
    assert facts.chat_template is not None
    assert "<|im_start|>" in facts.chat_template
    assert "tools" not in facts.chat_template
    assert not facts.is_embedding_model


def test_its_template_knows_tools_on_request(tmp_path: Path) -> None:
    path = build_tiny_model(tmp_path / "t.gguf", tools=True)

    assert "tools" in (read_facts(path, cache_dir=tmp_path).chat_template or "")


def test_the_embedding_model_says_that_it_is_one(tmp_path: Path) -> None:
    facts = read_facts(build_tiny_model(tmp_path / "t.gguf", "embedding"), cache_dir=tmp_path)

    assert facts.architecture == "bert"
    assert facts.pooling == "mean"
    assert facts.is_embedding_model
    assert facts.context_train == 512


def test_a_vocabulary_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it needs"):
        build_tiny_model(tmp_path / "t.gguf", shape=TinyShape(vocabulary=100))

    needed = sum(not token.startswith("[unused") for token in chat_vocabulary().tokens)
    assert len(chat_vocabulary(needed).tokens) == needed


def test_the_script_writes_the_model_that_its_options_name(tmp_path: Path) -> None:
    path = tmp_path / "t.gguf"

    done = subprocess.run(
        [sys.executable, SCRIPT, path, "--layers", "1", "--tensor-type", "f32", "--tools"],
        capture_output=True,
        text=True,
        check=True,
    )

    facts = read_facts(path, cache_dir=tmp_path)
    assert facts.layers == 1
    assert facts.quantization == "F32"
    assert f"{path.stat().st_size:,} bytes" in done.stdout


def test_without_the_gguf_package_the_script_says_what_to_install(tmp_path: Path) -> None:
    blocked = (
        "import runpy, sys; sys.modules['gguf'] = None; sys.argv[:] = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )

    done = subprocess.run(
        [sys.executable, "-c", blocked, SCRIPT, tmp_path / "t.gguf"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "llama-runtime[testing]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
