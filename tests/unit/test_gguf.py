"""What is read from a GGUF file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy
import pytest

from runtime.errors import ModelFormatError
from runtime.store.gguf import read_facts

if TYPE_CHECKING:
    from pathlib import Path


def test_a_web_page_saved_as_a_model_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("\n <!DOCTYPE html>\n<html><body>Not found</body></html>")

    with pytest.raises(ModelFormatError, match="an HTML page") as caught:
        read_facts(path, cache_dir=tmp_path)

    assert caught.value.path == path
    assert caught.value.offset == 0


def test_the_smallest_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_tensor("token_embd.weight", numpy.zeros((10, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    facts = read_facts(path, cache_dir=tmp_path)

    assert facts.architecture == "llama"
    assert facts.parameters == 320
    assert facts.size_bytes == 1280
    assert facts.key_length == 8
    assert facts.kv_heads == 4
    assert facts.quantization == "F32"
    assert read_facts(path, cache_dir=tmp_path) == facts
