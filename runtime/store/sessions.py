"""Sessions on disk: what an engine had computed of a conversation, in one file each.

A file is a line that names the form, the length of a head, the head as JSON (what the state is of,
the conversation, how it is proven), the engine's own bytes, and the SHA-256 of all that. It is
written beside its place and renamed into it, so there is never half of one, and nothing of it
reaches an engine before its digest is right.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from runtime.errors import (
    IntegrityError,
    LLMInvalidRequestError,
    SessionNotFoundError,
    StorageError,
)
from runtime.settings import directories, private_folder
from runtime.store.disk import disk_error, megabytes, private_opener, require_room

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX: Final = ".session"
LIMIT_BYTES: Final = 10 << 30
"""What all sessions with a name may take together."""

_MAGIC: Final = b"llama-runtime session 1\n"
_LENGTH: Final = struct.Struct("<Q")
_MOST_HEAD: Final = 64 << 20
_DIGEST: Final = hashlib.sha256().digest_size
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What the engine answered when the state was saved, to be answered again by what is restored.

    Attributes:
        body: The request, for one token.
        reused: Tokens of its prompt that the state held.
        token: The token that came.
        logprob: The logarithm of its probability.
    """

    body: dict[str, Any]
    reused: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHead:
    """What a session is.

    Attributes:
        facts: What the state depends on (model, engine, context, ...), by name.
        saved_at: When, ISO 8601, UTC.
        model: The model's name in the API.
        tokens: Tokens whose state it holds.
        state_bytes: The size of the engine's own bytes.
        messages: The conversation in OpenAI's form.
        functions: The tools that it offers, likewise.
        proof: How it is proven.
    """

    __pydantic_config__ = ConfigDict(extra="ignore")

    facts: dict[str, str]
    saved_at: str
    model: str
    tokens: int
    state_bytes: int
    messages: tuple[dict[str, Any], ...] = field(repr=False)
    functions: tuple[dict[str, Any], ...] = field(repr=False)
    proof: Proof = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session on disk.

    Attributes:
        name: Its name.
        path: Its file.
        size_bytes: The file's size.
        model: The model's name in the API.
        tokens: Tokens of the conversation whose state it holds.
        messages: How many messages the conversation has.
        saved_at: When it was saved, ISO 8601, UTC.
        used_at_s: When it was last saved or restored, seconds since the epoch.
    """

    name: str
    path: Path
    size_bytes: int
    model: str
    tokens: int
    messages: int
    saved_at: str
    used_at_s: float


@functools.cache
def _adapter() -> TypeAdapter[SessionHead]:
    return TypeAdapter(SessionHead)


class SessionStore:
    """The sessions of this user, each a file that only they may read.

    They hold their conversations: as text, and in a form that can be turned back into text.
    """

    def __init__(self, folder: Path | None = None, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Nothing is looked at yet.

        Args:
            folder: Where they are; None for the state folder.
            limit_bytes: What they may take together. Past it the ones that were not used for
                longest are removed when another is saved.
        """
        self.folder = folder or directories().state / "sessions"
        self.limit_bytes = limit_bytes

    def path_of(self, name: str | Path) -> Path:
        """The file of a session: by its name, or a path (anything with a folder in it).

        Raises:
            LLMInvalidRequestError: It is neither.
        """
        if isinstance(name, Path) or os.sep in name:
            return Path(name).expanduser().absolute()
        if not _NAME.fullmatch(name):
            raise LLMInvalidRequestError(
                f"{name!r} is no name of a session.",
                hint="Up to 100 letters, digits, dots, dashes and underscores, or a path.",
            )
        return self.folder / f"{name}{SUFFIX}"

    def sessions(self) -> tuple[SessionInfo, ...]:
        """The sessions with a name, the one that was used last first; unreadable ones left out."""
        found = []
        for path in self._files():
            with contextlib.suppress(IntegrityError, SessionNotFoundError, StorageError, OSError):
                head, status = self.head(path), path.stat()
                found.append(
                    SessionInfo(
                        name=path.name.removesuffix(SUFFIX),
                        path=path,
                        size_bytes=status.st_size,
                        model=head.model,
                        tokens=head.tokens,
                        messages=len(head.messages),
                        saved_at=head.saved_at,
                        used_at_s=status.st_mtime,
                    )
                )
        return tuple(sorted(found, key=lambda info: -info.used_at_s))

    def remove(self, name: str | Path) -> int:
        """Remove a session; returns the bytes that came free.

        Raises:
            SessionNotFoundError: There is none.
            StorageError: It cannot be removed.
        """
        path = self.path_of(name)
        try:
            size = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            raise _not_found(path) from None
        except OSError as exc:
            raise disk_error(exc, path) from exc
        return size

    def head(self, name: str | Path) -> SessionHead:
        """What a session is; its digest is not looked at.

        Raises:
            SessionNotFoundError: There is none.
            IntegrityError: The file is none, or damaged.
        """
        path = self.path_of(name)
        with _opened(path) as file:
            return _read_head(file, path)

    def write(self, name: str | Path, head: SessionHead, state: Path) -> tuple[Path, list[str]]:
        """Put a session in its place, whole or not at all.

        Args:
            name: Its name or path.
            head: What it is.
            state: The file with the engine's bytes.

        Returns:
            Its file, and the names of those that were removed to make room.

        Raises:
            StorageError: There is no room for it, or the disk refuses.
        """
        path = self.path_of(name)
        encoded = _adapter().dump_json(head)
        needed = len(_MAGIC) + _LENGTH.size + len(encoded) + head.state_bytes + _DIGEST
        private_folder(path.parent)
        require_room(path.parent, needed)
        evicted = self._make_room(path, needed) if path.parent == self.folder else []
        beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        digest = hashlib.sha256()
        try:
            with open(beside, "xb", opener=private_opener) as file, state.open("rb") as source:
                for part in (_MAGIC, _LENGTH.pack(len(encoded)), encoded):
                    digest.update(part)
                    file.write(part)
                _copy(source, file, digest, path, head.state_bytes)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError as exc:
            raise disk_error(exc, path) from exc
        finally:
            beside.unlink(missing_ok=True)
        return path, evicted

    def extract(self, name: str | Path, target: Path) -> None:
        """Write the engine's bytes of a session to ``target``, if its digest is right.

        Raises:
            SessionNotFoundError: There is none.
            IntegrityError: It is damaged; ``target`` is gone then.
            StorageError: The disk refuses.
        """
        path = self.path_of(name)
        done = False
        try:
            with _opened(path) as file:
                head = _read_head(file, path)
                digest = hashlib.sha256()
                begin = file.tell()
                file.seek(0)
                digest.update(file.read(begin))
                require_room(target.parent, head.state_bytes)
                with open(target, "xb", opener=private_opener) as copy:
                    _copy(file, copy, digest, path, head.state_bytes)
                expected, rest = file.read(_DIGEST), file.read(1)
            if expected != digest.digest() or rest:
                raise _damaged(path, expected.hex(), digest.hexdigest())
            with contextlib.suppress(OSError):
                os.utime(path)
            done = True
        except OSError as exc:
            raise disk_error(exc, target) from exc
        finally:
            if not done:
                target.unlink(missing_ok=True)

    def _files(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from sorted(self.folder.glob(f"*{SUFFIX}"))

    def _make_room(self, path: Path, needed: int) -> list[str]:
        if needed > self.limit_bytes:
            raise StorageError(
                f"The session takes {megabytes(needed)}, and all of them together may take "
                f"{megabytes(self.limit_bytes)}.",
                path=path,
                needed_bytes=needed,
                available_bytes=self.limit_bytes,
                hint="Save it under a path of your own: those are not counted.",
            )
        used = []
        for each in self._files():
            if each != path:
                with contextlib.suppress(OSError):
                    status = each.stat()
                    used.append((status.st_mtime, status.st_size, each))
        taken = sum(size for _, size, _ in used)
        evicted = []
        for _, size, oldest in sorted(used):
            if taken + needed <= self.limit_bytes:
                break
            oldest.unlink(missing_ok=True)
            taken -= size
            evicted.append(oldest.name.removesuffix(SUFFIX))
        return evicted


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise _not_found(path) from None
    except OSError as exc:
        raise StorageError(f"Cannot read {path}: {exc.strerror}.", path=path) from exc


def _read_head(file: BinaryIO, path: Path) -> SessionHead:
    if file.read(len(_MAGIC)) != _MAGIC:
        raise _damaged(path, _MAGIC.decode().strip(), "another beginning")
    length = file.read(_LENGTH.size)
    size = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else _MOST_HEAD + 1
    encoded = file.read(size) if size <= _MOST_HEAD else b""
    try:
        return _adapter().validate_json(encoded)
    except ValidationError as exc:
        raise _damaged(path, "a head", "none that can be read") from exc


def _copy(source: BinaryIO, target: BinaryIO, digest: Any, path: Path, size: int) -> None:
    left = size
    while left and (part := source.read(min(left, _CHUNK))):
        digest.update(part)
        target.write(part)
        left -= len(part)
    if left:
        raise _damaged(path, f"{size} bytes of state", f"{size - left}")


def _damaged(path: Path, expected: str, actual: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is no whole session: expected {expected or 'a digest'}, found {actual}.",
        path=path,
        expected=expected,
        actual=actual,
        hint="Begin the conversation anew and save it again.",
    )


def _not_found(path: Path) -> SessionNotFoundError:
    return SessionNotFoundError(
        f"There is no session {path}.",
        path=path,
        hint="`llama-runtime sessions list` shows those with a name.",
    )
