"""The search for faster settings, on a machine that is made up: what is measured, what is taken."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import LLMProviderError
from runtime.server.performance import Profile, choose_performance
from runtime.settings import ServerConfig
from runtime.store.gguf import WeightSizes
from runtime.tuning.candidates import DEFAULT, Candidate, candidates, combined, permitted
from runtime.tuning.contest import Measured, Progress
from runtime.tuning.sameness import Fingerprint, difference
from runtime.tuning.search import search
from tests.unit.some_cpu import budget
from tests.unit.some_model import model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.engines.base import EngineKind
    from runtime.tuning.candidates import Changes
    from runtime.tuning.contest import Outcome, Standing

_WEIGHTS = {"free": 1.0, "loop": 1.0}
_SAME = Fingerprint(texts=("yes",))


def _candidate(name: str, dimension: str = "one") -> Candidate:
    return Candidate(name=name, dimension=dimension, settings={name: 1})


@dataclass
class _Machine:
    """An arena without engines: settings have speeds, and its clock is moved by the work.

    Attributes:
        speeds: How fast each setting is, by name of the setting; several multiply.
        broken: Candidates that do not start.
        dying: Candidates that die in a round.
        other: Candidates that answer otherwise: in the probes, or in a round.
    """

    speeds: Mapping[str, float]
    spread: float = 0.01
    seed: int = 1
    broken: frozenset[str] = frozenset()
    dying: frozenset[str] = frozenset()
    other_probes: frozenset[str] = frozenset()
    other_texts: frozenset[str] = frozenset()
    now_s: float = 0.0
    rounds: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    def clock(self) -> float:
        return self.now_s

    def calibrate(self, round_s: float) -> float:
        self._round_s = round_s
        self.now_s += round_s
        return round_s

    def fingerprint(
        self, candidate: Candidate, reference: Fingerprint | None = None
    ) -> Fingerprint:
        self.now_s += 1.0
        self.dropped = [name for name in self.dropped if name != candidate.name]  # it starts anew
        if candidate.name in self.broken:
            raise LLMProviderError("The engine did not come up.")
        return Fingerprint(texts=("no",)) if candidate.name in self.other_probes else _SAME

    def measure(self, candidate: Candidate, number: int) -> Measured:
        if candidate.name in self.dying:
            raise LLMProviderError("The engine died.")
        assert candidate.name not in self.dropped
        self.rounds[candidate.name] = self.rounds.get(candidate.name, 0) + 1
        speed = math.prod(self.speeds.get(name, 1.0) for name in candidate.settings)
        seconds = {name: math.exp(self._dice.gauss(0, self.spread)) / speed for name in _WEIGHTS}
        self.now_s += self._round_s / speed
        text = "other" if candidate.name in self.other_texts else f"text {number}"
        return Measured(seconds=seconds, texts={"free": text})

    def drop(self, candidate: Candidate) -> None:
        self.dropped.append(candidate.name)


def _search(
    machine: _Machine,
    *tried: Candidate,
    kept: Candidate | None = None,
    same_answers: bool = True,
    budget_s: float = 240.0,
    seen: list[Progress] | None = None,
) -> Outcome:
    return search(
        machine,
        tried,
        weights=_WEIGHTS,
        budget_s=budget_s,
        kept=kept,
        same_answers=same_answers,
        on_progress=(seen if seen is not None else []).append,
        clock=machine.clock,
    )


def _standing(outcome: Outcome, name: str) -> Standing:
    return next(each for each in outcome.standings if each.candidate.name == name)


A, B, C = _candidate("a"), _candidate("b"), _candidate("c", "two")


def test_what_is_faster_is_taken_and_said_how_sure() -> None:
    outcome = _search(_Machine({"a": 1.2}), A, B, C)

    assert outcome.taken == A
    assert outcome.estimates["a"].gain == pytest.approx(0.2, abs=0.03)
    assert outcome.summary.startswith("a: 20% faster than the defaults, 99% sure of +")
    assert _standing(outcome, "a").state == "taken"
    assert outcome.by_workload["a"]["loop"] == pytest.approx(0.2, abs=0.03)


def test_the_best_of_each_dimension_go_together() -> None:
    outcome = _search(_Machine({"a": 1.2, "b": 1.1, "c": 1.15}), A, B, C)

    assert outcome.taken.settings == {"a": 1, "c": 1}
    assert outcome.estimates["a + c"].gain == pytest.approx(0.38, abs=0.04)


def test_the_decision_rests_on_rounds_of_its_own() -> None:
    """Those in which it was picked do not count again."""
    machine = _Machine({"a": 1.2})

    outcome = _search(machine, A, B, C)

    assert outcome.estimates["a"].rounds < machine.rounds["a"]


def test_noise_does_not_choose() -> None:
    """Of forty searches among equals, at most two leave the default."""
    left = [
        seed
        for seed in range(40)
        if _search(_Machine({}, spread=0.08, seed=seed), A, B, C).taken is not DEFAULT
    ]

    assert len(left) <= 2


def test_nothing_faster_is_said_with_the_nearest() -> None:
    outcome = _search(_Machine({"a": 1.01, "b": 0.97, "c": 0.96}), A, B, C)

    assert outcome.taken is DEFAULT
    assert outcome.summary.startswith("the defaults: nothing else is 3% faster (the next is a: +1%")


def test_too_little_time_is_no_reason_to_choose() -> None:
    outcome = _search(_Machine({"a": 1.05}, spread=0.2), A, budget_s=12.0)

    assert outcome.taken is DEFAULT
    assert "more minutes would tell" in outcome.summary


def test_the_time_is_kept() -> None:
    machine = _Machine({"a": 1.04}, spread=0.5)

    outcome = _search(machine, A, B, C, budget_s=100.0)

    assert outcome.elapsed_s <= 105.0


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ({"broken": frozenset("a")}, "does not work: The engine did not come up."),
        ({"dying": frozenset("a")}, "failed: The engine died."),
        ({"other_probes": frozenset("a")}, "gives other answers"),
        ({"other_texts": frozenset("a")}, "gave another text"),
    ],
)
def test_what_fails_or_answers_otherwise_is_refused(trouble: dict[str, Any], said: str) -> None:
    machine = _Machine({"a": 3.0, "b": 1.1}, **trouble)

    outcome = _search(machine, A, B)

    assert outcome.taken == B
    assert _standing(outcome, "a").state == "refused"
    assert _standing(outcome, "a").note == said
    assert "a" in machine.dropped


def test_all_refused_is_the_default() -> None:
    outcome = _search(_Machine({}, broken=frozenset("ab")), A, B)

    assert outcome.taken is DEFAULT
    assert outcome.summary == "the defaults: all else was no better (2 refused)"


def test_nothing_to_try_is_the_default() -> None:
    assert _search(_Machine({})).taken is DEFAULT


def test_a_default_that_fails_is_an_error() -> None:
    with pytest.raises(LLMProviderError, match="died"):
        _search(_Machine({}, dying=frozenset({"default"})), A)


def test_other_answers_are_taken_where_they_are_allowed() -> None:
    machine = _Machine({"a": 1.3}, other_probes=frozenset("a"), other_texts=frozenset("a"))

    assert _search(machine, A, same_answers=False).taken == A


def test_what_was_kept_stays_among_equals() -> None:
    """The second tuning finds both as fast: it has no reason to change its mind."""
    for seed in range(10):
        machine = _Machine({"a": 1.2, "b": 1.205}, spread=0.03, seed=seed)
        again = replace(B, name="as before", dimension="all")

        assert _search(machine, A, B, kept=again).taken.settings == B.settings


def test_what_was_kept_gives_way_to_what_is_certainly_faster() -> None:
    machine = _Machine({"a": 1.5, "b": 1.1})

    assert _search(machine, A, B, kept=replace(B, name="as before")).taken == A


def test_what_was_kept_goes_when_it_is_not_faster_any_more() -> None:
    machine = _Machine({"b": 1.0})

    outcome = _search(machine, A, B, kept=replace(B, name="as before"))

    assert outcome.taken is DEFAULT


def test_what_was_kept_and_is_no_candidate_any_more_is_measured_too() -> None:
    machine = _Machine({"a": 1.1, "old": 1.3})
    old = Candidate(name="as before", dimension="all", settings={"old": 1})

    assert _search(machine, A, kept=old).taken == old


def test_tuning_twice_gives_the_same() -> None:
    """Also on another day, with other noise and nothing kept: equals are left to the simplest."""
    for seed in range(12):
        speeds = {"a": 1.25, "b": 1.255, "c": 0.99}
        first = _search(_Machine(speeds, spread=0.02, seed=seed), A, B, C)
        again = _search(_Machine(speeds, spread=0.02, seed=seed + 99), A, B, C, kept=first.taken)

        assert again.taken.settings == first.taken.settings


def test_another_choice_among_equals_is_said() -> None:
    """With nothing kept, noise may choose between equals, but not without a word."""
    speeds = {"a": 1.2, "b": 1.205}
    took = {}
    for seed in range(12):
        outcome = _search(_Machine(speeds, spread=0.05, seed=seed), A, B)
        took[outcome.taken.name] = outcome.summary

    assert took["a"].endswith("; no certain difference to b")
    assert took["b"].endswith("; no certain difference to a")


def test_what_is_not_as_before_is_said_with_what_became_of_it() -> None:
    outcome = _search(_Machine({"a": 1.5, "b": 1.1}), A, B, kept=replace(B, name="kept"))

    assert outcome.taken == A
    assert "; before it was b (now +1" in outcome.summary


def test_what_was_kept_is_compared_again_before_it_comes_back() -> None:
    """The time may be too short to compare all answers, but not to compare its."""
    many = [_candidate(f"a{n}") for n in range(12)]
    machine = _Machine({}, other_probes=frozenset({"a11"}))

    outcome = _search(machine, *many, kept=replace(many[-1], name="kept"), budget_s=8.0)

    assert _standing(outcome, "a11").state == "refused"


def test_each_dimension_has_its_turn_when_the_time_is_short() -> None:
    outcome = _search(_Machine({"c": 1.3}), *map(_candidate, "abdefgh"), C, budget_s=26.0)

    assert outcome.taken == C
    assert "not tried" in _standing(outcome, "h").note


def test_progress_is_told() -> None:
    seen: list[Progress] = []

    _search(_Machine({"a": 1.2}), A, B, seen=seen)

    stages = list(dict.fromkeys(each.stage for each in seen))
    assert stages == ["comparing answers", "screening", "deciding", "done"]
    assert all(later.elapsed_s >= sooner.elapsed_s for sooner, later in itertools.pairwise(seen))


# --- sameness -------------------------------------------------------------------------------


def test_numbers_tell_what_texts_hide() -> None:
    one = Fingerprint(texts=("yes",), numbers=((((1, -0.5), (2, -1.5)), ((3, -0.1),)),))
    other = replace(one, numbers=((((1, -0.5), (2, -1.5)), ((3, -0.10001),)),))

    assert difference(one, one) is None
    assert "rounds otherwise" in (difference(one, other) or "")
    assert difference(one, replace(one, texts=("no",))) == "gives other answers"


def test_drafted_tokens_have_no_numbers_to_compare() -> None:
    one = Fingerprint(texts=("yes",), numbers=((((1, -0.5),), ((3, -0.1),)),))

    assert difference(one, replace(one, numbers=(((), ((3, -0.1),)),))) is None
    assert difference(one, replace(one, numbers=(((), ((3, -0.2),)),))) is not None
    assert difference(one, replace(one, numbers=())) is None


# --- candidates -----------------------------------------------------------------------------

_BUDGET = budget(8)
_EXACT = WeightSizes(
    layers=(1,), input=1, output=0, matrices={"Q8_0": 1}, embedding={"Q8_0": 1}, tied_output=True
)


def _candidates(
    *,
    engine: EngineKind = "xllamacpp",
    slot_ctx: int = 4096,
    draft: str | None = None,
    allow: Changes = "rounding",
    **settings: Any,
) -> set[str]:
    config = ServerConfig(**settings)
    facts = model(weights=_EXACT)
    default = choose_performance(
        config,
        facts,
        engine,
        budget=_BUDGET,
        on_gpu=False,
        profile=Profile(),
    )
    found = candidates(
        config,
        engine,
        budget=_BUDGET,
        default=default,
        slot_ctx=slot_ctx,
        draft=draft,
    )
    return {each.name for each in permitted(found, allow)}


@pytest.fixture
def _threads_are_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_RUNTIME_THREADS")


@pytest.mark.usefixtures("_threads_are_left_open")
def test_everything_that_is_open_is_tried() -> None:
    found = _candidates()

    assert {"threads 16", "threads 7", "threads 4", "threads 8, 16 for prompts"} <= found
    assert {"batch 256", "batch 1024", "batch 2048", "no flash attention"} <= found
    assert "speculation ngram-mod" in found


def test_what_is_set_is_not_tried() -> None:
    found = _candidates(threads=3, batch_size=128, flash_attn="on", speculation="off")

    assert found == set()


@pytest.mark.usefixtures("_threads_are_left_open")
def test_only_what_keeps_answers_is_tried_unless_more_is_allowed() -> None:
    """What one token alone rounds otherwise than several decides, and the kernel for 64."""
    exact = _candidates(allow="none", cache_type_k="q8_0")
    assert {"batch 256", "speculation ngram-mod", "threads 7"} <= exact
    assert "no flash attention" not in exact

    f16 = _candidates(allow="none")
    assert {each.split()[0] for each in f16} == {"threads"}, "which the numbers will refuse"
    alone = _candidates(allow="none", threads=1)
    assert {each.split()[0] for each in alone} == {"speculation"}
    assert _candidates(allow="none", threads=1, flash_attn="off") == set()


@pytest.mark.usefixtures("_threads_are_left_open")
def test_an_engine_without_numbers_is_trusted_with_threads_alone() -> None:
    """Its attention is the plain one, which shares no sum among threads."""
    found = _candidates(engine="llama-cpp-python", allow="none")

    assert {each.split()[0] for each in found} == {"threads"}
    assert not _candidates(engine="llama-cpp-python", allow="none", flash_attn="on")
    allowed = _candidates(engine="llama-cpp-python")
    assert {"flash attention", "batch 256"} <= allowed


def test_a_batch_that_no_prompt_fills_is_not_tried() -> None:
    assert "batch 2048" not in _candidates(slot_ctx=1024)


def test_an_engine_that_cannot_speculate_is_not_asked_to() -> None:
    assert not {name for name in _candidates(engine="llama-cpp-python") if "speculation" in name}


def test_the_draft_model_is_one_way_of_speculating() -> None:
    found = _candidates(draft="small", draft_model="auto")

    assert {"draft model small", "speculation ngram-mod"} <= found
    assert not {name for name in _candidates(draft_model="mine") if "spec" in name}


def test_a_quantized_cache_needs_flash_attention() -> None:
    assert "no flash attention" not in _candidates(cache_type_v="q8_0")


def test_parts_are_put_together() -> None:
    both = combined((A, replace(C, changes="rounding")))

    assert both.settings == {"a": 1, "c": 1}
    assert both.changes == "rounding"
    assert combined((A,)) is A
