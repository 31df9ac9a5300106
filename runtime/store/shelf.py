"""What is on disk, found by reference. Opens no connection and writes nothing."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ModelNotFoundError
from runtime.store import quants
from runtime.store.inventory import Found, answering, take_stock
from runtime.store.local import LocalModel
from runtime.store.records import (
    PARTIAL_SUFFIX,
    ModelRecord,
    folder_name,
    present,
    read_record,
    readable,
    records,
    unchanged,
)
from runtime.store.refs import AliasRef, HubRef, ModelRef, PathRef, PypiRef, UrlRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runtime.store.catalog import CatalogEntry

_DAMAGED = "Damaged on disk: pull it again to repair it."


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelf:
    """The models on this machine, by reference.

    Attributes:
        models: The store's own folder.
        catalog: The catalogue, by name.
    """

    models: Path
    catalog: Mapping[str, CatalogEntry]

    def entry_of(self, ref: ModelRef) -> CatalogEntry | None:
        """The catalogue's entry that ``ref`` means, be it by name or by one of its sources."""
        if isinstance(ref, AliasRef):
            return self.catalog.get(ref.name.lower())
        return next(
            (
                entry
                for entry in self.catalog.values()
                if any(_same_source(ref, source) for source in entry.source_refs)
            ),
            None,
        )

    def sources(self, ref: ModelRef) -> tuple[ModelRef, ...]:
        """Where to fetch the model, the first one first; empty for paths and unknown names."""
        if entry := self.entry_of(ref):
            return entry.source_refs
        return () if isinstance(ref, AliasRef | PathRef) else (ref,)

    def key(self, ref: ModelRef) -> str:
        """One name for all references to the same thing: for its folder and its lock."""
        entry = self.entry_of(ref)
        if entry:
            return entry.name
        return ref.repo_id if isinstance(ref, HubRef) else str(ref)

    def folder(self, ref: ModelRef) -> Path:
        """The folder of a model of the catalogue, of an address or of a wheel."""
        return self.models / folder_name(self.key(ref))

    def find(self, ref: ModelRef) -> LocalModel | None:
        """The model that ``ref`` names, whole as far as sizes tell, or None.

        Raises:
            ModelNotFoundError: A split model lacks parts.
        """
        if isinstance(ref, PathRef):
            return at_path(ref)
        for folder, record in self.owned(ref):
            if present(folder, record):
                return self._model(folder, record)
        return self._installed(ref) or self._elsewhere(ref)

    def find_unchanged(self, ref: ModelRef) -> LocalModel | None:
        """As :meth:`find`, but of the store's own files only those not written to since."""
        for folder, record in self.owned(ref):
            if unchanged(folder, record):
                return self._model(folder, record)
        found = self.find(ref)
        return None if found is None or self.models in found.path.parents else found

    def owned(self, ref: ModelRef) -> Iterator[tuple[Path, ModelRecord]]:
        """The store's records that answer to ``ref``, damaged ones included, the best first."""
        entry = self.entry_of(ref)
        if entry or isinstance(ref, UrlRef | PypiRef):
            folder = self.folder(ref)
            if (record := read_record(folder)) is not None:
                yield folder, record
        elif isinstance(ref, AliasRef):
            name = ref.name.lower()
            yield from (pair for pair in records(self.models) if pair[1].name == name)
        elif isinstance(ref, HubRef):
            yield from self._of_repository(ref)

    def _of_repository(self, ref: HubRef) -> Iterator[tuple[Path, ModelRecord]]:
        repo = ref.repo_id.lower()
        mine = {
            record.files[0].name: (folder, record)
            for folder, record in records(self.models)
            if (record.repo_id or "").lower() == repo
            and (ref.revision is None or ref.revision in {record.revision, record.wanted_revision})
        }
        for candidate in quants.select(quants.candidates(mine), quant=ref.quant, file=ref.file):
            yield mine[candidate.files[0]]

    def partial_bytes(self, ref: ModelRef) -> int:
        """Bytes that have arrived of a download of ``ref`` under way."""
        if isinstance(ref, HubRef) and self.entry_of(ref) is None:
            folders = list(self.models.glob(f"{readable(ref.repo_id)}-*"))
        else:
            folders = [self.folder(ref)]
        total = 0
        for path in (path for folder in folders for path in folder.glob(f"*{PARTIAL_SUFFIX}")):
            try:
                total += path.stat().st_size
            except FileNotFoundError:  # it was just finished
                continue
        return total

    def all(self) -> tuple[LocalModel, ...]:
        """The models on this machine, the store's own first."""
        own = [self._model(folder, record) for folder, record in records(self.models)]
        others = [self._known(found) for found in take_stock()]
        return (*own, *others)

    def model(self, folder: Path) -> LocalModel | None:
        """The model whose folder that is, or None."""
        record = read_record(folder)
        return None if record is None else self._model(folder, record)

    def _model(self, folder: Path, record: ModelRecord) -> LocalModel:
        files = tuple(folder / file.name for file in record.files)
        notes = record.notes if present(folder, record) else (*record.notes, _DAMAGED)
        return LocalModel(
            reference=record.reference,
            name=record.name,
            path=files[0],
            files=files,
            size_bytes=record.size_bytes,
            sha256=record.files[0].sha256,
            source=record.source,
            mmproj=folder / record.mmproj.name if record.mmproj else None,
            entry=self.catalog.get(record.name),
            repo_id=record.repo_id,
            notes=notes,
        )

    def _installed(self, ref: ModelRef) -> LocalModel | None:
        """The model out of a package that is installed beside this one."""
        entry = self.entry_of(ref)
        for source in self.sources(ref):
            if isinstance(source, PypiRef) and (path := _installed_file(source)) is not None:
                model = at_path(PathRef(path=str(path)))
                model = replace(model, reference=str(ref), source="pypi")
                return _as_entry(model, entry) if entry else model
        return None

    def _elsewhere(self, ref: ModelRef) -> LocalModel | None:
        """The model in another program's folder."""
        stock = take_stock()
        entry = self.entry_of(ref)
        for wanted in entry.source_refs if entry else (ref,):
            for found in answering(stock, wanted):
                return _as_entry(found.model, entry) if entry else self._known(found)
        return None

    def _known(self, found: Found) -> LocalModel:
        """With what the catalogue knows about it."""
        repo_id = found.model.repo_id
        entry = self.entry_of(HubRef(repo_id=repo_id, file=found.file)) if repo_id else None
        return replace(found.model, entry=entry)


