"""A draft model must have its target's vocabulary; what differs is named."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from runtime.errors import ConfigError
from runtime.server.plan import _measured
from runtime.server.tuning_profile import KeptProfile, ProfileKey
from runtime.settings import ServerConfig
from runtime.store import ModelStore
from runtime.store.catalog import read_catalog
from runtime.store.drafts import Drafting, catalogue_draft
from runtime.store.vocabulary import Vocabulary, check_pair, difference, read_vocabulary
from runtime.testing.tiny_model import TinyShape, build_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

ONE = Vocabulary(
    kind="gpt2",
    marks=(("add_bos_token", False), ("bos_token_id", 1)),
    tokens=tuple(str(number).encode() for number in range(300)),
)


def test_the_vocabulary_of_a_file_is_read_whole(tiny_model_path: Path) -> None:
    import gguf  # noqa: PLC0415 - the other reader of this format, slow to import

    found = read_vocabulary(tiny_model_path)
    field = gguf.GGUFReader(tiny_model_path).fields["tokenizer.ggml.tokens"]
    assert found.tokens == tuple(bytes(field.parts[index]) for index in field.data)
    assert found.kind == "gpt2"
    assert dict(found.marks)["eos_token_id"] is not None


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(ONE), None),
        (replace(ONE, tokens=ONE.tokens + (b"x",) * 128), None),
        (replace(ONE, tokens=ONE.tokens + (b"x",) * 129), "300 and 429 tokens"),
        (replace(ONE, tokens=(b"x",) * 5 + ONE.tokens[5:]), None),
        (replace(ONE, tokens=(*ONE.tokens[:5], b"x", *ONE.tokens[6:])), "token 5 is '5'"),
        (replace(ONE, tokens=(*ONE.tokens[:-1], b"x")), "token 299"),
        (replace(ONE, kind="llama"), "'gpt2' and 'llama'"),
        (replace(ONE, marks=(ONE.marks[0], ("bos_token_id", 2))), "bos_token_id is 1"),
    ],
)
def test_the_rule_is_llama_cpps(other: Vocabulary, named: str | None) -> None:
    found = difference(ONE, other)
    assert found is None if named is None else named in (found or "")


def test_a_pair_of_other_vocabularies_is_refused_each_time(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    twin = build_tiny_model(tmp_path / "twin.gguf", seed=2)
    check_pair(tiny_model_path, twin)
    check_pair(tiny_model_path, twin)
    other = build_tiny_model(tmp_path / "other.gguf", shape=TinyShape(vocabulary=600))
    for _ in range(2):  # found out, and remembered
        with pytest.raises(ConfigError, match=r"other\.gguf cannot draft for"):
            check_pair(tiny_model_path, other)
    build_tiny_model(other, seed=2)
    check_pair(tiny_model_path, other)  # another file of that name


def test_the_catalogues_pairs_are_of_one_family_and_smaller() -> None:
    catalogue = read_catalog()
    pairs = [(entry, catalogue[entry.draft]) for entry in catalogue.values() if entry.draft]
    assert pairs
    for target, draft in pairs:
        assert draft.size_bytes < target.size_bytes
        assert draft.name.split("-")[0] == target.name.split("-")[0]


def test_a_draft_that_is_not_here_is_told_with_the_command_that_fetches_it() -> None:
    store = ModelStore()
    assert "--with-draft" in catalogue_draft(store, "qwen3-4b").why
    assert "names no draft model" in catalogue_draft(store, "smollm2-135m").why


def test_auto_drafts_only_where_a_measurement_chose_that_model(tmp_path: Path) -> None:
    key = ProfileKey(
        model_sha256="", model_bytes=1, engine="", engine_version="", hardware={}, fixed={}
    )
    tuned = KeptProfile(
        model="m", key=key, settings={"draft_model": "small"}, tuned_at="2026", summary=""
    )
    here = Drafting(name="small", path=tmp_path, why="on this machine")
    config = ServerConfig(draft_model="auto")
    assert _measured(here, tuned, config) == here
    assert "no measurement" in _measured(here, None, config).why
    assert _measured(replace(here, name="another"), tuned, config).path is None
    set_otherwise = ServerConfig(draft_model="auto", speculation="ngram-mod")
    assert "speculation=ngram-mod" in _measured(here, tuned, set_otherwise).why
