"""The end of a client's requests: all of them, and none gets another's slot meanwhile."""

from __future__ import annotations

from runtime.inference.switchboard import Switchboard


class Wire:
    """A connection whose end lets another one begin, as a slot that becomes free does."""

    def __init__(self, others: list[Wire]) -> None:
        self.aborted = False
        self.began_late = False
        self._others = others

    def abort(self) -> None:
        self.aborted = True
        for other in self._others:
            other.began_late = other.began_late or not other.aborted


def test_no_request_begins_because_another_ended() -> None:
    """The first to end gives its slot to the next in line, who knows by then that it is over."""
    wires: list[Wire] = []
    wires += [Wire(wires) for _ in range(3)]
    board = Switchboard()
    with (
        board.connected(wires[0]),
        board.connected(wires[1]),
        board.connected(wires[2]),
    ):
        board.close()
        board.close()
    assert all(wire.aborted for wire in wires)
    assert not any(wire.began_late for wire in wires)


def test_what_comes_after_the_end_is_ended_at_once_and_what_left_is_left_alone() -> None:
    gone, late = Wire([]), Wire([])
    board = Switchboard()
    with board.connected(gone):
        pass
    board.close()
    with board.connected(late):
        assert late.aborted
    assert not gone.aborted
