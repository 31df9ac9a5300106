"""Sessions: what the engine has computed of a conversation, kept on disk and brought back.

A restore is proven: the engine answers one token as it did when the state was saved, reusing what
the state holds, and is then given the state once more, as it was. What the engine computes after
that is the same, to the last bit, as if nothing had happened in between.

Generators of effects (see :mod:`runtime.inference.effects`); they read and write files, so on an
event loop their steps are taken in threads.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.contracts import Provenance
from runtime.errors import (
    LLMBadResponseError,
    LLMError,
    LLMInvalidRequestError,
    ServerStatusError,
    SessionMismatchError,
)
from runtime.inference.clock import Clock
from runtime.inference.effects import locate
from runtime.inference.places import Places, Seat, keys_of
from runtime.inference.queueing import take_place
from runtime.inference.session_proof import proof_body, refuse_other, unproven
from runtime.inference.session_result import session_of
from runtime.inference.slot_state import act, folder_of, prove, render
from runtime.store.sessions import Proof, SessionHead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from runtime.engines.base import Endpoint
    from runtime.inference.clock import Limits, Pace
    from runtime.inference.effects import Flow
    from runtime.inference.places import Keys
    from runtime.inference.session_result import Session
    from runtime.inference.wishes import Wish
    from runtime.store.sessions import SessionStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A session that was saved or restored here.

    Attributes:
        name: As the caller named it.
        keys: Its conversation.
        tokens: Tokens whose state it holds.
        restore_s: Seconds that a restore takes, by the last one.
        generation: The engine process that had it last.
    """

    name: str | Path
    keys: Keys
    tokens: int
    restore_s: float
    generation: int


