"""Tool calls while their pieces arrive."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from runtime.contracts import ToolCall, ToolCallDelta

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True)
class _Call:
    call_id: str
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class GrowingCalls:
    """The tool calls of one answer, by their index. False as long as there is none."""

    def __init__(self, ids: Mapping[int, str]) -> None:
        """None yet.

        Args:
            ids: The ids by which the caller knows calls, by their index; others take the server's.
        """
        self._ids = ids
        self._calls: dict[int, _Call] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def pieces(self) -> int:
        """Pieces of arguments that arrived."""
        return sum(len(call.arguments) for call in self._calls.values())

    @property
    def so_far(self) -> dict[int, ToolCall]:
        """The calls as far as they came, in the order of their index."""
        return {
            index: ToolCall(
                name=call.name, arguments_json="".join(call.arguments), call_id=call.call_id
            )
            for index, call in sorted(self._calls.items())
        }

    def __contains__(self, index: int) -> bool:
        return index in self._calls

    def begin(self, index: int, server_id: str) -> None:
        """A call begins, which the server knows by an id, or by none."""
        known = self._ids.get(index) or server_id
        self._calls[index] = _Call(call_id=known or f"call_{uuid4().hex[:24]}")

    def add(self, index: int, *, name: str, arguments: str) -> ToolCallDelta:
        """Take a piece of a call that has begun; returns what it adds for the caller."""
        call = self._calls[index]
        call.name += name
        call.arguments.append(arguments)
        return ToolCallDelta(
            call_id=call.call_id, name=name or None, arguments_json_delta=arguments or None
        )
