"""The agent on recorded answers: exact, fast, and without any engine."""

from __future__ import annotations

import pytest
from helpdesk import HelpDesk, Ticket

pytestmark = pytest.mark.llama_cassette


def test_the_answer_to_a_known_question(desk: HelpDesk) -> None:
    desk.ask("Where is order A-17?")

    assert desk.turns[1].tool_calls[0].name == "order_status"


def test_a_known_complaint(desk: HelpDesk) -> None:
    assert desk.ticket("My parcel is late!") == Ticket(subject="other", urgent=True)


def test_an_explanation_in_pieces(desk: HelpDesk) -> None:
    assert "".join(desk.explain("refunds")).startswith(" ")


def test_the_nearest_passage(desk: HelpDesk) -> None:
    assert desk.nearest("the quick server", ["every client", "the quick server"])[0] == "t"
