"""The xllamacpp engine: llama.cpp's server from a PyPI wheel, inside a Python child of ours."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engines.base import INSPECTION_TIMEOUT_S, EngineInfo
from runtime.engines.commands.xllamacpp import xllamacpp_command
from runtime.engines.inspection import ask
from runtime.engines.output import HOST_MARK, devices_from, read_host_line

if TYPE_CHECKING:
    from runtime.engines.base import EngineCommand, EngineKind, LaunchSpec, LogFacts

_HOST = Path(__file__).parent / "hosts" / "xllamacpp_host.py"
_INSTALL = "pip install xllamacpp"


class XllamacppEngine:
    """The default engine: nothing to compile, continuous batching, llguidance inside."""

    kind: EngineKind = "xllamacpp"
    health_path = "/health"

    def inspect(
        self, *, devices: bool = False, timeout_s: float = INSPECTION_TIMEOUT_S
    ) -> EngineInfo:
        """Look whether the package is here; with ``devices``, import it in a child and ask."""
        spec = importlib.util.find_spec("xllamacpp")
        if spec is None or not spec.submodule_search_locations:
            return EngineInfo(
                kind=self.kind,
                installed=False,
                problem="the package xllamacpp is not installed",
                install_hint=_INSTALL,
            )
        path = Path(spec.submodule_search_locations[0])
        version = importlib.metadata.version("xllamacpp")
        if not devices:
            return EngineInfo(
                kind=self.kind, installed=True, path=path, version=version, install_hint=_INSTALL
            )
        answer = ask([sys.executable, "-P", str(_HOST), "--describe"], timeout_s=timeout_s)
        facts = next(
            (
                json.loads(line.removeprefix(HOST_MARK))
                for line in answer.output.splitlines()
                if line.startswith(HOST_MARK)
            ),
            None,
        )
        if facts is None:
            return EngineInfo(
                kind=self.kind,
                installed=False,
                path=path,
                version=version,
                problem=answer.problem or "it printed nothing that can be read",
                install_hint=f"{_INSTALL} --force-reinstall",
            )
        return EngineInfo(
            kind=self.kind,
            installed=True,
            path=path,
            version=facts["version"],
            devices=devices_from(facts["devices"]),
            install_hint=_INSTALL,
        )

    def command(self, spec: LaunchSpec) -> EngineCommand:
        """How to start it."""
        return xllamacpp_command(spec, python=sys.executable, host=_HOST)

    def served_name(self, spec: LaunchSpec) -> str:
        """The name under which a request reaches the model."""
        return spec.alias

    def read_line(self, line: str) -> LogFacts | None:
        """What a line of its output says."""
        return read_host_line(line)
