"""The doctor's own parts: deadlines, redaction, versions."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.doctor import Check, Finding, examine, site
from runtime.doctor.redaction import LINE_REMOVED, REMOVED, Redactor
from runtime.errors import StorageError
from runtime.testing.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.doctor import Site


def fine(_site: Site) -> Iterator[Finding]:
    yield Finding(id="fine", status="ok", found="all is well")


def test_what_hangs_is_named_and_not_waited_for() -> None:
    release = threading.Event()

    def hanging(_site: Site) -> Iterator[Finding]:
        release.wait(30)
        yield Finding(id="late", status="ok", found="")

    began_s = time.monotonic()
    waited: list[Sequence[str]] = []
    try:
        found = examine(
            site(build_model=build_tiny_model, patience_s=1.2),
            (
                Check(id="stuck", what="asks a dead server", look=hanging, overdue="fail"),
                Check(id="fine", what="looks", look=fine),
            ),
            on_wait=waited.append,
        )
    finally:
        release.set()
    assert 1.2 <= time.monotonic() - began_s < 2
    assert [(f.id, f.status) for f in found] == [("stuck", "fail"), ("fine", "ok")]
    assert "the part that asks a dead server hangs" in found[0].found
    assert waited == [["asks a dead server"]], "told once a second, by name"


def test_a_patient_check_is_waited_for_in_full() -> None:
    began_s = time.monotonic()

    def slow(where: Site) -> Iterator[Finding]:
        threading.Event().wait(where.until_s - began_s + 0.1)
        yield Finding(id="slow", status="ok", found="")

    check = Check(id="slow", what="hashes", look=slow, patient=True)
    where = site(build_model=build_tiny_model, patience_s=0.1, full=True)
    assert examine(where, (check,))[0].status == "ok"
    where = site(build_model=build_tiny_model, patience_s=0.1)
    assert examine(where, (check,))[0].status == "warn"


def test_a_look_that_fails_is_a_finding() -> None:
    def refused(_site: Site) -> Iterator[Finding]:
        raise StorageError("The folder is gone.", path=Path("/x"), hint="Make it.")

    def defective(_site: Site) -> Iterator[Finding]:
        raise ZeroDivisionError("oh")

    found = examine(
        site(build_model=build_tiny_model),
        (
            Check(id="a", what="looks", look=refused),
            Check(id="b", what="divides", look=defective),
            Check(id="c", what="looks", look=fine),
        ),
    )
    assert found[0] == Finding(
        id="a", status="fail", found="The folder is gone.", remedy="Make it."
    )
    assert "the part that divides failed: ZeroDivisionError: oh" in found[1].found
    assert found[2].status == "ok"


def redactor(**environ: str) -> Redactor:
    return Redactor(
        environ, homes=["/srv/people/jane", "/"], users=["jane", "root", "x"], hosts=["lab-7"]
    )


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at /srv/people/jane/models/a.gguf", "at ~/models/a.gguf"),
        ("at /home/joe/models", "at /home/<user>/models"),
        ("C:\\Users\\Joe\\x", "C:\\Users\\<user>\\x"),
        ("owned by jane on lab-7, not janet", "owned by <user> on <host>, not janet"),
        ("the root user", "the root user"),
        ("my-secret-value", REMOVED),
        ("https://me:pass@example.com/a", f"https://{REMOVED}@example.com/a"),
        ("https://example.com/a?sig=abc&x=1 b", f"https://example.com/a?{REMOVED} b"),
        ("Authorization: Bearer abc.def", f"Authorization: Bearer {REMOVED}"),
        ("hf_abcdefgh123 sk-proj-abcdefgh", f"{REMOVED} {REMOVED}"),
        ("api_key=abc, token: 'd e'", f"{REMOVED}, {REMOVED}"),
        ("16 tokens at 3.5 tokens per second", "16 tokens at 3.5 tokens per second"),
        ("sha256 " + "a" * 64, "sha256 " + "a" * 64),
    ],
)
def test_secrets_and_names_are_taken_out(text: str, clean: str) -> None:
    assert redactor(SOME_API_KEY="my-secret-value").text(text) == clean


@given(st.text("ab'\"\\-é8", min_size=4, max_size=40), st.text("ab ='\"", max_size=9))
def test_a_secret_of_the_environment_is_taken_out_wherever_it_stands(
    secret: str, around: str
) -> None:
    clean = redactor(HF_TOKEN=secret).text(f"{around}{secret}{around} {secret!r}")
    clean = clean.replace(REMOVED, "\0")
    assert secret not in clean
    assert repr(secret)[1:-1] not in clean, "as an error quotes it"


def test_words_of_requests_are_taken_out_of_json() -> None:
    snapshot = {"models": [{"name": "tiny", "errors": ["canary"], "rss": 5, "error": None}]}
    assert redactor().value(snapshot) == {
        "models": [{"name": "tiny", "errors": REMOVED, "rss": 5, "error": None}]
    }


def test_only_lines_of_known_kinds_are_left_of_a_log() -> None:
    lines = [
        "0.00.273.460 I srv    load_model: initializing, n_slots = 2, n_ctx_slot = 1024",
        "print_info: arch = llama",
        '@llama-runtime {"version": "2026.10.11549 (llama.cpp b11549, Linux x86_64)"}',
        "Once upon a time",
        "there was a line break",
        "0.00.281.000 E srv    operator(): got exception: {'a'}",
        "0.00.281.000 D srv    params: prompt = once upon",
        "0.00.413.349 I slot print_timing: id  1 | prompt eval time =      99.66 ms /    33 tokens",
    ]
    assert list(redactor().log(lines)) == [
        lines[0],
        lines[1],
        lines[2],
        LINE_REMOVED,
        f"0.00.281.000 E srv    operator(): got exception: {REMOVED}",
        f"0.00.281.000 D srv    params: prompt: {REMOVED}",
        lines[7],
    ]
