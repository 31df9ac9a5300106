"""What a caller gets of a session that was saved or restored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtime.contracts import LLMMessage, ToolCall

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from runtime.inference.session_proof import Answered
    from runtime.store.sessions import SessionHead


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionMessage(LLMMessage):
    """A message of a restored conversation.

    Attributes:
        tool_calls: The calls that an assistant's message made.
    """

    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A conversation whose state is in the engine and on disk.

    Attributes:
        path: Its file.
        size_bytes: The file's size.
        messages: The conversation; what comes next is appended to it.
        tokens: Tokens whose state it holds.
        reused: Tokens of the conversation's prompt that the engine found in it.
        processed: Tokens of that prompt that it had to compute, the last one always.
        engine_ms: Milliseconds that the engine took to write or read the state.
        evicted: Names of sessions that were removed to make room for this one.
    """

    path: Path
    size_bytes: int
    messages: tuple[SessionMessage, ...]
    tokens: int
    reused: int
    processed: int
    engine_ms: float
    evicted: tuple[str, ...] = ()


def session_of(
    path: Path,
    head: SessionHead,
    said: Answered,
    *,
    engine_ms: float,
    evicted: Sequence[str] = (),
) -> Session:
    """A session as its file's head and the engine's answer to its proof tell of it."""
    return Session(
        path=path,
        size_bytes=path.stat().st_size,
        messages=_messages(head),
        tokens=head.tokens,
        reused=said.reused,
        processed=said.processed,
        engine_ms=engine_ms,
        evicted=tuple(evicted),
    )


def _messages(head: SessionHead) -> tuple[SessionMessage, ...]:
    return tuple(
        SessionMessage(
            role=each["role"],
            content=each["content"],
            name=each.get("name"),
            tool_call_id=each.get("tool_call_id"),
            tool_calls=tuple(
                ToolCall(
                    name=call["function"]["name"],
                    arguments_json=call["function"]["arguments"],
                    call_id=call["id"],
                )
                for call in each.get("tool_calls", ())
            ),
        )
        for each in head.messages
    )
