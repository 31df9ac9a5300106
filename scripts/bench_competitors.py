"""Those that the benchmark compares: how each is started, asked and ended."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from bench_talkers import HttpTalker, OpenAITalker

from runtime import LlamaClient, LLMError
from runtime.engines.hosts import xllamacpp_host
from runtime.engines.inspection import ask, clean_environment
from runtime.engines.llama_cpp_python import LlamaCppPythonEngine
from runtime.engines.llama_server import LlamaServerEngine
from runtime.engines.xllamacpp import XllamacppEngine
from runtime.tuning.talkers import ClientTalker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from runtime.engines.base import Engine
    from runtime.settings import ServerConfig
    from runtime.tuning.talkers import Talker

START_TIMEOUT_S: Final = 180.0
CONTEXT: Final = 4096  # what a request of the longest workload needs; our default
SLOTS: Final = 4  # our default


@dataclass(frozen=True, slots=True)
class Standing:
    """A competitor that is ready.

    Attributes:
        talker: Asks it.
        engine_pid: The process that computes.
        beside_pids: Processes that it needs beside that one.
    """

    talker: Talker
    engine_pid: int
    beside_pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Competitor:
    """Somebody to compare with.

    Attributes:
        name: Short, for tables.
        what: Version and settings.
        start: Starts it; it is ready inside the block and gone after it.
        crowds_only: Whether it takes part only where several ask at once.
    """

    name: str
    what: str
    start: Callable[[], AbstractContextManager[Standing]]
    crowds_only: bool = False


@contextlib.contextmanager
def ours(config: ServerConfig) -> Iterator[Standing]:
    """Our client with a server of its own."""
    with LlamaClient(config=config, use_gateway=False) as client:
        server = client.server
        if server is None:
            raise LLMError("The client has no server of its own.")
        server.wait_ready()
        snapshot = server.snapshot()
        if snapshot.pid is None or snapshot.keeper_pid is None:
            raise LLMError("The server has no processes.")
        yield Standing(ClientTalker(client), snapshot.pid, (snapshot.keeper_pid,))


@contextlib.contextmanager
def process(
    argv: Sequence[str],
    address: Callable[[str], str | None],
    *,
    env: Mapping[str, str],
    stdin: bytes = b"",
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process that has printed its address, with all its children ended by the end of the block.

    Raises:
        LLMError: It ended before, or took too long.
    """
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=env,
        )
        try:
            if child.stdin is None:
                raise LLMError("The process has no standard input.")
            child.stdin.write(stdin)
            child.stdin.flush()  # and left open: its end would tell the child that we are gone
            yield child, _address(Path(argv[0]).name, child, log.fileno(), address)
        finally:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def _address(
    name: str, child: subprocess.Popen[bytes], log: int, address: Callable[[str], str | None]
) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        text = os.pread(log, 1 << 22, 0).decode("utf-8", "replace")
        for line in text.splitlines(keepends=True):
            if line.endswith("\n") and (found := address(line.rstrip())):
                return found
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.01)
        if child.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(text.splitlines()[-5:])
            raise LLMError(f"{name} did not become ready:\n{tail}")


@contextlib.contextmanager
def _bare(engine: Engine, argv: Sequence[str], stdin: bytes = b"") -> Iterator[Standing]:
    def address(line: str) -> str | None:
        facts = engine.read_line(line)
        return facts.base_url if facts else None

    with process(argv, address, env=clean_environment(), stdin=stdin) as (child, url):
        yield Standing(HttpTalker(url), child.pid)


