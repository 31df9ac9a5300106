"""An answer that breaks off goes on: no character twice, none missing, wherever it breaks."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime import (
    ConnectionLostError,
    CrashingRequestError,
    LlamaClient,
    LLMChatParams,
    LLMProviderError,
    LLMResponse,
    RequestTimeoutError,
    SchemaViolationError,
    ToolSpec,
)
from runtime.engines.base import Endpoint, EngineCapabilities
from runtime.inference import wishes
from runtime.inference.clock import Clock, Limits, Pace
from runtime.inference.effects import (
    BrokenError,
    Emit,
    ExpiredError,
    HttpHead,
    Locate,
    Open,
    Pause,
    Read,
    UnreachableError,
)
from runtime.inference.flow import converse
from runtime.inference.incidents import Incidents
from runtime.inference.replay import Delivered, DivergedError, Replay
from runtime.inference.reply import Backend
from runtime.inference.sse import SseDecoder
from runtime.inference.stream import Answer
from runtime.inference.tools import toolbox
from tests.fakes.openai_server import (
    FakeServer,
    cuts_after,
    event,
    events_of,
    piece,
    refuses,
    says,
    streams,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from runtime import LLMDelta
    from runtime.inference.wishes import Wish

HEAD = HttpHead(status=200, headers={"content-type": "text/event-stream"})
ENDPOINT = Endpoint(
    base_url="http://127.0.0.1:1",
    api_key=None,
    kind="xllamacpp",
    model="m",
    capabilities=EngineCapabilities(tools=True),
    context_tokens=64,
    generation=1,
)
TOOL = ToolSpec(
    name="look_up",
    description="",
    input_schema={"type": "object", "properties": {"key": {"type": "string"}}},
    output_schema={},
)
TOOLS = toolbox([TOOL], None)
DIED = BrokenError("gone")


def wish_of(**params: Any) -> Wish:
    return wishes.from_chat("hi", model=None, params=LLMChatParams(**params))


class Engine:
    """Performs the effects of one conversation: an answer for each time it is asked.

    Each attempt is a list of packets, ended by an exception where it breaks off; each broken one is
    followed by a new process.
    """

    def __init__(
        self, *attempts: Sequence[Any], died_of: str | None = None, shortcuts: bool = True
    ) -> None:
        self.attempts = [list(each) for each in attempts]
        self.died_of = died_of
        self.shortcuts = shortcuts
        self.cut_short = 0
        self.bodies: list[dict[str, Any]] = []
        self.emitted: list[LLMDelta] = []
        self.now: list[Any] = []
        self.generation = 1

    def run(
        self,
        wish: Wish | None = None,
        *,
        emit: bool = True,
        backend: Backend | None = None,
        limits: Limits | None = None,
        endpoint: Endpoint = ENDPOINT,
    ) -> LLMResponse:
        backend = backend or Backend(name="n", config_hash="h")
        flow = converse(wish or wish_of(), limits or Limits(), backend, emit=emit)
        result: Any = None
        while True:
            try:
                raised = isinstance(result, Exception)
                effect = flow.throw(result) if raised else flow.send(result)
            except StopIteration as stop:
                done: LLMResponse = stop.value
                return done
            result = self.perform(effect, endpoint)

    def perform(self, effect: Any, endpoint: Endpoint) -> Any:
        match effect:
            case Locate():
                died_of = self.died_of if self.generation > 1 else None
                generation = self.generation if endpoint.generation else 0
                return replace(endpoint, generation=generation, predecessor_died_of=died_of)
            case Open(request=request):
                self.bodies.append(json.loads(request.body or b"{}"))
                self.now = self.attempts.pop(0)
                if isinstance(self.now[0], Exception):
                    self.generation += 1
                    return self.now[0]
                return HEAD
            case Read(shortcut=shortcut):
                if not self.now:
                    self.generation += 1
                    return b""
                got = self.now.pop(0)
                short = self.shortcuts and isinstance(got, bytes) and shortcut
                if short and (taken := short(got)):
                    self.cut_short += 1
                    self.emitted += taken.pieces
                    return self.perform(effect, endpoint)
                if isinstance(got, Exception):
                    self.generation += 1
                return got
            case Emit(item=item):
                self.emitted.append(item)
            case Pause():
                pass
        return None

    @property
    def text(self) -> str:
        return "".join(each.text_delta or "" for each in self.emitted)


def call_events(pieces: Sequence[str], call_id: str) -> list[bytes]:
    """A streamed tool call; the arguments in pieces."""
    head = {"index": 0, "id": call_id, "function": {"name": "look_up", "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": text}} for text in pieces]
    chunks = [piece({"tool_calls": [each]}) for each in (head, *rest)]
    return [*(event(chunk) for chunk in chunks), *events_of([], "tool_calls")[1:]]


# --- any cut, anywhere ------------------------------------------------------------------------

texts = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=8)


def packets(whole: bytes, cuts: list[int]) -> list[bytes]:
    """The bytes in packets, cut at these places."""
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[a:b] for a, b in pairwise(places)]


@settings(max_examples=150, deadline=None)
@given(
    pieces=texts,
    data=st.data(),
    cuts=st.lists(st.lists(st.integers(0, 5000), max_size=6), min_size=1, max_size=4),
    emit=st.booleans(),
    by_event=st.booleans(),
    shortcuts=st.booleans(),
)
def test_however_it_is_cut_the_caller_gets_the_undisturbed_answer(
    pieces: list[str],
    data: st.DataObject,
    cuts: list[list[int]],
    emit: bool,
    by_event: bool,
    shortcuts: bool,
) -> None:
    whole = b"".join(events_of(pieces))
    expected = Engine([whole]).run(emit=emit)
    attempts: list[list[Any]] = []
    for each in cuts:
        end = data.draw(st.integers(0, len(whole) - len(b"[DONE]\n\n")))
        attempts.append([*packets(whole[:end], each), data.draw(st.sampled_from([DIED, b""]))])
    last = events_of(pieces) if by_event else packets(whole, cuts[0])
    engine = Engine(*attempts, last, shortcuts=shortcuts)
    reply = engine.run(emit=emit, limits=Limits(max_retries=9))
    assert reply.text == "".join(pieces) == expected.text
    assert (reply.usage, reply.finish_reason) == (expected.usage, expected.finish_reason)
    if emit:
        assert engine.text == reply.text
        assert [each.usage_delta for each in engine.emitted if each.usage_delta] == [reply.usage]
    recovery: Any = (reply.raw or {})["recovery"]
    assert recovery["count"] == len(cuts)
    assert recovery["exact"]
    assert all(body == engine.bodies[0] for body in engine.bodies)  # the seed, too


@settings(max_examples=60, deadline=None)
@given(
    value=st.text(max_size=12),
    parts=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    ends=st.lists(st.integers(0, 5000), min_size=1, max_size=3),
)
def test_tool_calls_go_on_under_the_id_the_caller_knows(
    value: str, parts: list[int], ends: list[int]
) -> None:
    arguments = json.dumps({"key": value})
    pieces: list[str] = []
    rest = arguments
    for length in parts:
        pieces.append(rest[:length])
        rest = rest[length:]
    pieces = [each for each in (*pieces, rest) if each]
    attempts: list[list[Any]] = []
    for number, end in enumerate(ends):
        whole = b"".join(call_events(pieces, f"id{number}"))
        attempts.append([whole[: end % (len(whole) - len(b"[DONE]\n\n"))], DIED])
    engine = Engine(*attempts, [b"".join(call_events([arguments], "last"))])
    wish = replace(wish_of(), tools=TOOLS)
    reply = engine.run(wish, limits=Limits(max_retries=9))
    deltas = [each.tool_call_delta for each in engine.emitted if each.tool_call_delta]
    assert "".join(each.arguments_json_delta or "" for each in deltas) == arguments
    assert [each.name for each in deltas if each.name] == ["look_up"]
    assert {each.call_id for each in deltas} == {reply.tool_calls[0].call_id}
    assert reply.tool_calls[0].arguments_json == arguments
    raw: Any = reply.raw_output
    assert raw["choices"][0]["message"]["tool_calls"][0]["id"] == reply.tool_calls[0].call_id


@given(told=st.text(max_size=8), comes=st.text(max_size=8), at=st.integers(0, 8))
def test_a_replay_lets_through_what_is_new_or_nothing(told: str, comes: str, at: int) -> None:
    """By hand: the only texts that pass are those that begin with what was told."""
    answer = Answer()
    for data in SseDecoder().feed(b"".join(events_of([told])[:2])):
        answer.add_event(data)
    replay = Replay(Delivered.of(answer))
    fresh = Answer()
    passed = ""
    try:
        for part in (comes[:at], comes[at:]):
            for data in SseDecoder().feed(event(piece({"content": part}))):
                for delta in fresh.add_event(data):
                    new = replay.passing(delta)
                    passed += (new.text_delta or "") if new else ""
    except DivergedError:
        assert not comes.startswith(told)
        assert not told.startswith(comes)
        assert not passed
    else:
        assert comes.startswith(told) or told.startswith(comes)
        assert passed == comes[len(told) :]
        assert replay.caught_up == comes.startswith(told)


def test_text_before_a_call_that_was_begun_is_another_answer() -> None:
    """In the answer that was delivered the call came first."""
    call = call_events(['{"key"', ': "x"}'], "a")
    engine = Engine(
        [event(piece({"content": "Hm"})), *call[:2], DIED],
        *[[event(piece({"content": "Hm, well"})), *call]] * 2,
    )
    wish = replace(wish_of(), tools=TOOLS)
    with pytest.raises(ConnectionLostError, match="does not begin with what it had said"):
        engine.run(wish)
    assert engine.text == "Hm"


# --- where the engine says something else -----------------------------------------------------


@pytest.mark.parametrize("wish", [wish_of(), wish_of(response_schema={"type": "object"})])
def test_a_second_replay_may_be_the_same_answer_now_that_the_prompt_is_cached(wish: Wish) -> None:
    told, other = events_of(['{"a"', ": 1", "}"]), events_of(['{"b"', ": 1}"])
    engine = Engine([*told[:3], DIED], other, [*told[:4], DIED], other, told)
    reply = engine.run(wish)
    assert engine.text == reply.text == '{"a": 1}'
    raw: Any = reply.raw
    assert raw["recovery"]["exact"] is True
    assert {each["how"] for each in raw["recovery"]["interruptions"]} == {"replayed"}


def test_plain_text_is_continued_from_what_the_caller_has_and_marked() -> None:
    story = events_of(["Once", " upon", " a", " time"])
    other = events_of(["Twice"])
    engine = Engine([*story[:3], DIED], other, other, events_of([" in", " spring"]))
    reply = engine.run(wish_of(max_tokens=20, temperature=0.0))
    assert engine.text == reply.text == "Once upon in spring"
    *_, last = engine.bodies
    assert last["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    assert last["max_tokens"] == 18
    raw: Any = reply.raw
    assert raw["recovery"]["exact"] is False
    assert raw["recovery"]["interruptions"][0]["how"] == "continued"
    assert raw["recovery"]["interruptions"][0]["character"] == len("Once upon")
    usage: Any = reply.usage  # of the fake: 32 for the prompt, of which two are the answer's
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (30, 5, 35)


def test_what_is_continued_can_break_off_again() -> None:
    engine = Engine(
        [*events_of(["a", "b"])[:3], DIED],
        events_of(["x"]),
        events_of(["y"]),
        [*events_of(["c", "d"])[:2], DIED],
        events_of(["e"]),
    )
    reply = engine.run()
    assert engine.text == reply.text == "abce"
    assert engine.bodies[-1]["messages"][-1]["content"] == "abc"
    raw: Any = reply.raw
    assert [each["how"] for each in raw["recovery"]["interruptions"]] == ["continued"] * 2


def test_an_answer_that_ends_too_soon_is_another_one() -> None:
    short = events_of(["a"])
    engine = Engine([*events_of(["a", "b"])[:3], DIED], short, short, events_of(["c"]))
    assert engine.run().text == engine.text == "abc"


@pytest.mark.parametrize(
    "wish",
    [
        wish_of(response_schema={"type": "object"}),
        replace(wish_of(), tools=TOOLS),
        wish_of(provider_options={"grammar": 'root ::= "a"'}),
    ],
)
def test_what_a_grammar_steers_is_not_continued(wish: Wish) -> None:
    other = events_of(['{"b"', ": 1}"])
    engine = Engine([*events_of(['{"a"', ": 1"])[:3], DIED], other, other)
    with pytest.raises(ConnectionLostError) as caught:
        engine.run(wish)
    assert caught.value.partial_text == engine.text == '{"a": 1'


def test_other_servers_know_no_continuing() -> None:
    engine = Engine([*events_of(["a", "b"])[:3], DIED], events_of(["x"]), events_of(["x"]))
    with pytest.raises(ConnectionLostError) as caught:
        engine.run(endpoint=replace(ENDPOINT, kind="openai"))
    assert caught.value.partial_text == "ab"


# --- bounds -----------------------------------------------------------------------------------


def test_an_answer_that_gets_on_each_time_is_not_given_up() -> None:
    parts = list("abcdefgh")
    attempts = [[*events_of(parts)[: n + 1], DIED] for n in range(1, 8)]
    engine = Engine(*attempts, events_of(parts))
    assert engine.run(limits=Limits(max_retries=1)).text == engine.text == "abcdefgh"


@pytest.mark.parametrize("emit", [True, False])
@pytest.mark.parametrize("retries", [0, 1, 3])
def test_one_that_does_not_is_given_up_with_what_came(retries: int, emit: bool) -> None:
    engine = Engine(*[[*events_of(["a", "b"])[:3], DIED]] * 9)
    attached = replace(ENDPOINT, generation=0)
    with pytest.raises(ConnectionLostError, match="broke before") as caught:
        engine.run(limits=Limits(max_retries=retries), emit=emit, endpoint=attached)
    assert caught.value.partial_text == "ab"
    assert len(engine.bodies) == retries + 1
    assert engine.text == ("ab" if emit else "")


def test_a_managed_engine_has_a_bound_of_its_own() -> None:
    """What others do to it does not use up the retries of this request."""
    broken = [*events_of(["a", "b"])[:3], DIED]
    engine = Engine(*[broken] * 7, events_of(["a", "b", "c"]))
    reply = engine.run(limits=Limits(max_retries=1))
    assert reply.text == engine.text == "abc"
    raw: Any = reply.raw
    assert raw["recovery"]["count"] == 7
    with pytest.raises(ConnectionLostError):
        Engine(broken, events_of(["a"])).run(limits=Limits(max_retries=0))


def test_a_server_that_was_there_may_refuse_for_a_while() -> None:
    """A restart takes longer than a few tries."""
    refusal = [UnreachableError("refused")]
    engine = Engine([*events_of(["a"])[:2], DIED], *[refusal] * 20, events_of(["a", "b"]))
    reply = engine.run(endpoint=replace(ENDPOINT, generation=0), limits=Limits(max_retries=1))
    assert reply.text == "ab"
    raw: Any = reply.raw
    assert raw["resends"] == 21
    assert raw["recovery"]["count"] == 1


def test_a_managed_engine_that_does_not_come_back_is_an_error_with_what_came() -> None:
    class Gone(Engine):
        def perform(self, effect: Any, endpoint: Endpoint) -> Any:
            if isinstance(effect, Locate) and self.generation > 1:
                return LLMProviderError("It failed.", hint="h")
            return super().perform(effect, endpoint)

    engine = Gone([*events_of(["a", "b"])[:3], DIED])
    with pytest.raises(ConnectionLostError, match=r"did not come back: It failed\.") as caught:
        engine.run()
    assert caught.value.partial_text == "ab"


def test_a_new_seed_after_a_recovery_starts_anew() -> None:
    """What broke off belongs to the answer that was invalid, not to the next."""
    schema = {"type": "object", "required": ["x"]}
    engine = Engine(
        [*events_of(['{"y"'])[:2], DIED], events_of(['{"y": 1}']), events_of(['{"x": 1}'])
    )
    reply = engine.run(wish_of(response_schema=schema, temperature=0.5), emit=False)
    assert reply.text == '{"x": 1}'
    first, second, third = (body["seed"] for body in engine.bodies)
    assert first == second != third
    raw: Any = reply.raw
    assert (raw["attempts"], raw["resends"], raw["recovery"]["count"]) == (2, 1, 1)


def test_a_delivered_answer_that_is_invalid_stays_an_error() -> None:
    schema = {"type": "object", "required": ["x"]}
    engine = Engine([*events_of(['{"y"'])[:2], DIED], events_of(['{"y": 1}']))
    with pytest.raises(SchemaViolationError):
        engine.run(wish_of(response_schema=schema))
    assert engine.text == '{"y": 1}'


# --- who is to blame --------------------------------------------------------------------------


def test_a_request_alone_at_two_deaths_is_their_cause() -> None:
    attempts = [[*events_of(["a", "b"])[: n + 1], DIED] for n in (1, 2)]
    engine = Engine(*attempts, died_of="SIGSEGV")
    with pytest.raises(CrashingRequestError, match="died 2 times") as caught:
        engine.run(limits=Limits(max_retries=9))
    assert caught.value.endings == ("SIGSEGV", "SIGSEGV")
    assert caught.value.partial_text == "ab"


def test_an_engine_that_is_told_to_end_is_nobodys_fault() -> None:
    parts = list("abcde")
    engine = Engine(*[[*events_of(parts)[: n + 1], DIED] for n in range(1, 5)], events_of(parts))
    assert engine.run().text == "abcde"


def died_together(incidents: Incidents, generation: int, *requests: int) -> list[int]:
    """All of them reach the process, it dies, all of them learn it; who is blamed."""
    for request in requests:
        incidents.sent(request, generation)
    return [request for request in requests if incidents.died(request, generation, "SIGSEGV")]


def test_only_the_one_that_was_there_both_times_is_blamed() -> None:
    incidents = Incidents()
    culprit, *others = (incidents.enter() for _ in range(4))
    assert not died_together(incidents, 1, culprit, *others)
    for other in others:
        incidents.leave(other)  # answered, the second time
    late = incidents.enter()
    assert died_together(incidents, 2, late, culprit) == [culprit]
    assert incidents.may_send(late)


def test_where_several_were_there_twice_they_take_turns() -> None:
    incidents = Incidents()
    innocent, culprit, other = (incidents.enter() for _ in range(3))
    assert not died_together(incidents, 1, innocent, culprit, other)
    assert not died_together(incidents, 2, innocent, culprit, other)
    assert [incidents.may_send(each) for each in (innocent, culprit, other)] == [True, False, False]
    incidents.sent(innocent, 3)
    incidents.leave(innocent)
    fresh = incidents.enter()
    assert incidents.may_send(fresh), "whoever is not under suspicion need not wait"
    assert incidents.may_send(culprit)
    assert died_together(incidents, 3, culprit, fresh) == [culprit]
    incidents.leave(culprit)
    assert incidents.may_send(other)
    assert incidents.may_send(fresh)


def test_a_request_that_never_reached_the_process_was_not_there() -> None:
    incidents = Incidents()
    culprit, other = incidents.enter(), incidents.enter()
    for generation in (1, 2):
        incidents.sent(other, generation)
        incidents.never_reached(other, generation)
        blamed = died_together(incidents, generation, culprit)
    assert blamed == [culprit]


@given(seed=st.integers(0, 10**6), count=st.integers(2, 8), guilty=st.integers(0, 7))
def test_one_culprit_among_many_is_found_and_no_other(seed: int, count: int, guilty: int) -> None:
    """Requests end at random moments; the engine dies whenever the culprit is at work."""
    chance = random.Random(seed)
    incidents = Incidents()
    waiting = [incidents.enter() for _ in range(count)]
    culprit = waiting[guilty % count]
    blamed: list[int] = []
    for generation in range(1, 40):
        at_work = [each for each in waiting if incidents.may_send(each)]
        chance.shuffle(at_work)
        if culprit in at_work:
            blamed += died_together(incidents, generation, *at_work)
        for each in [*blamed, *(each for each in at_work if each != culprit)]:
            done = each in blamed or (culprit not in at_work and chance.random() < 0.5)
            if done and each in waiting:
                waiting.remove(each)
                incidents.leave(each)
        if not waiting:
            break
    assert blamed == [culprit]
    assert not waiting, "the others got through"
    assert not incidents._processes, "nothing is kept"


# --- over real sockets ------------------------------------------------------------------------


@pytest.fixture(params=["llama.cpp", "openai"])
def server(request: pytest.FixtureRequest) -> Iterator[FakeServer]:
    with FakeServer(llama_cpp=request.param == "llama.cpp") as running:
        yield running


def whole(client: LlamaClient) -> str:
    return client.chat("hi").text


def streamed(client: LlamaClient) -> str:
    return "".join(each.delta_text or "" for each in client.stream_chat("hi"))


@pytest.mark.parametrize("asked", [whole, streamed])
@pytest.mark.parametrize("kept", [40, 250, 600, 900])
def test_a_server_that_dies_at_any_byte_is_asked_again(
    server: FakeServer, asked: Callable[[LlamaClient], str], kept: int
) -> None:
    answer = b"".join(events_of(["I", "'m", " glad"]))
    with LlamaClient(base_url=server.url) as client:
        server.will(streams(answer[:kept], end=False), cuts_after("I"))
        assert asked(client) == "I'm glad"


def test_a_server_that_comes_back_and_loads_is_waited_for() -> None:
    loading = refuses(503, {"error": {"message": "Loading model", "code": 503}})
    with FakeServer() as server, LlamaClient(base_url=server.url) as client:
        server.will(cuts_after("I"), loading, loading, loading, says("I", " see"))
        assert streamed(client) == "I see"


# --- deadlines --------------------------------------------------------------------------------


def progress(done: int, total: int, ms: float = 0) -> bytes:
    told = {"total": total, "cache": 0, "processed": done, "time_ms": ms}
    return event({**piece({"role": "assistant", "content": None}), "prompt_progress": told})


@pytest.mark.parametrize(
    ("packets", "phase", "said"),
    [
        ([], "first_token", "no slot of the engine had taken it up"),
        ([progress(1200, 5000)], "first_token", "processing the prompt, 1,200 of 5,000 tokens"),
        ([progress(5000, 5000)], "first_token", "had processed the prompt of 5,000 tokens"),
        (events_of(["a", "b"])[:3], "stall", "had given 2 tokens"),
    ],
)
def test_a_deadline_says_what_the_engine_was_doing(
    packets: list[bytes], phase: str, said: str
) -> None:
    with pytest.raises(RequestTimeoutError, match=said) as caught:
        Engine([*packets, ExpiredError("late")]).run()
    assert caught.value.phase == phase
    assert said in str(caught.value.doing)


def test_an_engine_that_is_not_back_in_time_is_the_total_deadlines() -> None:
    """With what had come, and what was waited for."""
    late = RequestTimeoutError("The managed server is still starting.", phase="connect", after_s=1)

    class Gone(Engine):
        def perform(self, effect: Any, endpoint: Endpoint) -> Any:
            if isinstance(effect, Locate) and self.generation > 1:
                return late
            return super().perform(effect, endpoint)

    with pytest.raises(RequestTimeoutError) as caught:
        Gone([*events_of(["a", "b"])[:3], BrokenError("gone")]).run()
    assert (caught.value.phase, caught.value.partial_text) == ("total", "ab")
    assert caught.value.doing == "The managed server is still starting"


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda client: client.embed(["x"] * 70), "it had embedded 0 of 70 texts"),
        (lambda client: client.count_tokens("x"), "not answered to /tokenize"),
    ],
)
def test_a_deadline_says_what_was_asked(ask: Callable[[LlamaClient], object], said: str) -> None:
    with FakeServer() as server, LlamaClient(base_url=server.url, request_timeout_s=0.2) as client:
        server.stalling |= {"/v1/embeddings", "/tokenize"}
        with pytest.raises(RequestTimeoutError, match=said) as caught:
            ask(client)
        assert caught.value.phase == "total"
        assert said in str(caught.value.doing)


def test_progress_is_no_token() -> None:
    """The deadline of the first token is an instant that progress does not move."""
    limits = Limits(first_token_timeout_s=50)
    untils: list[float] = []

    class Watched(Engine):
        def perform(self, effect: Any, endpoint: Endpoint) -> Any:
            if isinstance(effect, Open | Read):
                untils.append(effect.until)
            return super().perform(effect, endpoint)

    Watched([progress(1, 9), progress(9, 9), *events_of(["a"])]).run(limits=limits)
    assert untils[0] == untils[1] == untils[2] == untils[3]


def test_a_long_prompt_is_given_the_time_that_it_takes_here() -> None:
    pace = Pace()
    pace.learn(tokens=10, seconds=60)  # too few to tell anything
    assert pace.seconds(1000) == 0
    pace.learn_from({"prompt_n": 1000, "prompt_ms": 20_000.0})
    assert pace.seconds(5000) == 100
    clock = Clock(Limits(first_token_timeout_s=50))
    clock.expect(pace.seconds(500))
    assert clock.until("first_token") - clock.now == pytest.approx(50, abs=1)
    clock.expect(pace.seconds(5000))
    assert clock.until("first_token") - clock.now == pytest.approx(400, abs=1)
    assert clock.until("stall") - clock.now == pytest.approx(120, abs=1)


def test_the_speed_of_this_very_prompt_counts_too() -> None:
    untils: list[float] = []

    class Watched(Engine):
        def perform(self, effect: Any, endpoint: Endpoint) -> Any:
            if isinstance(effect, Read):
                untils.append(effect.until)
            return super().perform(effect, endpoint)

    Watched([progress(512, 5120, ms=20_000), *events_of(["a"])]).run()
    assert untils[1] - untils[0] == pytest.approx(500, abs=1)  # 4 times 200 s instead of 300 s
