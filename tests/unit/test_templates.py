"""When an engine at its chat template is given up."""

from __future__ import annotations

import hashlib
import signal

import pytest

from runtime.server.diagnosis import diagnose
from runtime.server.templates import (
    CPU_LIMIT_S,
    GROWTH_LIMIT_BYTES,
    TemplateGuard,
    begins,
    fingerprint,
    was_last,
)

# What xllamacpp 2026.10 prints before it takes up the template, and after.
BEFORE = "0.00.136.586 I srv    load_model: initializing, n_slots = 4, n_ctx_slot = 256"
AFTER = "0.00.138.056 I srv          init: model loaded"


def test_the_line_before_the_template_is_known() -> None:
    assert begins(BEFORE)
    assert not begins(AFTER)
    assert not begins("0.00.000.235 I srv          init: initializing ...")


@pytest.mark.parametrize(
    ("tail", "expected"),
    [([BEFORE], True), ([BEFORE, AFTER], False), ([BEFORE, "a warning"], True), ([], False)],
)
def test_an_engine_that_ended_was_at_its_template_or_not(tail: list[str], expected: bool) -> None:
    assert was_last(tail) is expected


def test_a_crash_at_the_template_names_it_and_is_not_tried_again() -> None:
    found = diagnose(code=None, signal=signal.SIGSEGV, log_tail=[BEFORE], was_ready=False)
    assert found.code == "bad_template"
    assert found.repeats
    assert found.hint


@pytest.mark.parametrize(
    ("number", "tail", "was_ready"),
    [
        (signal.SIGSEGV, [BEFORE, AFTER], False),
        (signal.SIGSEGV, [BEFORE], True),
        (signal.SIGKILL, [BEFORE], False),
    ],
)
def test_other_deaths_are_not_put_down_to_the_template(
    number: int, tail: list[str], was_ready: bool
) -> None:
    found = diagnose(code=None, signal=number, log_tail=tail, was_ready=was_ready)
    assert found.code in {"crashed", "killed"}


def test_the_guard_counts_from_where_it_began() -> None:
    guard = TemplateGuard(cpu_s=100.0, rss_bytes=20 << 30)
    assert guard.look(cpu_s=100.0 + CPU_LIMIT_S, rss_bytes=20 << 30) is None
    assert guard.look(cpu_s=100.0, rss_bytes=(20 << 30) + GROWTH_LIMIT_BYTES) is None
    assert "processor time" in str(guard.look(cpu_s=100.1 + CPU_LIMIT_S, rss_bytes=20 << 30))
    assert "memory" in str(guard.look(cpu_s=100.0, rss_bytes=(23 << 30)))


def test_what_is_expected_besides_is_no_fault_of_the_template() -> None:
    guard = TemplateGuard(cpu_s=0.0, rss_bytes=0, expected_bytes=1 << 30)
    assert guard.look(cpu_s=0.0, rss_bytes=GROWTH_LIMIT_BYTES + (1 << 30)) is None
    assert guard.look(cpu_s=0.0, rss_bytes=GROWTH_LIMIT_BYTES + (1 << 30) + 1) is not None


def test_a_fingerprint_is_the_sha256_of_the_text() -> None:
    assert fingerprint(None) is None
    assert fingerprint("é") == hashlib.sha256("é".encode()).hexdigest()
