"""The server as it is now: one immutable, JSON-serializable picture."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import psutil

from runtime.contracts import Provenance
from runtime.server import probe
from runtime.server.lifecycle import State
from runtime.server.templates import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.server.plan import LaunchPlan
    from runtime.server.view import View
    from runtime.settings import ServerConfig

READ_BUDGET_S = 0.15
"""A busy engine is not waited for any longer than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSnapshot:
    """A managed server at one moment. Holds instants, not ages; None where nothing is known.

    Attributes:
        taken_at: When, ISO 8601, UTC.
        generation: Grows with each change of state.
        state: One of the lifecycle's states.
        host: Address it listens on.
        port: Port it listens on, once it does.
        base_url: Where it answers, once it does.
        api_model: The model's name in the API.
        hf_model_repo_id: The hub repository the model is from.
        pid: The engine's process id.
        keeper_pid: Process id of the keeper that ends the engine with its owner.
        spare_pid: Process id of the next engine process, which waits without a model for a restart;
            None without one.
        started_at: When the engine process was started.
        ready_at: When it became ready.
        restarts: How often it was started again by itself.
        last_exit: How the last process ended: ``at``, ``code``, ``signal``, ``diagnosis``,
            ``reason``, ``while_state``.
        error: Why it failed.
        engine: ``kind``, ``version``, ``path``, ``capabilities``, ``why``.
        model: ``path``, ``architecture``, ``quantization``, ``parameters``, ``size_bytes``,
            ``context_train``, ``reference``, ``source``, ``chat_template_sha256`` of the file's.
        context: Tokens per request: ``requested``, ``actual``, ``why``.
        slots: ``requested``, ``total``, ``busy``.
        threads: ``requested``, ``actual``, ``why``.
        performance: What decides the speed, by setting: ``value`` and ``why`` (``set``, a tuned
            profile, or what the default rests on).
        draft: The draft model: ``requested``, ``model``, ``path``, ``why`` it is used or not;
            ``drafted`` and ``accepted`` tokens since the engine started, n-gram drafts included.
        tuned: The profile that ``llama-runtime tune`` found and that is used: ``at``, ``settings``,
            ``summary``; None without one.
        device: ``requested``, ``actual``, ``gpu_layers`` (``offloaded``, ``total``), ``why``,
            ``devices``.
        memory: ``rss_bytes`` of the engine, ``keeper_rss_bytes``, ``spare_rss_bytes``, and
            ``planned_bytes``, the largest resident size that was reckoned with before the launch,
            without spare and standby.
        standby: The second engine: ``wanted``, ``state`` (``waiting``, ``loading``, ``ready``,
            ``failed``), ``why``, ``pid``, ``ready_at``, ``proven_at`` (when it last computed a
            token), ``promotions``, ``rss_bytes`` and ``planned_bytes``, without the weights that
            both engines map from one file.
        tokens: ``prompt``, ``prompt_cached``, ``generated`` since the engine started.
        speed: ``prompt_tokens_per_s``, ``generated_tokens_per_s``, means since the start.
        health: ``ok`` and ``message``.
        log_path: The file with the engine's output.
        notes: What is not as one might expect.
        history: The last transitions.
        startup_timeout_seconds: Longest silence while starting, seconds.
        poll_interval_seconds: Pause between two looks at a starting engine, seconds.
        python_executable: The Python that runs keeper and host.
        extra_server_args: Arguments handed to the engine as they are.
    """

    taken_at: str
    generation: int
    state: str
    host: str
    port: int | None
    base_url: str | None
    api_model: str | None
    hf_model_repo_id: str | None
    pid: int | None
    keeper_pid: int | None
    spare_pid: int | None
    started_at: str | None
    ready_at: str | None
    restarts: int
    last_exit: Mapping[str, object] | None
    error: str | None
    engine: Mapping[str, object]
    model: Mapping[str, object]
    context: Mapping[str, object]
    slots: Mapping[str, object]
    threads: Mapping[str, object]
    performance: Mapping[str, object]
    draft: Mapping[str, object]
    tuned: Mapping[str, object] | None
    device: Mapping[str, object]
    memory: Mapping[str, object]
    standby: Mapping[str, object]
    tokens: Mapping[str, object]
    speed: Mapping[str, object]
    health: Mapping[str, object]
    log_path: str | None
    notes: tuple[str, ...]
    history: tuple[Mapping[str, object], ...]
    startup_timeout_seconds: float
    poll_interval_seconds: float
    python_executable: str
    extra_server_args: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The snapshot as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Live:
    """What only a look at the running process tells."""

    busy: int | None = None
    rss_bytes: int | None = None
    keeper_rss_bytes: int | None = None
    counters: Mapping[str, float]
    responds: bool | None = None


