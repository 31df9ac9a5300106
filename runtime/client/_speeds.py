"""How fast models are on this machine, learned from real requests and kept between runs.

One JSON file below the state folder. It only ever saves guessing: what cannot be read or written,
or makes no sense, is as good as not there.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout

from runtime.client._ranking import Speed
from runtime.errors import StorageError
from runtime.settings import directories, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_MODELS: Final = 200
"""Models remembered; past it those that were not used for longest are forgotten."""

_MOST_TOKENS: Final = 20_000.0
_MOST_LOADS: Final = 5.0
_SAVE_EVERY_S: Final = 5.0
_LOCK_PATIENCE_S: Final = 0.5
_LEAST_PROMPT_TOKENS: Final = 8
"""A prompt of which the cache left less says nothing about reading speed."""

# What an unmeasured machine is taken for: two cores of a laptop.
_BANDWIDTH: Final = 10e9  # bytes of weights a second while decoding, which memory bounds
_COMPUTE: Final = 50e9  # parameters times tokens a second while reading a prompt
_LOAD_BYTES_S: Final = 500e6
_START_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What requests to a model came to, the recent ones weighing more.

    Sums rather than means: two of them add up to one, whoever measured them.

    Attributes:
        prompt_tokens: Tokens read, those from the cache left out.
        prompt_s: Seconds that took.
        decode_tokens: Tokens written.
        decode_s: Seconds that took.
        answers: Answers.
        loads: Loads.
        load_s: Seconds they took.
        parameters: The model's weights, to reckon others by; 0 where unknown.
        size_bytes: Their size.
        at: When it was last used, seconds since the epoch.
    """

    prompt_tokens: float = 0.0
    prompt_s: float = 0.0
    decode_tokens: float = 0.0
    decode_s: float = 0.0
    answers: float = 0.0
    loads: float = 0.0
    load_s: float = 0.0
    parameters: float = 0.0
    size_bytes: float = 0.0
    at: float = 0.0

    def plus(self, other: Measured) -> Measured:
        """Both together; past a bound the sums are scaled down, so that what is new weighs more."""
        both = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Measured)}
        for name, most, others in (
            ("prompt_tokens", _MOST_TOKENS, ("prompt_s",)),
            ("decode_tokens", _MOST_TOKENS, ("decode_s", "answers")),
            ("loads", _MOST_LOADS, ("load_s",)),
        ):
            if both[name] > most:
                for scaled in others:
                    both[scaled] *= most / both[name]
                both[name] = most
        return Measured(
            **both
            | {
                "parameters": other.parameters or self.parameters,
                "size_bytes": other.size_bytes or self.size_bytes,
                "at": max(self.at, other.at),
            }
        )

    @property
    def prompt_rate(self) -> float | None:
        """Tokens read a second."""
        return _rate(self.prompt_tokens, self.prompt_s)

    @property
    def decode_rate(self) -> float | None:
        """Tokens written a second."""
        return _rate(self.decode_tokens, self.decode_s)

    @property
    def mean_load_s(self) -> float | None:
        """Seconds a load takes."""
        return self.load_s / self.loads if self.loads else None


