"""The native llama-server engine: a binary on PATH, or one that the user names."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engines.base import INSPECTION_TIMEOUT_S, EngineInfo
from runtime.engines.commands.llama_server import llama_server_command
from runtime.engines.inspection import ask
from runtime.engines.output import help_flags, listed_devices, read_log_line
from runtime.errors import EngineNotInstalledError
from runtime.memo import Memo, file_identity

if TYPE_CHECKING:
    from runtime.engines.base import Device, EngineCommand, EngineKind, LaunchSpec, LogFacts

_INSTALL = (
    "install llama.cpp so that llama-server is on PATH, or name the binary: "
    "LLAMA_RUNTIME_ENGINE_PATH=/path/to/llama-server"
)


@dataclass(frozen=True, slots=True)
class _Build:
    version: str | None
    flags: frozenset[str]
    problem: str | None


def _left_s(until_s: float | None) -> float:
    """Seconds until that instant on the steady clock, at least a tenth."""
    return INSPECTION_TIMEOUT_S if until_s is None else max(0.1, until_s - time.monotonic())


class LlamaServerEngine:
    """A native build: the fastest where it was compiled for this machine."""

    kind: EngineKind = "llama-server"
    health_path = "/health"

    def __init__(self, path: str | None = None) -> None:
        self._named = path

    def _binary(self) -> Path | None:
        found = shutil.which(self._named or "llama-server")
        return Path(found) if found else None

    def _build(self, binary: Path, until_s: float | None = None) -> _Build:
        """Version and flags of the binary, asked once for each file."""
        memo = Memo("llama-server")
        identity = file_identity(binary)
        if (known := memo.get(identity)) is not None:
            flags = known.get("flags")
            if isinstance(flags, list):
                return _Build(str(known.get("version")), frozenset(map(str, flags)), None)
        version = ask([str(binary), "--version"], timeout_s=_left_s(until_s))
        if version.problem:
            return _Build(None, frozenset(), version.problem)
        text = ask([str(binary), "--help"], timeout_s=_left_s(until_s))
        flags = help_flags(text.output)
        if "--model" not in flags:
            problem = text.problem or "its --help does not list --model: it is no llama-server"
            return _Build(None, frozenset(), problem)
        match = re.search(r"version: (.+)", version.output)
        number = match[1].strip() if match else "unknown"
        memo.put(identity, {"version": number, "flags": sorted(flags)})
        return _Build(number, flags, None)

    def inspect(
        self, *, devices: bool = False, timeout_s: float = INSPECTION_TIMEOUT_S
    ) -> EngineInfo:
        """Look for the binary and ask it for its version; with ``devices`` for those too."""
        binary = self._binary()
        if binary is None:
            return EngineInfo(
                kind=self.kind,
                installed=False,
                problem=f"there is no program {self._named}"
                if self._named
                else "there is no llama-server on PATH",
                install_hint=_INSTALL,
            )
        until_s = time.monotonic() + timeout_s
        build = self._build(binary, until_s)
        listed: tuple[Device, ...] = ()
        if devices and not build.problem and "--list-devices" in build.flags:
            answer = ask([str(binary), "--list-devices"], timeout_s=_left_s(until_s))
            listed = listed_devices(answer.output)
        return EngineInfo(
            kind=self.kind,
            installed=build.problem is None,
            path=binary,
            version=build.version,
            devices=listed,
            problem=build.problem,
            install_hint=_INSTALL,
        )

    def command(self, spec: LaunchSpec) -> EngineCommand:
        """How to start it, with the flags this build knows."""
        binary = self._binary()
        if binary is None:
            raise EngineNotInstalledError(
                "llama-server is not on this machine.", engine=self.kind, hint=_INSTALL
            )
        return llama_server_command(spec, binary=binary, flags=self._build(binary).flags)

    def served_name(self, spec: LaunchSpec) -> str:
        """The name under which a request reaches the model."""
        return spec.alias

    def read_line(self, line: str) -> LogFacts | None:
        """What a line of its output says."""
        return read_log_line(line)