@contextlib.contextmanager
def _gateway(model: Path, threads: int | None) -> Iterator[Standing]:
    import openai  # noqa: PLC0415 - a package that only developers have

    argv = [sys.executable, "-m", "runtime", "serve", str(model), "--port", "0"]
    if threads:
        argv += ["--threads", str(threads)]

    def address(line: str) -> str | None:
        found = re.search(r"Ready at (http://\S+)/v1", line)
        return found[1] if found else None

    with (
        process(argv, address, env=os.environ) as (child, url),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        below = psutil.Process(child.pid).children(recursive=True)
        engine = max(below, key=lambda each: each.memory_info().rss)
        beside = (child.pid, *(each.pid for each in below if each != engine))
        name = next(iter(client.models.list())).id
        yield Standing(OpenAITalker(client, name), engine.pid, beside)


def competitors(
    model: Path, config: ServerConfig, *, engine_path: str | None, python: str | None
) -> list[Competitor]:
    """Whoever is on this machine, us first.

    Args:
        model: The model's file, the same for all.
        config: Our settings.
        engine_path: A native llama-server; None for the one on PATH.
        python: A Python that has llama-cpp-python; None for this one.
    """
    found = [
        Competitor("llama-runtime", what_we_are(config), lambda: ours(config)),
        *_xllamacpp(model, config.threads),
        *_native(model, config.threads, engine_path),
        *_llama_cpp_python(model, config.threads, python or sys.executable),
    ]
    if importlib.util.find_spec("openai"):
        what = f"`serve` with its defaults, asked by openai {_version('openai')}"
        found.append(Competitor("openai on gateway", what, lambda: _gateway(model, config.threads)))
    return found


def what_we_are(config: ServerConfig) -> str:
    """Our version, and what is not the default."""
    set_here = sorted(config.model_fields_set - {"model", "engine_path"})
    told = ", ".join(f"{name}={getattr(config, name)}" for name in set_here)
    return f"`LlamaClient` {_version('llama-runtime')}, " + (told or "default settings")


def _xllamacpp(model: Path, threads: int | None) -> list[Competitor]:
    engine = XllamacppEngine()
    info = engine.inspect(devices=True)
    if not info.installed:
        return []

    def entry(name: str, what: str, crowds_only: bool, **params: Any) -> Competitor:
        params["model.path"] = str(model)
        if threads:
            params["cpuparams.n_threads"] = params["cpuparams_batch.n_threads"] = threads
        argv = [sys.executable, "-u", "-P", str(xllamacpp_host.__file__)]
        line = json.dumps(params).encode() + b"\n"
        return Competitor(name, what, lambda: _bare(engine, argv, line), crowds_only)

    own = f"version {info.version}, its own defaults (one slot)"
    slots = f"the same with {SLOTS} slots of {CONTEXT} tokens; only where several ask at once"
    return [
        entry("xllamacpp", own, crowds_only=False),
        entry(
            f"xllamacpp, {SLOTS} slots",
            slots,
            crowds_only=True,
            n_parallel=SLOTS,
            n_ctx=SLOTS * CONTEXT,
        ),
    ]


def _native(model: Path, threads: int | None, path: str | None) -> list[Competitor]:
    engine = LlamaServerEngine(path)
    info = engine.inspect()
    if not info.installed or info.path is None:
        return []
    argv = [str(info.path), "--model", str(model), "--port", "0"]
    if threads:
        argv += ["--threads", str(threads)]
    what = f"version {info.version}, its own defaults"
    return [Competitor("llama-server", what, lambda: _bare(engine, argv))]


def _llama_cpp_python(model: Path, threads: int | None, python: str) -> list[Competitor]:
    question = "import llama_cpp, llama_cpp.server.app; print(llama_cpp.__version__)"
    answer = ask([python, "-P", "-c", question], timeout_s=60.0)
    if answer.problem:
        return []
    count = threads or psutil.cpu_count(logical=False) or 1
    argv = [python, "-P", "-m", "llama_cpp.server", "--model", str(model), "--port", "0"]
    argv += ["--n_ctx", str(CONTEXT), "--interrupt_requests", "false", "--n_threads", str(count)]
    what = (
        f"llama-cpp-python {answer.output.split()[-1]}, its own defaults but for what it needs "
        f"here: a context of {CONTEXT} tokens (not 2048), all cores (not half of them) and no "
        "abort of the running request when another comes"
    )
    engine = LlamaCppPythonEngine()
    return [Competitor("llama_cpp.server", what, lambda: _bare(engine, argv))]


def _version(package: str) -> str:
    return importlib.metadata.version(package)
