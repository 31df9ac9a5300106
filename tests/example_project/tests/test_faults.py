"""The agent when things go wrong."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from helpdesk import SORRY, HelpDesk

from runtime import LLMBadResponseError, RequestTimeoutError


def test_an_explanation_survives_a_crash(desk: HelpDesk, llama_faults: Any) -> None:
    llama_faults.crash(at_token=5)

    assert len(list(desk.explain("refunds"))) == 24


def test_a_failing_server_is_apologised_for(llama_server: Any, llama_faults: Any) -> None:
    llama_faults.status(500, times=None)
    with llama_server.client(max_retries=0) as client:
        assert HelpDesk(client).greet("Ada") == SORRY


def test_a_stalled_stream_is_given_up(llama_server: Any, llama_faults: Any) -> None:
    llama_faults.stall(at_token=3)
    with (
        llama_server.client(max_retries=0, stall_timeout_s=0.2) as client,
        pytest.raises(RequestTimeoutError) as caught,
    ):
        list(HelpDesk(client).explain("refunds"))

    assert caught.value.partial_text


def test_a_cut_stream_goes_on(desk: HelpDesk, llama_faults: Any) -> None:
    llama_faults.cut(at_token=4)

    assert len(list(desk.explain("refunds"))) == 24


def test_broken_arguments_are_no_tool_call(llama_server: Any, llama_faults: Any) -> None:
    llama_faults.malformed_tool_json(times=None)
    with llama_server.client(max_retries=0) as client, pytest.raises(LLMBadResponseError):
        HelpDesk(client).ask("Where is order A-17?")


def test_the_desk_stays_on_this_machine() -> None:
    with pytest.raises(RuntimeError, match=r"tried to reach 192\.0\.2\.1:443"):
        socket.create_connection(("192.0.2.1", 443))
