"""The store without a network: resolve, list, plan removals, verify."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from runtime.errors import ModelNotFoundError, StorageError
from runtime.settings import Directories
from runtime.store import LocalModel, ModelStore
from runtime.store.records import (
    FileRecord,
    ModelRecord,
    file_record,
    folder_name,
    read_record,
    write_record,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Directories:
    """Folders of our own, and a home where no other program keeps models."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere"))
    return Directories(cache=tmp_path / "cache", state=tmp_path / "state")


@pytest.fixture
def store(dirs: Directories) -> ModelStore:
    return ModelStore(dirs, offline=True)


def _put(dirs: Directories, name: str, *files: bytes) -> list[Path]:
    """A model as a pull leaves it."""
    folder = dirs.models / name
    folder.mkdir(parents=True)
    paths = []
    for number, data in enumerate(files, 1):
        paths.append(folder / f"{name}-{number:05d}-of-{len(files):05d}.gguf")
        paths[-1].write_bytes(data)
    record = ModelRecord(
        name=name,
        reference=name,
        origin=f"hf:o/r/{name}.gguf",
        source="hub",
        files=tuple(file_record(p, hashlib.sha256(p.read_bytes()).hexdigest()) for p in paths),
        repo_id="o/r",
    )
    write_record(folder, record)
    return paths


# --- paths ------------------------------------------------------------------------------------


