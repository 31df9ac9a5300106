"""What a tuning found, in the form in which it is kept, and for which launches it holds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from runtime.hardware import cpu_name
from runtime.settings import ServerConfig

if TYPE_CHECKING:
    from runtime.engines.base import EngineInfo
    from runtime.hardware import CpuBudget
    from runtime.store.local import LocalModel

SCHEMA: Final = 1

_TOGETHER: Final = (
    ("threads", "threads_batch"),
    ("batch_size", "ubatch_size"),
    ("flash_attn",),
    ("speculation",),
)
"""Settings that were chosen together: who sets one of them by hand decides about all."""

TUNABLE: Final = frozenset(name for group in _TOGETHER for name in group)

_MAY_SET: Final = TUNABLE | {"draft_model"}
"""What a profile may hold; the draft model counts only where ``draft_model="auto"`` asks for it."""

_GIVEN: Final = (
    "cache_type_k",
    "cache_type_v",
    "embeddings",
    "lora",
    "mmproj",
    "draft_model",
    "extra_args",
)
"""Settings that are never up for choice and on which the choice rests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """What a profile holds for.

    Attributes:
        model_sha256: Digest of the model's (first) file.
        model_bytes: Size of the model.
        engine: The engine kind.
        engine_version: Its build.
        hardware: The processors that may be used, and the GPUs.
        fixed: Settings that were not up for choice, as JSON values.
    """

    model_sha256: str
    model_bytes: int
    engine: str
    engine_version: str
    hardware: Mapping[str, object]
    fixed: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptProfile:
    """The result of a tuning, as it is kept.

    Attributes:
        model: The model's name.
        key: What it holds for.
        settings: Fields of :class:`~runtime.settings.ServerConfig` that are better than the
            defaults; empty when the defaults are the best there is.
        tuned_at: When, ISO 8601, UTC.
        summary: What was found and how sure that is, one sentence.
        evidence: The measurements that chose, as JSON values.
        runtime_version: The version that measured.
        schema: Version of this form.
    """

    model: str
    key: ProfileKey
    settings: Mapping[str, object]
    tuned_at: str
    summary: str
    evidence: Mapping[str, object] = field(default_factory=dict)
    runtime_version: str = ""
    schema: int = SCHEMA

    @property
    def day(self) -> str:
        """The date of the tuning."""
        return self.tuned_at[:10]

    @property
    def file_name(self) -> str:
        """Where it is kept: the same for whatever replaces it."""
        identity = json.dumps(asdict(self.key), sort_keys=True).encode()
        return (
            f"{slug(self.model)}~{self.key.model_sha256[:12]}~"
            f"{hashlib.sha256(identity).hexdigest()[:12]}.json"
        )


def open_settings(config: ServerConfig) -> frozenset[str]:
    """The settings that are left to the runtime: of each group, all or none."""
    defaults = ServerConfig.model_fields
    return frozenset(
        name
        for group in _TOGETHER
        if all(getattr(config, name) in {defaults[name].default, "auto"} for name in group)
        for name in group
    )


def key_for(  # noqa: D417 - the arguments are what their types say
    config: ServerConfig,
    model: LocalModel,
    info: EngineInfo,
    *,
    model_sha256: str,
    budget: CpuBudget,
    gpu_layers: int,
) -> ProfileKey:
    """What a profile that is measured or wanted now holds for.

    Args:
        gpu_layers: As placed: 0 for a launch on the processor alone.
    """
    left_open = open_settings(config)
    values = config.model_dump(mode="json", include={*(TUNABLE - left_open), *_GIVEN})
    return ProfileKey(
        model_sha256=model_sha256,
        model_bytes=model.size_bytes,
        engine=info.kind,
        # With its devices an engine is also asked for the llama.cpp inside: the same build.
        engine_version=(info.version or "").partition(" (llama.cpp")[0],
        hardware={
            "cpu": cpu_name(),
            "cores": budget.physical_cores,
            "cpus": budget.affinity,
            "quota": budget.quota,
            "gpus": [each.description or each.name for each in info.devices if each.kind == "gpu"],
            "gpu_layers": gpu_layers,
        },
        fixed=values,
    )


def differences(profile: KeptProfile, wanted: ProfileKey, config: ServerConfig) -> tuple[str, ...]:
    """Why a profile does not hold for a launch; empty when it does."""
    key = profile.key
    other = []
    if (key.model_sha256, key.model_bytes) != (wanted.model_sha256, wanted.model_bytes):
        other.append("another model file")
    if key.engine != wanted.engine:
        other.append(f"another engine ({key.engine})")
    elif key.engine_version != wanted.engine_version:
        other.append(f"another build of {key.engine} ({key.engine_version})")
    names = sorted(
        name
        for name in {*key.hardware, *wanted.hardware}
        if key.hardware.get(name) != wanted.hardware.get(name)
    )
    if names:
        told = ", ".join(f"{name} {key.hardware.get(name)}" for name in names)
        other.append(f"another machine ({told})")
    now = config.model_dump(mode="json", include=set(key.fixed))
    changed = sorted(name for name, value in key.fixed.items() if now.get(name) != value)
    if changed:
        other.append(f"other settings ({', '.join(changed)})")
    return tuple(other)


def applicable(profile: KeptProfile, config: ServerConfig) -> dict[str, object]:
    """Its settings, less those about which the user has decided."""
    left_open = open_settings(config)
    return {name: value for name, value in profile.settings.items() if name in left_open}


def parse(value: Any) -> KeptProfile:
    """A profile out of JSON.

    Raises:
        ValueError, TypeError, LookupError, ConfigError: It is none, or of another version.
    """
    if value["schema"] != SCHEMA:
        raise ValueError("it is of another version")
    if foreign := set(value["settings"]) - _MAY_SET:
        raise ValueError(f"it sets {', '.join(sorted(foreign))}")
    checked = ServerConfig(**value["settings"])
    key = value["key"]
    for name in ("hardware", "fixed"):
        if not isinstance(key[name], Mapping):
            raise TypeError(f"{name} is no object")
    return KeptProfile(
        model=str(value["model"]),
        key=ProfileKey(
            model_sha256=str(key["model_sha256"]),
            model_bytes=int(key["model_bytes"]),
            engine=str(key["engine"]),
            engine_version=str(key["engine_version"]),
            hardware=key["hardware"],
            fixed=key["fixed"],
        ),
        settings={name: getattr(checked, name) for name in value["settings"]},
        tuned_at=str(value["tuned_at"]),
        summary=str(value["summary"]),
        evidence=value.get("evidence", {}),
        runtime_version=str(value.get("runtime_version", "")),
    )


def slug(name: str) -> str:
    """A model's name as it stands in the names of files."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower())[:60] or "model"
