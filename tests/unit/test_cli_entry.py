"""What is typed into a chat: when it is complete, what it means, what is a command."""

from __future__ import annotations

import pytest

from runtime.cli import entry


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("one line", False),
        ("", False),
        ("go on \\", True),
        ("go on \\\nand on \\", True),
        ("go on \\\nthe end", False),
        ("a path C:\\\\", False),
        ('"""', True),
        ('"""one\ntwo', True),
        ('"""one\ntwo"""', False),
        ('said """ in between', True),
    ],
)
def test_when_more_is_to_come(text: str, more: bool) -> None:
    assert entry.is_open(text) is more


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  one line ", "one line"),
        ("one \\\ntwo", "one \ntwo"),
        ("the end \\", "the end"),
        ('"""\none\n  two\n"""', "one\n  two"),
        ('"""one"""', "one"),
        ('""" open', '""" open'),
        ('"""a""" and """b"""', '"""a""" and """b"""'),
        ("a \\\\\nb", "a \\\\\nb"),
    ],
)
def test_what_is_meant(text: str, said: str) -> None:
    assert entry.meant(text) == said


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/help", ("help", "")),
        ("/Model  qwen3-4b ", ("model", "qwen3-4b")),
        ("/system be\nbrief", ("system", "be\nbrief")),
        ("/etc/hosts is a file", None),
        ("//help", None),
        ("a /help", None),
        ("/", None),
    ],
)
def test_what_is_a_command(text: str, command: tuple[str, str] | None) -> None:
    assert entry.command(text) == command


def test_a_second_slash_says_a_text_that_begins_with_one() -> None:
    assert entry.said("//help") == "/help"
    assert entry.said("help") == "help"
