"""What earlier processes left: records of servers, engines, locks, files that cannot be read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from runtime.doctor.finding import Finding
from runtime.server import registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from runtime.doctor.site import Site

_KEEPER: Final = str(Path("server", "keeper", "start.py"))
# "1: FLOCK  ADVISORY  WRITE 1234 08:01:4711 0 EOF" (proc_locks(5))
_LOCK: Final = re.compile(
    r"^\d+: \w+\s+\w+\s+WRITE (-?\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE
)


def state(site: Site) -> Iterator[Finding]:
    """Servers' records, engines without an owner, files of ours that cannot be read."""
    unreadable, dead, running = [], [], []
    orphans: set[int] = set()
    for path, record, leftovers in registry.survey():
        if record is None:
            unreadable.append(path)
        elif record.owner_lives:
            running.append(record)
        else:
            dead.append(record)
            orphans.update(leftovers)
    orphans.update(_unkept())
    if orphans:
        pids = " ".join(map(str, sorted(orphans)))
        yield Finding(
            id="state.orphans",
            status="fail",
            found=f"engines of ours that nobody owns any more: process {pids}.",
            remedy=f"kill {pids}",
        )
    if dead:
        yield Finding(
            id="state.records",
            status="warn",
            found="records of servers whose owners are dead: "
            + ", ".join(f"{record.name} ({record.model})" for record in dead)
            + ".",
            remedy="llama-runtime ps removes them.",
        )
    unreadable += _unreadable(site)
    if unreadable:
        yield Finding(
            id="state.files",
            status="warn",
            found="files that cannot be read: " + ", ".join(map(str, unreadable[:5])) + ".",
            remedy="rm " + " ".join(f"'{path}'" for path in unreadable[:5]),
        )
    if not (orphans or dead or unreadable):
        names = ", ".join(f"{record.model} ({record.name})" for record in running)
        yield Finding(id="state", status="ok", found=f"running: {names or 'none'}")


def _unkept() -> Iterator[int]:
    """Processes that bear an engine's mark and have no keeper above them."""
    if not Path("/proc/self/environ").exists():
        return
    parents: dict[int, int] = {}
    for process in psutil.process_iter():
        try:
            marked = registry.MARK in process.environ()
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                parents[process.pid] = process.ppid()
        except psutil.Error:  # another user's, or gone
            continue
    if os.getpid() in parents:
        return  # this very program runs below an engine: what is above it says nothing
    for pid, parent in parents.items():
        if parent not in parents and not _is_keeper(parent):
            yield pid


def _is_keeper(pid: int) -> bool:
    try:
        return any(word.endswith(_KEEPER) for word in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _unreadable(site: Site) -> Iterator[Path]:
    """JSON files of ours that hold none; the servers' records are looked at elsewhere."""
    facts = site.dirs.cache / "facts"
    found: Iterable[Path] = (
        *facts.rglob("*.json"),
        *(path for path in site.dirs.state.rglob("*.json") if path.parent != site.dirs.servers),
    )
    for path in sorted(found):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError):
            yield path


def locks(site: Site) -> Iterator[Finding]:
    """Locks that are held, and by processes that will not let go of them."""
    table = Path("/proc/locks")
    held_by = _holders(table.read_text("ascii")) if table.exists() else {}
    under_way, free = 0, 0
    stuck = False
    for folder in (site.dirs.cache, site.dirs.state):
        for path in sorted(folder.rglob("*.lock")):
            try:
                status = path.stat()
            except OSError:
                continue
            pid = held_by.get((os.major(status.st_dev), os.minor(status.st_dev), status.st_ino))
            if pid is None:
                free += 1
                continue
            stopped = _why_stuck(pid)
            if stopped is None:
                under_way += 1
                continue
            stuck = True
            yield Finding(
                id="locks",
                status="fail",
                found=f"{path} is held by process {pid}, which {stopped}: whoever needs it waits.",
                remedy=f"Let it go on (kill -CONT {pid}), or end it (kill -9 {pid}).",
            )
    if not stuck:
        yield Finding(
            id="locks",
            status="ok",
            found=f"{under_way} held, none by a stopped process; {free} free (the file alone locks "
            "nothing)",
        )


def _holders(text: str) -> dict[tuple[int, int, int], int]:
    """Device and inode to the process that holds it."""
    return {
        (int(major, 16), int(minor, 16), int(inode)): int(pid)
        for pid, major, minor, inode in _LOCK.findall(text)
    }


def _why_stuck(pid: int) -> str | None:
    if pid <= 0:
        return None  # in another namespace
    try:
        match psutil.Process(pid).status():
            case psutil.STATUS_STOPPED | psutil.STATUS_TRACING_STOP:
                return "is stopped"
            case psutil.STATUS_ZOMBIE:
                return "has ended and was not collected"
            case _:
                return None
    except psutil.Error:
        return None
