"""The commands about what runs: ps and stop."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import psutil

from runtime.cli import output
from runtime.cli.selection import groups, pick
from runtime.errors import LLMInvalidRequestError, LLMProviderError
from runtime.server import registry

if TYPE_CHECKING:
    from runtime.server.registry import ServerRecord

STOP_PATIENCE_S = 15.0
_KINDS = {"serve": "gateway", "engine": "engine", "client": "program"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def ps(*, as_json: bool) -> None:
    """Show the gateways, engines and programs with engines that run here.

    \b
    NAME, MODEL, PID and the port of URL each name a server to `stop` and `logs`.
    An engine without a gateway belongs to a program, and ends with it.

    \b
      llama-runtime ps
      llama-runtime ps --json | jq -r '.[].base_url'
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    records = [record for group in groups(registry.running(everything=True)) for record in group]
    if as_json:
        output.result_json([_facts(record) for record in records])
    elif records:
        columns = ("KIND", "NAME", "MODEL", "STATE", "URL", "PID", "MEMORY", "UP")
        output.table(columns, [_row(record) for record in records])
    else:
        output.note("No managed server runs. `llama-runtime serve` starts one.")


def _facts(record: ServerRecord) -> dict[str, object]:
    pid = _pid(record)
    return {
        **dataclasses.asdict(record),
        "kind": _KINDS.get(record.role, record.role),
        "pid": pid,
        "resident_bytes": _resident_bytes(pid),
        "standby_resident_bytes": _resident_bytes(record.standby_pid),
        "uptime_s": _uptime_s(record),
    }


def _row(record: ServerRecord) -> tuple[str, ...]:
    pid = _pid(record)
    kind = _KINDS.get(record.role, record.role)
    return (
        f"{kind} {record.owner_pid}" if record.role == "client" else kind,
        record.name,
        record.model,
        record.state,
        record.base_url or "-",
        str(pid or "-"),
        _memory(record),
        _span(_uptime_s(record)),
    )


def _pid(record: ServerRecord) -> int | None:
    """The process that a line is about: a gateway's own, else the engine's."""
    return record.owner_pid if record.role == "serve" else record.engine_pid


def _memory(record: ServerRecord) -> str:
    """What it takes, and what its standby takes; both hold the pages of one model file."""
    own = output.size(_resident_bytes(_pid(record)))
    standby = _resident_bytes(record.standby_pid)
    return own if standby is None else f"{own} + {output.size(standby)} standby"


def _resident_bytes(pid: int | None) -> int | None:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss) if pid else None
    return None


def _uptime_s(record: ServerRecord) -> float | None:
    if record.started_at is None:
        return None
    try:
        since = datetime.fromisoformat(record.started_at)
    except ValueError:
        return None
    return max(0.0, (datetime.now(UTC) - since).total_seconds())


def _span(seconds: float | None) -> str:
    """A duration for a person (``3 h 5 min``)."""
    if seconds is None:
        return "-"
    minutes = int(seconds) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{int(seconds)} s"


@click.command()
@click.argument("server", required=False)
@click.option("--all", "every", is_flag=True, help="Every gateway that runs here.")
def stop(server: str | None, *, every: bool) -> None:
    """End a gateway: by its name, model, process id or port.

    Requests under way have a moment to end; the command returns when the gateway and its engines
    are gone. Only processes that are proven to be the ones that were started are touched.

    \b
      llama-runtime stop            the only one that runs
      llama-runtime stop 8080       the one on that port
      llama-runtime stop --all
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    records = registry.running(everything=True)
    if every:
        if server is not None:
            raise LLMInvalidRequestError("Give a server or --all, not both.")
        wanted = [group for group in groups(records) if group[0].role == "serve"]
        if not wanted:
            output.note("No gateway runs.")
            return
    else:
        wanted = [pick(server, records)]
    for group in wanted:
        _refuse_programs(group[0])
    for group in wanted:  # all are told before the first is waited for
        _tell_to_end(group[0])
    for group in wanted:
        _wait_for_end(group)
        output.note(f"Ended {group[0].name}.")


def _refuse_programs(record: ServerRecord) -> None:
    if record.role != "serve":
        raise LLMInvalidRequestError(
            f"{record.name} belongs to a program (process {record.owner_pid}) and ends with it.",
            hint=f"End that program: kill {record.owner_pid}",
        )


def _tell_to_end(record: ServerRecord) -> None:
    where = f" at {record.base_url}" if record.base_url else ""
    output.note(f"Ending {record.name} ({record.model}{where}) ...")
    try:
        owner = psutil.Process(record.owner_pid)
        if record.owner_lives:  # the very process, not one that took over its id
            owner.terminate()  # compares the time of creation once more
    except psutil.NoSuchProcess:
        pass  # it ended meanwhile, which is what was wanted
    except psutil.AccessDenied as exc:
        raise LLMProviderError(
            f"Process {record.owner_pid} belongs to another user.", hint="Ask that user."
        ) from exc


def _wait_for_end(group: tuple[ServerRecord, ...]) -> None:
    deadline = time.monotonic() + STOP_PATIENCE_S
    owner = group[0].owner_pid
    while left := _left_of(group):
        if time.monotonic() > deadline:
            raise LLMProviderError(
                f"Process {left[0]} did not end within {STOP_PATIENCE_S:.0f} s.",
                hint=f"kill -9 {owner} ends the gateway and its engines.",
            )
        with contextlib.suppress(psutil.Error):  # TimeoutExpired is one
            psutil.Process(left[0]).wait(0.1)


def _left_of(group: tuple[ServerRecord, ...]) -> list[int]:
    """The processes of a gateway and its engines that are still there."""
    owners = [record.owner_pid for record in group[:1] if record.owner_lives]
    return owners + [record.engine_pid or 0 for record in group if record.engine_lives]
