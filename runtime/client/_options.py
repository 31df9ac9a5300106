"""The keyword arguments of a client, checked and brought together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict

from runtime.errors import ConfigError
from runtime.settings import ServerConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.settings import CacheType, EngineChoice, Pooling, RestartPolicy, SpeculationChoice


class ServerOptions(TypedDict, total=False):
    """The fields of :class:`runtime.settings.ServerConfig`, as keyword arguments of a client.

    ``model`` and ``api_key`` are not among them: those are arguments of the client itself.
    """

    engine: EngineChoice
    engine_path: str | None
    host: str
    port: int
    alias: str | None
    ctx_size: Literal["auto"] | int | None
    parallel: Literal["auto"] | int
    batch_size: int | None
    ubatch_size: int | None
    prompts_at_once: int | None
    threads: int | None
    threads_batch: int | None
    gpu_layers: Literal["auto", "all"] | int
    device: Literal["auto", "cpu", "gpu"]
    embeddings: bool
    pooling: Pooling | None
    cache_type_k: CacheType
    cache_type_v: CacheType
    flash_attn: Literal["auto", "on", "off"]
    lora: tuple[str, ...]
    mmproj: str | None
    draft_model: str | None
    speculation: SpeculationChoice
    tuned: bool
    chat_template: str | None
    extra_args: tuple[str, ...]
    env: dict[str, str]
    startup_stall_timeout_s: float
    wedge_timeout_s: float
    stop_grace_s: float
    restart: RestartPolicy
    standby: bool
    log_dir: Path | None


_OF_CHAT_ALONE: dict[str, object] = {
    "alias": None,
    "port": 0,
    "batch_size": None,
    "ubatch_size": None,
    "chat_template": None,
    "lora": (),
    "mmproj": None,
    "draft_model": None,
    "speculation": "auto",
    "tuned": True,
    "embeddings": True,
    "standby": False,
}


def server_config(
    model: str | None,
    config: ServerConfig | None,
    options: Mapping[str, Any],
    *,
    api_key: str | None,
) -> ServerConfig:
    """What the managed server is to be: ``config`` with what was said besides on top of it.

    Raises:
        ConfigError: A setting is unknown or cannot work.
    """
    values = _given(config) if config is not None else {}
    values |= options
    if model is not None:
        values["model"] = model
    if api_key is not None:
        values["api_key"] = api_key
    return ServerConfig(**values)


def embedding_config(config: ServerConfig, model: str) -> ServerConfig:
    """What the server of an embedding model is to be: as the chat's, as far as that makes sense."""
    return ServerConfig(**{**_given(config), **_OF_CHAT_ALONE, "model": model})


def _given(config: ServerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.model_fields_set}


def check_key(api_key: str | None) -> None:
    """Refuse a key that HTTP cannot carry.

    Raises:
        ConfigError: It holds blanks or other than ASCII characters.
    """
    if api_key is not None and not all("!" <= character <= "~" for character in api_key):
        raise ConfigError(
            "The API key holds characters that an HTTP header cannot.",
            hint="A key is made of printable ASCII characters without blanks.",
        )


def check_attachable(config: ServerConfig | None, options: Mapping[str, Any]) -> None:
    """Refuse settings of a server that is not ours to start.

    Raises:
        ConfigError: There are some.
    """
    named = sorted(options) or (["config"] if config is not None else [])
    if named:
        raise ConfigError(
            f"With base_url no server is started, so {', '.join(named)} can have no effect.",
            hint="Leave base_url out to start a server, or leave the settings out.",
        )
