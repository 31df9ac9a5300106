"""A model's vocabulary as its file holds it, and whether a second model can draft with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.errors import ConfigError, StorageError
from runtime.memo import Memo, file_identity
from runtime.store.gguf_reader import read_contents
from runtime.store.gguf_window import Window

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.store.gguf_reader import GgufContents, Value

MOST_DIFFERENCE: Final = 128
FIRST_COMPARED: Final = 5
_TOKENS: Final = "tokenizer.ggml.tokens"
_MEMO: Final = "draft-pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What counts of a vocabulary when one model drafts for another.

    Attributes:
        kind: The tokenizer's type (``gpt2``, ``llama``).
        marks: Ids of the tokens that begin and end a text, and whether they are added by itself.
        tokens: The tokens' texts by id.
    """

    kind: str
    marks: tuple[tuple[str, Value | None], ...]
    tokens: tuple[bytes, ...]


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary in a GGUF file.

    Raises:
        ModelFormatError: It is no GGUF model, or damaged.
        ModelNotFoundError: There is no such file.
        StorageError: It cannot be read.
    """
    contents = read_contents(path)
    marks = ("add_bos_token", "bos_token_id", "add_eos_token", "eos_token_id")
    return Vocabulary(
        kind=str(contents.values.get("tokenizer.ggml.model", "")),
        marks=tuple((mark, contents.values.get(f"tokenizer.ggml.{mark}")) for mark in marks),
        tokens=_texts(contents),
    )


def _texts(contents: GgufContents) -> tuple[bytes, ...]:
    offset = contents.value_offsets.get(_TOKENS)
    if offset is None:
        return ()
    try:
        with contents.path.open("rb", buffering=0) as file:
            window = Window(file, contents.path, contents.status.st_size)
            window.set_order(contents.byte_order)
            window.skip(offset + 4)  # the type of what is in the list, which was checked
            return tuple(window.take(window.read_string_length()) for _ in range(window.read_u64()))
    except OSError as exc:
        raise StorageError(
            f"Cannot read {contents.path}: {exc.strerror or exc}.",
            path=contents.path,
            hint="Check the file's permissions and its disk.",
        ) from exc


def difference(target: Vocabulary, draft: Vocabulary) -> str | None:
    """Why the second model's tokens cannot be the first one's; None when they can.

    Source: ``common_speculative_are_compatible`` in llama.cpp's ``common/speculative.cpp``.
    """
    if target.kind != draft.kind:
        return f"their tokenizers are of the types {target.kind!r} and {draft.kind!r}"
    for (name, value), (_, other) in zip(target.marks, draft.marks, strict=True):
        if value != other:
            return f"{name} is {value} in one and {other} in the other"
    sizes = len(target.tokens), len(draft.tokens)
    if abs(sizes[0] - sizes[1]) > MOST_DIFFERENCE:
        return f"they have {sizes[0]:,} and {sizes[1]:,} tokens"
    for number in range(FIRST_COMPARED, min(sizes)):
        ours, theirs = target.tokens[number], draft.tokens[number]
        if ours != theirs:
            return f"token {number} is {_shown(ours)} in one and {_shown(theirs)} in the other"
    return None


def check_pair(target: Path, draft: Path) -> None:
    """Refuse a draft model whose vocabulary is another one; remembered for each pair of files.

    Raises:
        ConfigError: It is another one, and in what.
        ModelFormatError: One of them is no GGUF model, or damaged.
        ModelNotFoundError: One of them is gone.
        StorageError: One of them cannot be read.
    """
    try:
        key = f"1|{file_identity(target)}|{file_identity(draft)}"
    except OSError as exc:
        raise StorageError(f"Cannot read {exc.filename}: {exc.strerror}.", path=draft) from exc
    known = Memo(_MEMO).get(key)
    if known is None:
        known = {"difference": difference(read_vocabulary(target), read_vocabulary(draft))}
        Memo(_MEMO).put(key, known)
    if known.get("difference"):
        raise ConfigError(
            f"{draft.name} cannot draft for {target.name}: {known['difference']}.",
            hint="A draft model must have the same vocabulary: take a smaller one of its family.",
        )


def _shown(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace"))
