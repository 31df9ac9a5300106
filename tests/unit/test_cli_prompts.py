"""What a prompt is put together from, and what cannot go into one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from runtime.cli.prompts import Attachment, joined, read_file
from runtime.cli.run import read_schema
from runtime.errors import LLMInvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("picture.png", b"\x89PNG\r\n\x1a\n", "is not text: byte 0"),
        ("zeros.bin", b"abc\0def", "zero bytes"),
        ("large.txt", b"a" * 16_000_001, "larger than 16 MB"),
        ("notez.txt", None, "There is no file"),
        (".", None, "is a folder"),
    ],
)
def test_a_file_that_cannot_go_into_a_prompt(
    tmp_path: Path, name: str, content: bytes | None, told: str
) -> None:
    (tmp_path / "notes.txt").write_text("text")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LLMInvalidRequestError, match=told) as caught:
        read_file(tmp_path / name)
    if name == "notez.txt":
        assert "notes.txt" in str(caught.value.hint)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_text_file_in_any_usual_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße".encode(encoding))
    assert read_file(tmp_path / "a.txt").text == "Grüße"


def test_a_file_of_the_largest_size_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 16_000_000)
    assert len(read_file(tmp_path / "a.txt").text) == 16_000_000


def test_a_file_cannot_end_its_own_quotation() -> None:
    text = joined("Read", [Attachment(name="a", text="`````\nx")], "")
    assert text == "Read\n\nFile a:\n``````\n`````\nx\n``````"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ('{"type": "object"', "is not JSON"),
        ("no.json", "There is no file no.json"),
        ("list.json", "a JSON list, not an object"),
    ],
)
def test_what_is_no_schema(
    given: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(LLMInvalidRequestError, match=told):
        read_schema(given)


def test_a_schema_comes_from_a_file_or_as_it_is(tmp_path: Path) -> None:
    schema = {"type": "string"}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    assert read_schema(str(tmp_path / "s.json")) == schema
    assert read_schema(f" {json.dumps(schema)}") == schema