class Keeping:
    """Saves and restores the conversations of one managed engine."""

    def __init__(
        self,
        places: Places,
        store: SessionStore,
        limits: Limits,
        facts: Callable[[], Mapping[str, str]],
    ) -> None:
        """Nothing is looked at yet.

        Args:
            places: Where its conversations are.
            store: Where sessions are on disk.
            limits: Deadlines.
            facts: What the state of its slots depends on.
        """
        self._places = places
        self._store = store
        self._limits = limits
        self._facts = facts
        self._kept: dict[str | Path, _Kept] = {}

    def save(self, name: str | Path, wish: Wish) -> Flow[Session]:
        """Write down what the engine has computed of a conversation.

        What it has not computed, or has not any more, is computed first.

        Raises:
            LLMCapabilityError: The engine cannot do that.
            StorageError: There is no room, or the disk refuses.
        """
        self._store.path_of(name)
        clock = Clock(self._limits)
        yield from take_place(clock.until("total"))
        endpoint = yield from locate(clock.left_s)
        folder = folder_of(endpoint)
        functions = tuple(wish.tools.functions.values()) if wish.tools else ()
        keys = keys_of(wish.messages, functions)
        seat = _only(endpoint, keys) or self._places.home(keys, endpoint)
        with self._held(seat, keys, endpoint) as held:
            body = yield from self._question(wish, endpoint, held)
            if held.slot is None:
                raise _moved()
            state = folder / f"{secrets.token_hex(8)}.state"
            try:
                written = yield from act(held.slot, "save", state, self._limits)
                proof = yield from prove(body, held.slot, self._limits)
                if not proof.reuses:  # it was not there: but now it is
                    written = yield from act(held.slot, "save", state, self._limits)
                    proof = yield from prove(body, held.slot, self._limits)
                if not proof.reuses:
                    raise _moved()
                began = clock.elapsed_ms
                yield from act(held.slot, "restore", state, self._limits)
                took_s = (clock.elapsed_ms - began) / 1000
                head = SessionHead(
                    facts=dict(self._facts()),
                    saved_at=Provenance.now_iso(),
                    model=endpoint.model,
                    tokens=int(written["n_saved"]),
                    state_bytes=state.stat().st_size,
                    messages=tuple(dict(each) for each in wish.messages),
                    functions=functions,
                    proof=Proof(
                        body=body, reused=proof.reused, token=proof.token, logprob=proof.logprob
                    ),
                )
                path, evicted = self._store.write(name, head, state)
            finally:
                state.unlink(missing_ok=True)
        # To restore it reads the state twice, around a proof that takes as long as a token.
        self._keep(name, keys, head, endpoint, restore_s=3 * took_s)
        return session_of(path, head, proof, engine_ms=_ms(written, "save_ms"), evicted=evicted)

    def restore(self, name: str | Path) -> Flow[Session]:
        """Bring a saved conversation back into the engine, and prove it.

        Raises:
            SessionNotFoundError: There is none.
            IntegrityError: The file is damaged; the engine does not get to see it.
            SessionMismatchError: It is of another model, engine or context, or not what it was.
            LLMCapabilityError: The engine cannot do that.
        """
        head = self._store.head(name)
        clock = Clock(self._limits)
        yield from take_place(clock.until("total"))
        endpoint = yield from locate(clock.left_s)
        return (yield from self._restored(name, head, endpoint))

    def bring_back(
        self, wish: Wish, endpoint: Endpoint, pace: Pace
    ) -> Flow[tuple[Session, float] | None]:
        """Restore the session of a conversation into an engine that was started since.

        A session that cannot be restored any more is forgotten here: the engine then computes the
        conversation, as it does without one.

        Args:
            wish: What is to be asked next, in a place that it has already.
            endpoint: The engine.
            pace: How fast it processes prompts.

        Returns:
            The session and the seconds that it took; None where there is none, the engine has had
            it already, its slots are not known to be free, or computing it takes no longer.
        """
        known = [*self._kept.values()]  # another thread may save one meanwhile
        if all(kept.generation == endpoint.generation for kept in known):
            return None
        functions = tuple(wish.tools.functions.values()) if wish.tools else ()
        keys = keys_of(wish.messages, functions)
        found = [kept for kept in known if kept.keys == keys[: len(kept.keys)]]
        kept = max(found, key=lambda each: len(each.keys), default=None)
        if kept is None or kept.generation == endpoint.generation:
            return None
        computing_s = pace.seconds(kept.tokens)
        if (computing_s and computing_s <= kept.restore_s) or not self._places.known(endpoint):
            return None
        # Before anything is waited for: another request of this conversation need not do it, too.
        self._kept[kept.name] = replace(kept, generation=endpoint.generation)
        clock = Clock(self._limits)
        try:
            head = self._store.head(kept.name)
            if keys_of(head.messages, head.functions) != kept.keys:
                raise _overwritten(kept.name)
            session = yield from self._restored(kept.name, head, endpoint)
        except LLMError as exc:
            log.warning("The session %s was not brought back: %s", kept.name, exc)
            self._kept.pop(kept.name, None)
            return None
        return session, clock.elapsed_ms / 1000

    def _restored(self, name: str | Path, head: SessionHead, endpoint: Endpoint) -> Flow[Session]:
        """Read a session into a slot of this engine, and prove it."""
        folder = folder_of(endpoint)
        refuse_other(head, self._facts())
        state = folder / f"{secrets.token_hex(8)}.state"
        clock = Clock(self._limits)
        try:
            self._store.extract(name, state)
            keys = keys_of(head.messages, head.functions)
            seat = _only(endpoint, keys) or self._places.claim(keys, endpoint)
            with self._held(seat, keys, endpoint) as held:
                slot = seat.slot or 0
                try:
                    read = yield from act(slot, "restore", state, self._limits)
                except LLMInvalidRequestError as exc:
                    raise _refused(exc) from exc
                said = yield from prove(head.proof.body, slot, self._limits)
                if problem := unproven(head, read, said):
                    self._places.forget(seat)
                    yield from act(slot, "erase", state, self._limits)
                    raise problem
                yield from act(slot, "restore", state, self._limits)
                held.kept = True
        finally:
            state.unlink(missing_ok=True)
        self._keep(name, keys, head, endpoint, restore_s=clock.elapsed_ms / 1000)
        path = self._store.path_of(name)
        return session_of(path, head, said, engine_ms=_ms(read, "restore_ms"))

    def _keep(
        self,
        name: str | Path,
        keys: Keys,
        head: SessionHead,
        endpoint: Endpoint,
        *,
        restore_s: float,
    ) -> None:
        """Remember where a conversation's state is, for an engine that has lost it."""
        self._kept[name] = _Kept(
            name=name,
            keys=keys,
            tokens=head.tokens,
            restore_s=restore_s,
            generation=endpoint.generation,
        )

    @contextlib.contextmanager
    def _held(self, seat: Seat | None, keys: Keys, endpoint: Endpoint) -> Iterator[_Held]:
        """The slot is ours for as long; where it is not known yet, the engine chooses one."""
        held = _Held(seat.slot if seat else None)
        unplaced = seat is None
        taken = seat or Seat(None, endpoint.generation, keys)
        if unplaced:
            self._places.disturb()
        try:
            yield held
        except BaseException:  # closed or cancelled, too
            if not unplaced and not held.kept:
                self._places.forget(taken)
            raise
        finally:
            if not (seat is not None and endpoint.slots == 1):
                self._places.give_back(taken, held.slot if unplaced else None)

    def _question(self, wish: Wish, endpoint: Endpoint, held: _Held) -> Flow[dict[str, Any]]:
        """The request that proves the state of a conversation, and where that is, if not known.

        An assistant's message at the end is gone on with; templates that do not take that are
        asked about what comes before it.
        """
        trailing = wish.messages[-1]["role"] == "assistant" and len(wish.messages) > 1
        shorter = replace(wish, messages=wish.messages[:-1])
        called = trailing and "tool_calls" in wish.messages[-1]
        tried = [shorter] if called else [wish, shorter] if trailing else [wish]
        for number, each in enumerate(tried, 1):
            body = proof_body(each, endpoint)
            if held.slot is not None and number == len(tried):
                return body
            try:
                if held.slot is not None:  # only whether the template takes it
                    yield from render(body, self._limits)
                else:
                    held.slot = (yield from prove(body, None, self._limits)).slot
            except (LLMInvalidRequestError, ServerStatusError):
                if number == len(tried):
                    raise
            else:
                return body
        return body


@dataclass(slots=True)
class _Held:
    slot: int | None
    kept: bool = False


def _only(endpoint: Endpoint, keys: Keys) -> Seat | None:
    """The one slot of an engine that has no more."""
    return Seat(0, endpoint.generation, keys) if endpoint.slots == 1 else None


def _ms(told: Mapping[str, Any], name: str) -> float:
    return float(told.get("timings", {}).get(name, 0.0))


def _refused(exc: LLMInvalidRequestError) -> SessionMismatchError:
    return SessionMismatchError(
        f"The engine does not take the saved state: {exc.message}",
        differences={"state": ("saved", "refused")},
        hint="Send the conversation as it is: the engine then computes it anew.",
    )


def _overwritten(name: str | Path) -> SessionMismatchError:
    return SessionMismatchError(
        f"The session {name} is of another conversation now.",
        differences={"conversation": ("saved", "another")},
    )


def _moved() -> LLMBadResponseError:
    return LLMBadResponseError(
        "Other requests took the conversation's slot while it was being saved.",
        hint="Save it again, with fewer requests at once.",
    )