def take_snapshot(config: ServerConfig, view: View, *, poll_interval_s: float) -> ServerSnapshot:
    """Look at the server. Takes no longer than about 200 ms, however busy the engine is."""
    live = _look(view)
    plan = view.plan
    spec = plan.spec if plan else None
    endpoint = view.endpoint
    properties = view.properties
    return ServerSnapshot(
        taken_at=Provenance.now_iso(),
        generation=view.generation,
        state=view.state.value,
        host=config.host,
        port=int(endpoint.base_url.rsplit(":", 1)[1]) if endpoint else config.port or None,
        base_url=endpoint.base_url if endpoint else None,
        api_model=plan.served_name if plan else config.alias,
        hf_model_repo_id=plan.model.repo_id if plan else None,
        pid=view.pid,
        keeper_pid=view.keeper_pid,
        spare_pid=view.spare_pid,
        started_at=view.started_at,
        ready_at=view.ready_at,
        restarts=view.restarts,
        last_exit={**asdict(view.last_exit), "while_state": view.last_exit.while_state.value}
        if view.last_exit
        else None,
        error=str(view.error) if view.error else None,
        engine={
            "kind": plan.choice.engine.kind if plan else None,
            "requested": config.engine,
            "version": view.engine_version,
            "path": str(plan.choice.info.path) if plan and plan.choice.info.path else None,
            "capabilities": asdict(properties.capabilities) if properties else None,
            "why": plan.choice.why if plan else None,
        },
        model=_model(config, view),
        context={
            "requested": config.ctx_size,
            "actual": (properties.slot_ctx if properties else None)
            or (spec.slot_ctx if spec else None),
            "why": plan.context_why if plan else None,
        },
        slots={
            "requested": config.parallel,
            "total": (properties.slots if properties else None)
            or (spec.parallel if spec else None),
            "busy": live.busy,
        },
        threads={
            "requested": config.threads,
            "actual": spec.threads if spec else None,
            "why": plan.performance.threads.why if plan else None,
        },
        performance=plan.performance.public() if plan else {},
        draft={
            "requested": config.draft_model,
            "model": plan.drafting.name if plan else None,
            "path": str(plan.drafting.path) if plan and plan.drafting.path else None,
            "why": plan.drafting.why if plan else None,
            "drafted": _whole(live.counters.get("spec_decode_num_draft_tokens_total")),
            "accepted": _whole(live.counters.get("spec_decode_num_accepted_tokens_total")),
        },
        tuned=_tuned(plan),
        device=_device(view),
        memory={
            "rss_bytes": live.rss_bytes,
            "keeper_rss_bytes": live.keeper_rss_bytes,
            "spare_rss_bytes": _rss(view.spare_pid),
            "planned_bytes": plan.memory.resident_bytes if plan else None,
        },
        standby=_standby(view),
        tokens={
            "prompt": _whole(live.counters.get("prompt_tokens_total")),
            "prompt_cached": _whole(live.counters.get("prompt_tokens_cached_total")),
            "generated": _whole(live.counters.get("tokens_predicted_total")),
        },
        speed={
            "prompt_tokens_per_s": _rate(live.counters, "prompt"),
            "generated_tokens_per_s": _rate(live.counters, "tokens_predicted"),
        },
        health=_health(view, live),
        log_path=str(view.log_path) if view.log_path else None,
        notes=plan.notes if plan else (),
        history=tuple(
            {**asdict(step), "before": step.before.value, "event": step.event.value,
             "after": step.after.value}
            for step in view.history
        ),
        startup_timeout_seconds=config.startup_stall_timeout_s,
        poll_interval_seconds=poll_interval_s,
        python_executable=sys.executable,
        extra_server_args=config.extra_args,
    )  # fmt: skip


