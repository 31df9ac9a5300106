from __future__ import annotations

import pytest
from helpdesk import HelpDesk

from runtime import LlamaClient


@pytest.fixture
def desk(llama_client: LlamaClient) -> HelpDesk:
    """The agent under test, on the model of the run."""
    return HelpDesk(llama_client)
