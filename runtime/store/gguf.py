"""What a GGUF model is: its facts, read from the file's head and remembered between runs."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from runtime.errors import ModelFormatError
from runtime.store import gguf_cache
from runtime.store.gguf_facts import Head, ModelFacts, WeightSizes, facts_from
from runtime.store.gguf_reader import GgufContents, read_contents

__all__ = ["ModelFacts", "WeightSizes", "read_facts", "shard_paths"]

_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_facts(
    path: Path, *, cache_dir: Path | None = None, foreign_byte_order: bool = False
) -> ModelFacts:
    """The facts of the model in ``path``; of the whole model when it is one file of a split model.

    Facts are remembered by the identity of the files (path, device, inode, size, time of change):
    the second time costs a few milliseconds. A cache that cannot be read or written is left alone.

    Args:
        path: A ``.gguf`` file.
        cache_dir: Where facts are remembered; None for the runtime's own cache folder.
        foreign_byte_order: Also accept a file written for machines of the other byte order, which
            can be described but not run here.

    Raises:
        ModelFormatError: It is no GGUF model, is damaged or cut off, or is for machines of the
            other byte order; with the file and the byte at which that showed.
        ModelNotFoundError: There is no such file.
        StorageError: It cannot be read.
    """
    path = path.absolute()
    facts = _remembered(gguf_cache.load(path, _CACHE_VERSION, cache_dir))
    if facts is None:
        parts = _parts(path)
        facts = facts_from(parts, path)
        stored = asdict(facts) | {"files": [str(file) for file in facts.files]}
        read = [(part.path, part.status) for part in parts]
        gguf_cache.save(path, _CACHE_VERSION, stored, read, cache_dir)
    if facts.byte_order != sys.byteorder and not foreign_byte_order:
        raise ModelFormatError(
            f"{path} is written for {facts.byte_order}-endian machines; this one is "
            f"{sys.byteorder}-endian and its engine cannot load it.",
            path=path,
            offset=4,
            hint="Fetch the usual conversion of this model.",
        )
    return facts


# Facts stored with other fields than these are of no use. The number grows when a field keeps its
# name and changes its meaning.
_CACHE_VERSION: Final = "1 " + " ".join(f.name for f in (*fields(ModelFacts), *fields(WeightSizes)))


def _remembered(stored: Any) -> ModelFacts | None:
    if stored is None:
        return None
    return ModelFacts(
        **stored
        | {
            "files": tuple(Path(file) for file in stored["files"]),
            "weights": WeightSizes(**stored["weights"]),
        }
    )


def shard_paths(path: Path) -> tuple[Path, ...]:
    """All files of the split model that ``path`` is named as a part of, else ``path`` alone."""
    match = _SHARD.fullmatch(path.name)
    if match is None or not 1 <= int(match["index"]) <= int(match["count"]):
        return (path,)
    count = int(match["count"])
    return tuple(
        path.with_name(f"{match['stem']}-{index:05}-of-{count:05}.gguf")
        for index in range(1, count + 1)
    )


def _parts(path: Path) -> tuple[GgufContents, ...]:
    """The file at ``path``, or all files of the split model it is a part of."""
    contents = read_contents(path)
    head = Head(contents)
    shards = head.whole("split.count")
    if shards <= 1:
        return (contents,)
    files = shard_paths(path)
    if len(files) != shards:
        raise ModelFormatError(
            f"{path} is one of {shards} files of a split model, which its name does not show.",
            path=path,
            offset=contents.value_offsets["split.count"],
            hint=f"Give the files their names back: NAME-00001-of-{shards:05}.gguf and so on.",
        )
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise ModelFormatError(
            f"{path} is one of {shards} files of a split model; missing: {', '.join(missing[:8])}"
            f"{' …' if len(missing) > 8 else ''}.",
            path=path.with_name(missing[0]),
            hint="Fetch all files of the model into the same folder.",
        )
    parts = tuple(contents if file == path else read_contents(file) for file in files)
    for index, part in enumerate(parts):
        number = Head(part).whole("split.no")
        if number != index:
            raise ModelFormatError(
                f"{part.path} says it is file {number + 1} of {shards}, its name says {index + 1}.",
                path=part.path,
                offset=part.value_offsets.get("split.no"),
                hint="Fetch the files of the model again.",
            )
    tensors = sum(len(part.tensors) for part in parts)
    promised = head.whole("split.tensors.count")
    if promised and promised != tensors:
        raise ModelFormatError(
            f"The {shards} files of {path} hold {tensors:,} tensors, not {promised:,}.",
            path=path,
            offset=contents.value_offsets["split.tensors.count"],
            hint="The files are of different conversions: fetch them again.",
        )
    return parts
