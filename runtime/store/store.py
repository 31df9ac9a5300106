"""The model store: from a reference to files on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import ModelNotFoundError, StorageError
from runtime.settings import ServerConfig, directories, offline_wanted
from runtime.store.catalog import CatalogEntry, nearest_names, read_catalog
from runtime.store.limits import Limits
from runtime.store.local import LocalModel, PullProgress, RemovalPlan, VerifyResult
from runtime.store.meter import Meter
from runtime.store.recommend import Recommendation, recommendations
from runtime.store.records import present
from runtime.store.refs import AliasRef, ModelRef, parse_ref
from runtime.store.shelf import Shelf
from runtime.store.verify import check_record, verify_files, verify_record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runtime.settings import Directories
    from runtime.store.catalog import ModelKind
    from runtime.store.memory_plan import MemoryPlan


class ModelStore:
    """Models by reference: find, fetch, list, check, remove. Any thread may use it.

    Args:
        dirs: Where files live; None for the user's own folders.
        offline: Never open a connection; None for what the environment says
            (``HF_HUB_OFFLINE``, ``LLAMA_RUNTIME_OFFLINE``).
        limits: How patient pulls are.
        catalog: Models known by name, instead of those that came with this package.
    """

    def __init__(
        self,
        dirs: Directories | None = None,
        *,
        offline: bool | None = None,
        limits: Limits | None = None,
        catalog: Mapping[str, CatalogEntry] | None = None,
    ) -> None:
        self.offline = offline_wanted() if offline is None else offline
        self._limits = limits or Limits()
        self._shelf = Shelf(
            models=(dirs or directories()).models,
            catalog=read_catalog() if catalog is None else catalog,
        )

    def catalog(self) -> tuple[CatalogEntry, ...]:
        """The models known by a short name, the smallest first."""
        return tuple(self._shelf.catalog.values())

    def list(self) -> tuple[LocalModel, ...]:
        """The models on this machine: the store's own, then those other programs keep."""
        return self._shelf.all()

    def recommend(
        self, *, kind: ModelKind | None = None, available_bytes: int | None = None
    ) -> tuple[Recommendation, ...]:
        """The catalogue, what this machine can hold first, the most capable of it at the top.

        Args:
            kind: Only models of that kind.
            available_bytes: Memory a model may take; None for what this machine has left now.
        """
        from runtime.hardware import memory  # noqa: PLC0415 - looks at the machine, here only

        if available_bytes is None:
            available_bytes = memory().effective_available_bytes
        return recommendations(
            (entry for entry in self.catalog() if kind in {None, entry.kind}),
            available_bytes=available_bytes,
            local=frozenset(model.entry.name for model in self.list() if model.entry),
        )

    def resolve(self, reference: str) -> LocalModel:
        """The model that ``reference`` names, as it lies on disk. Opens no connection.

        Raises:
            ModelNotFoundError: It is not on disk; the hint says how to fetch it, or which names
                look like it.
        """
        ref = parse_ref(reference)
        found = self._shelf.find(ref)
        if found is None:
            raise self._missing(ref, reference)
        return found

    def pull(
        self, reference: str, *, progress: Callable[[PullProgress], None] | None = None
    ) -> LocalModel:
        """The model that ``reference`` names, fetched first unless it is on disk, undamaged.

        Waits while another process fetches the same model. An exception that ``progress`` raises
        ends the pull; what has arrived is kept for the next one.

        Args:
            reference: The model.
            progress: Called from this thread, about ten times a second while bytes move.

        Raises:
            ModelNotFoundError: Nothing has that name; or offline, and it is not on disk.
            LLMAuthError: It is gated or private.
            LLMRateLimitError: The hub wants fewer requests.
            DownloadError: No source could be used; says why for each.
            IntegrityError: What came is not what was promised.
            StorageError: The folder cannot be written, or has not enough room.
        """
        ref = parse_ref(reference)
        meter = Meter(progress)
        if (found := self._shelf.find_unchanged(ref)) is not None:
            meter.finish(found.path.name, found.size_bytes)
            return found
        if self.offline or not self._shelf.sources(ref):
            return self._repaired_or_missing(ref, reference)
        from runtime.store.pulling import pull  # noqa: PLC0415 - brings httpx2, which few calls need

        try:
            found = pull(self._shelf, ref, meter=meter, limits=self._limits)
        except StorageError:
            if (found := self._good_as_it_is(ref, meter)) is None:
                raise
        meter.finish(found.path.name, found.size_bytes)
        return found

    def _good_as_it_is(self, ref: ModelRef, meter: Meter) -> LocalModel | None:
        """The model in a folder that cannot be written, if its files' digests are right."""
        for folder, record in self._shelf.owned(ref):
            if present(folder, record) and all(
                check.ok for check in check_record(folder, record, meter)
            ):
                return self._shelf.model(folder)
        return None

    def plan(self, reference: str, config: ServerConfig | None = None) -> MemoryPlan:
        """What the model on disk would take on the CPU with a configuration.

        Raises:
            ModelNotFoundError: It, or the configuration's draft model, is not on this machine.
            ModelTooLargeError: It does not fit; with the numbers and what would.
        """
        from runtime.store.gguf import read_facts  # noqa: PLC0415 - other uses need no facts
        from runtime.store.sizing import size_launch  # noqa: PLC0415

        model = self.resolve(reference)
        config = config or ServerConfig()
        named = config.draft_model if config.draft_model != "auto" else None
        draft = self.resolve(named).path if named else None
        facts = read_facts(model.path)
        return size_launch(config, facts, projector=model.mmproj, draft=draft).plan

    def plan_removal(self, reference: str) -> RemovalPlan:
        """What removing the model would delete; nothing is deleted yet.

        Raises:
            ModelNotFoundError: The store has no such model.
            StorageError: The file belongs to another program or to the user.
        """
        ref = parse_ref(reference)
        folders = [folder for folder, _ in self._shelf.owned(ref)][:1]
        if not folders and self._shelf.sources(ref):
            folders = [folder for folder in (self._shelf.folder(ref),) if folder.is_dir()]
        if not folders:
            found = self._shelf.find(ref)
            if found is None:
                raise self._missing(ref, reference)
            raise StorageError(
                f"{found.name} is not the store's: {found.path}.",
                path=found.path,
                hint="Remove it with the program that put it there.",
            )
        files = tuple(sorted(path for path in folders[0].iterdir() if path.is_file()))
        return RemovalPlan(
            reference=reference,
            files=files,
            freed_bytes=sum(file.stat().st_size for file in files),
            folder=folders[0],
        )

    def remove(self, reference: str) -> RemovalPlan:
        """Delete the model from disk, and say what went.

        Raises:
            ModelNotFoundError, StorageError: As :meth:`plan_removal`.
        """
        plan = self.plan_removal(reference)
        plan.execute()
        return plan

    def verify(
        self, reference: str, progress: Callable[[PullProgress], None] | None = None
    ) -> VerifyResult:
        """Hash the model's files again and compare.

        Files of the store found damaged are marked: the next :meth:`pull` fetches them anew.

        Raises:
            ModelNotFoundError: It is not on disk.
            StorageError: A file cannot be read.
        """
        ref = parse_ref(reference)
        meter = Meter(progress)
        for folder, record in self._shelf.owned(ref):
            checks = verify_record(folder, record, meter)
            return VerifyResult(reference=reference, files=checks)
        return VerifyResult(reference=reference, files=verify_files(self.resolve(reference), meter))

    def _repaired_or_missing(self, ref: ModelRef, reference: str) -> LocalModel:
        """What offline, or without any source, is left: files that changed but kept their size."""
        found = self._shelf.find(ref)
        if found is None:
            raise self._missing(ref, reference)
        return found

    def _missing(self, ref: ModelRef, reference: str) -> ModelNotFoundError:
        if any(True for _ in self._shelf.owned(ref)):
            message = f"{reference} is on disk, but damaged."
        elif isinstance(ref, AliasRef) and self._shelf.entry_of(ref) is None:
            known = {*self._shelf.catalog, *(model.name for model in self._shelf.all())}
            near = nearest_names(ref.name, known)
            return ModelNotFoundError(
                f"No model is called {ref.name!r}.",
                reference=reference,
                nearest=near,
                hint=f"Did you mean {', '.join(near)}?"
                if near
                else "`llama-runtime models list` shows the names that are known.",
            )
        else:
            message = f"{reference} is not on this machine."
        if self.offline:
            hint = f"Working offline: with a network, run `llama-runtime models pull {reference}`."
        else:
            hint = f"Run `llama-runtime models pull {reference}`."
        return ModelNotFoundError(message, reference=reference, hint=hint)
