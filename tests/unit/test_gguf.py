"""What is read from a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import ModelFormatError
from runtime.store.gguf import read_facts


def test_a_web_page_saved_as_a_model_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("\n <!DOCTYPE html>\n<html><body>Not found</body></html>")

    with pytest.raises(ModelFormatError, match="an HTML page") as caught:
        read_facts(path, cache_dir=tmp_path)

    assert caught.value.path == path
    assert caught.value.offset == 0
