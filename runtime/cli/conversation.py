"""A conversation in the terminal: what was said, and how it is kept in a file."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from runtime.contracts import LLMMessage, Provenance
from runtime.errors import LLMInvalidRequestError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT: Final = "llama-runtime conversation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one side said.

    Attributes:
        role: Who.
        content: What.
        stopped: Whether it is an answer that was stopped, so that its end is missing.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")

    role: Literal["user", "assistant"]
    content: str
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What was said so far.

    Attributes:
        system: The system message; empty for none.
        turns: What was said, oldest first.
    """

    system: str = ""
    turns: tuple[Turn, ...] = ()

    @property
    def messages(self) -> list[LLMMessage]:
        """As the contract has it."""
        first = [LLMMessage(role="system", content=self.system)] if self.system else []
        return [*first, *(LLMMessage(role=t.role, content=t.content) for t in self.turns)]

    def asked(self, text: str) -> Conversation:
        """With one more question."""
        return replace(self, turns=(*self.turns, Turn(role="user", content=text)))

    def answered(self, text: str, *, stopped: bool = False) -> Conversation:
        """With one more answer."""
        turn = Turn(role="assistant", content=text, stopped=stopped)
        return replace(self, turns=(*self.turns, turn))

    @property
    def last_question(self) -> str | None:
        """What was asked last; None when nothing was."""
        return next((turn.content for turn in reversed(self.turns) if turn.role == "user"), None)

    def before_last_question(self) -> Conversation:
        """Without the last question, and what followed it."""
        asked = max((n for n, turn in enumerate(self.turns) if turn.role == "user"), default=0)
        return replace(self, turns=self.turns[:asked])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """A message of a file: a turn, or the system's."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    role: Literal["system", "user", "assistant"]
    content: str
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """A saved conversation."""

    __pydantic_config__ = ConfigDict(extra="ignore")

    messages: list[_Message] = field(default_factory=list)
    model: str | None = None


_READER: Final[TypeAdapter[_File | list[_Message]]] = TypeAdapter(_File | list[_Message])


def save(conversation: Conversation, path: Path, *, model: str, overwrite: bool = False) -> None:
    """Write a conversation to a file that only its owner may read, whole or not at all.

    Raises:
        LLMInvalidRequestError: There is such a file, and it may not be overwritten.
        StorageError: It cannot be written.
    """
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    whole = {
        "format": FORMAT,
        "version": 1,
        "model": model,
        "saved_at": Provenance.now_iso(),
        "messages": [*system, *map(_written, conversation.turns)],
    }
    partial = None
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(whole, file, indent=2, ensure_ascii=False)
            file.write("\n")
        if not overwrite:
            path.touch(mode=0o600, exist_ok=False)  # a rename alone would not mind what is there
        Path(partial).replace(path)
    except FileExistsError as exc:
        raise LLMInvalidRequestError(
            f"{path} is a file already.", hint=f"`/save -f {path}` overwrites it."
        ) from exc
    except OSError as exc:
        raise StorageError(
            f"Cannot write {path}: {exc.strerror or exc}.", path=path, hint="Name another place."
        ) from exc
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)


def _written(turn: Turn) -> dict[str, object]:
    facts = asdict(turn)
    return facts if turn.stopped else {name: facts[name] for name in ("role", "content")}


def load(path: Path) -> Conversation:
    """The conversation in a file: one that was saved, or a plain list of messages.

    Raises:
        LLMInvalidRequestError: There is none.
    """
    try:
        found = _READER.validate_json(path.read_bytes())
    except OSError as exc:
        raise LLMInvalidRequestError(
            f"Cannot read {path}: {exc.strerror or exc}.", hint="Check the path."
        ) from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        where = "/".join(map(str, first["loc"][1:])) or "its beginning"
        raise LLMInvalidRequestError(
            f"{path} holds no conversation: at {where}, {first['msg']}.",
            hint='It is what /save wrote, or a list of {"role": …, "content": …}.',
        ) from exc
    return _from_messages(found.messages if isinstance(found, _File) else found)


def _from_messages(messages: Iterable[_Message]) -> Conversation:
    conversation = Conversation()
    for message in messages:
        if message.role == "system":
            both = (conversation.system, message.content)
            conversation = replace(conversation, system="\n\n".join(filter(None, both)))
        else:
            turn = Turn(role=message.role, content=message.content, stopped=message.stopped)
            conversation = replace(conversation, turns=(*conversation.turns, turn))
    return conversation
