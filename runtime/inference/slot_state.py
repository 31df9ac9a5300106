"""The state of one slot of an engine: written to a file, read from one, cleared, and proven.

Generators of effects (see :mod:`runtime.inference.effects`) that look at the files, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from runtime.errors import LLMCapabilityError, ServerStatusError, StorageError
from runtime.inference import payload
from runtime.inference.counting import ask
from runtime.inference.exchange import CHAT_PATH
from runtime.inference.session_proof import answered
from runtime.store.disk import require_room

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits
    from runtime.inference.effects import Flow
    from runtime.inference.session_proof import Answered

Action = Literal["save", "restore", "erase"]


def folder_of(endpoint: Endpoint) -> Path:
    """Where the engine writes and reads the state of its slots.

    Raises:
        LLMCapabilityError: Nowhere.
    """
    if endpoint.kind not in payload.LLAMA_CPP_KINDS:
        raise LLMCapabilityError(
            f"The engine {endpoint.kind} cannot save what it has computed of a conversation.",
            hint="Use engine='xllamacpp' or 'llama-server'.",
        )
    if endpoint.slot_folder is None:
        raise _incapable("was started without a place for the state of slots")
    return endpoint.slot_folder


def render(body: Mapping[str, Any], limits: Limits) -> Flow[None]:
    """Have the engine put messages into its chat template, which may refuse them.

    Raises:
        LLMCapabilityError: It cannot do that.
        LLMInvalidRequestError, ServerStatusError: The template refuses them.
    """
    _, found = yield from ask("/apply-template", body, limits)
    if found is None:
        raise _incapable("cannot apply its chat template")


def prove(body: Mapping[str, Any], slot: int | None, limits: Limits) -> Flow[Answered]:
    """Have the engine answer a proof.

    Args:
        body: The proof.
        slot: The slot that is asked; None: the engine chooses one, and tells.
        limits: Deadlines.

    Raises:
        LLMBadResponseError: It does not say what a proof needs.
    """
    where = {"verbose": True} if slot is None else {"id_slot": slot}
    _, found = yield from ask(CHAT_PATH, {**body, **where}, limits)
    return answered(found, slot)


def act(slot: int, action: Action, state: Path, limits: Limits) -> Flow[dict[str, Any]]:
    """Have the engine write, read or clear a slot; returns what it says of that.

    Raises:
        LLMCapabilityError: It cannot do that.
        StorageError: There is no room, or the engine could not write.
    """
    if action == "save":
        require_room(state.parent, 1 << 20)
    path = f"/slots/{slot}?action={action}"
    try:
        _, found = yield from ask(path, {"filename": state.name}, limits)
    except ServerStatusError as exc:
        if exc.status == 501:
            raise _incapable("was started without a place for the state of slots") from exc
        raise
    if found is None:
        raise _incapable("has no way to save the state of a slot")
    if action == "save" and (
        not state.is_file() or state.stat().st_size != int(found.get("n_written", -1))
    ):
        raise StorageError(
            f"The engine could not write the state of a slot to {state.parent}.",
            path=state.parent,
            hint="Is the disk full?",
        )
    return found


def _incapable(why: str) -> LLMCapabilityError:
    return LLMCapabilityError(
        f"The engine {why}, so sessions cannot be saved or restored.",
        hint="Sessions need a server that this client starts, of a recent llama.cpp.",
    )
