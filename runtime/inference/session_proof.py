"""The proof of a session: what an engine is asked about the state of a slot, and what it must say.

Pure functions; :mod:`runtime.inference.sessions` asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMBadResponseError, SessionMismatchError
from runtime.inference import payload

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engines.base import Endpoint
    from runtime.inference.wishes import Wish
    from runtime.store.sessions import SessionHead

LEAST_REUSED: Final = 0.95
"""Share of a proof's prompt that a state has to hold."""

LOGPROB_TOLERANCE: Final = 0.01
"""How far the proof's token may be off: another number of threads adds up in another order."""

_STEERING: Final = ("grammar", "response_format", "stop", "id_slot", "verbose", "logprobs")


def proof_body(wish: Wish, endpoint: Endpoint) -> dict[str, Any]:
    """The request that has the engine compute the token after a conversation, and tell of it."""
    short = replace(wish, temperature=0.0, max_tokens=1, schema=None)
    made, _ = payload.body(short, endpoint, seed=0, stream=False)
    kept = {name: value for name, value in made.items() if name not in (*_STEERING, "model")}
    if kept.get("tools"):
        kept["tool_choice"] = "auto"
    return {**kept, "logprobs": True, "top_logprobs": 1}


@dataclass(frozen=True, slots=True)
class Answered:
    """What the engine says to a proof.

    Attributes:
        reused: Tokens of the prompt that the slot held.
        processed: Tokens of it that were computed.
        token: The text of the token that comes next.
        logprob: Its natural logarithm of probability.
        slot: The slot, where it is known.
    """

    reused: int
    processed: int
    token: str
    logprob: float
    slot: int | None

    @property
    def reuses(self) -> bool:
        """Whether the slot held the conversation."""
        # The last token of a prompt is always computed: its outcome is not kept.
        return self.reused >= LEAST_REUSED * max(1, self.reused + self.processed - 1)


def answered(found: Mapping[str, Any] | None, slot: int | None) -> Answered:
    """What an engine's answer to a proof says.

    Args:
        found: The answer's object; None when there was none.
        slot: The slot that was asked, or None where the engine chose it.

    Raises:
        LLMBadResponseError: It does not say what a proof needs.
    """
    try:
        told: Any = found
        timings = told["timings"]
        piece = told["choices"][0]["logprobs"]["content"][0]
        return Answered(
            reused=int(timings["cache_n"]),
            processed=int(timings["prompt_n"]),
            token=str(piece["token"]),
            logprob=float(piece["logprob"]),
            slot=told.get("__verbose", {}).get("id_slot") if slot is None else slot,
        )
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        raise LLMBadResponseError("The engine does not say what a proof needs.") from exc


def refuse_other(head: SessionHead, here: Mapping[str, str]) -> None:
    """Compare what a state depends on.

    Raises:
        SessionMismatchError: Something differs; names it.
    """
    names = [*here, *(name for name in head.facts if name not in here)]
    differences = {
        name: (head.facts.get(name, "not known"), here.get(name, "not known"))
        for name in names
        if head.facts.get(name) != here.get(name)
    }
    if differences:
        told = "; ".join(
            f"{name}: saved with {_short(there)}, here it is {_short(now)}"
            for name, (there, now) in differences.items()
        )
        raise SessionMismatchError(
            f"The session is of another {' and '.join(differences)} ({told}).",
            differences=differences,
            hint="Start the server as it was, or send the conversation as it is: the engine then "
            "computes it anew.",
        )


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:12]}…"


def unproven(
    head: SessionHead, read: Mapping[str, Any], said: Answered
) -> SessionMismatchError | None:
    """Why a restored state is not the one that was saved; None when it is.

    Args:
        head: What was saved.
        read: What the engine said to the restore.
        said: What it says to the proof now.
    """
    proof = head.proof
    facts = {
        "tokens": (head.tokens, int(read.get("n_restored", -1))),
        "next token": (proof.token, said.token),
    }
    differences = {
        name: (str(then), str(now)) for name, (then, now) in facts.items() if then != now
    }
    if said.reused < LEAST_REUSED * proof.reused:
        differences["tokens reused"] = (str(proof.reused), str(said.reused))
    if not math.isclose(proof.logprob, said.logprob, abs_tol=LOGPROB_TOLERANCE):
        differences["its logprob"] = (f"{proof.logprob:.4f}", f"{said.logprob:.4f}")
    if not differences:
        return None
    told = "; ".join(f"{name}: {then} then, {now} now" for name, (then, now) in differences.items())
    return SessionMismatchError(
        f"The restored state does not answer as it did when it was saved ({told}).",
        differences=differences,
        hint="Send the conversation as it is: the engine then computes it anew.",
    )
