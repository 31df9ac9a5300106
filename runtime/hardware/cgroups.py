"""The control groups this process is in, innermost first, in version 1 and version 2.

A limit anywhere between a process and the root holds for the process, so every level counts. Where
a controller is mounted, and which part of the hierarchy a container sees there, is in
``/proc/self/mountinfo`` (proc(5)); which group the process is in, in ``/proc/self/cgroup``
(cgroups(7)).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

Controller = Literal["cpu", "memory"]


@dataclass(frozen=True, slots=True)
class Group:
    """One control group.

    Attributes:
        folder: Where its files are.
        version: 1 or 2.
    """

    folder: Path
    version: Literal[1, 2]

    def read(self, name: str) -> str | None:
        """The stripped text of one of its files; None when it has no such file."""
        return read_text(self.folder / name)

    def number(self, name: str) -> int | None:
        """The whole number in one of its files; None for ``max``, ``-1`` or no such file."""
        text = self.read(name)
        return int(text) if text and text.isdecimal() else None


def groups(controller: Controller, root: Path = Path("/")) -> tuple[Group, ...]:
    """The groups that hold this process for a controller, innermost first; empty when none do."""
    memberships = _memberships(read_text(root / "proc/self/cgroup") or "")
    mounts = _mounts(read_text(root / "proc/self/mountinfo") or "")
    found: list[Group] = []
    for mount in mounts:
        if mount.version == 1 and controller not in mount.controllers:
            continue
        path = memberships.get(controller if mount.version == 1 else "")
        if path is None:
            continue
        top = root / mount.point.relative_to("/")
        folder = top / _below(path, mount.root)
        while True:
            if folder.is_dir():
                found.append(Group(folder, mount.version))
            if folder == top:
                break
            folder = folder.parent
    return tuple(found)


def read_text(path: Path) -> str | None:
    """The stripped text of a small file; None when it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class _Mount:
    version: Literal[1, 2]
    controllers: frozenset[str]
    root: PurePosixPath
    point: PurePosixPath


def _memberships(text: str) -> dict[str, PurePosixPath]:
    """Controller → the path of its group; the empty name stands for version 2."""
    found: dict[str, PurePosixPath] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for name in parts[1].split(","):
                found[name] = PurePosixPath(parts[2])
    return found


def _mounts(text: str) -> list[_Mount]:
    found: list[_Mount] = []
    for line in text.splitlines():
        fields, separator, rest = line.partition(" - ")
        before, after = fields.split(), rest.split()
        if not separator or len(before) < 5 or len(after) < 3:
            continue
        root, point = (PurePosixPath(_unescape(field)) for field in before[3:5])
        if not point.is_absolute():
            continue
        if after[0] == "cgroup2":
            found.append(_Mount(2, frozenset(), root, point))
        elif after[0] == "cgroup":
            found.append(_Mount(1, frozenset(after[2].split(",")), root, point))
    return found


def _below(path: PurePosixPath, mount_root: PurePosixPath) -> PurePosixPath:
    """Where a group lies below a mount that shows the hierarchy from ``mount_root`` on.

    In a container the group's path can be the host's while the mount shows the container's own
    group only; then the mount itself is the group.
    """
    try:
        inside = path.relative_to(mount_root)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in inside.parts else inside


def _unescape(text: str) -> str:
    """Undoes how mountinfo writes white space and backslashes: as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
