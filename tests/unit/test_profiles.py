"""Profiles of tunings: kept whole, found again, and never in the way of a start."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engines.base import Device, EngineInfo
from runtime.server import profiles
from runtime.server.profiles import Lookup, look_up
from runtime.server.tuning_profile import KeptProfile, applicable, key_for
from runtime.settings import ServerConfig, directories
from runtime.store.digests import model_digest
from runtime.store.local import LocalModel
from tests.unit.some_cpu import budget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BUDGET = budget(8)
_INFO = EngineInfo(kind="xllamacpp", installed=True, version="2026.10.11549")
_SHA = "ab" * 32


@pytest.fixture
def model(tmp_path: Path) -> LocalModel:
    path = tmp_path / "Some-Model.Q4_0.gguf"
    path.write_bytes(b"GGUF and more")
    return LocalModel(
        reference=str(path),
        name="some-model.q4_0",
        path=path,
        files=(path,),
        size_bytes=path.stat().st_size,
        sha256=_SHA,
        source="hub",
    )


@pytest.fixture(autouse=True)
def _threads_are_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_RUNTIME_THREADS")


def _profile(model: LocalModel, config: ServerConfig | None = None, **changes: Any) -> KeptProfile:
    key = key_for(
        config or ServerConfig(),
        model,
        _INFO,
        model_sha256=model_digest(model),
        budget=_BUDGET,
        gpu_layers=0,
    )
    profile = KeptProfile(
        model=model.name,
        key=key,
        settings={"threads": 4, "speculation": "ngram-mod"},
        tuned_at="2026-11-22T10:00:00+00:00",
        summary="14 % faster",
    )
    return replace(profile, **changes)


def _found(model: LocalModel, info: EngineInfo = _INFO, **settings: Any) -> Lookup:
    return look_up(ServerConfig(**settings), model, info, budget=_BUDGET, gpu_layers=0)


def test_nothing_kept_is_nothing_to_tell(model: LocalModel) -> None:
    assert _found(model) == Lookup()


def test_what_was_kept_is_found_again(model: LocalModel) -> None:
    profile = _profile(model)

    path = profiles.keep(profile)

    assert _found(model) == Lookup(profile=profile)
    assert profiles.kept(model) == ((path, profile),)


def test_a_draft_model_may_have_been_taken(model: LocalModel) -> None:
    profiles.keep(_profile(model, settings={"draft_model": "small"}))

    found = _found(model).profile

    assert found is not None
    assert found.settings == {"draft_model": "small"}


def test_files_and_folder_are_private(model: LocalModel) -> None:
    path = profiles.keep(_profile(model))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent == directories().profiles


def test_a_profile_replaces_the_one_for_the_same(model: LocalModel) -> None:
    profiles.keep(_profile(model))
    newer = _profile(model, settings={}, tuned_at="2026-11-23T10:00:00+00:00")

    profiles.keep(newer)

    assert [each for _, each in profiles.kept(model)] == [newer]


def test_who_wants_none_gets_none(model: LocalModel) -> None:
    profiles.keep(_profile(model))

    assert _found(model, tuned=False) == Lookup()


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (replace(_INFO, version="2027.1.12000"), "another build of xllamacpp (2026.10.11549)"),
        (replace(_INFO, kind="llama-server"), "another engine (xllamacpp)"),
        (
            replace(_INFO, devices=(Device(name="CUDA0", kind="gpu", description="RTX"),)),
            "another machine (gpus [])",
        ),
    ],
)
def test_another_engine_or_machine_is_said(model: LocalModel, info: EngineInfo, said: str) -> None:
    profiles.keep(_profile(model))

    found = _found(model, info)

    assert found.profile is None
    assert found.note is not None
    assert said in found.note
    assert "2026-11-22" in found.note
    assert "`llama-runtime tune`" in found.note


def test_fewer_cores_are_another_machine(model: LocalModel) -> None:
    profiles.keep(_profile(model))
    fewer = replace(_BUDGET, quota=2.0)

    found = look_up(ServerConfig(), model, _INFO, budget=fewer, gpu_layers=0)

    assert found.profile is None
    assert "quota" in (found.note or "")


def test_an_engine_that_was_asked_for_its_devices_is_the_same_build(model: LocalModel) -> None:
    profiles.keep(_profile(model))
    asked = replace(_INFO, version="2026.10.11549 (llama.cpp b11549, AVX2)")

    assert _found(model, asked).profile is not None


def test_another_file_of_that_name_is_said(model: LocalModel) -> None:
    profiles.keep(_profile(model))

    found = _found(replace(model, sha256="cd" * 32))

    assert found.profile is None
    assert "another file" in (found.note or "")


def test_a_file_that_was_written_to_is_another(model: LocalModel) -> None:
    """A path has no digest of the store's: it is known by what the file system says of it."""
    mine = replace(model, sha256=None)
    profiles.keep(_profile(mine))
    assert _found(mine).profile is not None

    mine.path.write_bytes(b"GGUF and something else")

    assert _found(mine).profile is None
    assert "another file" in (_found(mine).note or "")


