"""What ``tune`` shows: how it goes, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runtime.server.tuning_profile import KeptProfile
    from runtime.tuning.contest import Progress, Standing

_WORDS: Final = {
    "waiting": "waits",
    "in": "measured",
    "refused": "refused",
    "out": "left",
    "final": "measured to the end",
    "taken": "taken",
}
_COLOURS: Final = {"refused": "red", "out": "dim", "taken": "green", "final": "bold"}


def picture(now: Progress) -> Group:
    """How a search goes, for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("tried", no_wrap=True)
    table.add_column("gain", justify="right", no_wrap=True)
    table.add_column("rounds", justify="right", no_wrap=True)
    table.add_column("")
    for each in now.standings:
        here = each.candidate.name == now.at
        table.add_row(
            Text(each.candidate.name, style="bold cyan" if here else ""),
            _gain(each),
            str(each.rounds or ""),
            Text(_result(each), style=_COLOURS.get(each.state, "")),
        )
    head = Text(f"{now.stage}: {now.at}", style="bold")
    head.append(f"  {now.elapsed_s:.0f} of {now.budget_s:.0f} s", style="not bold dim")
    return Group(head, table)


def in_a_line(now: Progress) -> str:
    """The same for a log."""
    gains = [each for each in now.standings if each.gain is not None and each.state != "refused"]
    best = max(gains, key=lambda each: each.gain or 0.0, default=None)
    told = f"; so far {best.candidate.name} {_gain(best)}" if best else ""
    return f"{now.elapsed_s:.0f} of {now.budget_s:.0f} s, {now.stage}: {now.at}{told}"


def rows(standings: Sequence[Standing]) -> list[tuple[str, ...]]:
    """All that was tried, for a table of results."""
    return [
        (each.candidate.name, _gain(each) or "-", str(each.rounds), _result(each))
        for each in standings
    ]


def explained(profile: KeptProfile) -> Iterator[str]:
    """A kept profile, line by line."""
    key = profile.key
    settings = ", ".join(f"{name}={value}" for name, value in profile.settings.items())
    yield f"taken     {settings or 'the defaults'}"
    yield f"because   {profile.summary}"
    yield f"measured  {profile.tuned_at}, llama-runtime {profile.runtime_version}"
    yield f"engine    {key.engine} {key.engine_version}"
    yield f"machine   {json.dumps(key.hardware)}"
    yield f"given     {json.dumps(key.fixed)}"
    for row in _mappings(profile.evidence.get("tried")):
        yield f"tried     {_row(row)}"


def _row(row: Mapping[str, Any]) -> str:
    gain = row.get("gain")
    told = f"{gain:+.1%} in {row.get('rounds')} rounds, " if isinstance(gain, float) else ""
    text = f"{row.get('name')}: {told}{_WORDS.get(str(row.get('state')), '?')}"
    if row.get("note"):
        text += f" ({row['note']})"
    workloads = row.get("by_workload")
    if isinstance(workloads, Mapping) and workloads:
        text += "; " + ", ".join(f"{name} {gain:+.0%}" for name, gain in workloads.items())
    return text


def _result(each: Standing) -> str:
    word = _WORDS[each.state]
    return f"{word}: {each.note}" if each.note else word


def _gain(each: Standing) -> str:
    return "" if each.gain is None else f"{each.gain:+.1%}"


def _mappings(value: object) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        return []
    return [each for each in value if isinstance(each, Mapping)]
