"""Digests taken again: is a model's file still what it was?"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from runtime.errors import StorageError
from runtime.store.disk import hash_file
from runtime.store.local import FileCheck
from runtime.store.records import FileRecord, ModelRecord, file_record, unchanged, write_record

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from runtime.store.local import LocalModel
    from runtime.store.meter import Meter

# Hugging Face's cache and Ollama name a file after its digest.
_DIGEST_NAME: Final = re.compile(r"(?:sha256-)?([0-9a-f]{64})")


def settle(folder: Path, record: ModelRecord, meter: Meter) -> ModelRecord:
    """The record after hashing what was written to since; what was found is written down.

    Raises:
        StorageError: A file cannot be read, or the record not be written.
    """
    if unchanged(folder, record):
        return record
    return _judged(folder, record, check_record(folder, record, meter))


def verify_record(folder: Path, record: ModelRecord, meter: Meter) -> tuple[FileCheck, ...]:
    """Hash all files of a model of the store, and mark the damaged ones in its record.

    Raises:
        StorageError: A file cannot be read, or the record not be written.
    """
    checks = check_record(folder, record, meter)
    _judged(folder, record, checks)
    return checks


def verify_files(model: LocalModel, meter: Meter) -> tuple[FileCheck, ...]:
    """Hash all files of a model that is not the store's.

    Raises:
        StorageError: A file cannot be read.
    """
    files = (*model.files, model.mmproj) if model.mmproj else model.files
    checks = []
    for file in files:
        named = _DIGEST_NAME.fullmatch(file.resolve().name)
        expected = named[1] if named else model.sha256 if file == model.path else None
        checks.append(_file_check(file, expected, meter))
    return tuple(checks)


def check_record(folder: Path, record: ModelRecord, meter: Meter) -> tuple[FileCheck, ...]:
    """Hash all files of a model of the store; nothing is written.

    Raises:
        StorageError: A file cannot be read.
    """
    return tuple(_file_check(folder / file.name, file.sha256, meter) for file in record.all_files)


def _judged(folder: Path, record: ModelRecord, checks: Iterable[FileCheck]) -> ModelRecord:
    """The record with what was found, written down where that is news."""
    by_name = {check.path.name: check for check in checks}

    def judged(file: FileRecord) -> FileRecord:
        check = by_name[file.name]
        return file_record(check.path, file.sha256) if check.ok else replace(file, damaged=True)

    judgement = replace(
        record,
        files=tuple(judged(file) for file in record.files),
        mmproj=judged(record.mmproj) if record.mmproj else None,
    )
    if judgement != record:
        write_record(folder, judgement)
    return judgement


def _file_check(path: Path, expected: str | None, meter: Meter) -> FileCheck:
    try:
        size = path.stat().st_size
        meter.begin("verifying", path.name, total=size)
        actual = hash_file(path, advance=meter.advance).hexdigest()
    except FileNotFoundError:
        return FileCheck(path=path, size_bytes=0, expected=expected, actual=None)
    except OSError as exc:
        raise StorageError(f"Cannot read {path}: {exc.strerror}.", path=path) from exc
    return FileCheck(path=path, size_bytes=size, expected=expected, actual=actual)