def at_path(ref: PathRef) -> LocalModel:
    """The model in the file that ``ref`` names; of a split one any part will do.

    Raises:
        ModelNotFoundError: There is no such file, or parts are missing.
    """
    path = Path(ref.path).expanduser().absolute()
    if not path.is_file():
        folder = path.parent
        near = sorted(p.name for p in folder.glob("*.gguf")) if folder.is_dir() else []
        raise ModelNotFoundError(
            f"There is no file {path}.",
            reference=str(ref),
            nearest=tuple(str(folder / name) for name in near[:5]),
            hint=f"GGUF files there: {', '.join(near[:5])}."
            if near
            else "On the hub a file is hf:owner/repo/file.gguf.",
        )
    files = parts_of(path)
    return LocalModel(
        reference=str(files[0]),
        name=api_name(path.name),
        path=files[0],
        files=files,
        size_bytes=sum(file.stat().st_size for file in files),
        sha256=None,
        source="path",
    )


def parts_of(path: Path) -> tuple[Path, ...]:
    """All parts of the split model that ``path`` is one of, in order; itself when it is whole.

    Raises:
        ModelNotFoundError: Some are missing.
    """
    split = quants.split_of(path.name)
    if split is None:
        return (path,)
    stem, total = Path(quants.stem_of(path.name)).name, split[1]
    files = [
        path.with_name(f"{stem}-{n:05d}-of-{total:05d}{path.suffix}") for n in range(1, total + 1)
    ]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ModelNotFoundError(
            f"Of the {total} parts of {stem} these are missing: {', '.join(missing)}.",
            reference=str(path),
            hint=f"Put them beside the others in {path.parent}.",
        )
    return tuple(files)


def api_name(file: str) -> str:
    """What a model is called in the API after its file: lower case, without split number."""
    return quants.stem_of(file).rsplit("/", 1)[-1].lower() or "model"


def _as_entry(model: LocalModel, entry: CatalogEntry) -> LocalModel:
    """The model under the catalogue's name."""
    return replace(
        model,
        reference=entry.name,
        name=entry.name,
        sha256=entry.sha256 or model.sha256,
        entry=entry,
    )


def _same_source(ref: ModelRef, source: ModelRef) -> bool:
    if not isinstance(ref, HubRef) or not isinstance(source, HubRef) or ref.revision:
        return ref == source
    if ref.repo_id.lower() != source.repo_id.lower():
        return False
    if ref.file:
        return ref.file == source.file
    offered = source.quant or (quants.quant_of(source.file) if source.file else None)
    return ref.quant is not None and ref.quant == offered


def _installed_file(ref: PypiRef) -> Path | None:
    try:
        found = importlib.metadata.distribution(ref.package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    path = Path(str(found.locate_file(ref.member)))
    return path if found.version == ref.version and path.is_file() else None
