"""What is kept of requests and answers, how they are matched, compared, and broken on request."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import ConfigError
from runtime.testing import cassette, drift, matching
from runtime.testing.cassette import CallIds, CassetteError, Recorded
from runtime.testing.events import event_of, is_token, value_of, whole_events
from runtime.testing.faults import Faults
from runtime.testing.mangling import mangled_stream, mangled_whole
from runtime.testing.network import _is_here
from runtime.testing.relay import Asked, Peer, Reply
from runtime.testing.tape import Tape

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CHAT = "/v1/chat/completions"
ENVELOPE = {"id": "chatcmpl-Zq", "created": 17, "model": "m~0123456789ab", "object": "chunk"}


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {**ENVELOPE, "choices": [{"finish_reason": reason, "index": 0, "delta": delta}]}


def arguments(text: str, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "function": {"arguments": text}, **more}]}


STREAM = (
    chunk({"role": "assistant", "content": None}),
    chunk({"content": "né"}),
    chunk({"content": ' "so"\n'}),
    chunk(arguments("{", id="x9", type="function")),
    chunk(arguments('"a": 1}')),
    chunk({}, "tool_calls"),
    "data: [DONE]\n\n",
)


def recorded(asked: Any, **answer: Any) -> Recorded:
    shell = {"method": "POST", "path": CHAT, "status": 200, "content_type": "application/json"}
    return Recorded(**{**shell, "asked": asked, **answer})


def said(text: str, reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


# --- the file ---------------------------------------------------------------------------------


def test_a_cassette_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.json"
    whole = [
        recorded({"messages": [], "seed": 3}, stream=STREAM, content_type="text/event-stream"),
        recorded(None, method="GET", path="/props", body={"n": [1, 2.5, None, "ü"]}),
        recorded({"a": 1}, body="no JSON", status=400),
    ]

    assert cassette.write(path, whole)
    assert cassette.read(path) == tuple(whole)
    assert not cassette.write(path, whole), "what is the same is not written again"
    assert [value_of(event) for event in whole[0].events()][:6] == list(STREAM[:6])


def test_a_cassette_can_be_read_by_people(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    pieces = [chunk({"content": f" word{number}"}) for number in range(40)]
    cassette.write(path, [recorded({"q": "é"}, stream=tuple(pieces))])
    text = path.read_text("utf-8")

    assert '"é"' in text
    assert '" word0", " word1", " word2"' in text
    assert text.count("chatcmpl-Zq") == 1
    assert max(map(len, text.splitlines())) <= cassette.WIDTH


@pytest.mark.parametrize("text", ["", "{", '{"version": 9}', '{"version": 1}', "[]"])
def test_a_broken_cassette_is_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, "utf-8")

    with pytest.raises(CassetteError, match=r"a\.json.*") as caught:
        cassette.read(path)

    assert "--llama-record=all" in str(caught.value.hint)


def test_what_passes_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "very-secret-value")
    answer = {
        **said("my token is very-secret-value"),
        "id": "chatcmpl-Zq",
        "created": 17,
        "model": "m~0123456789ab",
        "system_fingerprint": "b1",
        "timings": {"ms": 3},
        "usage": {"total_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}},
    }
    again = {**answer, "id": "chatcmpl-Yp", "created": 99, "timings": {"ms": 9}}

    kept = cassette.kept(CHAT, answer, call_ids=CallIds())

    assert kept == cassette.kept(CHAT, again, call_ids=CallIds())
    assert kept["model"] == "m"
    assert kept["usage"] == {"total_tokens": 4}
    assert kept["choices"][0]["message"]["content"] == "my token is [redacted]"
    assert answer["created"] == 17, "what the engine said is left alone"


def test_tool_calls_have_the_same_names_in_every_recording() -> None:
    ids = CallIds()
    events = [chunk(arguments("", id=name)) for name in ("q7", "q7", "w3")]

    kept = [cassette.kept(CHAT, event, call_ids=ids) for event in events]

    names = [each["choices"][0]["delta"]["tool_calls"][0]["id"] for each in kept]
    assert names == ["call_1", "call_1", "call_2"]


def test_of_a_server_only_what_clients_read_is_kept() -> None:
    props = {"model_path": "/home/me/m.gguf", "build_info": "b1", "total_slots": 4}
    settings = {"n_ctx": 512, "params": {"seed": 1}}

    kept = cassette.kept(
        "/props", {**props, "default_generation_settings": settings}, call_ids=CallIds()
    )

    assert kept == {"default_generation_settings": {"n_ctx": 512}, "total_slots": 4}


# --- matching ---------------------------------------------------------------------------------


def conversation(call_id: str) -> dict[str, Any]:
    call = {"id": call_id, "function": {"name": "f", "arguments": "{}"}}
    return {
        "messages": [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call_id, "content": "1"},
        ]
    }


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1, "seed": 1}, {"a": 1, "seed": 2}, True),
        ({"a": 1, "cache_prompt": False}, {"a": 1}, True),
        ({"a": 1, "id_slot": 2}, {"a": 1, "verbose": True}, True),
        (conversation("x"), conversation("y"), True),
        ({"a": 1}, {"a": 1, "stream": True}, False),
        ({"model": "a"}, {"model": "b"}, False),
        ({"temperature": 0}, {"temperature": 1}, False),
        ({"tools": [1]}, {"tools": [2]}, False),
        ({"messages": [{"content": "a"}]}, {"messages": [{"content": "a "}]}, False),
    ],
)
def test_requests_are_the_same_when_they_ask_the_same(one: Any, other: Any, same: bool) -> None:
    keys = [matching.canonical("POST", CHAT, body) for body in (one, other)]

    assert (keys[0] == keys[1]) is same
    assert matching.canonical("POST", "/v1/embeddings", one) != keys[0]


def test_the_nearest_request_differs_least() -> None:
    asked = {"messages": [{"content": "What is the weather?"}], "max_tokens": 9, "top_k": 1}
    others = [
        recorded({**asked, "max_tokens": 8, "tools": [1]}),
        recorded({**asked, "messages": [{"content": "What is the water?"}]}),
        recorded({**asked}, path="/elsewhere"),
    ]

    found = matching.nearest(matching.canonical("POST", CHAT, asked), others)
    nothing = matching.nearest(matching.canonical("POST", CHAT, asked), [])

    assert found is not None
    assert found[0] is others[1]
    assert len(found[1]) == 1
    assert found[1][0].startswith("messages[0].content: from character 13: recorded ")
    assert nothing is None


def test_every_kind_of_difference_is_told() -> None:
    old = {"a": 1, "b": [1, 2], "c": "x", "d": True}
    new = {"b": [1, 3, 4], "c": "x", "d": 1, "e": None}

    assert list(matching.differences(old, new)) == [
        "a: recorded 1, not asked",
        "b[1]: recorded 2, asked 3",
        "b: recorded 2 entries, asked 3",
        "d: recorded true, asked 1",
        "e: not recorded, asked null",
    ]


# --- drift ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (said("one"), {**said("one"), "usage": {"total_tokens": 9}}, None),
        (said("one two"), said("one too"), "text from character 5: "),
        (said("one"), said("one", "length"), "finish_reason: recorded stop, now length"),
        ({"tokens": [1]}, {"tokens": [2]}, "answer.tokens[0]: recorded 1, now 2"),
        (
            {"data": [{"embedding": [1.0, 0.0]}]},
            {"data": [{"embedding": [1.0, 0.00001]}]},
            None,
        ),
        (
            {"data": [{"embedding": [1.0, 0.0]}]},
            {"data": [{"embedding": [0.9, 0.0]}]},
            "vector 0: a number is off by 0.1",
        ),
        (
            {"data": [{"embedding": [1.0]}]},
            {"data": [{"embedding": [1.0, 0.0]}]},
            "vectors: recorded 1 of 1 numbers, now 1 of 2",
        ),
        (
            {"data": [{"embedding": "AACAPwAAAAA="}]},
            {"data": [{"embedding": [1.0, 0.0]}]},
            None,
        ),
    ],
)
def test_drift_is_what_a_caller_can_see(old: Any, new: Any, found: str | None) -> None:
    changes = drift.changes(recorded({}, body=old), recorded({}, body=new))

    assert len(changes) == (found is not None)
    assert all(change.startswith(found or "") for change in changes)


def test_where_pieces_are_cut_is_no_drift() -> None:
    cut = (chunk({"content": 'né "s'}), chunk({"content": 'o"\n'}), *STREAM[3:])
    other = (*STREAM[:4], chunk(arguments('"a": 2}')), *STREAM[5:])

    assert drift.changes(recorded({}, stream=STREAM), recorded({}, stream=cut)) == []
    (change,) = drift.changes(recorded({}, stream=STREAM), recorded({}, stream=other))
    assert change.startswith("tool_calls[0].arguments: from character 6: ")
    (change,) = drift.changes(recorded({}, body=1), recorded({}, body=2, status=400))
    assert change == "status: recorded 200, now 400"


# --- faults -----------------------------------------------------------------------------------


def mangled(events: Sequence[Any]) -> tuple[list[Any], int]:
    met: list[bool] = []
    found = mangled_stream((event_of(each) for each in events), lambda: met.append(True))
    return [value_of(each) for each in found], len(met)


def test_the_last_piece_of_a_streamed_call_loses_its_last_character() -> None:
    events = [STREAM[0], *STREAM[3:6]]

    found, met = mangled(events)

    assert met == 1
    assert found == [events[0], events[1], chunk(arguments('"a": 1')), events[3]]


@pytest.mark.parametrize("text", ["just words.", "{"])
def test_streamed_text_is_broken_only_where_it_is_json(text: str) -> None:
    events = [chunk({"content": text}), chunk({"content": '"a": 1}\n'}), chunk({}, "stop")]

    found, met = mangled(events)

    assert met == (text == "{")
    assert (found == events) is not bool(met)


def test_whole_answers_are_broken_alike() -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    with_call = {"choices": [{"message": {"content": None, "tool_calls": [call]}}]}

    def broken(value: Any) -> tuple[Any, int]:
        met: list[bool] = []
        pieces = mangled_whole(iter([json.dumps(value).encode()]), lambda: met.append(True))
        return json.loads(b"".join(pieces)), len(met)

    found, met = broken(with_call)
    assert met == 1
    assert found["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1'
    assert broken(said('{"a": 1}')) == (said('{"a": 1'), 1)
    assert broken(said("words")) == (said("words"), 0)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_are_cut_where_they_end(size: int) -> None:
    events = [event_of(each) for each in STREAM[:6]] + [b"data: [DONE]\n\n"]
    whole = b"".join(events) + b"\n"
    packets = (whole[at : at + size] for at in range(0, len(whole), size))

    assert [each for each in whole_events(packets) if each.strip()] == events
    assert [is_token(each) for each in events] == [False, True, True, True, True, False, False]


def test_a_fault_happens_at_least_once() -> None:
    faults = Faults(lambda _: pytest.fail("no engine is wanted"))
    try:
        with pytest.raises(ConfigError, match="1 or more"):
            faults.status(times=0)
        assert faults.unmet == ()
    finally:
        faults.close()


@pytest.mark.parametrize(
    ("host", "here"),
    [
        (None, True), ("", True), ("localhost", True), ("LOCALHOST.", True), (b"localhost", True),
        ("a.localhost", True), ("127.0.0.1", True), ("127.8.9.10", True), ("::1", True),
        ("::ffff:127.0.0.1", True), ("0.0.0.0", True), ("::", True), ("fe80::1%lo", False),
        ("localhost.example.com", False), ("127.0.0.1.example.com", False), ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False), ("2001:db8::1", False), ("intranet", False),
        (b"example.com", False), ("169.254.169.254", False), ("255.255.255.255", False),
    ],
)  # fmt: skip
def test_this_machine_is_known_by_name_and_address(host: object, here: bool) -> None:
    assert _is_here(host) is here


# --- the tape ---------------------------------------------------------------------------------


def ask_of(body: Any) -> Asked:
    one, other = socket.socketpair()
    one.close()
    other.close()
    return Asked(method="POST", path=CHAT, body=body, peer=Peer(other))


def test_a_stream_is_recorded_when_its_last_event_is_delivered(tmp_path: Path) -> None:
    """A client that has it hangs up, and the rest is never read."""
    tape = Tape(tmp_path / "a.json", "new")
    events = iter([event_of(STREAM[1]), b"data: [DONE]\n\n", b""])
    body = {"messages": [{"role": "user", "content": "a"}], "stream": True}

    def engine(asked: Asked) -> Reply:
        assert asked.body["cache_prompt"] is False, "what came before must not matter"
        assert isinstance(asked.body["seed"], int)
        return Reply(status=200, pieces=events, content_type="text/event-stream")

    pieces = tape.answer(ask_of(body), engine).pieces
    assert next(pieces)
    assert next(pieces) == b"data: [DONE]\n\n"
    assert isinstance(pieces, Generator)
    pieces.close()

    assert tape.close()
    (kept,) = cassette.read(tape.path)
    assert "cache_prompt" not in kept.asked
    assert kept.events()[1] == b"data: [DONE]\n\n"


def test_an_answer_that_was_cut_off_is_not_recorded(tmp_path: Path) -> None:
    tape = Tape(tmp_path / "a.json", "new")
    events = iter([event_of(STREAM[1]), b"data: [DONE]\n\n"])
    reply = Reply(status=200, pieces=events, content_type="text/event-stream")

    pieces = tape.answer(ask_of({"messages": []}), lambda _: reply).pieces
    next(pieces)
    assert isinstance(pieces, Generator)
    pieces.close()

    assert not tape.close()
    assert not tape.path.exists()


def test_one_question_asked_twice_has_its_answers_in_order(tmp_path: Path) -> None:
    """By seed where one is given; and who was cut off is answered the same again."""
    path = tmp_path / "a.json"
    asked: list[dict[str, Any]] = [{"messages": [], "seed": seed} for seed in (1, 2, 3)]
    cassette.write(path, [recorded(body, body=said(f"{body['seed']}")) for body in asked])
    tape = Tape(path, "none")

    def answered(body: Any, *, cut: bool = False) -> str:
        pieces = tape.answer(ask_of(body), lambda _: pytest.fail("it asks an engine")).pieces
        text: str = json.loads(next(pieces))["choices"][0]["message"]["content"]
        assert isinstance(pieces, Generator)
        if cut:
            pieces.close()
        else:
            assert list(pieces) == []
        return text

    assert answered(asked[1], cut=True) == "2"
    assert answered(asked[1]) == "2"
    assert [answered({"messages": []}) for _ in range(3)] == ["1", "3", "3"]
    assert answered(asked[0]) == "1"
    assert tape.misses == []