def _rate(tokens: float, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def from_answer(response: object) -> Measured | None:
    """What an answer tells of its model's speed; None when nothing."""
    raw = getattr(response, "raw", None) or {}
    timings = raw.get("timings")
    if not isinstance(timings, Mapping):
        return None
    read, read_ms, written, written_ms = (
        _number(timings.get(name))
        for name in ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms")
    )
    if not written or not written_ms:
        return None
    counts = read >= _LEAST_PROMPT_TOKENS and read_ms > 0
    return Measured(
        prompt_tokens=read if counts else 0.0,
        prompt_s=read_ms / 1000 if counts else 0.0,
        decode_tokens=written,
        decode_s=written_ms / 1000,
        answers=1.0,
    )


def speed_of(
    found: Measured | None,
    others: Iterable[Measured],
    *,
    parameters: int | None,
    size_bytes: int | None,
) -> Speed | None:
    """A model's speed: measured where it was, else reckoned from its size.

    Decoding reads every weight once a token, so it is bound by memory; reading a prompt is bound by
    arithmetic, in proportion to the parameters. How much of either this machine does in a second is
    taken from the other models measured on it, and where there are none it is guessed.

    Args:
        found: What was measured of the model.
        others: What was measured of other models with the same engine on the same machine.
        parameters: The model's weights; None where unknown.
        size_bytes: Their size; None where unknown.
    """
    parts = tuple(others)
    estimated = None
    if size_bytes and parameters:
        seen = [(each, rate) for each in parts if (rate := each.decode_rate) and each.size_bytes]
        bandwidth = _median([rate * each.size_bytes for each, rate in seen], _BANDWIDTH)
        read = [(each, rate) for each in parts if (rate := each.prompt_rate) and each.parameters]
        compute = _median([rate * each.parameters for each, rate in read], _COMPUTE)
        estimated = Speed(
            prompt_tokens_per_s=compute / parameters,
            decode_tokens_per_s=bandwidth / size_bytes,
            load_s=_START_S + size_bytes / _LOAD_BYTES_S,
            answer_tokens=None,
            basis="estimated",
        )
    if found is None or (decode := found.decode_rate) is None:
        return estimated
    # Prompts that were all in the cache leave the reading speed unmeasured; it is never below that
    # of writing.
    prompt = found.prompt_rate or (estimated.prompt_tokens_per_s if estimated else decode)
    load_s = found.mean_load_s
    return Speed(
        prompt_tokens_per_s=max(prompt, decode) if found.prompt_rate is None else prompt,
        decode_tokens_per_s=decode,
        load_s=load_s if load_s is not None else estimated.load_s if estimated else _START_S,
        answer_tokens=found.decode_tokens / found.answers if found.answers else None,
        basis="measured",
    )


def _median(values: list[float], default: float) -> float:
    return statistics.median(values) if values else default


class SpeedBook:
    """What was measured, by key. Any thread may use it, and other processes share the file.

    Args:
        path: The file, in a folder that nobody else reads; None for the one below the state folder.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or directories().state / "routing" / "speeds.json"
        self._lock = threading.Lock()
        self._known = _read(self._path)
        self._pending: dict[str, Measured] = {}
        self._saved_at = time.monotonic()

    def get(self, key: str) -> Measured | None:
        """What is known under ``key``, what was learned just now included."""
        with self._lock:
            return self._known.get(key)

    def among(self, prefix: str, *, but: str) -> tuple[Measured, ...]:
        """What is known under the other keys that begin with ``prefix``."""
        with self._lock:
            return tuple(
                each for key, each in self._known.items() if key.startswith(prefix) and key != but
            )

    def learn(self, key: str, measured: Measured) -> None:
        """Add what a request came to. It reaches the disk within some requests, or by save()."""
        measured = replace(measured, at=time.time())
        with self._lock:
            for kept in (self._known, self._pending):
                kept[key] = kept.get(key, Measured()).plus(measured)
            due = time.monotonic() - self._saved_at >= _SAVE_EVERY_S
        if due:
            self.save()

    def save(self) -> None:
        """Write down what was learned since the last time, on top of what others wrote meanwhile.

        A folder that cannot be written, or another process that holds the lock for long, only means
        that it is tried again later.
        """
        with self._lock:
            if not self._pending:
                return
            self._saved_at = time.monotonic()
            try:
                folder = private_folder(self._path.parent)
                with FileLock(f"{self._path}.lock", timeout=_LOCK_PATIENCE_S, mode=0o600):
                    merged = _read(self._path)
                    for key, measured in self._pending.items():
                        merged[key] = merged.get(key, Measured()).plus(measured)
                    merged = _bounded(merged)
                    _write(self._path, folder, merged)
            except (OSError, StorageError, Timeout):
                return
            self._known, self._pending = merged, {}


def _bounded(known: dict[str, Measured]) -> dict[str, Measured]:
    latest = sorted(known.items(), key=lambda item: item[1].at, reverse=True)
    return dict(latest[:MOST_MODELS])


def _write(path: Path, folder: Path, known: Mapping[str, Measured]) -> None:
    handle, partial = tempfile.mkstemp(dir=folder, suffix=".tmp")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"models": {key: asdict(each) for key, each in known.items()}}, file)
        Path(partial).replace(path)
    except OSError:
        Path(partial).unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Measured]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    models = found.get("models") if isinstance(found, dict) else None
    if not isinstance(models, dict):
        return {}
    known = {key: each for key, values in models.items() if (each := _measured(values))}
    return _bounded(known)


def _measured(values: Any) -> Measured | None:
    names = {each.name for each in fields(Measured)}
    if not isinstance(values, dict) or set(values) != names:
        return None
    if any(_number(value) != value or isinstance(value, bool) for value in values.values()):
        return None
    return Measured(**values)


def _number(value: object) -> float:
    """The number; 0 for what is none, or none that can be measured."""
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    return 0.0
