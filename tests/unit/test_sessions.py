"""Sessions on disk."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from runtime.cli.app import cli
from runtime.errors import IntegrityError, SessionMismatchError, SessionNotFoundError, StorageError
from runtime.inference.session_proof import Answered, refuse_other, unproven
from runtime.store.sessions import Proof, SessionHead, SessionStore

if TYPE_CHECKING:
    from pathlib import Path


def head(state_bytes: int) -> SessionHead:
    return SessionHead(
        facts={"model": "m"},
        saved_at="2026-01-01T00:00:00Z",
        model="tiny",
        tokens=7,
        state_bytes=state_bytes,
        messages=({"role": "user", "content": "hi"},),
        functions=(),
        proof=Proof(body={}, reused=6, token="a", logprob=-0.5),
    )


def saved(store: SessionStore, name: str, tmp_path: Path, size: int = 1000) -> list[str]:
    state = tmp_path / "state"
    state.write_bytes(os.urandom(size))
    return store.write(name, head(size), state)[1]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "sessions")
    saved(store, "one", tmp_path)
    assert store.head("one") == head(1000)
    store.extract("one", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "state").read_bytes()
    [info] = store.sessions()
    assert (info.name, info.model, info.tokens, info.messages) == ("one", "tiny", 7, 1)
    assert store.remove("one") == info.size_bytes
    assert store.sessions() == ()
    with pytest.raises(SessionNotFoundError):
        store.remove("one")


@pytest.mark.parametrize("place", [0, 30, 200, 900, -40, -1])
def test_every_damaged_byte_is_seen(tmp_path: Path, place: int) -> None:
    store = SessionStore(tmp_path / "sessions")
    saved(store, "one", tmp_path)
    path = store.path_of("one")
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1
    path.write_bytes(whole)
    with pytest.raises(IntegrityError):
        store.extract("one", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_ones_not_used_for_longest_make_room_and_are_named(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "sessions", limit_bytes=5000)
    for age, name in enumerate(["new", "older", "oldest"]):
        assert saved(store, name, tmp_path) == []
        os.utime(store.path_of(name), (1000 - age, 1000 - age))
    assert saved(store, "big", tmp_path, 2500) == ["oldest", "older"]
    assert {info.name for info in store.sessions()} == {"new", "big"}
    assert saved(store, "new", tmp_path, 1100) == [], "it takes its own place"
    with pytest.raises(StorageError) as caught:
        saved(store, "huge", tmp_path, 6000)
    assert caught.value.available_bytes == 5000
    saved(store, str(tmp_path / "elsewhere"), tmp_path, 6000)
    assert {info.name for info in store.sessions()} == {"new", "big"}


def test_a_full_disk_leaves_nothing_half(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "sessions")
    saved(store, "one", tmp_path)
    before = store.path_of("one").read_bytes()
    state = tmp_path / "state"
    state.write_bytes(bytes(200_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="full"):
            store.write("one", head(200_000), state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in store.folder.iterdir()] == ["one.session"]
    assert store.path_of("one").read_bytes() == before


def test_what_differs_is_told_by_name_and_both_values() -> None:
    facts = {"model": "a" * 64, "engine": "xllamacpp 1 (b1)", "context": "512 tokens"}
    made = replace(head(0), facts=facts)
    refuse_other(made, facts)
    with pytest.raises(SessionMismatchError) as caught:
        refuse_other(made, {**facts, "engine": "llama-server 2", "LoRA": "none"})
    assert caught.value.differences == {
        "engine": ("xllamacpp 1 (b1)", "llama-server 2"),
        "LoRA": ("not known", "none"),
    }
    assert "saved with xllamacpp 1 (b1), here it is llama-server 2" in caught.value.message
    with pytest.raises(SessionMismatchError, match="model: saved with aaaaaaaaaaaa…"):
        refuse_other(made, {**facts, "model": "b" * 64})


SAME = Answered(reused=6, processed=1, token="a", logprob=-0.505, slot=0)


@pytest.mark.parametrize(
    ("restored", "said", "differs"),
    [
        (7, SAME, None),
        (6, SAME, "tokens"),
        (None, SAME, "tokens"),
        (7, replace(SAME, token="b"), "next token"),
        (7, replace(SAME, reused=5), "tokens reused"),
        (7, replace(SAME, logprob=-0.52), "its logprob"),
    ],
)
def test_a_restored_state_answers_as_the_saved_one_or_is_refused(
    restored: int | None, said: Answered, differs: str | None
) -> None:
    problem = unproven(head(0), {} if restored is None else {"n_restored": restored}, said)
    assert list(problem.differences if problem else ()) == ([] if differs is None else [differs])


def test_a_state_holds_a_conversation_but_for_a_few_tokens() -> None:
    assert replace(SAME, reused=95, processed=6).reuses
    assert not replace(SAME, reused=94, processed=7).reuses


def test_the_command_line_shows_and_removes_them(tmp_path: Path) -> None:
    store = SessionStore()
    saved(store, "one", tmp_path)
    shown = CliRunner().invoke(cli, ["sessions", "list", "--json"])
    assert [each["name"] for each in json.loads(shown.stdout)] == ["one"]
    assert "tiny" in CliRunner().invoke(cli, ["sessions", "list"]).stdout
    assert CliRunner().invoke(cli, ["sessions", "rm", "one"]).exit_code == 0
    assert store.sessions() == ()
