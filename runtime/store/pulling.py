"""Fetching a model: one process at a time, one source after the other, registered when whole."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout

from runtime.errors import (
    DownloadError,
    IntegrityError,
    LLMAuthError,
    LLMError,
    LLMRateLimitError,
    ModelNotFoundError,
    StorageError,
)
from runtime.settings import private_folder
from runtime.store.disk import disk_error
from runtime.store.records import (
    PARTIAL_SUFFIX,
    ModelRecord,
    folder_name,
    present,
    write_record,
)
from runtime.store.sources import Fetcher, source_name
from runtime.store.verify import settle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.store.limits import Limits
    from runtime.store.local import LocalModel
    from runtime.store.meter import Meter
    from runtime.store.refs import ModelRef
    from runtime.store.shelf import Shelf

_log = logging.getLogger(__name__)

_LOCKS: Final = ".locks"
_POLL_S: Final = 0.2
_NEXT_SOURCE: Final = (
    DownloadError,
    IntegrityError,
    LLMAuthError,
    LLMRateLimitError,
    ModelNotFoundError,
)


def pull(shelf: Shelf, ref: ModelRef, *, meter: Meter, limits: Limits) -> LocalModel:
    """Bring the model to disk, from the first source that works.

    Raises:
        LLMError: As :meth:`runtime.store.ModelStore.pull` says.
    """
    private_folder(shelf.models)
    with _alone(shelf, ref, meter):
        for folder, record in shelf.owned(ref):
            settled = settle(folder, record, meter)
            if present(folder, settled) and (found := shelf.model(folder)):
                return found  # another process fetched it, or its files were only touched
        sources = shelf.sources(ref)
        failures: list[LLMError] = []
        for source in sources:
            last = source is sources[-1]
            patience = limits if last else limits.hurried()
            fetcher = Fetcher(shelf=shelf, ref=ref, meter=meter, limits=patience)
            try:
                folder, record = fetcher.fetch(source)
            except _NEXT_SOURCE as exc:
                failures.append(exc)
                _log.info("no %s from %s: %s", shelf.key(ref), source_name(source), exc.message)
                if not last:
                    meter.note(f"{exc.message} Trying the next source.")
            else:
                return _registered(shelf, folder, record, failures)
    raise _combined(shelf.key(ref), failures)


def _registered(
    shelf: Shelf, folder: Path, record: ModelRecord, failures: list[LLMError]
) -> LocalModel:
    """The model is whole: write its record. What failed on the way is said once, to this caller."""
    write_record(folder, record)
    for leftover in folder.glob(f"*{PARTIAL_SUFFIX}*"):  # of a source that was given up
        leftover.unlink(missing_ok=True)
    found = shelf.model(folder)
    if found is None:
        raise StorageError(f"{folder} vanished while it was written.", path=folder)
    _log.info("pulled %s from %s", found.name, record.origin)
    return replace(found, notes=(*(failure.message for failure in failures), *found.notes))


@contextlib.contextmanager
def _alone(shelf: Shelf, ref: ModelRef, meter: Meter) -> Iterator[None]:
    """Hold the model's lock; it falls with its process, however that ends."""
    key = shelf.key(ref)
    path = private_folder(shelf.models / _LOCKS) / f"{folder_name(key)}.lock"
    lock = FileLock(path, mode=0o600)
    waiting = False
    while True:
        try:
            lock.acquire(timeout=_POLL_S if waiting else 0, poll_interval=_POLL_S / 2)
        except Timeout:
            if not waiting:
                entry = shelf.entry_of(ref)
                meter.begin("waiting", key, total=entry.size_bytes if entry else None)
                waiting = True
            meter.at(shelf.partial_bytes(ref))
        except OSError as exc:
            raise disk_error(exc, path) from exc
        else:
            break
    try:
        yield
    finally:
        lock.release()


def _combined(key: str, failures: list[LLMError]) -> LLMError:
    """The one failure as it is, several as one error that names each."""
    if len(failures) == 1:
        return failures[0]
    reasons = " ".join(f"({n}) {failure.message}" for n, failure in enumerate(failures, 1))
    status = next((f.status for f in failures if isinstance(f, DownloadError) and f.status), None)
    return DownloadError(
        f"No source has {key} for us now. {reasons}",
        source=key,
        status=status,
        hint=next((failure.hint for failure in reversed(failures) if failure.hint), None),
    )
