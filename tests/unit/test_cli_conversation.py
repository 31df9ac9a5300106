"""Conversations of a chat, and their files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from runtime.cli.conversation import Conversation, load, save
from runtime.errors import LLMInvalidRequestError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

SAID = (
    Conversation(system="Be brief.")
    .asked("Hello")
    .answered("Hi, how are", stopped=True)
    .asked("Go on")
    .answered("you?")
)


def test_what_is_saved_is_loaded_again_and_is_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(SAID, path, model="m")
    assert load(path) == SAID
    assert path.stat().st_mode & 0o777 == 0o600
    written = json.loads(path.read_text("utf-8"))
    assert written["model"] == "m"
    assert [message.get("stopped") for message in written["messages"]] == [
        None, None, True, None, None,
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_is_overwritten_unless_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text("mine")
    path.chmod(0o644)
    with pytest.raises(LLMInvalidRequestError) as caught:
        save(SAID, path, model="m")
    assert "/save -f" in str(caught.value.hint)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]
    save(SAID, path, model="m", overwrite=True)
    assert load(path) == SAID
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        save(SAID, tmp_path / "nowhere" / "talk.json", model="m")


def test_a_plain_list_of_messages_is_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text('[{"role": "user", "content": "Hi", "name": "x"}]')
    assert load(path) == Conversation().asked("Hi")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("not json", "JSON"),
        ('{"messages": [{"role": "pirate", "content": "Arr"}]}', "role"),
        ('{"messages": [{"role": "user"}]}', "content"),
        ("3", "conversation"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(text)
    with pytest.raises(LLMInvalidRequestError, match=told):
        load(path)
    with pytest.raises(LLMInvalidRequestError, match="No such file"):
        load(tmp_path / "none.json")


def test_the_last_question_can_be_asked_again() -> None:
    assert SAID.last_question == "Go on"
    assert SAID.before_last_question().turns == SAID.turns[:2]
    assert Conversation().last_question is None


def test_the_model_is_told_the_system_message_first() -> None:
    assert [message.role for message in SAID.messages] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
