"""Our folders and the models in them: can they be written, is there room, is every file whole."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.doctor.finding import Finding
from runtime.doctor.wording import age, size
from runtime.errors import LLMError, StorageError
from runtime.settings import private_folder
from runtime.store import ModelStore
from runtime.store.disk import disk_error, hash_file
from runtime.store.gguf import read_facts
from runtime.store.inventory import take_stock
from runtime.store.records import PARTIAL_SUFFIX, RECORD, present, read_record, unchanged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.doctor.site import Site
    from runtime.store.records import ModelRecord

_LITTLE_DISK_BYTES: Final = 2_000_000_000
_NO_DISK_BYTES: Final = 50_000_000
_TRIAL: Final = bytes(1 << 16)
_QUICKLY_HASHED_BYTES: Final = 256 << 20
_SPARE_S: Final = 1.0
_UNDER_WAY_S: Final = 60.0
_MOVE: Final = "set LLAMA_RUNTIME_HOME to a folder elsewhere"


def folders(site: Site) -> Iterator[Finding]:
    """The folders for models, for state, and for what is temporary."""
    yield from _folder("disk.cache", site.dirs.cache, needs_bytes=_LITTLE_DISK_BYTES)
    yield from _folder("disk.state", site.dirs.state, needs_bytes=_NO_DISK_BYTES)
    if site.config.log_dir is not None:
        yield from _folder("disk.logs", site.config.log_dir, needs_bytes=_NO_DISK_BYTES)
    yield from _temporary(site)
    yield from _private(site.dirs.state)


def _folder(name: str, folder: Path, *, needs_bytes: int) -> Iterator[Finding]:
    try:
        if not folder.is_dir():  # one that is there is looked at as it is
            private_folder(folder)
        _write_trial(folder)
        status = folder.stat()
        free = shutil.disk_usage(folder).free
    except StorageError as exc:
        yield Finding(id=name, status="fail", found=exc.message, remedy=exc.hint)
        return
    except OSError as exc:
        error = disk_error(exc, folder)
        yield Finding(id=name, status="fail", found=error.message, remedy=error.hint)
        return
    text = f"{folder}, {size(free)} free{_mount_notes(folder)}"
    if free < _NO_DISK_BYTES:
        yield Finding(
            id=name,
            status="fail",
            found=f"{text}: the disk is full.",
            remedy=f"Free some room (`llama-runtime models list`, `models rm NAME`), or {_MOVE}.",
        )
    elif sys.platform != "win32" and status.st_mode & 0o077:
        yield Finding(
            id=name,
            status="warn",
            found=f"{text}: other users may look into it (mode {status.st_mode & 0o777:04o}).",
            remedy=f"chmod 700 '{folder}'",
        )
    elif sys.platform != "win32" and status.st_uid != os.getuid():
        yield Finding(
            id=name,
            status="warn",
            found=f"{text}: it belongs to user {status.st_uid}, and this is {os.getuid()}.",
            remedy=f"sudo chown -R {os.getuid()} '{folder}', or {_MOVE}.",
        )
    elif free < needs_bytes:
        yield Finding(
            id=name,
            status="warn",
            found=f"{text}: most models need more.",
            remedy=f"Free some room (`llama-runtime models rm NAME`), or {_MOVE}.",
        )
    else:
        yield Finding(id=name, status="ok", found=text)


def _write_trial(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(_TRIAL)
        file.flush()


def _mount_notes(folder: Path) -> str:
    if sys.platform == "win32":
        return ""
    facts = os.statvfs(folder)
    notes = ""
    if facts.f_files and not facts.f_favail:
        notes += ", no further file can be made (its inodes are used up)"
    if facts.f_flag & getattr(os, "ST_NOEXEC", 0):
        notes += ", programs cannot be run from it (noexec)"
    return notes


def _temporary(site: Site) -> Iterator[Finding]:
    named = next((name for name in ("TMPDIR", "TEMP", "TMP") if site.environ.get(name)), None)
    folder = Path(site.environ[named] if named else tempfile.gettempdir())
    try:
        _write_trial(folder)
        free = shutil.disk_usage(folder).free
    except OSError as exc:
        yield Finding(
            id="disk.tmp",
            status="fail",
            found=f"Temporary files cannot be written to {folder}: {exc.strerror or exc}.",
            remedy=f"unset {named}" if named else "export TMPDIR=/a/folder/you/may/write/to",
        )
        return
    short = free < _NO_DISK_BYTES
    yield Finding(
        id="disk.tmp",
        status="warn" if short else "ok",
        found=f"{folder}, {size(free)} free{_mount_notes(folder)}",
        remedy="Free some room, or set TMPDIR to a larger disk." if short else None,
    )


def _private(state: Path) -> Iterator[Finding]:
    """Whether the files that may tell of models, addresses and prompts are the user's alone."""
    if sys.platform == "win32":
        return
    open_files = []
    for folder, _, names in os.walk(state):
        for name in names:
            path = Path(folder, name)
            try:
                if path.lstat().st_mode & 0o077 and path.is_file():
                    open_files.append(path)
            except OSError:
                continue
    if open_files:
        yield Finding(
            id="disk.private",
            status="warn",
            found=f"{len(open_files)} files may be read by others, {open_files[0]} among them.",
            remedy=f"chmod -R go= '{state}'",
        )