def test_the_same_file_under_another_name_is_the_same_model(model: LocalModel) -> None:
    profiles.keep(_profile(model))

    assert _found(replace(model, name="my-own")).profile is not None


def test_what_was_set_while_tuning_has_to_be_set_again(model: LocalModel) -> None:
    profiles.keep(_profile(model, ServerConfig(cache_type_k="q8_0"), settings={"threads": 4}))

    assert "other settings (cache_type_k)" in (_found(model).note or "")
    assert _found(model, cache_type_k="q8_0").profile is not None


def test_what_is_set_by_hand_wins(model: LocalModel) -> None:
    """And takes with it what was chosen together with it."""
    profile = _profile(model, settings={"threads": 4, "threads_batch": 8, "flash_attn": "off"})
    profiles.keep(profile)

    assert _found(model, threads=2).profile == profile
    assert applicable(profile, ServerConfig(threads=2)) == {"flash_attn": "off"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"{",
        lambda _: b"[]",
        lambda _: b"\xff\xfe",
        lambda _: b"[" * 100_000,
        lambda value: json.dumps({**value, "schema": 2}).encode(),
        lambda value: json.dumps({**value, "settings": {"threads": -1}}).encode(),
        lambda value: json.dumps({**value, "settings": {"model": "other"}}).encode(),
        lambda value: json.dumps({**value, "settings": [1]}).encode(),
        lambda value: json.dumps({**value, "key": None}).encode(),
        lambda value: json.dumps({**value, "key": {**value["key"], "fixed": 3}}).encode(),
        lambda value: json.dumps({k: v for k, v in value.items() if k != "tuned_at"}).encode(),
        lambda value: json.dumps({**value, "evidence": "x" * (1 << 20)}).encode(),
    ],
)
def test_a_damaged_profile_is_said_and_left_alone(
    model: LocalModel, damage: Callable[[Any], bytes]
) -> None:
    path = profiles.keep(_profile(model))
    path.write_bytes(damage(json.loads(path.read_bytes())))

    found = _found(model)

    assert found.profile is None
    assert path.name in (found.note or "")
    assert "`llama-runtime tune`" in (found.note or "")
    assert path.exists()


def test_a_damaged_profile_does_not_hide_a_good_one(model: LocalModel) -> None:
    good = _profile(model)
    path = profiles.keep(good)
    path.with_name(path.name.replace(".json", "0.json")).write_bytes(b"{")

    assert _found(model).profile == good


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_profile_that_may_not_be_read_is_said(model: LocalModel) -> None:
    path = profiles.keep(_profile(model))
    path.chmod(0)

    assert path.name in (_found(model).note or "")


def test_writers_at_once_leave_one_whole_profile(model: LocalModel) -> None:
    many = [_profile(model, summary=f"{n} " * 2000) for n in range(24)]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(profiles.keep, many))

    assert _found(model).profile in many
    assert len(list(directories().profiles.iterdir())) == 1


def test_all_of_a_model_can_be_forgotten(model: LocalModel) -> None:
    profiles.keep(_profile(model))
    profiles.keep(_profile(model, ServerConfig(threads=3), settings={}))
    other = replace(model, name="other", sha256="ef" * 32)
    profiles.keep(_profile(other))

    assert profiles.forget(model) == 2
    assert profiles.kept(model) == ()
    assert len(profiles.kept(other)) == 1
