"""`tune` on real engines: what it shows and keeps, and what the next start makes of that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runtime.server import profiles
from runtime.server.tuning_profile import KeptProfile
from runtime.settings import ServerConfig, directories
from runtime.store import ModelStore
from runtime.store.digests import model_digest
from runtime.tuning.tuner import prepare
from tests.conftest import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import ManagerFactory

pytestmark = [pytest.mark.process, pytest.mark.engine]

_SMALL = {"engine": "xllamacpp", "ctx_size": 512, "parallel": 1}
_OPTIONS = ("--engine", "xllamacpp", "--ctx-size", "512", "--parallel", "1")


def _tune(path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "runtime", "tune", str(path), *_OPTIONS, *args],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def _keep(path: Path, **settings: Any) -> KeptProfile:
    """As if it had been found to be best."""
    model = ModelStore().resolve(str(path))
    tuning = prepare(ServerConfig(**_SMALL), model, model_sha256=model_digest(model))
    profile = KeptProfile(
        model=model.name,
        key=tuning.key,
        settings=settings,
        tuned_at="2026-11-22T10:00:00+00:00",
        summary="much faster",
    )
    profiles.keep(profile)
    return profile


def test_a_tuning_is_measured_kept_explained_and_forgotten(tiny_model_path: Path) -> None:
    ran = _tune(tiny_model_path, "--minutes", "0.03", "--workload", "free-text", "--json")

    assert ran.returncode == 0, ran.stderr
    kept = json.loads(ran.stdout)
    assert kept["summary"] in {*_explained(tiny_model_path)}
    assert kept["evidence"]["workloads"] == ["free-text"]
    tried = {row["name"] for row in kept["evidence"]["tried"]}
    assert "speculation ngram-mod" in tried
    assert "no flash attention" not in tried
    assert "no flash attention. `--allow-changes` tries" in " ".join(ran.stderr.split())
    assert "comparing answers" in ran.stderr
    assert _tune(tiny_model_path, "--reset").returncode == 0
    assert list(directories().profiles.iterdir()) == []


def _explained(path: Path) -> list[str]:
    told = json.loads(_tune(path, "--explain", "--json").stdout)
    assert told["used"].startswith("Used now: the profile of 20")
    return [each["summary"] for each in told["profiles"]]


def test_the_next_start_uses_the_profile_and_says_so(
    tiny_model_path: Path, manager_for: ManagerFactory
) -> None:
    profile = _keep(tiny_model_path, batch_size=64, speculation="off")

    snapshot = manager_for(model=str(tiny_model_path), **_SMALL).start().snapshot()

    assert snapshot.performance["batch_size"] == {
        "value": 64,
        "why": "tuned profile of 2026-11-22",
    }
    assert snapshot.performance["speculation"]["value"] is None  # type: ignore[index]
    assert snapshot.tuned is not None
    assert snapshot.tuned["settings"] == profile.settings
    assert snapshot.tuned["summary"] == "much faster"


def test_a_profile_of_another_build_is_said_and_not_used(
    tiny_model_path: Path, manager_for: ManagerFactory
) -> None:
    profile = _keep(tiny_model_path, batch_size=64)
    path = directories().profiles / profile.file_name
    told = json.loads(path.read_bytes())
    told["key"]["engine_version"] = "2020.1.1"
    path.write_text(json.dumps(told), "utf-8")

    snapshot = manager_for(model=str(tiny_model_path), **_SMALL).start().snapshot()

    assert snapshot.tuned is None
    assert any("another build of xllamacpp (2020.1.1)" in note for note in snapshot.notes)
    assert "2020.1.1" in _tune(tiny_model_path, "--explain").stdout


def test_a_profile_that_cannot_be_used_breaks_no_start(
    tiny_model_path: Path, manager_for: ManagerFactory
) -> None:
    profile = _keep(tiny_model_path, batch_size=64)
    (directories().profiles / profile.file_name).write_bytes(b'{"schema": 1')

    snapshot = manager_for(model=str(tiny_model_path), **_SMALL).start().snapshot()

    assert snapshot.state == "ready"
    assert any("it is no JSON" in note for note in snapshot.notes)


def test_what_cannot_be_kept_is_told_all_the_same(tiny_model_path: Path) -> None:
    """Minutes of measuring are not thrown away for a disk that refuses."""
    directories().profiles.parent.mkdir(parents=True, exist_ok=True)
    directories().profiles.write_bytes(b"no folder")

    ran = _tune(tiny_model_path, "--minutes", "0.01", "--workload", "long-prompt")

    assert ran.returncode == 5
    assert "Taken: " in ran.stdout
    assert str(directories().profiles) in "".join(ran.stderr.split())


def test_what_was_kept_with_changes_allowed_is_not_kept_without(tiny_model_path: Path) -> None:
    _keep(tiny_model_path, speculation="ngram-mod", flash_attn="off")
    model = ModelStore().resolve(str(tiny_model_path))
    digest = model_digest(model)
    config = ServerConfig(**_SMALL)

    assert prepare(config, model, model_sha256=digest).kept is None
    assert prepare(config, model, model_sha256=digest, allow="rounding").kept is not None


def test_ctrl_c_leaves_no_engine_and_keeps_nothing(tiny_model_path: Path) -> None:
    words = [sys.executable, "-m", "runtime", "tune", str(tiny_model_path), *_OPTIONS]
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        me = psutil.Process(process.pid)
        wait_until("its engines run", lambda: len(me.children(recursive=True)) >= 2, timeout_s=30)
        children = me.children(recursive=True)

        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)

    assert process.returncode == 130, err
    wait_until("they are gone", lambda: not any(c.is_running() for c in children), timeout_s=10)
    assert not directories().profiles.exists()


def test_what_only_embeds_is_refused(tiny_embedding_path: Path) -> None:
    ran = _tune(tiny_embedding_path)

    assert ran.returncode == 7
    assert "only embeds" in ran.stderr


def test_two_wishes_at_once_are_refused(tiny_model_path: Path) -> None:
    assert _tune(tiny_model_path, "--explain", "--reset").returncode == 2
