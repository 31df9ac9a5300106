"""SHA-256 of files that are large: taken once, and remembered as long as a file stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import StorageError
from runtime.memo import Memo, file_identity
from runtime.store.disk import hash_file

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.store.local import LocalModel

_MEMO = "sha256"


def known_digest(model: LocalModel) -> str | None:
    """The digest of the model's first file if it is known without reading it."""
    if model.sha256 is not None:
        return model.sha256
    try:
        return _remembered(file_identity(model.path))
    except OSError:
        return None


def model_digest(model: LocalModel) -> str:
    """The digest of the model's first file, as its source told it or as it is.

    Raises:
        StorageError: The file cannot be read.
    """
    return model.sha256 or file_digest(model.path)


def file_digest(path: Path) -> str:
    """The digest of a file.

    Raises:
        StorageError: It cannot be read.
    """
    try:
        identity = file_identity(path)
        known = _remembered(identity)
        if known is None:
            known = hash_file(path).hexdigest()
            Memo(_MEMO).put(identity, {"sha256": known})
    except OSError as exc:
        raise StorageError(f"Cannot read {path}: {exc.strerror or exc}.", path=path) from exc
    return known


def _remembered(identity: str) -> str | None:
    digest = (Memo(_MEMO).get(identity) or {}).get("sha256")
    return digest if isinstance(digest, str) else None
