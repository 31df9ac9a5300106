"""Model files as they are named on the hub: quantization, splits, projectors, and which to take.

There is no standard for these names; the patterns are those of llama.cpp's converter and of the
people who publish GGUF files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_SPLIT: Final = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<total>\d{5})", re.ASCII)
_QUANT: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:UD[-_])?(?:I?Q\d(?:_[A-Z0-9]+)*|MXFP4(?:_MOE)?|NVFP4|TQ\d_\d|BF16|F16|FP16"
    r"|F32|FP32)(?![A-Za-z0-9])",
    re.ASCII | re.IGNORECASE,
)

# Without a wish: Q4_K_M, the usual bargain of size and quality; else its neighbours at four bits,
# then five and more, then three and fewer, then the unquantized ones, too large for most machines.
_PREFERENCE: Final = (
    *("Q4_K_M", "UD-Q4_K_XL", "Q4_K_L", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_0", "Q4_1", "MXFP4"),
    *("MXFP4_MOE", "NVFP4", "Q5_K_M", "Q5_K_S", "Q5_K_L", "Q5_1", "Q5_0", "Q6_K", "Q6_K_L", "Q8_0"),
    *("Q3_K_L", "Q3_K_XL", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS", "Q2_K_L"),
    *("Q2_K", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "F16", "FP16", "BF16", "F32", "FP32"),
)
_RANK: Final = {quant: rank for rank, quant in enumerate(_PREFERENCE)}
_PROJECTOR_RANK: Final = {"F16": 0, "FP16": 0, "BF16": 1, "Q8_0": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One model among a repository's files.

    Attributes:
        stem: Path without ``.gguf`` and without the split's number.
        files: Its files in order.
        quant: Its quantization, upper case, or None when the name does not tell.
        missing: Parts of the split that are not there.
    """

    stem: str
    files: tuple[str, ...]
    quant: str | None
    missing: int = 0

    @property
    def label(self) -> str:
        """What to call it in a list: its quantization, else its name."""
        return self.quant or PurePosixPath(self.stem).name


def stem_of(file: str) -> str:
    """The file's path without ``.gguf`` and without the split's number."""
    bare = re.sub(r"\.gguf$", "", file, flags=re.IGNORECASE)
    match = _SPLIT.fullmatch(bare)
    return match["stem"] if match else bare


def split_of(file: str) -> tuple[int, int] | None:
    """Which part of how many the file is, or None when it is whole."""
    match = _SPLIT.fullmatch(re.sub(r"\.gguf$", "", file, flags=re.IGNORECASE))
    return (int(match["index"]), int(match["total"])) if match else None


def quant_of(file: str) -> str | None:
    """The quantization that the file's name tells, upper case; the last one, if several."""
    found = _QUANT.findall(PurePosixPath(stem_of(file)).name)
    return found[-1].upper().replace("UD_", "UD-") if found else None


def is_projector(file: str) -> bool:
    """Whether the file is a vision projector and no model."""
    return "mmproj" in PurePosixPath(file).name.lower()


def candidates(files: Iterable[str]) -> tuple[Candidate, ...]:
    """The models among ``files``, the most sensible first. A split one counts once."""
    groups: dict[tuple[str, int], list[str]] = defaultdict(list)
    for file in files:
        name = PurePosixPath(file).name.lower()
        if name.endswith(".gguf") and not is_projector(name) and "imatrix" not in name:
            part = split_of(file)
            groups[stem_of(file), part[1] if part else 0].append(file)
    found = [
        Candidate(
            stem=stem,
            files=tuple(sorted(group)),
            quant=quant_of(stem),
            missing=max(total - len(group), 0),
        )
        for (stem, total), group in groups.items()
    ]
    return ranked(found)


def ranked(found: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The most sensible quantization first."""
    return tuple(sorted(found, key=lambda c: (_rank(c.quant), c.stem)))


def select(
    found: Sequence[Candidate], *, quant: str | None = None, file: str | None = None
) -> tuple[Candidate, ...]:
    """The candidates that answer a wish, the best first.

    Without a wish all those that share the first place; more than one: the caller has to choose.
    ``UD-`` may be left out of a quantization when that leaves no doubt.
    """
    if file is not None:
        name = PurePosixPath(file).name
        return tuple(c for c in found if file in c.files or name in c.files)
    if quant is not None:
        exact = tuple(c for c in found if c.quant == quant)
        return exact or tuple(c for c in found if c.quant == f"UD-{quant}")
    return tuple(c for c in found if _rank(c.quant) == _rank(found[0].quant))


def projector(files: Iterable[str], quant: str | None) -> str | None:
    """The vision projector to take among ``files``, or None.

    Where there is a choice, the one quantized as the model is, else one of 16 bits.
    """

    def rank(file: str) -> tuple[bool, int, str]:
        own = quant_of(file) or ""
        return own != quant, _PROJECTOR_RANK.get(own, 9), file

    found = [f for f in files if is_projector(f) and f.lower().endswith(".gguf")]
    return min(found, key=rank, default=None)


def _rank(quant: str | None) -> int:
    return _RANK.get(quant or "", len(_RANK))
