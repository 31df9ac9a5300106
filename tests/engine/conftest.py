"""The gateway that the tests with foreign clients share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from runtime.testing.tiny_model import build_tiny_model
from tests.gateways import Gateway, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY: Final = "sk-of-the-gateway"
"""What it demands."""


@pytest.fixture(scope="session")
def gateway_of_tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Serves ``tiny-chat``, which calls a tool whenever it is given some, and embeds as well."""
    folder = tmp_path_factory.mktemp("gateway")
    model = folder / "tiny-chat.gguf"
    build_tiny_model(model, tools=True)
    options = ("--ctx-size", "2048", "--parallel", "2")
    with serving(model, *options, home=folder / "home", LLAMA_RUNTIME_API_KEY=KEY) as running:
        yield running
