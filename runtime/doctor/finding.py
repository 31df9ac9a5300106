"""What a check is and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from runtime.doctor.site import Site

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        id: What was looked at; stable, for programs.
        status: ``"fail"``: something will not work. ``"warn"``: something may surprise.
        found: What was found, one or two sentences.
        remedy: What to do about it, with a command where there is one; None when nothing is wrong.
    """

    id: str
    status: Status
    found: str
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something to look at, in a thread of its own.

    Attributes:
        id: What the finding is called when there is no other: the look hung or is defective.
        what: What it does, for a person who waits for it.
        look: Looks; what it returns is the report's next lines.
        overdue: How bad it is when the look does not come back.
        patient: Waited for without end when the whole of it is asked for.
    """

    id: str
    what: str
    look: Callable[[Site], Iterable[Finding]]
    overdue: Status = "warn"
    patient: bool = False
