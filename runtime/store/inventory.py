"""Models that other programs keep on this machine: listed and used where they lie, never touched.

Layouts, as their programs write them: Hugging Face's cache (links in
``models--owner--repo/snapshots/COMMIT`` into ``blobs``), llama.cpp's (``owner_repo_file.gguf`` and
``manifest=owner=repo=tag.json``; since 2026 Hugging Face's layout instead), LM Studio's
(``owner/repo/file.gguf``), Ollama's (``manifests/HOST/NAMESPACE/MODEL/TAG`` naming
``blobs/sha256-…``).
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ValidationError

from runtime.store import quants
from runtime.store.local import LocalModel
from runtime.store.refs import AliasRef, HubRef, ModelRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_MAGIC: Final = b"GGUF"
_OLLAMA_HOST: Final = "registry.ollama.ai"
_MODEL_LAYER: Final = "application/vnd.ollama.image.model"
_PROJECTOR_LAYER: Final = "application/vnd.ollama.image.projector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model of another program.

    Attributes:
        model: The model.
        file: Its first file's path in its hub repository, or its name.
        quant: Its quantization as far as names tell, or None.
        revisions: Commits, branches and tags of the hub that it is known to be of.
    """

    model: LocalModel
    file: str
    quant: str | None
    revisions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder and the program whose models it holds."""

    source: str
    folder: Path


def places(environ: Mapping[str, str] | None = None, home: Path | None = None) -> tuple[Place, ...]:
    """Where those programs keep models, by their own environment variables and defaults."""
    environ = os.environ if environ is None else environ
    home = home or Path(environ.get("HOME") or Path.home())

    def named(variable: str, default: Path) -> Path:
        value = environ.get(variable)
        return Path(value).expanduser() if value else default

    cache = named("XDG_CACHE_HOME", home / ".cache")
    hub = named("HF_HUB_CACHE", named("HF_HOME", cache / "huggingface") / "hub")
    mac = sys.platform == "darwin"
    llama = home / "Library/Caches/llama.cpp" if mac else cache / "llama.cpp"
    found = [
        Place(source="huggingface-cache", folder=hub),
        Place(source="llama.cpp", folder=named("LLAMA_CACHE", llama)),
        Place(source="lm-studio", folder=home / ".lmstudio/models"),
        Place(source="lm-studio", folder=home / ".cache/lm-studio/models"),
        Place(source="ollama", folder=named("OLLAMA_MODELS", home / ".ollama/models")),
    ]
    if "OLLAMA_MODELS" not in environ and home == Path.home():
        # of the service that Ollama's installer makes on Linux
        found.append(Place(source="ollama", folder=Path("/usr/share/ollama/.ollama/models")))
    return tuple(place for place in found if place.folder.is_dir())


def take_stock(where: Sequence[Place] | None = None) -> tuple[Found, ...]:
    """The models in all those places; what cannot be read is passed over, what is twice is once."""
    seen: set[Path] = set()
    found = []
    for place in places() if where is None else where:
        for reader in _READERS[place.source]:
            for item in _unhindered(reader(place)):
                real = item.model.path.resolve()
                if real not in seen:
                    seen.add(real)
                    found.append(item)
    return tuple(found)


def answering(found: Iterable[Found], ref: ModelRef) -> tuple[Found, ...]:
    """Those that ``ref`` names, the best first."""
    if isinstance(ref, AliasRef):
        name = ref.name.lower()
        return tuple(f for f in found if f.model.name.lower() in {name, f"{name}:latest"})
    if not isinstance(ref, HubRef):
        return ()
    found, repo = tuple(found), ref.repo_id.lower()
    mine = [
        f
        for f in found
        if (f.model.repo_id or "").lower() == repo
        and (ref.revision is None or ref.revision in f.revisions)
    ]
    name = f"{repo}:{(ref.quant or 'latest').lower()}"  # Ollama's names of this form
    if named := tuple(f for f in found if f.model.name.lower() == name):
        return named
    mine.sort(key=lambda f: "main" in f.revisions)  # the last one of a name stays
    by_file = {f.file: f for f in mine}
    offered = quants.ranked(
        quants.Candidate(stem=quants.stem_of(f.file), files=(f.file,), quant=f.quant)
        for f in by_file.values()
    )
    return tuple(
        by_file[c.files[0]] for c in quants.select(offered, quant=ref.quant, file=ref.file)
    )


def _unhindered(items: Iterator[Found]) -> Iterator[Found]:
    """The items up to the first that the system refuses to show."""
    try:
        yield from items
    except OSError:
        return


def _grouped(
    files: Mapping[str, Path], *, source: str, repo_id: str | None, revisions: frozenset[str]
) -> Iterator[Found]:
    """The models among the files of one repository, by their paths in it."""
    for candidate in quants.candidates(files):
        if candidate.missing:
            continue
        paths = tuple(files[file] for file in candidate.files)
        projector = quants.projector(files, candidate.quant)
        mmproj = files[projector] if projector else None
        yield Found(
            model=LocalModel(
                reference=_reference(repo_id, candidate.files[0], paths[0], revisions),
                name=quants.stem_of(candidate.files[0]).rsplit("/", 1)[-1].lower(),
                path=paths[0],
                files=paths,
                size_bytes=sum(p.stat().st_size for p in (*paths, *([mmproj] if mmproj else []))),
                sha256=None,
                source=source,
                mmproj=mmproj,
                repo_id=repo_id,
            ),
            file=candidate.files[0],
            quant=candidate.quant,
            revisions=revisions,
        )


def _reference(repo_id: str | None, file: str, path: Path, revisions: frozenset[str]) -> str:
    """A reference that leads to this very file again."""
    if repo_id is None or not revisions:
        return str(path)
    return str(
        HubRef(repo_id=repo_id, file=file, revision=None if "main" in revisions else min(revisions))
    )


def _hugging_face(place: Place) -> Iterator[Found]:
    for repo in sorted(place.folder.glob("models--*--*")):
        repo_id = repo.name.removeprefix("models--").replace("--", "/", 1)
        names: dict[str, set[str]] = defaultdict(set)
        refs = repo / "refs"
        for ref in refs.rglob("*") if refs.is_dir() else ():
            if ref.is_file():
                names[ref.read_text("utf-8").strip()].add(ref.relative_to(refs).as_posix())
        snapshots = repo / "snapshots"
        for snapshot in sorted(snapshots.iterdir() if snapshots.is_dir() else ()):
            files = _gguf_files(snapshot)
            revisions = frozenset({snapshot.name, *names[snapshot.name]})
            yield from _grouped(files, source=place.source, repo_id=repo_id, revisions=revisions)


def _flat_llama_cpp(place: Place) -> Iterator[Found]:
    repos = {}
    for manifest in place.folder.glob("manifest=*=*=*.json"):
        owner, repo = manifest.name.split("=")[1:3]
        repos[f"{owner}_{repo}_"] = f"{owner}/{repo}"
    by_repo: dict[str | None, dict[str, Path]] = defaultdict(dict)
    for path in sorted(place.folder.glob("*.gguf")):
        prefix = max((p for p in repos if path.name.startswith(p)), key=len, default="")
        if path.is_file():
            by_repo[repos.get(prefix)][path.name.removeprefix(prefix)] = path
    for repo_id, files in by_repo.items():
        ours = {
            name: path
            for name, path in files.items()
            # without a repository they have but the folder in common, so no projector is shared
            if repo_id or not quants.is_projector(name)
        }
        yield from _grouped(ours, source=place.source, repo_id=repo_id, revisions=frozenset())


def _lm_studio(place: Place) -> Iterator[Found]:
    for folder in sorted(place.folder.glob("*/*")):
        if folder.is_dir():
            repo_id = folder.relative_to(place.folder).as_posix()
            yield from _grouped(
                _gguf_files(folder), source=place.source, repo_id=repo_id, revisions=frozenset()
            )


class _Layer(BaseModel):
    mediaType: str  # noqa: N815 - Ollama's name for it
    digest: str


class _Manifest(BaseModel):
    layers: list[_Layer] = []


def _ollama(place: Place) -> Iterator[Found]:
    manifests = place.folder / "manifests"
    for path in sorted(manifests.glob("*/*/*/*")):
        try:
            layers = _Manifest.model_validate_json(path.read_bytes()).layers
        except (OSError, ValidationError):
            continue
        blobs: dict[str, list[Path]] = defaultdict(list)
        for layer in layers:
            blobs[layer.mediaType].append(place.folder / "blobs" / layer.digest.replace(":", "-"))
        if _MODEL_LAYER not in blobs or not all(map(_is_gguf, blobs[_MODEL_LAYER])):
            continue
        host, namespace, model, tag = path.relative_to(manifests).parts
        of_hub = host in {"hf.co", "huggingface.co"}
        plain = host == _OLLAMA_HOST and namespace == "library"
        name = f"{model}:{tag}" if plain else f"{namespace}/{model}:{tag}"
        files, eyes = tuple(blobs[_MODEL_LAYER]), blobs[_PROJECTOR_LAYER]
        yield Found(
            model=LocalModel(
                reference=name.removesuffix(":latest") if plain else str(files[0]),
                name=name,
                path=files[0],
                files=files,
                size_bytes=sum(file.stat().st_size for file in (*files, *eyes[:1])),
                sha256=files[0].name.removeprefix("sha256-"),
                source=place.source,
                mmproj=eyes[0] if eyes else None,
                repo_id=f"{namespace}/{model}" if of_hub else None,
            ),
            file=name,
            quant=tag.upper() if of_hub else None,
        )


def _gguf_files(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*.gguf"))
        if path.is_file()
    }


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


_READERS: Final[dict[str, tuple[Callable[[Place], Iterator[Found]], ...]]] = {
    "huggingface-cache": (_hugging_face,),
    "llama.cpp": (_hugging_face, _flat_llama_cpp),
    "lm-studio": (_lm_studio,),
    "ollama": (_ollama,),
}
