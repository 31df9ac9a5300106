"""Which managed servers run on this machine: one small file each, checked before it is believed."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import TypeAdapter

from runtime.errors import StorageError
from runtime.settings import directories, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


log = logging.getLogger(__name__)

MARK = "RUNTIME_SERVER_NAME"
"""Environment variable of an engine that names its server's record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """A managed server as its owner wrote it down. Holds no secret.

    Attributes:
        name: Unique among servers.
        role: ``"serve"`` for the command of that name, ``"client"`` for one inside a program,
            ``"engine"`` for one that a gateway answers for.
        owner_pid: The owner's process id.
        owner_birth: What tells that process from a later one with the same id.
        engine_pid: The engine's process id, or None between two processes.
        model: The model's API name.
        engine: The engine kind.
        base_url: Where it answers, or None while it does not.
        state: Its state.
        started_at: When the engine process was started.
        log_path: The file with its engine's output.
        engine_birth: What tells the engine's process from a later one with the same id.
        standby_pid: The process id of the engine that would take over, or None.
        standby_birth: What tells that process from a later one with the same id.
        standby_log_path: The file with its output.
        own_log_path: The file with the owner's own output, where it was detached.
    """

    name: str
    role: str
    owner_pid: int
    owner_birth: str
    engine_pid: int | None
    model: str
    engine: str
    base_url: str | None
    state: str
    started_at: str | None
    log_path: str | None
    engine_birth: str | None = None
    own_log_path: str | None = None
    standby_pid: int | None = None
    standby_birth: str | None = None
    standby_log_path: str | None = None

    @property
    def owner_lives(self) -> bool:
        """Whether the very process that wrote this still runs."""
        return birth(self.owner_pid) == self.owner_birth

    @property
    def engine_lives(self) -> bool:
        """Whether the very engine process that was written down still runs."""
        pid = self.engine_pid
        return pid is not None and self.engine_birth is not None and birth(pid) == self.engine_birth


@functools.cache
def _adapter() -> TypeAdapter[ServerRecord]:
    return TypeAdapter(ServerRecord)


def birth(pid: int) -> str | None:
    """What tells a process from a later one with the same id; None when there is no such process.

    On Linux the kernel's own count since boot, which setting the clock does not change
    (proc_pid_stat(5), field 22); elsewhere the time of creation.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        # The second field is the program's name in parentheses and may hold anything.
        fields = stat.rpartition(")")[2].split()
        # A process that ended and was not collected yet is none any more.
        return None if fields[0] == "Z" else f"{boot} {fields[19]}"
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.Error:
        return None


def path_of(name: str) -> Path:
    """The file with a server's record."""
    return directories().servers / f"{name}.json"


def write(record: ServerRecord) -> None:
    """Write a record down.

    Raises:
        StorageError: The state folder cannot be written.
    """
    folder = private_folder(directories().servers)
    try:
        handle, partial = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
        Path(partial).replace(folder / f"{record.name}.json")
    except OSError as exc:
        raise StorageError(
            f"Cannot write to {folder}: {exc.strerror or exc}.", path=folder, hint=None
        ) from exc


def erase(name: str) -> None:
    """Forget a server."""
    with contextlib.suppress(OSError):
        path_of(name).unlink(missing_ok=True)


def running(*, everything: bool = False) -> tuple[ServerRecord, ...]:
    """Servers that have been ready and whose owner lives, oldest first.

    Args:
        everything: Also those that have not been ready yet, and the engines behind gateways.
    """
    reap_leftovers()
    found = [
        record
        for _, record in _all()
        if record is not None
        and (everything or (record.state != "loading" and record.role != "engine"))
    ]
    return tuple(sorted(found, key=lambda record: record.started_at or ""))


def logs_in_use() -> frozenset[Path]:
    """Log files that servers write to now."""
    paths = (
        path
        for _, record in _all()
        if record is not None and record.owner_lives
        for path in (record.log_path, record.standby_log_path, record.own_log_path)
    )
    return frozenset(Path(path) for path in paths if path)


def survey() -> Iterator[tuple[Path, ServerRecord | None, tuple[int, ...]]]:
    """The records as they lie there; nothing is ended or removed.

    Yields:
        A record's file, what it says (None when it cannot be read), and, where its owner is dead,
        the process ids of engines that are proven to be its leftovers.
    """
    for path, record in _all():
        orphans: tuple[int, ...] = ()
        if record is not None and not record.owner_lives:
            written = (
                (record.engine_pid, record.engine_birth),
                (record.standby_pid, record.standby_birth),
            )
            orphans = tuple(
                pid for pid, born in written if pid is not None and _is_engine_of(record, pid, born)
            )
        yield path, record, orphans


def reap_leftovers() -> tuple[int, ...]:
    """End engines that owners left behind when they died; returns their process ids.

    Their keepers do that long before, so there is nothing to do unless a keeper was killed on a
    system where the kernel does not end its engine. What is ended is proven to be ours: the owner
    is dead, and the process has the id, the birth and the mark that the owner wrote down. Anything
    less certain is let live. Files of dead owners and unreadable ones are removed.
    """
    reaped = []
    for path, record, pids in survey():
        if record is not None and record.owner_lives:
            continue
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                psutil.Process(pid).kill()  # compares the time of creation once more
                reaped.append(pid)
                log.warning("ended process %d, the engine that a dead owner left", pid)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return tuple(reaped)


def _is_engine_of(record: ServerRecord, pid: int, born: str | None) -> bool:
    if born is None or birth(pid) != born:
        return False
    try:
        return psutil.Process(pid).environ().get(MARK) == record.name
    except psutil.Error:  # another user's, or gone
        return False


def _all() -> Iterator[tuple[Path, ServerRecord | None]]:
    try:
        paths = list(directories().servers.glob("*.json"))
    except OSError:  # no such folder, or one that nobody may read: then nothing is known
        return
    for path in paths:
        try:
            yield path, _adapter().validate_json(path.read_bytes())
        except (OSError, ValueError):  # ValidationError is a ValueError
            yield path, None
