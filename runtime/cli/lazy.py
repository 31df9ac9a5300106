"""A group of commands whose modules are imported when one of them is used."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command is.

    Attributes:
        module: Its module.
        name: Its name there.
        summary: What it does, in a line of the list of commands.
    """

    module: str
    name: str
    summary: str


class LazyGroup(click.Group):
    """A group that tells of its commands without importing them: ``--help`` comes at once.

    Args:
        places: Its commands by name, in the order in which they are listed.
        arguments: What :class:`click.Group` takes.
    """

    def __init__(self, *, places: Mapping[str, Place], **arguments: Any) -> None:
        super().__init__(**arguments)
        self.places = dict(places)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in their order."""
        return [*self.places, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; None when there is none."""
        place = self.places.get(cmd_name)
        if place is None:
            return super().get_command(ctx, cmd_name)
        command = getattr(import_module(place.module), place.name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table is ours
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant.

        Raises:
            click.UsageError: There is none of that name; it says which is the nearest.
        """
        wanted = args[0]
        unknown = self.get_command(ctx, wanted) is None and not wanted.startswith("-")
        if unknown and not ctx.resilient_parsing:
            raise click.UsageError(
                f"No such command {wanted!r}.{nearest(wanted, self.list_commands(ctx))}", ctx
            )
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's
        formatter: click.HelpFormatter,
    ) -> None:
        """Write the list of commands, out of the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.summary) for name, place in self.places.items()])


def nearest(wanted: str, names: list[str]) -> str:
    """`` Did you mean 'serve'?`` for ``sevre``; empty when nothing is near."""
    near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
