"""What the state of a slot depends on: where any of it differs, a saved one is of no use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.server.templates import fingerprint
from runtime.store.digests import file_digest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from runtime.server.view import View


def session_facts(view: View) -> dict[str, str]:
    """The facts of a server that is or was ready, by the names that errors call them by.

    Files are hashed the first time, which takes a second for each gigabyte or two.

    Raises:
        StorageError: The model cannot be read.
    """
    plan, properties = view.plan, view.properties
    if plan is None:
        return {}
    spec = plan.spec
    told = properties.chat_template if properties else None
    context = (properties.slot_ctx if properties else None) or spec.slot_ctx
    return {
        "model": _digests(plan.model.files),
        "engine": f"{plan.choice.engine.kind} {view.engine_version or plan.choice.info.version}",
        "context": f"{context} tokens",
        "slots": str((properties.slots if properties else None) or spec.parallel),
        "KV cache": f"{spec.cache_type_k} and {spec.cache_type_v}",
        "flash attention": spec.flash_attn,
        "LoRA": _digests(spec.lora) or "none",
        "projector": file_digest(spec.mmproj) if spec.mmproj else "none",
        "chat template": fingerprint(told or plan.facts.chat_template) or "none",
        "engine arguments": " ".join(spec.extra_args) or "none",
    }


def _digests(paths: Iterable[Path]) -> str:
    return " ".join(map(file_digest, paths))
