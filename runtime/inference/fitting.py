"""Making a conversation fit its context by leaving out its oldest messages."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from runtime.errors import ContextOverflowError, LLMCapabilityError
from runtime.inference.counting import count_prompt
from runtime.inference.effects import locate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow
    from runtime.inference.wishes import Wish

log = logging.getLogger(__name__)

MOST_ROOM: Final = 1024
"""Tokens kept free for an answer of which no bound was given; at most a quarter of the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What was done so that a conversation fits.

    Attributes:
        dropped: The messages that were left out, oldest first: place in the list, and role.
        tokens_before: Tokens of the whole prompt.
        tokens_after: Tokens of the prompt that was sent.
        room: Tokens kept free for the answer.
        context: Tokens one request may hold.
    """

    dropped: tuple[tuple[int, str], ...]
    tokens_before: int
    tokens_after: int
    room: int
    context: int

    def note(self) -> dict[str, object]:
        """As ``raw["fit"]`` has it."""
        return {
            "dropped": [{"index": index, "role": role} for index, role in self.dropped],
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "room": self.room,
            "context": self.context,
        }


def fitted(wish: Wish, limits: Limits) -> Flow[tuple[Wish, Fit]]:
    """The wish without as many of its oldest messages as must go.

    Messages go in groups (:func:`groups`). The prompt is counted once when it fits, else about as
    often as the number of groups can be halved.

    Raises:
        ContextOverflowError: What may not be dropped is too much already.
        LLMCapabilityError: The server tells neither its context nor counts.
    """
    endpoint = yield from locate(limits.request_timeout_s)
    context = endpoint.context_tokens
    if context is None:
        raise LLMCapabilityError(
            'fit="drop_oldest" needs a server that tells how long its context is.',
            hint="Leave fit out, or use the xllamacpp or llama-server engine.",
        )
    room = room_for_answer(context) if wish.max_tokens is None else wish.max_tokens
    droppable = groups(wish.messages)
    before = tokens = yield from count_prompt(wish, limits)
    fewest, most = 0, len(droppable)
    if tokens + room > context:
        tokens = (yield from count_prompt(_without(wish, droppable), limits)) if most else tokens
        if tokens + room > context:
            raise _cannot(tokens, room, context, sum(map(len, droppable)))
        while most - fewest > 1:  # dropping `most` groups was seen to be enough, `fewest` not
            middle = (fewest + most) // 2
            found = yield from count_prompt(_without(wish, droppable[:middle]), limits)
            if found + room > context:
                fewest = middle
            else:
                most, tokens = middle, found
    else:
        most = 0
    gone = droppable[:most]
    dropped = tuple((index, str(wish.messages[index]["role"])) for each in gone for index in each)
    if dropped:
        log.info(
            "dropped %d of %d messages: %d tokens became %d, of %d",
            len(dropped), len(wish.messages), before, tokens, context,
        )  # fmt: skip
    return _without(wish, gone), Fit(
        dropped=dropped, tokens_before=before, tokens_after=tokens, room=room, context=context
    )


def room_for_answer(context: int) -> int:
    """Tokens to keep free for an answer of which no bound was given."""
    return min(MOST_ROOM, context // 4)


def groups(messages: Sequence[Mapping[str, object]]) -> list[list[int]]:
    """The places of messages that may be dropped, in groups that go together, oldest first.

    System messages stay, and the last message of the user. What comes before that one goes in
    whole exchanges, a question with all that followed it: half of one misleads, and many templates
    want the speakers to alternate. What comes after goes in steps, a call with its results; the
    last step stays, for it is what is to be answered.
    """
    roles = [message["role"] for message in messages]
    last_user = max((n for n, role in enumerate(roles) if role == "user"), default=-1)
    found: list[list[int]] = []
    steps: list[list[int]] = []
    for index, role in enumerate(roles):
        if role == "system" or index == last_user:
            continue
        into, begins = (found, "user") if index < last_user else (steps, "assistant")
        if role == begins or not into:
            into.append([])
        into[-1].append(index)
    return found + steps[:-1]


def _without(wish: Wish, dropped: Sequence[Sequence[int]]) -> Wish:
    gone = {index for group in dropped for index in group}
    kept = tuple(message for n, message in enumerate(wish.messages) if n not in gone)
    return replace(wish, messages=kept) if gone else wish


def _cannot(tokens: int, room: int, context: int, droppable: int) -> ContextOverflowError:
    without = f"Even without the {droppable} messages that may be dropped, " if droppable else ""
    the = "the" if droppable else "The"
    return ContextOverflowError(
        f"{without}{the} prompt has {tokens} tokens and the answer may have {room}, but one "
        f"request may hold {context}.",
        prompt_tokens=tokens,
        context_tokens=context,
        hint="Shorten what must stay, lower max_tokens, or give the server a larger ctx_size.",
    )
