"""The engines, each looked at and made to generate a token, and the GPUs that they could use."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.doctor.abreast import abreast
from runtime.doctor.finding import Finding, Status
from runtime.doctor.trial import generate_one_token
from runtime.doctor.wording import size
from runtime.engines.base import EngineInfo
from runtime.engines.builds import age_warning
from runtime.engines.detect import engines, gpu_asked_for, pick
from runtime.errors import LLMCapabilityError, LLMError
from runtime.hardware import Gpu, gpu_hint, gpus
from runtime.server.diagnosis import diagnose
from runtime.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from runtime.doctor.site import Site
    from runtime.doctor.trial import Trial
    from runtime.engines.base import Engine

_MARGIN_S: Final = 0.6  # for ending what was started and for telling
_BLIND: Final = "looking at it"
_SMALL_MODEL_BYTES: Final = 400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """An engine and what came of it; ``trial`` is None when none was made, ``why_not`` says why."""

    engine: Engine
    info: EngineInfo
    trial: Trial | None = None
    why_not: str | None = None


def engines_and_gpus(site: Site) -> Iterator[Finding]:
    """Looks at all engines and GPU tools at once and tries each engine with a tiny model."""
    until_s = site.until_s - _MARGIN_S
    kinds = engines(site.config)
    with tempfile.TemporaryDirectory(
        prefix="llama-runtime-doctor-", ignore_cleanup_errors=True
    ) as folder:
        model = _Model(site, Path(folder))
        calls: list[Callable[[], _Looked | tuple[Gpu, ...]]] = [
            functools.partial(_look, engine, model, until_s) for engine in kinds
        ]
        tools_s = max(0.1, until_s - time.monotonic() - 0.5)
        calls.append(functools.partial(gpus, timeout_s=tools_s, total_s=tools_s))
        looks = abreast(calls, until_s=[until_s + _MARGIN_S / 2] * len(calls))
    looked: list[_Looked] = []
    for engine, look in zip(kinds, looks, strict=False):
        if isinstance(look.result, _Looked):
            looked.append(look.result)
            continue
        problem = f"{_BLIND} hangs"
        if look.error is not None:
            problem = f"{_BLIND} fails: {type(look.error).__name__}: {look.error}"
        info = EngineInfo(kind=engine.kind, installed=False, problem=problem)
        looked.append(_Looked(engine=engine, info=info))
    listed = looks[-1].result
    yield from _judged(site, looked)
    yield from _gpu_findings(site, looked, listed if isinstance(listed, tuple) else ())


def _look(engine: Engine, model: _Model, until_s: float) -> _Looked:
    info = engine.inspect(devices=True, timeout_s=max(0.1, until_s - time.monotonic()))
    if not info.installed:
        return _Looked(engine=engine, info=info)
    file = model.get()
    if isinstance(file, str):
        return _Looked(engine=engine, info=info, why_not=file)
    return _Looked(engine=engine, info=info, trial=generate_one_token(engine, info, file, until_s))


class _Model:
    """The model that all engines are tried with, made by the first that needs it."""

    def __init__(self, site: Site, folder: Path) -> None:
        self._make = functools.partial(_small_model, site, folder)
        self._lock = threading.Lock()
        self._made: Path | str | None = None

    def get(self) -> Path | str:
        """The model's file, or why there is none."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _small_model(site: Site, folder: Path) -> Path | str:
    """A tiny model made here, else the smallest that is on disk, else why there is none."""
    path = folder / "tiny.gguf"
    try:
        site.build_model(path)
    except OSError as exc:
        return f"the tiny model cannot be written to {folder}: {exc.strerror or exc}"
    except LLMCapabilityError as exc:
        with contextlib.suppress(LLMError, OSError):
            chat = [
                model
                for model in ModelStore(site.dirs, offline=True).list()
                if model.size_bytes < _SMALL_MODEL_BYTES
                and not (model.entry and model.entry.kind == "embedding")
                and len(model.files) == 1
            ]
            if chat:
                return min(chat, key=lambda model: model.size_bytes).path
        return f"there is no small model to try it with ({exc.message})"
    return path


def _judged(site: Site, looked: Sequence[_Looked]) -> Iterator[Finding]:
    config = site.config
    try:
        choice = pick(config, [(each.engine, each.info) for each in looked], gpu_present=gpu_hint())
    except LLMError as exc:
        taken = config.engine
        verdict = Finding(id="engine", status="fail", found=exc.message, remedy=exc.hint)
    else:
        taken = choice.engine.kind
        verdict = Finding(id="engine", status="ok", found=f"takes {taken}: {choice.why}")
    for each in looked:
        kind = each.info.kind
        named = kind == "llama-server" and config.engine_path is not None
        yield from _of_engine(
            each,
            needed=kind in {taken, config.engine} or named,
            named=config.engine_path if named else None,
        )
    yield verdict


