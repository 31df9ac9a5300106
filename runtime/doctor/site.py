"""What an examination looks at: settings, folders, environment, the root of the file system."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMError
from runtime.settings import ENV_PREFIX, Directories, ServerConfig, directories

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATIENCE_S: Final = 4.0
DEFAULT_PORT: Final = 8080


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One machine at one moment, as the checks see it.

    Attributes:
        config: The settings; the defaults where the environment's cannot be used.
        settings_problem: Why they cannot be used, or None.
        model: The model whose memory is planned; None for the default one, if it is here.
        dirs: Our folders.
        environ: The environment.
        root: Of the file system that tells about processor, memory and control groups.
        port: The gateway's.
        build_model: Writes a tiny chat model to a path; raises LLMError when it cannot.
        until_s: Instant on the steady clock at which everything is to be found out.
        full: Hash the models again, however long it takes.
    """

    config: ServerConfig
    settings_problem: LLMError | None
    model: str | None
    dirs: Directories
    environ: Mapping[str, str]
    root: Path
    port: int
    build_model: Callable[[Path], object]
    until_s: float
    full: bool

    def left_s(self, *, spare_s: float = 0.0) -> float:
        """Seconds left, at least a tenth."""
        return max(0.1, self.until_s - spare_s - time.monotonic())


def site(
    *,
    build_model: Callable[[Path], object],
    model: str | None = None,
    settings: Mapping[str, object] | None = None,
    patience_s: float = PATIENCE_S,
    full: bool = False,
    root: Path = Path("/"),
) -> Site:
    """This machine as it is now.

    Args:
        build_model: Writes a tiny chat model to a path.
        model: The model whose memory is planned; None for the default one, if it is here.
        settings: Settings that win over the environment's.
        patience_s: Seconds until what hangs is given up.
        full: Hash the models again, however long it takes.
        root: Of the file system that tells about processor, memory and control groups.
    """
    problem = None
    named: dict[str, Any] = {"model": model} if model else {}
    try:
        config = ServerConfig(**{**named, **(settings or {})})
    except LLMError as exc:
        problem = exc
        path = os.environ.get(f"{ENV_PREFIX}ENGINE_PATH")
        config = ServerConfig.model_construct(engine_path=path, **named)
    return Site(
        config=config,
        settings_problem=problem,
        model=model,
        dirs=directories(),
        environ=dict(os.environ),
        root=root,
        port=config.port or DEFAULT_PORT,
        build_model=build_model,
        until_s=time.monotonic() + patience_s,
        full=full,
    )
