"""The catalogue: models known by a short name, read from one TOML file each."""

from __future__ import annotations

import difflib
import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from runtime.errors import ConfigError, ModelNotFoundError
from runtime.store.refs import ModelRef, parse_ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ModelKind = Literal["chat", "code", "embedding", "reranker", "vision"]

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_FOLDERS: Final = (_PACKAGE / "_models", _PACKAGE.parent / "models")  # in a wheel; in a checkout

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling the model's authors recommend; None where they say nothing."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """What is known about a model before it is on disk.

    Attributes:
        name: Its short name, unique.
        title: Its name as its authors write it.
        kind: What it is for.
        sources: References of the same file, tried in this order.
        license: SPDX identifier, or the licence's own name.
        parameters: Weights, to three digits unless the file was counted.
        quantization: Of the file the sources name.
        context: Tokens it was trained for.
        size_bytes: Size on disk, the projector included; approximate unless ``sha256`` is given.
        sha256: Digest of the file when it is one file and known; else the hub tells it.
        tools: Whether its chat template knows tools.
        tags: Words to search by.
        description: One sentence.
        homepage: Where its authors describe it.
        sampling: What its authors recommend, or None.
        draft: A smaller entry of the same vocabulary, to draft for this one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: _Name
    title: str
    kind: ModelKind
    sources: Annotated[tuple[str, ...], Field(min_length=1)]
    license: str
    parameters: _Count
    quantization: str
    context: _Count
    size_bytes: _Count
    sha256: _Sha256 | None = None
    tools: bool = False
    tags: tuple[str, ...] = ()
    description: str = ""
    homepage: str = ""
    sampling: Sampling | None = None
    draft: _Name | None = None

    @property
    def source_refs(self) -> tuple[ModelRef, ...]:
        """The sources, parsed."""
        return tuple(parse_ref(source) for source in self.sources)


@functools.cache
def _adapter() -> TypeAdapter[CatalogEntry]:
    return TypeAdapter(CatalogEntry)


def read_entry(path: Path) -> CatalogEntry:
    """The entry in one TOML file.

    Raises:
        ConfigError: The file is not such an entry; says which key is wrong.
    """
    try:
        entry = _adapter().validate_python(tomllib.loads(path.read_text("utf-8")))
        entry.source_refs  # noqa: B018 - a source that does not parse is an error of this file
    except (OSError, tomllib.TOMLDecodeError, ValidationError, ModelNotFoundError) as exc:
        raise ConfigError(f"{path} is not a catalogue entry: {exc}") from exc
    if entry.name != path.stem:
        raise ConfigError(f"{path} describes {entry.name!r}: file and name must agree.")
    return entry


def catalog_folder() -> Path:
    """Where the entries that came with this package lie."""
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])


@functools.cache
def read_catalog(folder: Path | None = None) -> Mapping[str, CatalogEntry]:
    """All entries by name, smallest model first.

    Raises:
        ConfigError: An entry is wrong, or there is none.
    """
    folder = folder or catalog_folder()
    entries = [read_entry(path) for path in sorted(folder.glob("*.toml"))]
    if not entries:
        raise ConfigError(f"There is no catalogue in {folder}.", hint="Install the package again.")
    names = {entry.name for entry in entries}
    for entry in entries:
        if entry.draft is not None and entry.draft not in names:
            raise ConfigError(f"{entry.name} names the draft model {entry.draft}: there is none.")
    return {entry.name: entry for entry in sorted(entries, key=lambda e: (e.size_bytes, e.name))}


def nearest_names(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Known names that look like ``name``, best first, at most five."""
    by_folded = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_folded, n=5, cutoff=0.5)
    close += [folded for folded in by_folded if name.lower() in folded and folded not in close]
    return tuple(by_folded[folded] for folded in close[:5])