def _of_engine(looked: _Looked, *, needed: bool, named: str | None) -> Iterator[Finding]:
    info, trial = looked.info, looked.trial
    name = f"engine.{info.kind}"
    bad: Status = "fail" if needed else "warn"
    if not info.installed:
        here = info.path is not None or (info.problem or "").startswith(_BLIND)
        expected = here or needed
        where = f"{info.path}: " if info.path else ""
        yield Finding(
            id=name,
            status=bad if expected else "ok",
            found=f"{where}{info.problem or 'it cannot be used'}"
            + ("" if expected else " (another engine will do)"),
            remedy=_remedy(info, named) if expected else None,
        )
        return
    warning = age_warning(info.version)
    yield Finding(
        id=name,
        status="warn" if warning else "ok",
        found=f"{info.version} at {info.path}" + (f": {warning}" if warning else ""),
        remedy=f"Install a newer one: {info.install_hint}" if warning else None,
    )
    name = f"generation.{info.kind}"
    if trial is None:
        yield Finding(
            id=name,
            status="warn",
            found=f"not tried: {looked.why_not}.",
            remedy="pip install 'llama-runtime[testing]', or: "
            "llama-runtime models pull smollm2-135m",
        )
    elif trial.ok:
        yield Finding(id=name, status="ok", found=f"a token after {trial.took_s:.1f} s")
    else:
        yield Finding(
            id=name,
            status="warn" if trial.slow else bad,
            found=f"no token: {trial.problem}",
            remedy=trial.remedy,
        )


def _remedy(info: EngineInfo, named: str | None) -> str:
    """What to do about an engine that is here and does not work."""
    problem = info.problem or ""
    if info.kind == "llama-server":
        other = "name another with LLAMA_RUNTIME_ENGINE_PATH"
        if info.path is None and named and Path(named).is_file():
            return f"It is there, but no program: chmod +x '{named}', or {other}."
        if "Exec format error" in problem:
            return f"It was built for another kind of machine: {other}."
        if "Permission denied" in problem:
            return f"It may lie on a disk that is mounted noexec: move it, or {other}."
        if "shared librar" in problem:
            return f"ldd {info.path} | grep 'not found' names what is missing; or {other}."
        if "did not answer" in problem or "hangs" in problem:
            return f"It hangs: see where with `{info.path} --version`, or {other}."
    if "SIGILL" in problem:
        cause = diagnose(code=None, signal=4, log_tail=(), was_ready=False)
        return cause.hint or info.install_hint
    if info.kind == "xllamacpp" and info.path:
        return "pip install --force-reinstall xllamacpp"
    return info.install_hint


def _gpu_findings(site: Site, looked: Sequence[_Looked], seen: Sequence[Gpu]) -> Iterator[Finding]:
    usable = {
        each.info.kind: [device.name for device in each.info.devices if device.kind == "gpu"]
        for each in looked
    }
    able = [kind for kind, names in usable.items() if names]
    try:
        demanded = gpu_asked_for(site.config)
    except LLMError:  # the settings' own finding says so
        demanded = False
    for gpu in seen:
        name = f"{gpu.name} ({gpu.source})"
        if gpu.problem:
            yield Finding(
                id="gpu",
                status="fail" if demanded else "warn",
                found=f"{name}: {gpu.problem}",
                remedy=f"Mend its driver (run {gpu.source} by hand), or set "
                "LLAMA_RUNTIME_DEVICE=cpu.",
            )
        elif not able:
            yield Finding(
                id="gpu",
                status="fail" if demanded else "warn",
                found=f"{name} is there, but no engine here was built with support for it.",
                remedy="Install a llama-server with support for it and name it with "
                "LLAMA_RUNTIME_ENGINE_PATH; `llama-runtime engines` shows their devices.",
            )
        else:
            memory = size(gpu.memory_total_bytes) if gpu.memory_total_bytes else "shared memory"
            yield Finding(id="gpu", status="ok", found=f"{name}, {memory}; used by {able[0]}")
    if seen:
        return
    if able:
        yield Finding(id="gpu", status="ok", found=f"{able[0]} lists {', '.join(usable[able[0]])}")
    elif demanded:
        yield Finding(
            id="gpu",
            status="fail",
            found="a GPU is asked for, and none is seen.",
            remedy="Set LLAMA_RUNTIME_DEVICE=auto and leave out LLAMA_RUNTIME_GPU_LAYERS.",
        )
    elif gpu_hint():
        yield Finding(
            id="gpu",
            status="warn",
            found="a GPU's device file is there, but no tool tells about it and no engine uses it.",
            remedy="Install its driver's tool (nvidia-smi, rocm-smi), or set "
            "LLAMA_RUNTIME_DEVICE=cpu.",
        )
    else:
        yield Finding(id="gpu", status="ok", found="none is seen: the processor computes")
