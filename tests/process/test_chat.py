"""A chat as a person meets it: in a terminal, with keys."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.conftest import wait_until
from tests.fakes.openai_server import (
    CONTEXT,
    FakeServer,
    Stalls,
    event,
    events_of,
    piece,
    says,
    streams,
)
from tests.terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, PROMPT, TAB, UP, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.outside, pytest.mark.process]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


def chat(server: FakeServer, *words: str, **env: str) -> Terminal:
    """A chat with that server, whose prompt has come."""
    command = (sys.executable, "-m", "runtime", "chat", "--base-url", server.url, *words)
    terminal = Terminal(*command, **env)
    terminal.expect("Ctrl-D leaves")
    terminal.expect(PROMPT)
    return terminal


def asked(server: FakeServer) -> list[list[dict[str, Any]]]:
    """The conversations that were sent, roles and texts."""
    return [
        [{"role": m["role"], "content": m["content"]} for m in request.body["messages"]]
        for request in server.chats
        if request.body["messages"] != [{"role": "user", "content": "."}]
    ]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_several_lines_are_typed_pasted_and_quoted(server: FakeServer) -> None:
    with chat(server) as terminal:
        for keys in (
            f"one{ALT_ENTER}two{ENTER}",
            f"one\\{ENTER}two{ENTER}",
            f'"""one{ENTER}{ENTER}two"""{ENTER}',
            f"\x1b[200~one\n  two\n\x1b[201~{ENTER}",
        ):
            terminal.type(keys)
            terminal.expect("I'm glad")
            terminal.expect(PROMPT)
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    assert [conversation[-1]["content"] for conversation in asked(server)] == [
        "one\ntwo", "one\ntwo", "one\n\ntwo", "one\n  two",
    ]  # fmt: skip


def test_ctrl_c_stops_the_answer_and_not_the_program(server: FakeServer) -> None:
    """What came stays, and the model sees it in the next request."""
    stalled = Stalls(("Once", " upon"))
    server.will(stalled)
    with chat(server) as terminal:
        terminal.type(f"A story{ENTER}")
        terminal.expect("Once upon")
        terminal.type(CTRL_C)
        terminal.expect("(stopped")
        terminal.expect(PROMPT)
        wait_until("the server is told", stalled.hung_up.is_set)
        terminal.type(f"Go on{ENTER}")
        terminal.expect("I'm glad")
        terminal.expect(PROMPT)
        terminal.type(f"/quit{ENTER}")
        assert terminal.ends() == 0
    assert asked(server)[-1] == [user("A story"), assistant("Once upon"), user("Go on")]


def test_a_question_stopped_before_its_answer_is_taken_back(server: FakeServer) -> None:
    stalled = Stalls()
    server.will(stalled)
    with chat(server) as terminal:
        terminal.type(f"Well?{ENTER}")
        wait_until("it is being asked", stalled.begun.is_set)
        terminal.type(CTRL_C)
        terminal.expect("taken back")
        terminal.expect(PROMPT)
        terminal.type(f"/retry{ENTER}")
        terminal.expect("I'm glad")
    assert asked(server) == [[user("Well?")], [user("Well?")]]


def test_ctrl_c_at_the_prompt_says_how_to_leave(server: FakeServer) -> None:
    """With something typed it takes that away; the second at an empty prompt leaves."""
    with chat(server) as terminal:
        terminal.type(f"never mind{CTRL_C}")
        terminal.expect(PROMPT)
        assert "leaves, and so does" not in terminal.screen
        terminal.type(CTRL_C)
        terminal.expect("Ctrl-D or /quit leaves")
        terminal.expect(PROMPT)
        terminal.type(CTRL_C)
        assert terminal.ends() == 0
    assert asked(server) == []


def test_thoughts_are_dim_and_stay_out_of_the_conversation(server: FakeServer) -> None:
    thoughts = [event(piece({"reasoning_content": text})) for text in ("Let me", " see.")]
    server.will(streams(*thoughts, *events_of(["Yes."])))
    with chat(server) as terminal:
        terminal.type(f"Well?{ENTER}")
        terminal.expect("Let me see.")
        terminal.expect("Yes.")
        terminal.expect("tokens/s")
        terminal.expect(PROMPT)
        assert "\x1b[2mLet me" in terminal.raw
        assert "\x1b[2mYes" not in terminal.raw
        terminal.type(f"Sure?{ENTER}")
        terminal.expect("I'm glad")
    assert asked(server)[-1] == [user("Well?"), assistant("Yes."), user("Sure?")]


def test_an_answer_cannot_command_the_terminal(server: FakeServer) -> None:
    server.will(says("safe\x1b]0;title\x07", "\x1b[31mred", "\x9b31m"))
    with chat(server) as terminal:
        terminal.type(f"Hello{ENTER}")
        terminal.expect("red")
        terminal.expect(PROMPT)
        assert "safe]0;title[31mred" in terminal.raw


def test_history_is_kept_for_the_next_chat_unless_it_is_not_wanted(
    server: FakeServer, isolated_home: Path
) -> None:
    kept = isolated_home / "state" / "chat-history.jsonl"
    with chat(server, "--no-history") as terminal:
        terminal.type(f"a secret{ENTER}")
        terminal.expect("I'm glad")
        terminal.expect(PROMPT)
    assert not kept.exists()
    with chat(server) as terminal:
        terminal.type(f"first{ENTER}")
        terminal.expect("I'm glad")
        terminal.expect(PROMPT)
    assert kept.stat().st_mode & 0o777 == 0o600
    with chat(server) as terminal:
        terminal.type(f"{UP} again{ENTER}")
        terminal.expect("I'm glad")
    assert asked(server)[-1] == [user("first again")]


def test_tab_completes_commands_models_settings_and_files(
    server: FakeServer, tmp_path: Path
) -> None:
    with chat(server) as terminal:
        (tmp_path / "no-folder").touch()
        for typed, completed, told in (
            ("/tok", "ens", "The conversation has"),
            ("/set fi", "t", "fit = drop_oldest"),
            (f"/save {tmp_path}/no-f", "older", "is a file already"),
            ("/model smollm2-13", "5m", "no model 'smollm2-135m'"),
        ):
            terminal.type(typed)
            terminal.expect(typed)
            terminal.type(TAB)
            terminal.expect(completed)
            terminal.type(ENTER)
            terminal.expect(told)
            terminal.expect(PROMPT)


def test_a_full_context_is_told_before_and_the_oldest_messages_go(server: FakeServer) -> None:
    """The fake's context is 256 tokens, of which a word is one."""
    words = "word " * 150
    with chat(server) as terminal:
        terminal.type(f"{words}{ENTER}")
        terminal.expect("I'm glad")
        terminal.expect(PROMPT)
        assert "context is full" not in terminal.screen
        terminal.type(f"{words}{ENTER}")
        terminal.expect(f"holds {CONTEXT}")
        terminal.expect("begins anew")
        terminal.expect("I'm glad")
        terminal.expect("(answered without the 2 oldest messages)")
        terminal.expect(PROMPT)
        terminal.type(f"/set fit error{ENTER}")
        terminal.expect(PROMPT)
        terminal.type(f"{words}{ENTER}")
        terminal.expect("/set fit drop_oldest leaves")
        terminal.expect("I'm glad")
    assert [len(conversation) for conversation in asked(server)] == [1, 1, 5]


