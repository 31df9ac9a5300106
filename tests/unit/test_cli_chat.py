"""A chat's commands, its history and its answers, without a terminal."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest

from runtime.cli.asking import Backend, Sampling
from runtime.cli.chat_commands import COMMANDS, perform
from runtime.cli.chat_history import ChatHistory
from runtime.cli.chat_input import Pipe
from runtime.cli.chat_session import Chat
from runtime.cli.conversation import Conversation
from runtime.errors import LLMError, LLMInvalidRequestError
from tests.fakes.openai_server import FakeServer, refuses, says

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(listed=("one", "two")) as server:
        yield server


@pytest.fixture
def chat(server: FakeServer) -> Iterator[Chat]:
    with Chat(Backend(model="", base_url=server.url), Sampling(), Conversation()) as chat:
        yield chat


def said(chat: Chat) -> list[str]:
    return [turn.content for turn in chat.conversation.turns]


def test_retry_puts_a_new_answer_in_place_of_the_old(chat: Chat, server: FakeServer) -> None:
    server.will(says("old"), says("new"))
    chat.ask("Well?")
    perform(chat, "retry", "")
    assert said(chat) == ["Well?", "new"]
    assert [len(request.body["messages"]) for request in server.chats[-2:]] == [1, 1]


def test_a_retry_that_fails_keeps_the_old_answer(chat: Chat, server: FakeServer) -> None:
    server.will(says("old"), refuses(400, {"error": {"message": "no", "code": 400}}))
    chat.ask("Well?")
    with pytest.raises(LLMError):
        perform(chat, "retry", "")
    assert said(chat) == ["Well?", "old"]
    perform(chat, "retry", "")
    assert said(chat) == ["Well?", "I'm glad"], "not asked on top of the old answer"


def test_a_question_that_fails_is_taken_back_and_can_be_retried(
    chat: Chat, server: FakeServer
) -> None:
    with pytest.raises(LLMInvalidRequestError, match="Nothing was asked"):
        perform(chat, "retry", "")
    chat.ask("First")
    server.will(refuses(400, {"error": {"message": "no", "code": 400}}))
    with pytest.raises(LLMError):
        chat.ask("Second")
    assert said(chat) == ["First", "I'm glad"]
    perform(chat, "retry", "")
    assert said(chat) == ["First", "I'm glad", "Second", "I'm glad"]


def test_another_model_of_a_server_goes_on_with_the_conversation(
    chat: Chat, server: FakeServer
) -> None:
    chat.ask("First")
    with pytest.raises(LLMInvalidRequestError, match="no model 'three'") as caught:
        perform(chat, "model", "three")
    assert "one, two" in str(caught.value.hint)
    perform(chat, "model", "two")
    assert chat.model == "two"
    chat.ask("Second")
    assert server.chats[-1].body["model"] == "two"
    assert len(server.chats[-1].body["messages"]) == 3


def test_settings_are_in_the_next_request_and_can_be_unset(chat: Chat, server: FakeServer) -> None:
    for argument in ("temperature 0.25", "top_p 0.5", "seed 7", "max_tokens 9"):
        perform(chat, "set", argument)
    perform(chat, "system", "Be brief.")
    chat.ask("Hi")
    body = server.chats[-1].body
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (
        0.25, 0.5, 7, 9,
    )  # fmt: skip
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    perform(chat, "set", "temperature default")
    perform(chat, "set", "top_p default")
    perform(chat, "system", "-")
    chat.ask("Hi")
    body = server.chats[-1].body
    assert not {"temperature", "top_p"} & body.keys()
    assert body["messages"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("name", "argument", "told"),
    [
        ("modle", "", "Did you mean /model?"),
        ("xyzzy", "", "There is no command /xyzzy."),
        ("clear", "now", "/clear takes nothing"),
        ("set", "temprature 1", "Did you mean 'temperature'?"),
        ("set", "temperature hot", "cannot be 'hot'"),
        ("set", "top_p 1.5", "cannot be '1.5'"),
        ("set", "temperature nan", "cannot be 'nan'"),
        ("set", "max_tokens 1.5", "cannot be '1.5'"),
        ("set", "fit somehow", "cannot be 'somehow'"),
        ("save", "", "needs the name of a file"),
        ("load", "-f", "needs the name of a file"),
        ("snapshot", "", "not this program's own"),
    ],
)
def test_a_command_that_cannot_be_right(chat: Chat, name: str, argument: str, told: str) -> None:
    with pytest.raises(LLMInvalidRequestError) as caught:
        perform(chat, name, argument)
    assert told in caught.value.message


def test_what_was_said_is_not_thrown_away_by_loading(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    perform(chat, "save", str(path))
    chat.ask("Hi")
    with pytest.raises(LLMInvalidRequestError, match="not saved"):
        perform(chat, "load", str(path))
    with pytest.raises(LLMInvalidRequestError, match="a file already"):
        perform(chat, "save", str(path))
    perform(chat, "save", f"-f {path}")
    perform(chat, "clear", "")
    perform(chat, "load", str(path))
    assert said(chat) == ["Hi", "I'm glad"]
    chat.ask("More")
    perform(chat, "load", f"-f {path}")
    assert len(said(chat)) == 2


def test_the_help_tells_every_command(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    perform(chat, "help", "")
    told = capsys.readouterr().err
    assert all(f"/{name}" in told for name in COMMANDS)


def test_a_pipe_gives_entries_of_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('one\n\na \\\nb\n"""c\nd"""\nlast \\\n'))
    pipe = Pipe()
    assert list(iter(pipe.read, None)) == ["one", "", "a \nb", "c\nd", "last"]


def test_the_history_is_bounded_private_and_never_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "history"
    history = ChatHistory(path, most=3)
    for entry in ("a", "b\nc", "d", "e", "x" * 20_001):
        history.append_string(entry)
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a") as file:
        file.write("damaged\n" + json.dumps({"no": "string"}) + "\n")
    path.chmod(0o644)
    again = ChatHistory(path, most=4)
    assert list(again.load_history_strings()) == ["e", "d"], "the last four lines, if readable"
    assert len(path.read_text().splitlines()) <= 4
    assert path.stat().st_mode & 0o777 == 0o600
    nowhere = ChatHistory(tmp_path / "none" / "history")
    nowhere.append_string("a")
    assert list(nowhere.load_history_strings()) == []
