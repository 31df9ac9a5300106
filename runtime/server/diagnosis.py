"""Why an engine ended: from its exit and its last lines to a cause, a sentence and a remedy."""

from __future__ import annotations

import errno
import re
import signal as signals
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.errors import EngineStartError
from runtime.server import templates

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """A cause.

    Attributes:
        code: Machine-readable, as in :attr:`runtime.errors.EngineStartError.diagnosis`.
        sentence: What happened, for a person.
        hint: What to do about it, or None.
        repeats: Whether another start would end the same way.
    """

    code: str
    sentence: str
    hint: str | None
    repeats: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an engine process ended, and why.

    Attributes:
        code: Exit code, or None.
        signal: The signal's name, or None.
        how: Both in words.
        diagnosis: A short machine-readable cause.
        cause: The cause in words.
        sentence: All of it in words.
        hint: What to do about it, or None.
        repeats: Whether another start would end the same way.
        answered: Whether it took up a request of a caller's.
        log_tail: Its last lines.
        doom: Why we ended its start, where we did.
    """

    code: int | None
    signal: str | None
    how: str
    diagnosis: str
    cause: str
    sentence: str
    hint: str | None
    repeats: bool
    answered: bool
    log_tail: tuple[str, ...]
    doom: EngineStartError | None

    def error(self, kind: str, *, was_ready: bool, log_path: Path | None) -> EngineStartError:
        """The error for who waits for the engine.

        Args:
            kind: The engine's.
            was_ready: Whether it, or one before it, ever was.
            log_path: Its whole output.
        """
        verb = "died" if was_ready else "did not start"
        return self.doom or EngineStartError(
            f"The engine {kind} {verb}: {self.cause} ({self.how}).",
            diagnosis=self.diagnosis,
            exit_code=self.code,
            signal=self.signal,
            log_tail=self.log_tail,
            log_path=log_path,
            hint=self.hint,
        )


@dataclass(frozen=True, slots=True)
class _Sign:
    pattern: re.Pattern[str]
    diagnosis: Diagnosis


def _sign(pattern: str, code: str, sentence: str, hint: str | None) -> _Sign:
    return _Sign(
        re.compile(pattern, re.IGNORECASE | re.MULTILINE),
        Diagnosis(code=code, sentence=sentence, hint=hint, repeats=True),
    )


_SMALLER: Final = (
    "Lower ctx_size or parallel, quantize the cache (cache_type_k='q8_0'), or use a smaller model."
)

TEMPLATE_HINT: Final = "Give a working one with chat_template=…, or use another file of this model."

# In this order: the more telling first. Each text was printed by one of the engines.
_SIGNS: Final = (
    _sign(
        r"error while loading shared libraries: (\S+?):|library not loaded|"
        r"cannot import (?:xllamacpp|llama_cpp)|No module named '?(?:xllamacpp|llama_cpp)",
        "missing_library",
        "a library it needs is missing",
        "Reinstall the engine, or install the library that the log names.",
    ),
    _sign(
        r"invalid argument: |error: unknown argument|unrecognized arguments?:|unknown parameter:",
        "unknown_flag",
        "it does not know one of the arguments it was given",
        "Remove it from extra_args, or use a newer build.",
    ),
    _sign(
        r"invalid magic characters|bad magic|not a (?:valid )?gguf|failed to read magic",
        "not_gguf",
        "the model file is no GGUF file",
        "Download the model again; `llama-runtime models verify` checks it.",
    ),
    _sign(
        r"unknown model architecture|unsupported model architecture",
        "unsupported_architecture",
        "this build of the engine does not know the model's architecture",
        "Use a newer build of the engine, or another model.",
    ),
    _sign(
        r"tensor .* (?:data )?is not within (?:the )?file bounds|file is (?:truncated|corrupted)|"
        r"unexpected(?:ly)? (?:reached )?end of file|failed to read tensor",
        "truncated_gguf",
        "the model file is cut off or damaged",
        "Download the model again; `llama-runtime models verify` checks it.",
    ),
    _sign(
        r"couldn't bind|address already in use|bind: .*in use|failed to bind",
        "port_taken",
        "its port is taken",
        "Choose another port, or port=0 for any free one.",
    ),
    _sign(
        r"bad_alloc|insufficient memory|cannot allocate memory|failed to allocate|out of memory|"
        r"cudaMalloc failed|unable to allocate|ErrorOutOfDeviceMemory|Unable to mmap|mmap failed|"
        r"^MemoryError\b",
        "out_of_memory",
        "there is not enough memory for model and context",
        _SMALLER,
    ),
    _sign(
        # std::thread, OpenMP, our host of xllamacpp and Python under a limit of processes.
        r"(?:what\(\):\s+|\berror: |thread\b.*: )Resource temporarily unavailable|"
        r"can't start new thread",
        "no_process",
        "the system allows it no further thread",
        "Close programs, or raise the limits of processes and memory (ulimit -u, ulimit -v).",
    ),
    _sign(
        r"failed to parse .*chat template|chat template .*(?:error|fail|not supported)|"
        r"jinja2[./](?:exceptions|lexer|parser|compiler)\b",  # llama-cpp-python's traceback
        "bad_template",
        "the model's chat template does not work",
        TEMPLATE_HINT,
    ),
)


def diagnose(
    *,
    code: int | None,
    signal: int | None,
    log_tail: Sequence[str],
    was_ready: bool,
    out_of_memory: bool = False,
    refused: int | None = None,
) -> Diagnosis:
    """Name the cause of an engine's end.

    Args:
        code: The exit code, or None.
        signal: The number of the signal that ended it, or None.
        log_tail: Its last lines, oldest first.
        was_ready: Whether it had served before; causes of failed starts are then not looked for.
        out_of_memory: Whether the kernel killed a process for want of memory meanwhile.
        refused: The error number with which the system refused to execute it, or None.
    """
    if refused in {errno.EAGAIN, errno.ENOMEM}:
        return Diagnosis(
            code="no_process",
            sentence="the system refused a new process",
            hint="Close programs, or raise the limits of processes and memory (ulimit -u, "
            "ulimit -v).",
            repeats=False,
        )
    if signal == signals.SIGKILL and out_of_memory:
        return Diagnosis(
            code="out_of_memory",
            sentence="the kernel killed it because memory ran out",
            hint=_SMALLER,
            repeats=True,
        )
    by_signal = _signal_diagnosis(signal)
    if by_signal is not None and by_signal.repeats:
        return by_signal
    if not was_ready:
        text = "\n".join(log_tail)
        for sign in _SIGNS:
            if sign.pattern.search(text):
                return sign.diagnosis
    if by_signal is not None:
        if not was_ready and by_signal.code == "crashed" and templates.was_last(log_tail):
            return Diagnosis(
                code="bad_template",
                sentence="it crashed over the model's chat template",
                hint=TEMPLATE_HINT,
                repeats=True,
            )
        return by_signal
    if code == 127:
        return Diagnosis(
            code="missing_library",
            sentence="its program or a library it needs is missing",
            hint="Reinstall the engine.",
            repeats=True,
        )
    return Diagnosis(
        code="unknown",
        sentence="it ended by itself" if code == 0 else "it gave no reason that is known here",
        hint="The log has its last words.",
        repeats=not was_ready,
    )


def _signal_diagnosis(number: int | None) -> Diagnosis | None:
    match number:
        case None:
            return None
        case signals.SIGILL:
            return Diagnosis(
                code="illegal_instruction",
                sentence="it was built for processor instructions that this machine does not have",
                hint="Use an engine built for this processor: a llama-server compiled here, or "
                "`pip install --no-binary xllamacpp xllamacpp`.",
                repeats=True,
            )
        case signals.SIGKILL:
            return Diagnosis(
                code="killed",
                sentence="something killed it; when memory runs out, the system does that",
                hint="If memory was short, lower ctx_size or parallel, or use a smaller model.",
                repeats=False,
            )
        case signals.SIGBUS:
            return Diagnosis(
                code="file_changed",
                sentence="the model file was cut short while it was in use",
                hint="Download the model again; `llama-runtime models verify` checks it.",
                repeats=False,
            )
        case _:
            return Diagnosis(
                code="crashed", sentence="it crashed", hint="The log has its last words.",
                repeats=False,
            )  # fmt: skip


def ending(*, code: int | None, signal: int | None) -> str:
    """How it ended, in words."""
    if signal is not None:
        return f"ended by {signal_name(signal)}"
    if code is None:
        return "ended"
    return f"exited with code {code}"


def signal_name(number: int) -> str:
    """A signal's name (``SIGKILL``), or its number where it has none."""
    try:
        return signals.Signals(number).name
    except ValueError:
        return f"signal {number}"
