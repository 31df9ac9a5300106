"""The age of the llama.cpp inside an engine, read from what engines say about themselves."""

from __future__ import annotations

import pytest

from runtime.engines.builds import FIXED, MINIMUM_BUILD, age_warning, llama_cpp_build

OLD = ["5200 (ceda28ef)", "2026.3.8330", "2026.3 (llama.cpp b8910, x86_64)", "4242 (fake)"]
NEW = [
    "8911 (5d2b52d8)",
    "9553 (9e3b928fd)",
    "0.4.1-dev (build 10991, commit 930e2fa59)",
    "0.6.0-dev (build 0, commit unknown)",  # from an archive: the release number tells enough
    "0.2.0-dev (build 1, commit 10bf611)",  # from a shallow clone
    "2026.10.11549",
    "2026.10.11549 (llama.cpp b0, Linux x86_64)",  # a wheel built from an archive
    "2026.10.11549 (llama.cpp b11549, Linux x86_64)",
    "0.3.36 (llama.cpp 0.5.0-dev)",
]
UNKNOWN = [None, "", "unknown", "0 (unknown)", "1 (10bf611)", "0.3.16", "0.3.16 (llama.cpp x)"]


@pytest.mark.parametrize("version", OLD)
def test_an_old_build_is_warned_about_with_its_number(version: str) -> None:
    build = llama_cpp_build(version)
    assert build is not None
    warning = age_warning(version)
    assert warning
    assert f"b{build};" in warning
    assert all(name in warning for name in FIXED)


@pytest.mark.parametrize("version", NEW)
def test_a_new_build_is_not(version: str) -> None:
    assert age_warning(version) is None
    assert (llama_cpp_build(version) or 0) >= MINIMUM_BUILD


@pytest.mark.parametrize("version", UNKNOWN)
def test_what_does_not_tell_its_age_is_not_called_old(version: str | None) -> None:
    assert llama_cpp_build(version) is None
    warning = age_warning(version)
    assert warning
    assert "not known" in warning
