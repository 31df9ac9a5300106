"""The llama-cpp-python engine: its own OpenAI-style server, one request at a time."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engines.base import INSPECTION_TIMEOUT_S, Device, EngineInfo
from runtime.engines.commands.llama_cpp_python import llama_cpp_python_command, nonce_name
from runtime.engines.inspection import ask
from runtime.engines.output import read_log_line

if TYPE_CHECKING:
    from runtime.engines.base import EngineCommand, EngineKind, LaunchSpec, LogFacts

_HOST = Path(__file__).parent / "hosts" / "llama_cpp_python_host.py"
_INSTALL = (
    "pip install 'llama-runtime[llama-cpp-python]' (compiles llama.cpp: needs a C++ compiler)"
)
# llama_version() is in llama.cpp since it has release numbers; the bindings do not declare it.
_QUESTION = """
import ctypes, llama_cpp
print("gpu", llama_cpp.llama_supports_gpu_offload())
version = getattr(llama_cpp.llama_cpp._lib, "llama_version", None)
if version:
    version.restype = ctypes.c_char_p
    print("llama.cpp", version().decode())
"""
# The server is an extra of the package: each of these must be there for it to start.
_SERVER_PACKAGES = ("uvicorn", "fastapi", "sse_starlette", "starlette_context")


class LlamaCppPythonEngine:
    """For people who already have it compiled for their machine."""

    kind: EngineKind = "llama-cpp-python"
    health_path = "/v1/models"

    def inspect(
        self, *, devices: bool = False, timeout_s: float = INSPECTION_TIMEOUT_S
    ) -> EngineInfo:
        """Look whether package and server are here; with ``devices``, import it in a child."""
        spec = importlib.util.find_spec("llama_cpp")
        missing = [name for name in _SERVER_PACKAGES if importlib.util.find_spec(name) is None]
        if spec is None or not spec.submodule_search_locations or missing:
            return EngineInfo(
                kind=self.kind,
                installed=False,
                problem="the package llama-cpp-python is not installed"
                if spec is None
                else f"its server lacks {', '.join(missing)}",
                install_hint=_INSTALL,
            )
        listed: tuple[Device, ...] = ()
        problem = None
        version = importlib.metadata.version("llama-cpp-python")
        if devices:
            answer = ask([sys.executable, "-P", "-c", _QUESTION], timeout_s=timeout_s)
            problem = answer.problem
            listed = (Device(name="CPU", kind="cpu"),)
            if "gpu True" in answer.output:
                listed = (*listed, Device(name="GPU", kind="gpu"))
            if inside := re.search(r"^llama\.cpp \S+", answer.output, re.MULTILINE):
                version = f"{version} ({inside[0]})"
        return EngineInfo(
            kind=self.kind,
            installed=problem is None,
            path=Path(spec.submodule_search_locations[0]),
            version=version,
            devices=listed,
            problem=problem,
            install_hint=_INSTALL,
        )

    def command(self, spec: LaunchSpec) -> EngineCommand:
        """How to start it."""
        return llama_cpp_python_command(spec, python=sys.executable, host=_HOST)

    def served_name(self, spec: LaunchSpec) -> str:
        """The name under which a request reaches the model."""
        return nonce_name(spec)

    def read_line(self, line: str) -> LogFacts | None:
        """What a line of its output says."""
        return read_log_line(line)
