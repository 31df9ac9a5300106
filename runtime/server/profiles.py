"""What ``llama-runtime tune`` found, on disk: one small JSON file for each thing that was tuned.

A launch looks for one, which takes about a millisecond; anything that is wrong with a profile is
said and otherwise as good as none.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from runtime.errors import ConfigError, StorageError
from runtime.server.tuning_profile import KeptProfile, differences, key_for, parse, slug
from runtime.settings import directories, private_folder
from runtime.store.digests import known_digest
from runtime.store.records import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.engines.base import EngineInfo
    from runtime.hardware import CpuBudget
    from runtime.settings import ServerConfig
    from runtime.store.local import LocalModel

_MAX_BYTES: Final = 1 << 20
_MOST_READ: Final = 16
"""So many profiles of one model are looked at; nobody has that many machines in one home."""

_AGAIN: Final = "run `llama-runtime tune` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """What there is for a launch.

    Attributes:
        profile: The profile that holds, or None.
        note: Why one that is kept does not hold, or None.
    """

    profile: KeptProfile | None = None
    note: str | None = None


def look_up(
    config: ServerConfig, model: LocalModel, info: EngineInfo, *, budget: CpuBudget, gpu_layers: int
) -> Lookup:
    """The profile that holds for a launch, or why none of those that are kept does.

    Never raises: a profile can make a launch faster and nothing else.
    """
    if not config.tuned:
        return Lookup()
    paths = _paths()
    if not paths:
        return Lookup()
    digest = known_digest(model)
    mine = [path for path in paths if digest and f"~{digest[:12]}~" in path.name]
    if not mine:
        if any(path.name.startswith(f"{slug(model.name)}~") for path in paths):
            return Lookup(note=f"not tuned: {model.name} was tuned as another file; {_AGAIN}")
        return Lookup()
    wanted = key_for(
        config,
        model,
        info,
        model_sha256=digest or "",
        budget=budget,
        gpu_layers=gpu_layers,
    )
    found = list(_read(mine))
    kept = sorted(
        (each for each in found if isinstance(each, KeptProfile)), key=lambda p: p.tuned_at
    )
    for profile in reversed(kept):
        if not differences(profile, wanted, config):
            return Lookup(profile=profile)
    if kept:
        other = differences(kept[-1], wanted, config)
        return Lookup(note=f"not tuned: the profile of {kept[-1].day} is for {other[0]}; {_AGAIN}")
    return Lookup(note=f"not tuned: {found[-1]}; {_AGAIN}" if found else None)


def keep(profile: KeptProfile) -> Path:
    """Write a profile down, whole or not at all, in place of the one for the same key.

    Raises:
        StorageError: The disk refuses.
    """
    path = private_folder(directories().profiles) / profile.file_name
    text = json.dumps(asdict(profile), indent=1, ensure_ascii=False)
    write_atomically(path, text.encode())
    return path


def kept(model: LocalModel) -> tuple[tuple[Path, KeptProfile | str], ...]:
    """All that is kept for a model, by its name or file: profiles, or what is wrong with one."""
    digest = known_digest(model)
    mine = [
        path
        for path in _paths()
        if path.name.startswith(f"{slug(model.name)}~")
        or (digest and f"~{digest[:12]}~" in path.name)
    ]
    return tuple(zip(mine, _read(mine), strict=False))  # beyond some, none is read


def forget(model: LocalModel) -> int:
    """Remove all that is kept for a model; returns how many there were.

    Raises:
        StorageError: The disk refuses.
    """
    found = kept(model)
    for path, _ in found:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            raise StorageError(f"Cannot remove {path}: {exc.strerror or exc}.", path=path) from exc
    return len(found)


def _paths() -> list[Path]:
    folder = directories().profiles
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))  # noqa: PTH208 - one call
    except OSError:
        return []
    return [folder / name for name in names if not name.startswith(".")]


def _read(paths: list[Path]) -> Iterator[KeptProfile | str]:
    """Each profile, or what is wrong with it."""
    for path in paths[:_MOST_READ]:
        try:
            if path.stat().st_size > _MAX_BYTES:
                yield f"{path.name} is too long to be a profile"
                continue
            yield parse(json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, LookupError, RecursionError, ConfigError) as exc:
            yield f"the profile {path.name} cannot be used ({_why(exc)})"


def _why(exc: Exception) -> str:
    if isinstance(exc, json.JSONDecodeError):
        return "it is no JSON"
    if isinstance(exc, TypeError):
        return "it is no profile"
    return f"{exc} is missing" if isinstance(exc, KeyError) else str(exc)
