"""What `top` shows, on terminals of several widths."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from runtime.cli.top_view import picture

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


def snapshot(**gateway: Any) -> dict[str, Any]:
    server = {
        "slots": {"total": 4, "busy": 3},
        "memory": {"rss_bytes": 262_000_000},
        "context": {"actual": 2048},
        "speed": {"generated_tokens_per_s": 101.4},
        "restarts": 2,
    }
    return {
        "gateway": {
            "version": "1.2.3",
            "address": "http://127.0.0.1:8080",
            "started_at": "2026-11-22T10:57:30+00:00",
            "requests": 1289,
            "history": {"interval_s": 1, "tokens": [0.0] * 60 + [90.0, 100.0, 110.0]},
            "errors": [
                {"at": f"2026-11-22T11:0{minute}:00+00:00", "message": f"failure {minute}"}
                for minute in range(5)
            ],
            **gateway,
        },
        "models": [
            {
                "name": "smollm2-135m",
                "state": "ready",
                "snapshot": server,
                "queue": {"waiting": 7},
                "counters": {"answered": 1284, "failed": 5},
            },
            {"name": "other", "state": "unloaded", "snapshot": None, "queue": None},
        ],
        "memory": {},
    }


def shown(said: dict[str, Any], width: int) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(picture(said, width=width, now=NOW))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [30, 60, 96, 160])
def test_every_fact_is_there_at_any_width(width: int) -> None:
    text = shown(snapshot(), width)
    assert max(len(line) for line in text.splitlines()) <= width
    words = " ".join(text.split())
    for fact in ("smollm2-135m", "ready", "unloaded", "100 tokens/s", "262.0 MB", "failure 4",
                 "1289 requests", "up 1 h 2 min", "1.2.3", "highest 110"):  # fmt: skip
        assert fact in words
    assert ("3/4" if width >= 96 else "3 of 4") in words
    assert "█" in text
    assert "failure 1" not in words, "the last three are enough"


def test_what_is_unknown_is_no_reason_to_fail() -> None:
    strange: list[dict[str, Any]] = [
        {"models": []},
        {"gateway": None, "models": [{}]},
        {"gateway": {"history": {"tokens": "?"}, "errors": [1]}, "models": [{"name": "a"}]},
    ]
    for said in strange:
        assert "llama-runtime" in shown(said, 80)


def test_names_and_messages_give_the_terminal_no_commands() -> None:
    said = snapshot(errors=[{"at": "", "message": "\x1b[2Jgone\x07\r\n[bold]"}], version="\x1b[31m")
    said["models"][0]["name"] = "\x1b]0;title\x07name"
    for width in (40, 100):
        text = shown(said, width)
        assert not set(text) & {"\x1b", "\x07", "\r"}
        assert "[bold]" in text, "and rich none either"
