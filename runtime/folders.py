"""Where files live, and what the environment says beside the settings: cheap to import."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import StorageError

ENV_PREFIX = "LLAMA_RUNTIME_"


@dataclass(frozen=True, slots=True)
class Directories:
    """Where this runtime keeps its files. Folders are made when first needed, mode 0700.

    Attributes:
        cache: Downloaded models and what can be computed again.
        state: Running servers, logs, what was learned about this machine.
    """

    cache: Path
    state: Path

    @property
    def models(self) -> Path:
        """Downloaded models."""
        return self.cache / "models"

    @property
    def logs(self) -> Path:
        """Output of engines."""
        return self.state / "logs"

    @property
    def profiles(self) -> Path:
        """What ``llama-runtime tune`` found."""
        return self.state / "profiles"

    @property
    def servers(self) -> Path:
        """One file for each running server."""
        return self.state / "servers"


def directories() -> Directories:
    """Where files live: below ``LLAMA_RUNTIME_HOME`` when set, else the platform's own folders."""
    home = os.environ.get(ENV_PREFIX + "HOME")
    if home:
        base = Path(home).expanduser().absolute()
        return Directories(cache=base / "cache", state=base / "state")
    import platformdirs  # noqa: PLC0415 - slow to import, and not needed above

    return Directories(
        cache=Path(platformdirs.user_cache_dir("llama-runtime", appauthor=False)),
        state=Path(platformdirs.user_state_dir("llama-runtime", appauthor=False)),
    )


def private_folder(path: Path) -> Path:
    """Make ``path``, and what is missing above it, with mode 0700, and return it.

    A folder of our own state that others may look into is closed to them; those that a person
    chose or opened elsewhere (a log folder, models that several users share) stay as they are.

    Raises:
        StorageError: It cannot be made.
    """
    try:
        for missing in reversed([each for each in path.parents if not each.exists()]):
            missing.mkdir(exist_ok=True, mode=0o700)
        path.mkdir(exist_ok=True, mode=0o700)
        if path.is_relative_to(directories().state) and path.stat().st_mode & 0o077:
            with contextlib.suppress(
                PermissionError
            ):  # another user's, or a mount that has no modes
                path.chmod(0o700)
    except OSError as exc:
        raise StorageError(
            f"Cannot make the folder {path}: {exc.strerror or exc}.",
            path=path,
            hint=f"Make it writable, or set {ENV_PREFIX}HOME to a folder you may write to.",
        ) from exc
    return path


def offline_wanted() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``LLAMA_RUNTIME_OFFLINE`` forbids the network."""
    names = ("HF_HUB_OFFLINE", ENV_PREFIX + "OFFLINE")
    return any(os.environ.get(name, "").lower() in {"1", "true", "yes", "on"} for name in names)


def debug_wanted() -> bool:
    """Whether the command line shows tracebacks (``LLAMA_RUNTIME_DEBUG=1``)."""
    return os.environ.get(ENV_PREFIX + "DEBUG", "").lower() in {"1", "true", "yes", "on"}
