"""From a configuration and a model on disk to a launch in which everything is decided."""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.engines.base import LaunchSpec
from runtime.engines.detect import choose, gpu_asked_for, place
from runtime.errors import ConfigError, ModelTooLargeError, StorageError
from runtime.hardware import cpu_budget, gpu_hint
from runtime.memo import file_identity
from runtime.server import registry
from runtime.server.logs import forget_old_logs
from runtime.server.performance import Profile, choose_performance, waiting, within_batch
from runtime.server.profiles import look_up
from runtime.server.tuning_profile import applicable
from runtime.settings import directories, private_folder
from runtime.store.drafts import AUTO, Drafting
from runtime.store.gguf import read_facts
from runtime.store.memory_plan import DEFAULT_BATCH
from runtime.store.sizing import size_launch
from runtime.store.vocabulary import check_pair

if TYPE_CHECKING:
    from runtime.engines.base import EngineCommand
    from runtime.engines.detect import Choice, Placement
    from runtime.server.performance import Performance
    from runtime.server.tuning_profile import KeptProfile
    from runtime.settings import ServerConfig
    from runtime.store.gguf import ModelFacts
    from runtime.store.local import LocalModel
    from runtime.store.memory_plan import MemoryPlan
    from runtime.store.sizing import Sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """A launch, decided.

    Attributes:
        model: The model on disk.
        facts: What its file says.
        choice: The engine and why.
        placement: GPU or CPU and why.
        spec: Everything the engine needs to know.
        command: How it is started.
        memory: What it is reckoned to take.
        context_why: Why the context has this size.
        performance: What decides the speed, each value with its reason.
        tuned: The profile that settings left open were taken from, or None.
        drafting: The draft model, or why there is none.
        model_identity: Changes when the model's files are replaced or written to.
        notes: What is not as one might expect.
        log_path: Where the engine's output goes; None when no file can be written.
    """

    model: LocalModel
    facts: ModelFacts
    choice: Choice
    placement: Placement
    spec: LaunchSpec
    command: EngineCommand
    memory: MemoryPlan
    context_why: str
    performance: Performance
    tuned: KeptProfile | None
    drafting: Drafting
    model_identity: tuple[str, ...]
    notes: tuple[str, ...]
    log_path: Path | None

    @property
    def served_name(self) -> str:
        """The model name to send in requests."""
        return self.choice.engine.served_name(self.spec)

    @property
    def batch_tokens(self) -> int | None:
        """Tokens computed at once; None when the user's own arguments may have changed that."""
        if any("batch" in argument for argument in self.spec.extra_args):
            return None
        return self.spec.physical_batch or DEFAULT_BATCH


def once_more(plan: LaunchPlan, config: ServerConfig) -> LaunchPlan:
    """The same launch for a second process: with a name and a log file of its own.

    Raises:
        ConfigError: The model's files are not those that were planned with.
    """
    spec = replace(plan.spec, nonce=_nonce())
    command = plan.choice.engine.command(spec)
    try:
        unchanged = tuple(map(file_identity, plan.model.files)) == plan.model_identity
    except OSError:
        unchanged = False
    if not unchanged:
        raise ConfigError(
            f"The model file {plan.model.path} is not the one that was started first.",
            hint="Restart the server to use the new one.",
        )
    log_path, _ = _log_file(config, spec)
    return replace(plan, spec=spec, command=command, log_path=log_path)


def _nonce() -> str:
    return f"~{secrets.token_hex(6)}"


def new_key() -> str:
    """A random key of 256 bits."""
    return secrets.token_urlsafe(32)


