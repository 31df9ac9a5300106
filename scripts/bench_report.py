"""From the benchmark's samples to docs/benchmarks.md: medians, spreads, ratios."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

OURS: Final = "llama-runtime"
COLD: Final = "last turn, cold"

_HOW: Final = """\
Measured in {rounds}; in each all took their turns with the same requests, in changing order. A
figure is the median of the rounds, with the least and the greatest behind it; a ratio is the median
of the ratios within each round."""
_ALIKE: Final = """\
Tools are told in the prompt and called in plain JSON, and histories are fixed, so that every
competitor is asked exactly the same; no prompt comes twice. Sampling parameters are sent with every
request. What is asked by several at once is shorter."""
_WHOLE: Final = """\
All tokens of all answers by the time from the first request to the last answer's end: prompts and
waiting are in it."""
_DECODING: Final = "Tokens of an answer after its first, a second; the median answer."
_FIRST: Final = "Milliseconds from the request to the first text; the median answer."
_SIZES: Final = """\
The model's file is in the page cache. The engine's memory is its resident size, model and kept
prompts included; beside it are the keeper and the Python process that holds the client, or the
gateway, by their proportional sizes."""
_BARE: Final = """\
The same engine process with the same settings, asked directly over HTTP and through `LlamaClient`;
for the start, the engine's command by itself."""
_OTHER_WORDS: Final = """\
Engines compute a prompt in other pieces when more or less of it is cached, and other pieces may
round otherwise ([recovery](recovery.md)); JSON is held to its schema by another grammar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement of one competitor.

    Attributes:
        round: In which round; the samples of one round are neighbours in time.
        competitor: Whose.
        measure: A workload's name, ``"start"``, ``"memory"`` or ``"last turn, cold"``.
        at_once: Conversations side by side.
        values: What was measured, by name; the unit is in the name.
        digests: A digest of each answer's text, to see whether two said the same.
    """

    round: int
    competitor: str
    measure: str
    at_once: int = 1
    values: Mapping[str, float]
    digests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """All that a benchmark has found.

    Attributes:
        machine: Facts of the machine, by name.
        model: What was served.
        command: How to repeat it.
        competitors: What each is, by name, in the order of the tables.
        titles: What each workload is, by name, in the order of the tables.
        scale: Length of the workloads, 1 for the whole.
        samples: The measurements.
        failures: What went wrong, one sentence each.
        overhead: What the client adds to its engine.
    """

    machine: Mapping[str, str]
    model: str
    command: str
    competitors: Mapping[str, str]
    titles: Mapping[str, str]
    scale: float = 1.0
    samples: Sequence[Sample] = ()
    failures: Sequence[str] = ()
    overhead: Sequence[Overhead] = ()

    def series(self, competitor: str, measure: str, value: str, at_once: int = 1) -> Series:
        """One value of one measure, round by round."""
        return {
            each.round: each.values[value]
            for each in self.samples
            if (each.competitor, each.measure, each.at_once) == (competitor, measure, at_once)
            and value in each.values
        }

    def measures(self) -> list[tuple[str, int]]:
        """The workloads that were measured and how many conversations each, in order."""
        found = {(each.measure, each.at_once) for each in self.samples}
        return [
            (name, at_once)
            for name in self.titles
            for at_once in sorted(count for measure, count in found if measure == name)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """The same thing on our engine process asked directly and through our client.

    Attributes:
        ratio: Median of the ratios of neighbours.
    """

    name: str
    unit: str
    bare: float
    ours: float
    ratio: float


Series = dict[int, float]
"""Values by round."""


def middle(series: Series, unit: str = "", digits: int = 1) -> str:
    """Median and spread, fit for a table."""
    if not series:
        return "-"
    low, mid, high = min(series.values()), statistics.median(series.values()), max(series.values())
    if len(series) == 1:
        return f"{mid:.{digits}f}{unit}"
    return f"{mid:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(left: Series, right: Series) -> Series:
    """The ratios of neighbours: both sides of each were measured in one round."""
    return {number: left[number] / right[number] for number in left.keys() & right.keys()}


def markdown(recording: Recording) -> str:
    """The whole page."""
    rounds = len({each.round for each in recording.samples})
    parts = [
        "# Benchmarks",
        "<!-- Written by scripts/bench.py; change that, not this. -->",
        _HOW.format(rounds="one round" if rounds == 1 else f"{rounds} rounds"),
        _facts(recording),
        "![Tokens per second of each workload](benchmarks.svg)",
        "## Workloads",
        _workloads(recording),
        "## Tokens per second",
        _WHOLE,
        _speeds(recording),
        "### Ratio of llama-runtime to each",
        _speed_ratios(recording),
        "### While decoding",
        _DECODING,
        _table(recording, "decode_tokens_per_s"),
        "## First token",
        _FIRST,
        _table(recording, "first_token_s", 1000, 0),
        _last_turn(recording),
        "## Start and memory",
        _start_and_memory(recording),
        _overhead(recording),
        _sameness(recording),
        _failures(recording),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(recording: Recording) -> str:
    lines = [f"- {name}: {value}" for name, value in recording.machine.items()]
    lines.append(f"- model: {recording.model}")
    lines += [f"- **{name}**: {what}" for name, what in recording.competitors.items()]
    lines.append(f"- to repeat it: `{recording.command}`")
    return "\n".join(lines)


def _workloads(recording: Recording) -> str:
    lines = [f"- **{name}**: {title}" for name, title in recording.titles.items()]
    scaled = f" Lengths are {recording.scale:g} of those named." if recording.scale != 1 else ""
    return "\n".join(lines) + f"\n\n{_ALIKE}{scaled}"


def _rows(recording: Recording, names: Sequence[str], cell: Callable[[str, str, int], str]) -> str:
    lines = [_row("", names), _row("---", ("---:" for _ in names))]
    for measure, at_once in recording.measures():
        name = measure if at_once == 1 else f"{measure}, {at_once} at once"
        lines.append(_row(name, (cell(each, measure, at_once) for each in names)))
    return "\n".join(lines)


def _row(head: str, cells: Iterable[str]) -> str:
    return f"| {' | '.join((head, *cells))} |"


def _table(recording: Recording, value: str, factor: float = 1, digits: int = 1) -> str:
    def cell(competitor: str, measure: str, at_once: int) -> str:
        found = recording.series(competitor, measure, value, at_once)
        return middle({number: each * factor for number, each in found.items()}, digits=digits)

    return _rows(recording, list(recording.competitors), cell)


def _speeds(recording: Recording) -> str:
    return _table(recording, "tokens_per_s")


def speed_ratio(recording: Recording, competitor: str, measure: str, at_once: int) -> Series:
    """How many times as fast as a competitor we were, round by round."""
    own = recording.series(OURS, measure, "tokens_per_s", at_once)
    return ratios(own, recording.series(competitor, measure, "tokens_per_s", at_once))


def _speed_ratios(recording: Recording) -> str:
    others = [name for name in recording.competitors if name != OURS]
    return _rows(
        recording,
        others,
        lambda name, measure, at_once: middle(
            speed_ratio(recording, name, measure, at_once), digits=2
        ),
    )


def _last_turn(recording: Recording) -> str:
    """The last turn of the loop against a prompt of its length that no cache knows."""
    lines = []
    for name in recording.competitors:
        warm = recording.series(name, "agent-loop", "last_first_token_s")
        cold = recording.series(name, COLD, "first_token_s")
        kept = recording.series(name, "agent-loop", "cached_share")
        if share := ratios(warm, cold):
            lines.append(
                _row(
                    name,
                    (
                        middle({n: 1000 * each for n, each in warm.items()}, digits=0),
                        middle({n: 1000 * each for n, each in cold.items()}, digits=0),
                        middle({n: 100 * each for n, each in share.items()}, " %"),
                        middle({n: 100 * each for n, each in kept.items()}, " %"),
                    ),
                )
            )
    if not lines:
        return ""
    titles = ("first token, ms", "the same cold, ms", "share", "prompts of the loop from the cache")
    head = _row("last turn of agent-loop", titles)
    return "\n".join([head, _row("---", ["---:"] * len(titles)), *lines])


def _start_and_memory(recording: Recording) -> str:
    names = list(recording.competitors)
    rows = [
        ("start to ready, ms", "start", "ready_s", 1000.0),
        ("start to first token, ms", "start", "first_token_s", 1000.0),
        ("engine after the workloads, MiB", "memory", "engine_bytes", 2.0**-20),
        ("beside the engine, MiB", "memory", "beside_bytes", 2.0**-20),
    ]
    lines = [_row("", names), _row("---", ("---:" for _ in names))]
    for title, measure, value, factor in rows:
        found = (recording.series(name, measure, value) for name in names)
        cells = (middle({n: v * factor for n, v in each.items()}, digits=0) for each in found)
        lines.append(_row(title, cells))
    return "\n".join(lines) + f"\n\n{_SIZES}"


def _overhead(recording: Recording) -> str:
    if not recording.overhead:
        return ""
    head = _row("", ("bare", "through the client", "ratio"))
    lines = [
        _row(
            f"{each.name}, {each.unit}",
            (f"{each.bare:.1f}", f"{each.ours:.1f}", f"{each.ratio:.3f}"),
        )
        for each in recording.overhead
    ]
    table = [head, _row("---", ["---:"] * 3), *lines]
    return "\n".join(["## What the client adds", "", _BARE, "", *table])


def _sameness(recording: Recording) -> str:
    """How many answers were, letter for letter, those of the others."""
    said = {
        (each.round, each.competitor, each.measure, each.at_once): each.digests
        for each in recording.samples
    }
    lines = []
    for name in recording.competitors:
        pairs = [
            (own, other)
            for (number, who, measure, at_once), digests in said.items()
            if who == OURS and name != OURS
            for own, other in zip(
                digests, said.get((number, name, measure, at_once), ()), strict=False
            )
        ]
        if pairs:
            same = sum(own == other for own, other in pairs)
            lines.append(f"{same} of {len(pairs)} as with {name}")
    if not lines:
        return ""
    return f"Answers that were the same to the letter: {'; '.join(lines)}.\n{_OTHER_WORDS}"


def _failures(recording: Recording) -> str:
    if not recording.failures:
        return ""
    return "## What failed\n\n" + "\n".join(f"- {each}" for each in recording.failures)
