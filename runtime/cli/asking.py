"""What the commands that ask a model have in common: their options, and the client behind them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import output
from runtime.cli.options import COMMON, chosen, server_options
from runtime.settings import DEFAULT_MODEL, ServerConfig, gateway_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.client.sync import LlamaClient
    from runtime.contracts import LLMChatParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Which model is to answer, and on which server.

    Attributes:
        model: The model's reference.
        base_url: A server that runs already; None to start one.
        settings: Settings of the server that is started.
    """

    model: str
    base_url: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def fetch(self) -> None:
        """Have the model on disk.

        Raises:
            LLMError: There is none of that name, or it cannot be fetched.
        """
        from runtime.store import ModelStore  # noqa: PLC0415 - the help does not need it

        with output.pull_progress() as progress:
            ModelStore().pull(self.model, progress=progress)

    def open(self) -> LlamaClient:
        """A client that is ready; downloads and starts what is needed.

        A gateway that runs here and has the model is used, unless settings are given.

        Raises:
            LLMError: That failed.
        """
        from runtime.client.sync import LlamaClient  # noqa: PLC0415 - the help does not need it

        if self.base_url:
            key = os.environ.get("LLAMA_RUNTIME_API_KEY")
            return LlamaClient(base_url=self.base_url, api_key=key)
        given = chosen(dict(self.settings))
        config = ServerConfig(model=self.model, **{"parallel": 1, **given})
        shared = not given and gateway_wanted()  # a gateway has settings of its own
        with output.pull_progress() as progress:
            client = LlamaClient(config=config, progress=progress, use_gateway=shared)
        match client.describe()["gateway"]:
            case {"name": str(name), "base_url": str(url)}:
                output.note(f"Using the gateway {name} at {url}.")
        return client


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are sampled; None leaves a value to the model's recommended one.

    Attributes:
        temperature: Sampling temperature.
        max_tokens: Most tokens of an answer.
        seed: The seed of every answer; None for another one each time.
        options: Further fields of requests.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def params(self, **more: object) -> LLMChatParams:
        """As parameters of a chat; ``more`` are further provider options."""
        from runtime.contracts import LLMChatParams  # noqa: PLC0415

        seed = {} if self.seed is None else {"seed": self.seed}
        return LLMChatParams(
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            provider_options={**self.options, **seed, **more},
        )


def conversation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the commands that hold a conversation."""
    for option in reversed(
        (
            click.option(
                "--model", "-m", default=DEFAULT_MODEL, show_default=True, help="The model."
            ),
            click.option("--system", metavar="TEXT", help="A system message."),
            click.option(
                "--max-tokens", type=click.IntRange(min=1), help="Most tokens to generate."
            ),
            click.option(
                "--temperature", type=click.FloatRange(min=0), help="Sampling temperature."
            ),
            click.option("--seed", type=int, help="Seed; the same one gives the same answer."),
            click.option(
                "--base-url",
                metavar="URL",
                help="Use a server that runs already (its key: LLAMA_RUNTIME_API_KEY).",
            ),
        )
    ):
        command = option(command)
    return server_options(COMMON)(command)