def test_a_conversation_is_saved_and_loaded_with_the_real_engine(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    """On the tiny model: talk, stop, switch the model, save, forget, load, count, end."""
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_model_path.read_bytes())
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_model_path.read_bytes()[:-1000])
    saved = tmp_path / "talk.json"
    command = (sys.executable, "-m", "runtime", "chat", str(tiny_model_path), "--ctx-size", "2048")
    with Terminal(*command) as terminal:
        terminal.expect("is ready")
        terminal.expect(PROMPT)
        engines = psutil.Process(terminal.process.pid).children(recursive=True)
        terminal.type(f"/set max_tokens 8{ENTER}")
        terminal.expect("max_tokens = 8")
        terminal.expect(PROMPT)
        terminal.type(f"Hello{ENTER}")
        terminal.expect("8 tokens · ")
        terminal.expect("of 2,048 tokens of context")
        terminal.expect(PROMPT)
        terminal.type(f"/model {other}{ENTER}")
        terminal.expect("Loading")
        terminal.expect("other is ready")
        terminal.expect(PROMPT)
        assert not any(engine.is_running() for engine in engines), "one model at a time"
        terminal.type(f"/model {tmp_path}/none.gguf{ENTER}")
        terminal.expect("There is no file")
        terminal.expect(PROMPT)
        terminal.type(f"/model {cut}{ENTER}")
        terminal.expect("going back to")
        terminal.expect("cut off")
        terminal.expect(PROMPT)
        terminal.type(f"/save {saved}{ENTER}")
        terminal.expect("2 messages are in")
        terminal.expect(PROMPT)
        terminal.type(f"/clear{ENTER}/tokens{ENTER}")
        terminal.expect("has 0 tokens of 2,048")
        terminal.expect(PROMPT)
        terminal.type(f"/load {saved}{ENTER}/snapshot{ENTER}")
        terminal.expect("2 messages from")
        terminal.expect('"api_model": "other"')
        terminal.expect(PROMPT)
        terminal.type(CTRL_D)
        engines = psutil.Process(terminal.process.pid).children(recursive=True)
        assert terminal.ends() == 0
        _, alive = psutil.wait_procs(engines, timeout=2)
        assert not alive
    messages = json.loads(saved.read_text("utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["content"]
