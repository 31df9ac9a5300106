"""Which model a test wants, and where it is: nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import ConfigError
from runtime.settings import ServerConfig, directories, private_folder
from runtime.store import ModelStore
from runtime.testing import tiny_model, tiny_vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping

TINY: Final = "tiny"
TINY_EMBEDDING: Final = "tiny-embedding"
ENGINES: Final = ("auto", "xllamacpp", "llama-server", "llama-cpp-python")

_OURS: Final = {"model", "alias", "host", "port", "api_key"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A model and how it is to be served.

    Attributes:
        model: A model reference, ``"tiny"`` or ``"tiny-embedding"``.
        engine: An engine kind, or the path of a llama-server.
        options: Fields of :class:`runtime.ServerConfig`, by name.
    """

    model: str
    engine: str = "auto"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def digest(self) -> str:
        """The same for the same wish."""
        text = json.dumps([self.model, self.engine, self.options], default=str, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """What the model is called in the API: the reference, or its last part where it is long."""
        return Path(self.model).stem if self.model.endswith(".gguf") else self.model

    def path(self) -> Path:
        """The model's file; a tiny one is built, no other is fetched.

        Raises:
            ModelNotFoundError: It is not on this machine; says how to fetch it.
            LLMCapabilityError: What builds tiny models is not installed.
        """
        if self.model == TINY:
            return built("chat")
        if self.model == TINY_EMBEDDING:
            return built("embedding")
        return ModelStore().resolve(self.model).path

    def config(self) -> ServerConfig:
        """The configuration of its server.

        Raises:
            ConfigError: An option is unknown, or the plugin's own.
            LLMError: As :meth:`path`.
        """
        options: Mapping[str, Any] = dict(self.options)
        if taken := _OURS & options.keys():
            raise ConfigError(
                f"The llama_model marker cannot set {', '.join(sorted(taken))}.",
                hint="Its first argument names the model; the rest is the plugin's.",
            )
        named = {"engine": self.engine}
        if self.engine not in ENGINES:
            named = {"engine": "llama-server", "engine_path": self.engine}
        # llama.cpp's threads wait for each other by spinning: for a model that decodes thousands of
        # tokens a second, and tests side by side, one is best.
        tiny = {"threads": 1} if self.model in {TINY, TINY_EMBEDDING} else {}
        return ServerConfig(
            **{**named, **tiny, **options},
            model=str(self.path()),
            alias=self.name,
            api_key=secrets.token_urlsafe(24),
        )


def built(kind: Any) -> Path:
    """The tiny model of a kind, built in the cache folder when it is not there.

    Raises:
        LLMCapabilityError: The packages that this needs are not installed.
        StorageError: The folder cannot be written.
    """
    sources = (tiny_model.__file__, tiny_vocabulary.__file__)
    digest = hashlib.sha256(b"".join(Path(source).read_bytes() for source in sources)).hexdigest()
    folder = private_folder(directories().cache / "testing")
    path = folder / f"tiny-{kind}-{digest[:16]}.gguf"
    if not path.is_file():
        draft = folder / f"{path.name}.{os.getpid()}"
        tiny_model.build_tiny_model(draft, kind, tools=kind == "chat", name=f"tiny {kind}")
        draft.replace(path)  # at once: other processes may look for it, or build it, too
    return path
