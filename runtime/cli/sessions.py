"""The command ``sessions``: what was kept of conversations, and its end."""

from __future__ import annotations

from dataclasses import asdict

import click

from runtime.cli import output
from runtime.store.sessions import SessionStore


@click.group()
def sessions() -> None:
    """Show and remove saved sessions. They hold conversations."""


@sessions.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(*, as_json: bool) -> None:
    """Show the saved sessions, the one that was used last first.

    \b
      llama-runtime sessions list --json
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    found = SessionStore().sessions()
    if as_json:
        output.result_json([{**asdict(info), "path": str(info.path)} for info in found])
        return
    output.table(
        ("NAME", "MODEL", "MESSAGES", "TOKENS", "SIZE", "SAVED"),
        [
            (
                info.name,
                info.model,
                str(info.messages),
                str(info.tokens),
                output.size(info.size_bytes),
                info.saved_at,
            )
            for info in found
        ],
    )


@sessions.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> None:
    """Remove sessions.

    \b
      llama-runtime sessions rm research
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    store = SessionStore()
    freed = sum(store.remove(name) for name in names)
    output.note(f"Freed {output.size(freed)}.")
