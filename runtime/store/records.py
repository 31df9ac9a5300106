"""The store's own folder: one folder for each model, with its files and one JSON record.

A model is there when its record is; files without one are a download that has not ended. Records
and files are written beside their place and renamed into it, so no reader ever meets half of one.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from runtime.store.disk import disk_error, private_opener

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECORD: Final = "model.json"
PARTIAL_SUFFIX: Final = ".part"

_SECOND: Final = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file as it was when its digest was last taken.

    Attributes:
        name: Its name inside the model's folder.
        size_bytes: Its size.
        sha256: Its digest.
        mtime_ns: Its time of change; another one means that the digest has to be taken anew.
        damaged: Its digest was found to be another one since.
    """

    name: str
    size_bytes: int
    sha256: str
    mtime_ns: int
    damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model in the store.

    Attributes:
        name: Its name in the API.
        reference: The reference it was asked for by.
        origin: The reference of the source it came from.
        source: The kind of that source.
        files: The model's files in order.
        mmproj: The vision projector, or None.
        repo_id: The hub repository, or None.
        revision: The hub's commit, or None.
        wanted_revision: The branch or tag that was asked for, or None.
        notes: What was chosen on the caller's behalf.
        schema: Version of this form.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")

    name: str
    reference: str
    origin: str
    source: str
    files: tuple[FileRecord, ...]
    mmproj: FileRecord | None = None
    repo_id: str | None = None
    revision: str | None = None
    wanted_revision: str | None = None
    notes: tuple[str, ...] = ()
    schema: Literal[1] = 1

    @property
    def all_files(self) -> tuple[FileRecord, ...]:
        """The model's files and the projector."""
        return (*self.files, self.mmproj) if self.mmproj else self.files

    @property
    def size_bytes(self) -> int:
        """Size of all of them."""
        return sum(file.size_bytes for file in self.all_files)


@functools.cache
def _adapter() -> TypeAdapter[ModelRecord]:
    return TypeAdapter(ModelRecord)


def folder_name(reference: str) -> str:
    """The folder of the model that ``reference`` names: readable, and unique by a short digest."""
    if re.fullmatch(r"[a-z0-9][a-z0-9.-]*", reference):
        return reference
    digest = hashlib.sha256(reference.encode()).hexdigest()[:8]
    return f"{readable(reference)}-{digest}"


def readable(reference: str) -> str:
    """What ``reference`` looks like in a file name, without the secrets an address may hold."""
    bare = re.sub(r"[?#].*", "", re.sub(r"://[^/@]*@", "://", reference))
    return re.sub(r"[^A-Za-z0-9.]+", "-", bare)[:80].strip("-.")


def read_record(folder: Path) -> ModelRecord | None:
    """The record in ``folder``, or None where there is none that can be read."""
    try:
        return _adapter().validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def write_record(folder: Path, record: ModelRecord) -> None:
    """Put ``record`` in its place, whole or not at all.

    Raises:
        StorageError: The disk refuses.
    """
    write_atomically(folder / RECORD, _adapter().dump_json(record, indent=1))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small private file, whole or not at all.

    Raises:
        StorageError: The disk refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    try:
        with open(beside, "wb", opener=private_opener) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        raise disk_error(exc, path) from exc


def records(models: Path) -> Iterator[tuple[Path, ModelRecord]]:
    """All models in the store's folder, by name."""
    if not models.is_dir():
        return
    for folder in sorted(models.iterdir()):
        if (record := read_record(folder)) is not None:
            yield folder, record


def present(folder: Path, record: ModelRecord) -> bool:
    """Whether every file is there with the size it had and is not known to be damaged."""
    try:
        return all(
            not file.damaged and (folder / file.name).stat().st_size == file.size_bytes
            for file in record.all_files
        )
    except OSError:
        return False


def unchanged(folder: Path, record: ModelRecord) -> bool:
    """Whether, besides, no file was written to since its digest was taken."""
    return present(folder, record) and all(
        # Archives and container images keep whole seconds only.
        (folder / file.name).stat().st_mtime_ns
        in {file.mtime_ns, file.mtime_ns // _SECOND * _SECOND}
        for file in record.all_files
    )


def file_record(path: Path, sha256: str) -> FileRecord:
    """The record of a file whose digest was just taken."""
    status = path.stat()
    return FileRecord(
        name=path.name, size_bytes=status.st_size, sha256=sha256, mtime_ns=status.st_mtime_ns
    )