def plan_launch(
    config: ServerConfig,
    model: LocalModel,
    *,
    api_key: str | None,
    draft: Drafting | None = None,
    slot_folder: Path | None = None,
) -> LaunchPlan:
    """Decide everything about a launch.

    Args:
        config: What is asked for.
        model: The model on disk.
        api_key: The key to demand; None for none.
        draft: The draft model's file.
        slot_folder: Where the engine may write the state of a slot; None: nowhere.

    Raises:
        ConfigError: Settings contradict each other or name a missing file.
        ModelFormatError: The model file is not what it should be.
        ModelTooLargeError: Model and context do not fit the memory.
        EngineNotInstalledError: There is no engine to start.
        LLMCapabilityError: A GPU is demanded and none can be used.
    """
    automatic = config.draft_model == AUTO
    if automatic:
        config = config.model_copy(update={"draft_model": None})
    gpu_asked_for(config)  # refuses what contradicts itself before anything is looked at
    facts = read_facts(model.path)
    gpu_present = config.device != "cpu" and gpu_hint()
    choice = choose(config, gpu_present=gpu_present)
    placement = place(config, choice.info, gpu_present=gpu_present)
    budget = cpu_budget()
    found = look_up(config, model, choice.info, budget=budget, gpu_layers=placement.gpu_layers)
    tuned, tuned_notes = found.profile, (found.note,) if found.note else ()
    drafting = draft or Drafting()
    if automatic:
        drafting = _measured(drafting, tuned, config)
    if drafting.path is not None:
        check_pair(model.path, drafting.path)
        config = config.model_copy(update={"draft_model": drafting.name})
    lora = tuple(_file(path, "lora") for path in config.lora)
    mmproj = _file(config.mmproj, "mmproj") if config.mmproj else model.mmproj

    def decide(profile: KeptProfile | None) -> tuple[Performance, Sizes]:
        performance = choose_performance(
            config,
            facts,
            choice.engine.kind,
            budget=budget,
            on_gpu=placement.gpu_layers != 0,
            profile=_as_profile(profile, config),
        )
        return performance, size_launch(
            performance.applied(config),
            facts,
            gpu_layers=placement.gpu_layers,
            parallel=1 if choice.engine.kind == "llama-cpp-python" else None,
            projector=mmproj,
            draft=drafting.path,
            lora=lora,
        )

    try:
        performance, sizes = decide(tuned)
    except ModelTooLargeError:
        if tuned is None:
            raise
        performance, sizes = decide(None)
        tuned_notes = (f"not tuned: the profile of {tuned.day} needs more memory than there is",)
        tuned = None
    request = sizes.plan.request
    logical = _logical_batch(performance, request.batch)
    performance = within_batch(
        performance,
        slots=request.parallel,
        batch_tokens=logical or request.batch,
        draft_model=drafting.name if drafting.path else None,
    )
    spec = LaunchSpec(
        model_path=model.path,
        alias=config.alias or model.name,
        nonce=_nonce(),
        api_key=api_key,
        host=config.host,
        port=config.port,
        slot_ctx=request.slot_ctx,
        parallel=request.parallel,
        threads=performance.threads.value,
        threads_batch=performance.threads_batch.value,
        gpu_layers=placement.gpu_layers,
        embeddings=config.embeddings,
        pooling=_pooling(config, facts),
        cache_type_k=config.cache_type_k,
        cache_type_v=config.cache_type_v,
        flash_attn=performance.flash_attn.value,
        lora=lora,
        mmproj=mmproj,
        draft_model=drafting.path,
        chat_template=config.chat_template,
        physical_batch=request.batch if request.batch != DEFAULT_BATCH or logical else None,
        logical_batch=logical,
        speculation=performance.speculation.value,
        prompt_cache_bytes=sizes.elastic.prompt_cache_bytes,
        slot_folder=slot_folder,
        checkpoints=sizes.elastic.checkpoints,
        extra_args=config.extra_args,
        env={**waiting(os.environ), **config.env},
    )
    command = choice.engine.command(spec)
    log_path, log_notes = _log_file(config, spec)
    return LaunchPlan(
        model=model,
        facts=facts,
        choice=choice,
        placement=placement,
        spec=spec,
        command=command,
        memory=sizes.plan,
        context_why=sizes.why,
        performance=performance,
        tuned=tuned,
        drafting=drafting,
        model_identity=tuple(map(file_identity, model.files)),
        notes=(*model.notes, *command.notes, *sizes.plan.uncertain, *tuned_notes, *log_notes),
        log_path=log_path,
    )


def _measured(drafting: Drafting, tuned: KeptProfile | None, config: ServerConfig) -> Drafting:
    """The catalogue's draft model, if a tuning on this machine chose it."""
    if drafting.path is not None and config.speculation not in {"auto", "off"}:
        return replace(drafting, path=None, why=f"off: speculation={config.speculation} was set")
    if drafting.path is None or (tuned and tuned.settings.get("draft_model") == drafting.name):
        return drafting
    why = f"off: no measurement on this machine shows a gain with {drafting.name}"
    return replace(drafting, path=None, why=why)


def _as_profile(kept: KeptProfile | None, config: ServerConfig) -> Profile | None:
    if kept is None:
        return None
    return Profile(settings=applicable(kept, config), why=f"tuned profile of {kept.day}")


def _log_file(config: ServerConfig, spec: LaunchSpec) -> tuple[Path | None, tuple[str, ...]]:
    try:
        folder = private_folder(config.log_dir or directories().logs)
    except StorageError as exc:
        return None, (f"no log file: {exc.message}",)
    forget_old_logs(folder, spare=registry.logs_in_use())
    stem = re.sub(r"[^\w.-]+", "-", spec.alias)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    return folder / f"{stem}-{stamp}-{spec.nonce.removeprefix('~')}.log", ()


def _logical_batch(performance: Performance, step: int) -> int | None:
    """Tokens taken up at once, where that is more than a step's."""
    asked_for = performance.batch_size.value or 0
    return asked_for if performance.ubatch_size.value and asked_for > step else None


def _pooling(config: ServerConfig, facts: ModelFacts) -> str | None:
    if not config.embeddings:
        return None
    if config.pooling is not None:
        return config.pooling
    # A model that says how it pools is taken at its word; a chat model has no way of its own.
    return None if facts.pooling not in {None, "none"} else "mean"


def _file(path: str, setting: str) -> Path:
    found = Path(path).expanduser().absolute()
    if not found.is_file():
        raise ConfigError(
            f"{setting} names {found}, and there is no such file.", hint="Check the path."
        )
    return found
