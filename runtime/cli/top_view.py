"""What `top` shows: a gateway's snapshot as lines for a terminal of any width."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from runtime.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

WIDE: Final = 96
"""Columns from which models are a table; on narrower terminals each takes a few lines."""

_BARS: Final = "▁▂▃▄▅▆▇█"
_RECENT_S: Final = 3
_PLOT_S: Final = 120
_ERRORS: Final = 3
_COLOURS: Final = {"ready": "green", "failed": "red", "stopped": "dim", "unloaded": "dim"}


def picture(snapshot: Mapping[str, Any], *, width: int, now: datetime | None = None) -> Group:
    """A gateway's snapshot for a terminal of ``width`` columns.

    What is missing is shown as unknown: the gateway may be of another version. Names and messages
    are stripped of what a terminal would take for commands.
    """
    gateway = _mapping(snapshot.get("gateway"))
    models = [_mapping(each) for each in snapshot.get("models") or ()]
    parts: list[RenderableType] = [
        _head(gateway, now or datetime.now(UTC)),
        _traffic(gateway, models),
    ]
    rates = _rates(gateway)
    if any(rates[-_PLOT_S:]):
        parts.append(_plot(rates, width))
    parts += ["", _table(models) if width >= WIDE else Group(*map(_lines, models))]
    if errors := _errors(gateway.get("errors")):
        parts += ["", Text("Last errors", style="bold"), *errors]
    return Group(*parts)


def clean(text: object) -> str:
    """A text without control characters, which could move the cursor or worse."""
    return "".join(each if each.isprintable() else " " for each in str(text)).strip()


def _head(gateway: Mapping[str, Any], now: datetime) -> Text:
    line = Text("llama-runtime", style="bold")
    line.append(f" {clean(gateway.get('version', ''))}", style="dim")
    line.append(f"  {clean(gateway.get('address', ''))}", style="not bold")
    up = _since(gateway.get("started_at"), now)
    line.append(f"  up {up}" if up else "", style="dim not bold")
    return line


def _traffic(gateway: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> Text:
    recent = _rates(gateway)[-_RECENT_S:]
    busy, total = _sum(models, _busy), _sum(models, _slots)
    line = Text(f"{sum(recent) / max(1, len(recent)):.0f} tokens/s", style="bold")
    rest = (
        f"{busy} of {total} slots busy",
        f"{_sum(models, _waiting)} waiting",
        f"{gateway.get('requests', '?')} requests",
        output.size(_sum(models, _rss)),
    )
    return line.append("".join(f" · {clean(each)}" for each in rest), style="not bold")


def _plot(rates: Sequence[float], width: int) -> Text:
    """One character for each second, or for several where the terminal is narrow."""
    recent = list(rates[-_PLOT_S:])
    label = f" {len(recent)} s, highest {max(recent):.0f}"
    each = max(1, -(-len(recent) // max(8, width - len(label))))
    chunks = [recent[max(0, end - each) : end] for end in range(len(recent), 0, -each)][::-1]
    means = [sum(chunk) / len(chunk) for chunk in chunks]
    top = max(*means, 1.0)
    bars = "".join(_BARS[round(mean / top * (len(_BARS) - 1))] for mean in means)
    return Text(bars, style="cyan", no_wrap=True).append(label, style="dim")


def _table(models: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("model", overflow="ellipsis", no_wrap=True, max_width=32)
    table.add_column("state", no_wrap=True)
    for name in ("slots", "waiting", "memory", "context", "tokens/s", "answers", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("restarts", justify="right", no_wrap=True)
    for model in models:
        server, counters = _server(model), _mapping(model.get("counters"))
        table.add_row(
            Text(clean(model.get("name"))),
            _state(model),
            f"{_known(_busy(model))}/{_known(_slots(model))}" if server else "-",
            _known(_waiting(model)) if server else "-",
            _memory(model) if server else "-",
            _known(_mapping(server.get("context")).get("actual")),
            _rate(server),
            _known(counters.get("answered")),
            _known(counters.get("failed")),
            _known(server.get("restarts")),
        )
    return table


def _lines(model: Mapping[str, Any]) -> Text:
    """One model on a narrow terminal."""
    text = Text(clean(model.get("name")), style="bold")
    text.append("  ").append_text(_state(model))
    server = _server(model)
    if not server:
        return text
    facts = (
        f"{_known(_busy(model))} of {_known(_slots(model))} slots",
        f"{_known(_waiting(model))} waiting",
        _memory(model),
        f"{_rate(server)} tokens/s",
        f"restarts: {_known(server.get('restarts'))}",
    )
    return text.append("\n  " + " · ".join(facts), style="not bold")


def _errors(errors: object) -> list[Text]:
    found = [_mapping(error) for error in errors] if isinstance(errors, list) else []
    found.sort(key=lambda error: str(error.get("at", "")), reverse=True)
    lines = []
    for error in found[:_ERRORS]:
        at = _instant(error.get("at"))
        line = Text(at.astimezone().strftime("%H:%M:%S ") if at else "", style="dim")
        line.append(clean(error.get("message", "")), style="not dim")
        if error.get("hint"):
            line.append(f"\n  → {clean(error['hint'])}", style="dim")
        lines.append(line)
    return lines


def _state(model: Mapping[str, Any]) -> Text:
    state = clean(model.get("state") or _server(model).get("state") or "unknown")
    return Text(state, style=_COLOURS.get(state, "yellow"))


def _rates(gateway: Mapping[str, Any]) -> list[float]:
    tokens = _mapping(gateway.get("history")).get("tokens")
    return [float(each) for each in tokens] if isinstance(tokens, list) else []


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _server(model: Mapping[str, Any]) -> Mapping[str, Any]:
    return _mapping(model.get("snapshot"))


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _busy(model: Mapping[str, Any]) -> int | None:
    return _whole(_mapping(_server(model).get("slots")).get("busy"))


def _slots(model: Mapping[str, Any]) -> int | None:
    return _whole(_mapping(_server(model).get("slots")).get("total"))


def _rss(model: Mapping[str, Any]) -> int | None:
    return _whole(_mapping(_server(model).get("memory")).get("rss_bytes"))


def _memory(model: Mapping[str, Any]) -> str:
    """The engine's memory, and how its standby is where there is one."""
    size, standby = output.size(_rss(model)), _mapping(_server(model).get("standby"))
    if not standby.get("wanted"):
        return size
    held = _whole(standby.get("rss_bytes"))
    state = clean(standby.get("state"))
    return f"{size} + standby {state if held is None else output.size(held)}"


def _waiting(model: Mapping[str, Any]) -> int | None:
    return _whole(_mapping(model.get("queue")).get("waiting"))


def _sum(models: Sequence[Mapping[str, Any]], of: Callable[[Mapping[str, Any]], int | None]) -> int:
    return sum(of(model) or 0 for model in models)


def _known(value: object) -> str:
    return "-" if value is None else clean(value)


def _rate(server: Mapping[str, Any]) -> str:
    speed = _mapping(server.get("speed")).get("generated_tokens_per_s")
    return f"{speed:.0f}" if isinstance(speed, int | float) else "-"


def _instant(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        return None


def _since(value: object, now: datetime) -> str:
    """How long ago an instant is, in two units at most."""
    began = _instant(value)
    if began is None or began.tzinfo is None:
        return ""
    seconds = max(0, int((now - began).total_seconds()))
    for unit, size, lesser, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {lesser}"
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
