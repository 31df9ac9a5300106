"""The command ``tune``: find what runs a model fastest here, and keep it."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
from rich.live import Live

from runtime.cli import output
from runtime.cli.options import chosen, server_options
from runtime.cli.tune_view import explained, in_a_line, picture, rows
from runtime.errors import StorageError
from runtime.server import profiles
from runtime.settings import DEFAULT_MODEL, ServerConfig
from runtime.store import ModelStore
from runtime.store.digests import known_digest, model_digest
from runtime.store.drafts import AUTO, catalogue_draft
from runtime.tuning.trials import ALL
from runtime.tuning.tuner import busy_share, prepare
from runtime.tuning.tuner import tune as measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runtime.server.tuning_profile import KeptProfile
    from runtime.store.local import LocalModel
    from runtime.tuning.contest import Outcome, Progress
    from runtime.tuning.tuner import Tuning

MINUTES: Final = 4.0
BUSY: Final = 0.25
PLAIN_EVERY_S: Final = 10.0

_SETTINGS: Final = (
    "engine",
    "engine_path",
    "ctx_size",
    "parallel",
    "batch_size",
    "ubatch_size",
    "threads",
    "threads_batch",
    "gpu_layers",
    "device",
    "embeddings",
    "cache_type_k",
    "cache_type_v",
    "flash_attn",
    "speculation",
    "lora",
    "mmproj",
    "draft_model",
    "extra_args",
)


@click.command()
@click.argument("model", required=False)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=MINUTES,
    show_default=True,
    help="About how long it may take.",
)
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    type=click.Choice(ALL),
    help="What counts. May be given repeatedly. [default: all of them]",
)
@click.option(
    "--allow-changes",
    is_flag=True,
    help="Also take what rounds otherwise than the defaults do: no worse answers, but other ones.",
)
@click.option("--explain", is_flag=True, help="Show what is kept, why, and whether it is used now.")
@click.option("--reset", is_flag=True, help="Forget what is kept for MODEL.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@server_options(_SETTINGS)
def tune(
    model: str | None,
    minutes: float,
    workloads: tuple[str, ...],
    *,
    allow_changes: bool,
    explain: bool,
    reset: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find the settings that run MODEL fastest on this machine, and keep them.

    What is left open (threads, batch, flash attention, speculation) is measured against the
    defaults. What is found is used by every later start of MODEL with this engine build on this
    machine; settings that are given win over it. Only what gives the same answers is taken.

    \b
      llama-runtime tune
      llama-runtime tune smollm2-135m --minutes 2
      llama-runtime tune smollm2-135m --workload agent-loop --workload json
      llama-runtime tune qwen3-4b --draft-model auto --allow-changes
      llama-runtime tune smollm2-135m --explain
      llama-runtime tune smollm2-135m --reset
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    if explain and reset:
        raise click.UsageError("--explain and --reset: only one of them.")
    name = model or os.environ.get("LLAMA_RUNTIME_MODEL") or DEFAULT_MODEL
    config = ServerConfig(**{**chosen(settings), "model": name})
    store = ModelStore()
    if reset:
        found = store.resolve(name)
        count = profiles.forget(found)
        some = f"Forgot {count} profile{'s' if count != 1 else ''} of {found.name}."
        output.note(some if count else f"{found.name} was not tuned: there is nothing to forget.")
        return
    if explain:
        _explain(store.resolve(name), config, as_json=as_json)
        return
    with output.pull_progress() as progress:
        found = store.pull(name, progress=progress)
    if known_digest(found) is None:
        output.note(f"Hashing {found.path.name} ({output.size(found.size_bytes)}) ...")
    draft = catalogue_draft(store, name) if config.draft_model == AUTO else None
    if draft is not None and draft.path is None:
        output.note(f"No draft model is tried: {draft.why.removeprefix('off: ')}.")
    tuning = prepare(
        config,
        found,
        model_sha256=model_digest(found),
        workloads=workloads or ALL,
        draft=draft,
        allow="rounding" if allow_changes else "none",
    )
    busy = busy_share()
    if busy > BUSY:
        output.note(
            f"Others keep {busy:.0%} of the processors busy: less will be certain than on a quiet "
            "machine."
        )
    profile, outcome = _measured(tuning, minutes * 60)
    path, refused = None, None
    try:
        path = profiles.keep(profile)
    except StorageError as exc:
        refused = exc  # first of all what took minutes to find
    if as_json:
        output.result_json({**asdict(profile), "path": str(path) if path else None})
    else:
        if outcome.standings:
            output.table(("TRIED", "GAIN", "ROUNDS", "RESULT"), rows(outcome.standings))
        output.result(f"\nTaken: {outcome.summary}.")
    if refused is not None:
        raise refused
    output.note(f"Kept in {path}; `--explain` shows it, `--reset` forgets it.")


def _measured(tuning: Tuning, budget_s: float) -> tuple[KeptProfile, Outcome]:
    """Measure, and show how it goes."""
    plan = tuning.plan
    count = len(tuning.candidates)
    time_told = f"{budget_s / 60:.1f} min" if budget_s >= 60 else f"{budget_s:.0f} s"
    output.note(
        f"Tuning {tuning.model.name} on {plan.choice.engine.kind} for {time_told} at most: {count} "
        f"candidate{'s' if count != 1 else ''}, up to {tuning.most_engines} engines at once."
    )
    if tuning.withheld:
        output.note(
            f"Not tried, for with them some answers would be others: {', '.join(tuning.withheld)}. "
            "`--allow-changes` tries them too."
        )
    if not output.err.is_terminal:
        return measure(tuning, budget_s=budget_s, on_progress=_plain())
    with Live(console=output.err, transient=True, auto_refresh=False) as live:
        return measure(
            tuning,
            budget_s=budget_s,
            on_progress=lambda now: live.update(picture(now), refresh=True),
        )


def _plain() -> Callable[[Progress], None]:
    """Progress for a log: a line at each stage and every few seconds."""
    last_stage, last_s = "", 0.0

    def show(now: Progress) -> None:
        nonlocal last_stage, last_s
        at_s = time.monotonic()
        if now.stage != last_stage or at_s - last_s >= PLAIN_EVERY_S:
            last_stage, last_s = now.stage, at_s
            output.note(in_a_line(now))

    return show


def _explain(model: LocalModel, config: ServerConfig, *, as_json: bool) -> None:
    """What is kept for a model, and whether a launch would use it now."""
    kept = profiles.kept(model)
    used = _used_now(model, config)
    if as_json:
        output.result_json(
            {
                "model": model.name,
                "used": used,
                "profiles": [
                    {"path": str(path), "problem": each}
                    if isinstance(each, str)
                    else {"path": str(path), **asdict(each)}
                    for path, each in kept
                ],
            }
        )
        return
    if not kept:
        output.result(f"{model.name} was not tuned: the defaults are used.")
        output.note(f"`llama-runtime tune {model.reference}` measures what is faster here.")
        return
    for line in _lines(kept):
        output.result(line)
    output.result(used)


def _lines(kept: tuple[tuple[Any, KeptProfile | str], ...]) -> Iterator[str]:
    for path, each in kept:
        yield str(path)
        yield from (f"  {line}" for line in ([each] if isinstance(each, str) else explained(each)))
        yield ""


def _used_now(model: LocalModel, config: ServerConfig) -> str:
    """What a launch with these settings would do."""
    from runtime.server.plan import plan_launch  # noqa: PLC0415 - only to explain

    plan = plan_launch(config, model, api_key=None)
    if plan.tuned is not None:
        return f"Used now: the profile of {plan.tuned.tuned_at}."
    said = [note for note in plan.notes if note.startswith("not tuned")]
    return f"Used now: the defaults ({said[0]})." if said else "Used now: the defaults."
