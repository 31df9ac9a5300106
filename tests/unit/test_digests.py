"""Digests of large files."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from runtime.errors import StorageError
from runtime.store.digests import known_digest, model_digest
from runtime.store.local import LocalModel

if TYPE_CHECKING:
    from pathlib import Path


def test_a_digest_is_remembered_as_long_as_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"one")
    model = LocalModel(
        reference=str(path),
        name="model",
        path=path,
        files=(path,),
        size_bytes=3,
        sha256=None,
        source="path",
    )
    assert known_digest(model) is None
    assert model_digest(model) == hashlib.sha256(b"one").hexdigest() == known_digest(model)

    path.write_bytes(b"another")
    assert known_digest(model) is None

    path.unlink()
    assert known_digest(model) is None
    with pytest.raises(StorageError, match=r"model\.gguf"):
        model_digest(model)
    promised = replace(model, sha256="ab" * 32)
    assert known_digest(promised) == model_digest(promised) == "ab" * 32
