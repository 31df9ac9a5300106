"""Which engine to use and where its layers go, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.engines.llama_cpp_python import LlamaCppPythonEngine
from runtime.engines.llama_server import LlamaServerEngine
from runtime.engines.xllamacpp import XllamacppEngine
from runtime.errors import ConfigError, EngineNotInstalledError, LLMCapabilityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.engines.base import Engine, EngineInfo
    from runtime.settings import ServerConfig

ALL_LAYERS = 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The engine that will be used.

    Attributes:
        engine: The engine.
        info: What was found out about it.
        why: The reason, one sentence.
    """

    engine: Engine
    info: EngineInfo
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the model's layers go.

    Attributes:
        requested: What the configuration says.
        gpu_layers: For the engine: 0 none, -1 as many as it finds room for, else so many.
        why: The reason, one sentence.
    """

    requested: str
    gpu_layers: int
    why: str


def engines(config: ServerConfig) -> tuple[Engine, ...]:
    """Every engine kind, in the order in which ``auto`` prefers them."""
    return (XllamacppEngine(), LlamaServerEngine(config.engine_path), LlamaCppPythonEngine())


def gpu_asked_for(config: ServerConfig) -> bool:
    """Whether the configuration must not run without a GPU.

    Raises:
        ConfigError: It asks for GPU layers and for the CPU alone.
    """
    layers = config.gpu_layers == "all" or (
        isinstance(config.gpu_layers, int) and config.gpu_layers > 0
    )
    if layers and config.device == "cpu":
        raise ConfigError(
            f"gpu_layers={config.gpu_layers!r} and device='cpu' contradict each other.",
            hint="Leave out one of the two.",
        )
    return layers or config.device == "gpu"


def choose(
    config: ServerConfig, *, gpu_present: bool, candidates: Sequence[Engine] | None = None
) -> Choice:
    """Pick the engine that the configuration names, or the best that is here.

    ``gpu_present`` tells whether this machine may have a GPU; only then are the engines asked for
    their devices, which costs a child each.

    Raises:
        EngineNotInstalledError: The named engine, or any at all, is missing.
    """
    found = list(candidates if candidates is not None else engines(config))
    if config.engine != "auto":
        found = [engine for engine in found if engine.kind == config.engine]
    ask_devices = gpu_present or gpu_asked_for(config)
    looked = [(engine, engine.inspect(devices=ask_devices)) for engine in found]
    return pick(config, looked, gpu_present=gpu_present)


def pick(
    config: ServerConfig, looked: Sequence[tuple[Engine, EngineInfo]], *, gpu_present: bool
) -> Choice:
    """As :func:`choose`, of engines that have been looked at.

    Raises:
        EngineNotInstalledError: As :func:`choose`.
    """
    if config.engine != "auto":
        engine, info = next(pair for pair in looked if pair[0].kind == config.engine)
        if not info.installed:
            raise EngineNotInstalledError(
                f"The engine {engine.kind} cannot be used: {info.problem}.",
                engine=engine.kind,
                hint=f"{info.install_hint}; or use engine='auto'.",
            )
        return Choice(engine=engine, info=info, why=f"the configuration names {engine.kind}")
    if config.engine_path:
        looked = sorted(looked, key=lambda pair: pair[0].kind != "llama-server")
    usable = [(engine, info) for engine, info in looked if info.installed]
    if not usable:
        raise EngineNotInstalledError(
            "No llama.cpp engine can be used: "
            + "; ".join(f"{info.kind}: {info.problem}" for _, info in looked)
            + ".",
            engine="auto",
            hint=looked[0][1].install_hint,
        )
    for engine, info in usable if config.device != "cpu" else ():
        gpus = [device.name for device in info.devices if device.kind == "gpu"]
        if gpus:
            return Choice(
                engine=engine, info=info, why=f"{engine.kind} can use the GPU ({', '.join(gpus)})"
            )
    engine, info = usable[0]
    if config.engine_path and engine.kind == "llama-server":
        why = "engine_path names its binary"
    elif gpu_present:
        why = f"no engine here can use the GPU; {engine.kind} is the first that is installed"
    else:
        why = f"there is no GPU; {engine.kind} is the first that is installed"
    return Choice(engine=engine, info=info, why=why)


def place(config: ServerConfig, info: EngineInfo, *, gpu_present: bool) -> Placement:
    """Decide how many layers go to the GPU.

    Raises:
        LLMCapabilityError: A GPU is demanded and the engine has none that it can use.
    """
    requested = config.device if config.gpu_layers == "auto" else f"gpu_layers={config.gpu_layers}"
    gpus = [device for device in info.devices if device.kind == "gpu"]
    if gpu_asked_for(config) and not gpus:
        reason = (
            f"this machine shows a GPU, but {info.kind} {info.version or ''} was built without "
            "support for it"
            if gpu_present
            else "this machine shows no GPU"
        )
        raise LLMCapabilityError(
            f"A GPU is asked for (device={config.device!r}, gpu_layers={config.gpu_layers!r}), but "
            f"none can be used: {reason}.",
            hint="Use device='auto' to run on the CPU; `llama-runtime engines` shows every "
            "engine's devices.",
        )
    if config.device == "cpu":
        return Placement(requested=requested, gpu_layers=0, why="device='cpu' was asked for")
    if not gpus:
        why = (
            f"{info.kind} lists no GPU, although this machine seems to have one"
            if gpu_present
            else "this machine shows no GPU"
        )
        return Placement(requested=requested, gpu_layers=0, why=why)
    names = ", ".join(device.description or device.name for device in gpus)
    match config.gpu_layers:
        case "auto":
            return Placement(
                requested=requested, gpu_layers=-1, why=f"as many layers as fit on {names}"
            )
        case "all":
            return Placement(
                requested=requested, gpu_layers=ALL_LAYERS, why=f"all layers on {names}"
            )
        case layers:
            return Placement(
                requested=requested, gpu_layers=layers, why=f"{layers} layers on {names}"
            )
