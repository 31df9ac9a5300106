"""Which of the servers of this machine a person means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import LLMInvalidRequestError
from runtime.server.ports import port_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.server.registry import ServerRecord

NOT_THERE = "`llama-runtime ps` shows what runs."


def answers_to(record: ServerRecord, wanted: str) -> bool:
    """Whether a server is meant by a name, a model, a process id or a port (``:8080``)."""
    names = {record.name, record.model, str(record.owner_pid), str(record.engine_pid)}
    port = port_of(record)
    return wanted in names or (port is not None and wanted.removeprefix(":") == str(port))


def groups(records: Sequence[ServerRecord]) -> tuple[tuple[ServerRecord, ...], ...]:
    """Servers with what belongs to them: each gateway with its engines behind it."""
    gateways = {record.owner_pid: [record] for record in records if record.role == "serve"}
    alone: list[tuple[ServerRecord, ...]] = []
    for record in records:
        if record.role != "serve" and record.owner_pid in gateways:
            gateways[record.owner_pid].append(record)
        elif record.role != "serve":
            alone.append((record,))
    return (*map(tuple, gateways.values()), *alone)


def pick(wanted: str | None, records: Sequence[ServerRecord]) -> tuple[ServerRecord, ...]:
    """The one server, with its engines when it is a gateway, that is meant.

    Args:
        wanted: As for :func:`answers_to`; None when there is only one, or only one gateway.
        records: What runs.

    Raises:
        LLMInvalidRequestError: None is meant, or several are.
    """
    found = [
        group
        for group in groups(records)
        if wanted is None or any(answers_to(record, wanted) for record in group)
    ]
    # By its own name or number, else as a gateway: those are what one deals with.
    for preferred in (
        [group for group in found if wanted in {group[0].name, str(group[0].owner_pid)}],
        [group for group in found if group[0].role == "serve"],
        found,
    ):
        if len(preferred) == 1:
            return preferred[0]
    if not found:
        raise LLMInvalidRequestError(
            f"No managed server is called {wanted!r}." if wanted else "No managed server runs.",
            hint=NOT_THERE,
        )
    names = ", ".join(f"{group[0].name} ({group[0].model})" for group in found)
    raise LLMInvalidRequestError(
        f"More than one server is meant: {names}.", hint="Give one of these names."
    )
