"""How old the llama.cpp inside an engine is, and from which build on its known holes are mended."""

from __future__ import annotations

import re
from typing import Final

MINIMUM_BUILD: Final = 8911
"""The first build that is known to have all three fixes.

CVE-2025-53630 (a GGUF file overflows an integer, then the heap): commit 26a48ad6, July 2025.
CVE-2026-27940 (the same by another way): b8146, advisory GHSA-3p4r-fq3f-q74v. CVE-2026-21869 (a
negative ``n_discard`` writes out of bounds): commit c78fb909b, pull request 22267 of 2026-04-23;
the advisory (GHSA-8947-pfff-2f3c) names no build. One report says b8908, a packager's log of the
changes between b8892 and b8911 lists it: the later of the two is the safe bound.
"""

FIXED: Final = ("CVE-2025-53630", "CVE-2026-27940", "CVE-2026-21869")

_BUILD: Final = (
    re.compile(r"llama\.cpp b(\d+)"),  # our host of xllamacpp: "2026.10.11549 (llama.cpp b11549, …"
    re.compile(r"\(build (\d+),"),  # llama-server since b10400: "0.4.1-dev (build 10991, commit …)"
    re.compile(r"^(\d+) \("),  # llama-server before: "8146 (418dea39c)"
    re.compile(r"^20\d\d\.\d+\.(\d+)\b"),  # xllamacpp's own version
)
# "0.3.36 (llama.cpp 0.5.0-dev)" of llama-cpp-python, "0.6.0-dev (build 0, …" of llama-server.
_RELEASE: Final = re.compile(r"llama\.cpp \d+\.\d+\.\d+|^\d+\.\d+\.\d+\S* \(build ")
_FIRST_RELEASE_BUILD: Final = 10_400
"""llama.cpp has called itself 0.1.0 and up since about b10405 (August 2026)."""


def llama_cpp_build(version: str | None) -> int | None:
    """The number of the llama.cpp build that an engine's version names, or None if it names none.

    A build from an archive or a shallow clone counts 0 or 1 commits: that says nothing. Where such
    a one has llama.cpp's release number, the answer is the first build that had one.
    """
    if not version:
        return None
    for pattern in _BUILD:
        if (match := pattern.search(version)) and int(match[1]) > 1:
            return int(match[1])
    return _FIRST_RELEASE_BUILD if _RELEASE.search(version) else None


def age_warning(version: str | None) -> str | None:
    """What to say about an engine whose llama.cpp is too old, or of an age that is not known.

    Args:
        version: The engine's version, as :attr:`runtime.engines.base.EngineInfo.version` has it.
    """
    build = llama_cpp_build(version)
    if build is None:
        return (
            f"its llama.cpp build is not known; make sure that it is b{MINIMUM_BUILD} or newer "
            f"({', '.join(FIXED)})"
        )
    if build < MINIMUM_BUILD:
        return (
            f"its llama.cpp is b{build}; {', '.join(FIXED)} are fixed in b{MINIMUM_BUILD} at the "
            "latest: use a newer build"
        )
    return None
