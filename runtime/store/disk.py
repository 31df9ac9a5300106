"""The disk: private files, room, and what its refusals mean."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from typing import TYPE_CHECKING, Final

from runtime.errors import StorageError
from runtime.settings import ENV_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK: Final = 1 << 20
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MOVE: Final = f"set {ENV_PREFIX}HOME to a folder elsewhere"


def private_opener(path: str, flags: int) -> int:
    """For ``open(..., opener=...)``: a new file that only its owner may read."""
    return os.open(path, flags, 0o600)


def disk_error(exc: OSError, path: Path, *, resumes: bool = False) -> StorageError:
    """What the operating system's refusal to use ``path`` means to a person.

    Args:
        exc: The refusal.
        path: What was to be used.
        resumes: Whether the next try goes on from what has been written.
    """
    reason = exc.strerror or str(exc)
    if exc.errno in _FULL:
        kept = " What has arrived is kept, and the next try goes on from there."
        return StorageError(
            f"The disk is full or the limit is reached while writing {path}: {reason}."
            f"{kept if resumes else ''}",
            path=path,
            hint=f"Free some room (`llama-runtime models rm NAME`), or {_MOVE}.",
        )
    return StorageError(
        f"Cannot write {path}: {reason}.", path=path, hint=f"Make it writable, or {_MOVE}."
    )


def require_room(folder: Path, needed_bytes: int) -> None:
    """Make sure that ``folder`` has room before the first byte is fetched.

    Raises:
        StorageError: It has not; both numbers are attributes.
    """
    available = shutil.disk_usage(folder).free
    if available < needed_bytes:
        raise StorageError(
            f"Not enough room in {folder}: needs {megabytes(needed_bytes)}, "
            f"has {megabytes(available)}.",
            path=folder,
            needed_bytes=needed_bytes,
            available_bytes=available,
            hint=f"Free some room (`llama-runtime models rm NAME`), or {_MOVE}.",
        )


def megabytes(size_bytes: int) -> str:
    """A size as a person reads it (decimal units, as download pages show)."""
    if size_bytes >= 10**9:
        return f"{size_bytes / 10**9:.1f} GB"
    return f"{size_bytes / 10**6:.1f} MB"


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` last over a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path, *, advance: Callable[[int], None] | None = None) -> hashlib._Hash:
    """The SHA-256 of a file.

    Args:
        path: The file.
        advance: Called with the number of bytes of each step.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            if advance:
                advance(count)
    return digest
