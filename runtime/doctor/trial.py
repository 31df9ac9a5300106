"""One token from an engine: launched as a server is, asked once, ended."""

from __future__ import annotations

import json
import secrets
import select
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import psutil

from runtime.engines.base import LaunchSpec
from runtime.errors import LLMError
from runtime.server import probe
from runtime.server.diagnosis import diagnose, ending
from runtime.server.launcher import ExecFailed, Exited, Spawned, launch
from runtime.server.logs import LogTail
from runtime.server.plan import new_key

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.engines.base import Engine, EngineInfo
    from runtime.server.launcher import EngineProcess

_CONTEXT_TOKENS: Final = 256
_END_PATIENCE_S: Final = 1.0
_BUSY_SHARE: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How it went.

    Attributes:
        ok: A token was generated.
        took_s: From the launch to the token or the end, seconds.
        problem: What went wrong, or None.
        remedy: What to do about it, or None.
        slow: It was given up while it was still at work.
    """

    ok: bool
    took_s: float
    problem: str | None = None
    remedy: str | None = None
    slow: bool = False


def generate_one_token(engine: Engine, info: EngineInfo, model: Path, until_s: float) -> Trial:
    """Have an engine load a model and generate a token.

    Args:
        engine: The engine.
        info: What was found out about it.
        model: A GGUF file.
        until_s: Instant on the steady clock at which it is given up.
    """
    nonce = secrets.token_hex(6)
    spec = LaunchSpec(
        model_path=model,
        alias="doctor",
        nonce=f"~{nonce}",
        api_key=new_key(),
        host="127.0.0.1",
        port=0,
        slot_ctx=_CONTEXT_TOKENS,
        parallel=1,
        threads=1,
        gpu_layers=-1 if any(device.kind == "gpu" for device in info.devices) else 0,
        embeddings=False,
        pooling=None,
        cache_type_k="f16",
        cache_type_v="f16",
        flash_attn="auto",
    )
    began_s = time.monotonic()
    try:
        process = launch(engine.command(spec), log_path=None, name=f"doctor-{nonce}")
    except LLMError as exc:
        return Trial(ok=False, took_s=0.0, problem=exc.message, remedy=exc.hint)
    try:
        return _ask(_Launched(engine, spec, process, began_s), until_s)
    finally:
        process.kill("the trial is over")
        _wait_for_end(process)
        process.close()


@dataclass(frozen=True, slots=True)
class _Launched:
    engine: Engine
    spec: LaunchSpec
    process: EngineProcess
    began_s: float

    def failed(self, problem: str, remedy: str | None, *, slow: bool = False) -> Trial:
        took_s = time.monotonic() - self.began_s
        return Trial(ok=False, took_s=took_s, problem=problem, remedy=remedy, slow=slow)


def _ask(launched: _Launched, until_s: float) -> Trial:
    where = _wait_until_ready(launched, until_s)
    if isinstance(where, Trial):
        return where
    left_s = until_s - time.monotonic()
    reply = probe.ask(
        where,
        "/v1/completions",
        api_key=launched.spec.api_key,
        body={
            "model": launched.engine.served_name(launched.spec),
            "prompt": "Hello",
            "max_tokens": 1,
            "seed": 1,
        },
        timeout_s=max(0.1, left_s),
    )
    if reply.status == 200 and isinstance(reply.field("choices", 0, "text"), str):
        return Trial(ok=True, took_s=time.monotonic() - launched.began_s)
    if reply.status:
        answer = json.dumps(reply.body)[:200]
        return launched.failed(
            f"it loads a model, but answers HTTP {reply.status}: {answer}", "Use a newer build."
        )
    return launched.failed(
        f"it loads a model, but gives no token ({reply.problem})",
        "Use another build; LLAMA_RUNTIME_ENGINE=… names another engine.",
        slow=_is_busy(launched.process),
    )


def _wait_until_ready(launched: _Launched, until_s: float) -> str | Trial:
    """Its address, or how it failed."""
    process, tail = launched.process, LogTail()
    while (left_s := until_s - time.monotonic()) > 0:
        select.select([process.output_fd, process.events_fd], [], [], left_s)
        lines = tail.feed(process.read_output() or b"")
        for line in lines:
            facts = launched.engine.read_line(line)
            if facts is not None and facts.base_url:
                return facts.base_url
        for event in process.read_events():
            match event:
                case ExecFailed():
                    return launched.failed(
                        f"{event.path} cannot be executed", "Reinstall the engine."
                    )
                case Exited():
                    return _ended(launched, event, tail)
                case _:
                    continue
    if _is_busy(process):
        took_s = time.monotonic() - launched.began_s
        return launched.failed(
            f"it is still at work after {took_s:.1f} s",
            "This machine is slow or busy: llama-runtime doctor --patience 30",
            slow=True,
        )
    return launched.failed(
        "it hangs: it was started, does nothing and does not get ready",
        "Run it by hand to see where it stops, or use another build.",
    )


def _ended(launched: _Launched, exited: Exited, tail: LogTail) -> Trial:
    tail.feed(launched.process.read_output() or b"")
    tail.end()
    lines = tail.last(200)
    cause = diagnose(code=exited.code, signal=exited.signal, log_tail=lines, was_ready=False)
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    how = ending(code=exited.code, signal=exited.signal)
    said = f" It said: {last[:300]}" if last else ""
    return launched.failed(f"{cause.sentence} ({how}).{said}", cause.hint)


def _is_busy(process: EngineProcess) -> bool:
    """Whether it took a tenth of a processor over the last moment."""
    if process.pid is None:
        return False
    try:
        return psutil.Process(process.pid).cpu_percent(0.1) > 100 * _BUSY_SHARE
    except psutil.Error:
        return False


def _wait_for_end(process: EngineProcess) -> None:
    until_s = time.monotonic() + _END_PATIENCE_S
    while (left_s := until_s - time.monotonic()) > 0:
        select.select([process.events_fd], [], [], left_s)
        events = process.read_events()
        if not events or any(not isinstance(event, Spawned) for event in events):
            return  # no more is to come: it has ended, now or before