# --- models ------------------------------------------------------------------------------------


def models(site: Site) -> Iterator[Finding]:
    """Every model of the store: sizes, headers, digests where a file was written to, leftovers."""
    yield from _own(site)
    yield from _of_others(site)


def _own(site: Site) -> Iterator[Finding]:
    if not site.dirs.models.is_dir():
        yield Finding(id="models", status="ok", found="none has been downloaded yet")
        return
    whole, total_bytes, wrong = 0, 0, False
    for folder in sorted(path for path in site.dirs.models.iterdir() if path.is_dir()):
        if folder.name.startswith("."):
            continue
        record = read_record(folder)
        problem = _unreadable(folder) if record is None else _damage(site, folder, record)
        if problem is not None:
            wrong = True
            yield problem
        elif record is not None:
            whole, total_bytes = whole + 1, total_bytes + record.size_bytes
        yield from _leftovers(site, folder, record)
    if not wrong:
        how = "hashed again" if site.full else "whole as far as sizes and headers tell"
        yield Finding(
            id="models", status="ok", found=f"{whole} in the store, {size(total_bytes)}, {how}"
        )


def _of_others(site: Site) -> Iterator[Finding]:
    """What other programs keep is used where it lies: its header and its length."""
    for found in take_stock():
        if not site.full and site.left_s() < _SPARE_S:
            return  # many files on a slow disk: the store's own come first
        try:
            read_facts(found.model.path)
        except LLMError as exc:
            yield Finding(
                id="models.foreign",
                status="warn",
                found=f"{found.model.name} of {found.model.source}: {exc.message}",
                remedy=f"Fetch it again with the program it is of, or remove it: "
                f"rm '{found.model.path}'",
            )


def _unreadable(folder: Path) -> Finding | None:
    if not (folder / RECORD).exists():
        return None
    return Finding(
        id="models.record",
        status="fail",
        found=f"{folder / RECORD} is damaged: the model beside it cannot be found.",
        remedy=f"Remove it and pull the model again: rm '{folder / RECORD}'",
    )


def _damage(site: Site, folder: Path, record: ModelRecord) -> Finding | None:
    problem = _size_problem(folder, record)
    if problem is None and (site.full or not unchanged(folder, record)):
        problem = _digest_problem(site, folder, record)
    if problem is None:
        try:
            read_facts(folder / record.files[0].name)
        except LLMError as exc:
            problem = exc.message
    if problem is None:
        return None
    return Finding(
        id="models.damaged",
        status="fail",
        found=f"{record.name}: {problem}",
        remedy=f"llama-runtime models pull {record.reference}",
    )


def _size_problem(folder: Path, record: ModelRecord) -> str | None:
    if present(folder, record):
        return None
    for file in record.all_files:
        path = folder / file.name
        if not path.is_file():
            return f"{path} is missing."
        actual = path.stat().st_size
        if actual < file.size_bytes:
            return f"{path} is cut off: {actual} of {file.size_bytes} bytes."
        if actual > file.size_bytes:
            return f"{path} is too long: {actual} instead of {file.size_bytes} bytes."
        if file.damaged:
            return f"{path} was found to be damaged before."
    return None


def _digest_problem(site: Site, folder: Path, record: ModelRecord) -> str | None:
    """Written to since it was hashed, or all is to be hashed."""
    if not site.full and record.size_bytes > _QUICKLY_HASHED_BYTES:
        return None  # its own remedy is `--full`, told below
    for file in record.all_files:
        path = folder / file.name
        if hash_file(path).hexdigest() != file.sha256:
            return f"{path} is damaged: its SHA-256 is not the one it had."
    return None


def _leftovers(site: Site, folder: Path, record: ModelRecord | None) -> Iterator[Finding]:
    """Halves of downloads that nobody goes on with."""
    parts = [(path, path.stat()) for path in folder.glob(f"*{PARTIAL_SUFFIX}")]
    if parts:
        quiet_s = time.time() - max(status.st_mtime for _, status in parts)
        total = size(sum(status.st_size for _, status in parts))
        if quiet_s > _UNDER_WAY_S:
            alias = folder.name in {entry.name for entry in ModelStore(site.dirs).catalog()}
            name = record.reference if record else folder.name
            pull = f"llama-runtime models pull {name}" if record or alias else "pull it again"
            yield Finding(
                id="models.partial",
                status="warn",
                found=f"half a download of {name}, {total}, untouched for {age(quiet_s)} "
                f"({parts[0][0]}).",
                remedy=f"Finish it ({pull}), or remove it: rm -r '{folder}'",
            )
        else:
            yield Finding(
                id="models.partial", status="ok", found=f"{folder.name}: arriving, {total} so far"
            )
    if (
        record is not None
        and not unchanged(folder, record)
        and present(folder, record)
        and (record.size_bytes > _QUICKLY_HASHED_BYTES)
    ):
        yield Finding(
            id="models.changed",
            status="warn",
            found=f"{record.name} was written to since its digest was taken.",
            remedy=f"llama-runtime models verify {record.reference}",
        )