def test_a_path_is_used_where_it_lies(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "My Model.Q4_0.gguf"
    path.write_bytes(b"GGUF")
    model = store.resolve(str(path))
    assert model == LocalModel(
        reference=str(path),
        name="my model.q4_0",
        path=path,
        files=(path,),
        size_bytes=4,
        sha256=None,
        source="path",
    )
    assert store.pull(str(path)) == model


def test_a_path_may_be_relative_or_below_home(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "home" / "m.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    monkeypatch.chdir(path.parent)
    assert store.resolve("m.gguf").path == store.resolve("~/m.gguf").path == path


def test_any_part_names_a_split_model(store: ModelStore, tmp_path: Path) -> None:
    parts = [tmp_path / f"big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        part.write_bytes(b"GGUF")
    for part in parts:
        model = store.resolve(str(part))
        assert (model.files, model.path, model.size_bytes) == (tuple(parts), parts[0], 12)
        assert model.name == "big"
    parts[1].unlink()
    with pytest.raises(ModelNotFoundError, match=r"big-00002-of-00003\.gguf"):
        store.resolve(str(parts[0]))


def test_a_missing_file_names_those_beside_it(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFoundError, match="There is no file") as caught:
        store.resolve(str(tmp_path / "their.gguf"))
    assert caught.value.nearest == (str(tmp_path / "there.gguf"),)
    assert "there.gguf" in (caught.value.hint or "")
    with pytest.raises(ModelNotFoundError, match="There is no file"):
        store.pull(str(tmp_path / "no" / "folder.gguf"))


# --- names ------------------------------------------------------------------------------------


def test_an_unknown_name_shows_the_nearest(store: ModelStore, dirs: Directories) -> None:
    _put(dirs, "my-own-model", b"GGUF")
    for ask in (store.resolve, store.pull, store.plan_removal, store.verify):
        with pytest.raises(ModelNotFoundError, match="No model is called") as caught:
            ask("smolm2-135m")
        assert caught.value.nearest[0] == "smollm2-135m"
        assert "Did you mean smollm2-135m" in (caught.value.hint or "")
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve("my-own-modle")
    assert caught.value.nearest[0] == "my-own-model"


@pytest.mark.parametrize(
    "reference", ["smollm2-135m", "o/r:Q4_0", "hf:o/r/f.gguf", "https://example.org/f.gguf"]
)
@pytest.mark.parametrize("offline", [True, False])
def test_what_is_not_here_says_how_to_fetch_it(
    dirs: Directories, reference: str, offline: bool
) -> None:
    with pytest.raises(ModelNotFoundError, match="not on this machine") as caught:
        ModelStore(dirs, offline=offline).resolve(reference)
    hint = caught.value.hint or ""
    assert f"`llama-runtime models pull {reference}`" in hint
    assert ("offline" in hint) is offline
    assert not dirs.models.exists(), "looking must leave nothing behind"


def test_the_list_is_what_is_on_disk(store: ModelStore, dirs: Directories) -> None:
    assert store.list() == ()
    _put(dirs, "b-model", b"GGUF")
    _put(dirs, "a-model", b"GGUF", b"GGUF")
    (dirs.models / "c-model").mkdir()
    (dirs.models / "c-model" / "c.gguf.part").write_bytes(b"GGUF")
    assert [(model.name, len(model.files)) for model in store.list()] == [
        ("a-model", 2),
        ("b-model", 1),
    ]
    assert all(store.resolve(model.reference) == model for model in store.list())


@pytest.mark.parametrize("record", [b"", b"{", b"[]", b'{"schema": 9}', b"\xff"])
def test_a_broken_record_is_no_model(store: ModelStore, dirs: Directories, record: bytes) -> None:
    path = _put(dirs, "some-model", b"GGUF")[0]
    (path.parent / "model.json").write_bytes(record)
    assert store.list() == ()


def test_a_model_with_a_file_gone_says_that_it_is_damaged(
    store: ModelStore, dirs: Directories
) -> None:
    _put(dirs, "some-model", b"GGUF1", b"GGUF2")[1].unlink()
    with pytest.raises(ModelNotFoundError, match="damaged"):
        store.resolve("some-model")
    assert "Damaged" in store.list()[0].notes[-1]
    result = store.verify("some-model")
    assert [check.actual is None for check in result.files] == [False, True]


# --- recommend --------------------------------------------------------------------------------


def test_what_fits_is_recommended_first_the_most_capable_at_the_top(store: ModelStore) -> None:
    found = store.recommend(available_bytes=4_000_000_000)
    fits = [r.fits for r in found]
    assert fits == sorted(fits, reverse=True)
    fitting = [r.entry.parameters for r in found if r.fits]
    assert fitting == sorted(fitting, reverse=True)
    assert {r.entry.name for r in found} == {entry.name for entry in store.catalog()}
    for r in found:
        assert r.needed_bytes > r.entry.size_bytes
        assert r.fits == (r.needed_bytes <= 4_000_000_000)
    by_name = {r.entry.name: r for r in found}
    assert by_name["qwen3-4b"].fits
    assert not by_name["qwen3-8b"].fits
    assert found[-1].entry.name == "gpt-oss-20b"


def test_a_kind_can_be_asked_for_and_what_is_here_is_marked(
    store: ModelStore, dirs: Directories
) -> None:
    _put(dirs, "bge-m3", b"GGUF")
    found = store.recommend(kind="embedding", available_bytes=10**12)
    assert {r.entry.kind for r in found} == {"embedding"}
    assert [r.entry.name for r in found if r.local] == ["bge-m3"]


def test_without_a_figure_the_machine_is_looked_at(store: ModelStore) -> None:
    assert store.recommend()[0].available_bytes > 0


# --- verify -----------------------------------------------------------------------------------


def test_verify_names_the_damaged_part_only(store: ModelStore, dirs: Directories) -> None:
    first, second = _put(dirs, "some-model", b"GGUF1", b"GGUF2")
    assert store.verify("some-model").ok
    second.write_bytes(b"GGUF3")
    result = store.verify("some-model")
    assert [check.path for check in result.damaged] == [second]
    assert result.damaged[0].expected == hashlib.sha256(b"GGUF2").hexdigest()
    assert result.damaged[0].actual == hashlib.sha256(b"GGUF3").hexdigest()
    second.write_bytes(b"GGUF2")
    assert store.verify("some-model").ok
    assert store.resolve("some-model").path == first


def test_verify_says_when_nothing_can_be_compared(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    result = store.verify(str(path))
    assert result.ok
    assert [check.path for check in result.unknown] == [path]
    assert result.files[0].actual == hashlib.sha256(b"GGUF").hexdigest()


def test_a_copy_that_lost_its_fractions_of_seconds_is_not_hashed_anew(
    store: ModelStore, dirs: Directories
) -> None:
    path = _put(dirs, "some-model", b"GGUF1")[0]
    whole = path.stat().st_mtime_ns // 10**9
    os.utime(path, (whole, whole))
    phases: list[str] = []
    online = ModelStore(dirs, offline=False)
    online.pull("some-model", progress=lambda event: phases.append(event.phase))
    assert phases == ["done"]


def test_a_folder_that_cannot_be_written_serves_what_is_right_in_it(
    dirs: Directories,
) -> None:
    """A file in the place of the folder for locks stands for a read-only disk."""
    path = _put(dirs, "some-model", b"GGUF1")[0]
    (dirs.models / ".locks").write_text("in the way")
    os.utime(path, (1, 1))
    store = ModelStore(dirs, offline=False)
    assert store.pull("o/r").path == path
    path.write_bytes(b"GGUF2")
    with pytest.raises(StorageError):
        store.pull("o/r")


# --- removal ----------------------------------------------------------------------------------


def test_a_removal_is_planned_shown_and_done(store: ModelStore, dirs: Directories) -> None:
    paths = _put(dirs, "some-model", b"GGUF1", b"GGUF2")
    _put(dirs, "other-model", b"GGUF")

    plan = store.plan_removal("some-model")

    assert set(paths) < set(plan.files)
    assert plan.freed_bytes == sum(file.stat().st_size for file in plan.files)
    assert all(path.exists() for path in paths)
    plan.execute()
    assert not paths[0].parent.exists()
    assert [model.name for model in store.list()] == ["other-model"]
    plan.execute()  # again: nothing left to do


def test_a_download_that_has_not_ended_can_be_removed(store: ModelStore, dirs: Directories) -> None:
    part = dirs.models / "smollm2-135m" / "S.gguf.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"GGUF")
    assert store.remove("smollm2-135m").freed_bytes == 4
    assert not part.parent.exists()


def test_a_file_of_the_user_is_not_removed(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(StorageError, match="not the store's"):
        store.remove(str(path))
    assert path.exists()


# --- records ----------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = FileRecord(name="m.gguf", size_bytes=1, sha256="a" * 64, mtime_ns=5)
    record = ModelRecord(
        name="m",
        reference="m",
        origin="hf:o/r/m.gguf",
        source="hub",
        files=(file,),
        mmproj=file,
        repo_id="o/r",
        revision="c" * 40,
        wanted_revision="main",
        notes=("Took Q4_K_M.",),
    )
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_folders_are_told_apart_and_hold_no_secret() -> None:
    names = {
        folder_name(reference)
        for reference in ("smollm2-135m", "o/r", "O/r", "o-r/x", "https://h/a.gguf", "https://h/b")
    }
    assert len(names) == 6
    secret = folder_name("https://me:s3cret@example.org/m.gguf?token=s3cret#sha256=0")
    assert secret.startswith("https-example.org-m.gguf-")
    assert all("/" not in name and not name.startswith(".") for name in names)


def test_importing_the_store_loads_no_network_library() -> None:
    code = (
        "import sys, runtime.store; runtime.store.ModelStore(offline=True).catalog();"
        "print([m for m in ('httpx2', 'huggingface_hub', 'filelock') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
