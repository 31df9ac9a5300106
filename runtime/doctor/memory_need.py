"""What a model would take of this machine's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.doctor.finding import Finding
from runtime.doctor.wording import size
from runtime.errors import LLMError, ModelNotFoundError
from runtime.store import ModelStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.doctor.site import Site


def model_plan(site: Site) -> Iterator[Finding]:
    """The memory of the model that is asked about, or of the default one where it is here."""
    if site.settings_problem is not None:
        return  # its own finding says so
    name = site.config.model
    try:
        plan = ModelStore(site.dirs).plan(name, site.config)
    except ModelNotFoundError as exc:
        asked = site.model is not None
        yield Finding(
            id="model",
            status="fail" if asked else "ok",
            found=exc.message if asked else f"{name} is not on this machine yet",
            remedy=exc.hint if asked else None,
        )
    except LLMError as exc:
        yield Finding(id="model", status="fail", found=f"{name}: {exc.message}", remedy=exc.hint)
    else:
        request = plan.request
        sizes = {part: split.total_bytes for part, split in plan.parts.items() if split.total_bytes}
        parts = ", ".join(f"{part} {size(taken)}" for part, taken in sizes.items())
        yield Finding(
            id="model",
            status="ok",
            found=f"{name}: {request.parallel} slots of {request.slot_ctx} tokens: {parts}, "
            f"in all {size(plan.total_bytes)}",
        )