def _look(view: View) -> _Live:
    endpoint = view.endpoint
    if endpoint is None:
        return _Live(rss_bytes=_rss(view.pid), keeper_rss_bytes=_rss(view.keeper_pid), counters={})
    until = time.monotonic() + READ_BUDGET_S
    asked = []
    for path, wanted in (
        ("/slots", endpoint.capabilities.slots),
        ("/metrics", endpoint.capabilities.metrics),
    ):
        left_s = until - time.monotonic()
        if wanted and left_s > 0:
            asked.append(
                probe.ask(endpoint.base_url, path, api_key=endpoint.api_key, timeout_s=left_s / 2)
            )
        else:
            asked.append(probe.Reply(status=0))
    slots, metrics = asked
    busy = None
    if isinstance(slots.body, list):
        busy = sum(1 for slot in slots.body if slot.get("is_processing"))
    return _Live(
        busy=busy,
        rss_bytes=_rss(view.pid),
        keeper_rss_bytes=_rss(view.keeper_pid),
        counters=_counters(metrics.body) if isinstance(metrics.body, str) else {},
        responds=slots.status == 200 if endpoint.capabilities.slots else None,
    )


def _standby(view: View) -> dict[str, object]:
    standby, plan = view.standby, view.plan
    if standby is None:
        return {"wanted": False, "state": None}
    return {
        "wanted": True,
        "state": standby.state,
        "why": standby.why or None,
        "pid": standby.pid,
        "ready_at": standby.ready_at,
        "proven_at": standby.proven_at,
        "promotions": standby.promotions,
        "rss_bytes": _rss(standby.pid),
        "planned_bytes": plan.memory.standby.total_bytes if plan else None,
    }


def _rss(pid: int | None) -> int | None:
    if pid is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def _counters(text: str) -> dict[str, float]:
    """Prometheus counters of llama.cpp by name, without its prefix."""
    return {
        name: float(value)
        for name, value in re.findall(r"^llamacpp:(\w+) ([0-9.e+-]+)$", text, re.MULTILINE)
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _rate(counters: Mapping[str, float], what: str) -> float | None:
    spent_s = counters.get(f"{what}_seconds_total")
    tokens = counters.get("prompt_tokens_total" if what == "prompt" else f"{what}_total", 0.0)
    return round(tokens / spent_s, 2) if spent_s else None


def _tuned(plan: LaunchPlan | None) -> dict[str, object] | None:
    if plan is None or plan.tuned is None:
        return None
    kept = plan.tuned
    return {"at": kept.tuned_at, "settings": dict(kept.settings), "summary": kept.summary}


def _model(config: ServerConfig, view: View) -> dict[str, object]:
    plan = view.plan
    if plan is None:
        return {"reference": config.model, "path": None}
    facts = plan.facts
    return {
        "reference": config.model,
        "name": plan.model.name,
        "path": str(plan.model.path),
        "source": plan.model.source,
        "architecture": facts.architecture,
        "quantization": facts.quantization,
        "parameters": facts.parameters,
        "size_bytes": facts.file_size_bytes,
        "context_train": facts.context_train,
        "chat_template_sha256": fingerprint(facts.chat_template),
    }


def _device(view: View) -> dict[str, object]:
    plan = view.plan
    if plan is None:
        return {"requested": None, "actual": None}
    offloaded, total = view.layers_offloaded or (0 if not plan.spec.gpu_layers else None, None)
    return {
        "requested": plan.placement.requested,
        # With no layer asked onto a GPU it is the CPU; else only the engine's own word counts.
        "actual": "cpu" if offloaded == 0 else "gpu" if offloaded else None,
        "gpu_layers": {"offloaded": offloaded, "total": total or plan.facts.layers + 1},
        "why": plan.placement.why,
        "devices": [asdict(device) for device in view.devices],
    }


def _health(view: View, live: _Live) -> dict[str, object]:
    if view.state is State.SUSPECT:
        return {"ok": False, "message": view.history[-1].reason}
    if view.state is not State.READY:
        return {"ok": False, "message": f"the server is {view.state.value}"}
    if live.responds is False:
        return {"ok": True, "message": "ready; the engine was too busy to answer at once"}
    return {"ok": True, "message": "ready"}
