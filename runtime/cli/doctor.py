"""The command ``doctor``: what is wrong with this machine, and what to do."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from runtime.cli import output
from runtime.cli.options import chosen, server_options
from runtime.doctor import examine, site, write_bundle
from runtime.doctor.bundle import require_writable
from runtime.doctor.site import PATIENCE_S
from runtime.testing.tiny_model import build_tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FOUND: Final = 1


@click.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON: id, status, found, remedy.")
@click.option("--full", is_flag=True, help="Hash every model again, however long it takes.")
@click.option(
    "--bundle",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a report to hand to others (.zip or .tar.gz): without keys, prompts, names.",
)
@click.option(
    "--patience",
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    default=PATIENCE_S,
    show_default=True,
    help="Seconds until what hangs is given up.",
)
@server_options(("engine_path", "ctx_size", "parallel", "cache_type_k", "cache_type_v"))
def doctor(
    model: str | None,
    bundle: Path | None,
    patience: float,
    *,
    as_json: bool,
    full: bool,
    **settings: Any,
) -> None:
    """Look at everything that can go wrong here, and plan the memory of MODEL.

    Ends with 1 when something will not work; what may only surprise does not count.

    \b
      llama-runtime doctor
      llama-runtime doctor smollm2-135m --ctx-size 8192
      llama-runtime doctor --bundle report.zip
    """  # noqa: D301 - the character itself keeps click from re-flowing the paragraph
    if bundle is not None:
        require_writable(bundle)
    began_s = time.monotonic()
    where = site(
        build_model=build_tiny_model,
        model=model,
        settings=chosen(settings),
        patience_s=patience,
        full=full,
    )

    def tell(waiting: Sequence[str]) -> None:
        output.note(f"{time.monotonic() - began_s:.0f} s: still {', '.join(waiting)}")

    findings = examine(where, on_wait=tell)
    if as_json:
        output.result_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.id) for finding in findings)
        for finding in findings:
            output.result(f"{finding.status:<4}  {finding.id:<{width}}  {finding.found}")
            if finding.remedy:
                output.result(f"{'':<{width + 6}}  -> {finding.remedy}")
    count = {
        status: sum(finding.status == status for finding in findings) for status in ("fail", "warn")
    }
    output.note(
        f"{count['fail']} will not work, {count['warn']} may surprise, {len(findings)} looked at "
        f"in {time.monotonic() - began_s:.1f} s."
    )
    if bundle is not None:
        names = write_bundle(bundle, where, findings)
        output.note(f"Wrote {bundle} ({', '.join(names)}). Look at it before you hand it on.")
    if count["fail"]:
        raise click.exceptions.Exit(EXIT_FOUND)
