"""Pure builders: from a launch specification to each engine's own command.

Nothing here touches a file, a socket or a process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from runtime.engines.base import Speculation

# A CORS origin that no browser page can have: the engine answers pages by default.
NO_ORIGIN: Final = "http://origin.invalid"

# Zero: a request that names no slot gets the one that is idle for longest, with the best copy from
# the cache of earlier prompts in it. With the engine's default, a tenth in common makes a slot like
# a request, and conversations that begin alike cut off one another: six agents on four slots found
# 77 % of their prompts again (0.9: 93 %, this: all). Never above zero beside that cache: for one
# that names a busy slot, llama.cpp (11434 to 11549) would load a copy into it, under the answer
# that is being written there, which goes on as if that had been its prompt.
SLOT_SIMILARITY: Final = 0.0


def speculation_sizes(speculation: Speculation) -> dict[str, int]:
    """The sizes of a way to draft by n-grams, by llama.cpp's own names for them."""
    if speculation.kind == "ngram-mod":
        return {
            "n-match": speculation.match_tokens,
            "n-min": speculation.draft_min_tokens,
            "n-max": speculation.draft_tokens,
        }
    return {"size-n": speculation.match_tokens, "size-m": speculation.draft_tokens}
