"""Which models a gateway can serve: those named at its start, and what else is on this machine."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from runtime.client._routed import KnownModel, RoutedModel, known_models
from runtime.errors import ModelNotFoundError
from runtime.store.refs import AliasRef, HubRef, PypiRef, parse_ref

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runtime.inference.async_transport import Threads
    from runtime.store import ModelStore

_OF_ONE_MODEL: Final = frozenset({"lora", "mmproj", "draft_model", "chat_template", "extra_args"})
"""Settings that are made for the models that are named at the start, and for no others."""

_SHOWN_CHARS: Final = 200


class Catalogue:
    """The models by name; used by the tasks of one event loop.

    Attributes:
        models: Those that were named or asked for.
        named: The names of those that are named at the start; the first is the default.
    """

    def __init__(
        self,
        routed: Sequence[RoutedModel],
        *,
        shared: Mapping[str, Any],
        store: ModelStore,
        allow_pull: bool,
        threads: Threads,
    ) -> None:
        """Look at the models that are named; nothing is fetched.

        Raises:
            ConfigError: A setting cannot work, or two models have one name.
            ModelNotFoundError: A reference cannot name a model.
        """
        self.models = known_models(routed, shared=shared, store=store)
        self.named = tuple(self.models)
        self._shared = shared
        self._store = store
        self._allow_pull = allow_pull
        self._threads = threads

    async def find(self, model: str | None) -> str:
        """The name of the model that is meant; None means the default.

        A model that is not named at the start is looked for on this machine by its name; never by
        a path or an address, which would let a client read and connect where it likes.

        Raises:
            ModelNotFoundError: There is none, and what there is.
        """
        if model is None or model in self.models:
            return model or self.named[0]
        for known in self.models.values():
            if model in known.names:
                return known.name
        found = await self._threads.run(partial(self._look_for, model))
        identity = found.facts.identity
        for known in self.models.values():
            if identity is not None and known.facts.identity == identity:
                return known.name  # by another name: one file is loaded once
        return self.models.setdefault(found.name, found).name

    def forget(self, name: str) -> None:
        """Drop a model that was asked for and could not be had; one that is named stays."""
        if name not in self.named:
            self.models.pop(name, None)

    async def on_disk(self) -> tuple[str, ...]:
        """Names of further models on this machine, which are loaded when asked for."""
        found = await self._threads.run(self._store.list)
        served = {name for known in self.models.values() for name in known.names}
        return tuple(dict.fromkeys(each.name for each in found if each.name not in served))

    def _look_for(self, model: str) -> KnownModel:
        """A model that was not named at the start (a worker thread)."""
        try:
            ref = parse_ref(model)
        except ModelNotFoundError as exc:
            raise self._unknown(model) from exc
        if not isinstance(ref, AliasRef | HubRef | PypiRef) or ".." in model:
            raise self._unknown(
                model, "Paths and addresses are not taken through the API; name it to `serve`."
            )
        try:
            self._store.resolve(model)
        except ModelNotFoundError as exc:
            fetchable = not isinstance(ref, AliasRef) or self._in_catalogue(ref.name)
            if not fetchable:
                raise self._unknown(model) from exc
            if not self._allow_pull:
                raise self._unknown(
                    model,
                    f"It is not on this machine: run `llama-runtime models pull {model}`, or serve "
                    "with --allow-pull.",
                ) from exc
        settings = {k: v for k, v in self._shared.items() if k not in _OF_ONE_MODEL}
        return KnownModel(RoutedModel(model), shared=settings, store=self._store)

    def _in_catalogue(self, name: str) -> bool:
        return any(entry.name == name for entry in self._store.catalog())

    def _unknown(self, model: str, hint: str | None = None) -> ModelNotFoundError:
        shown = model if len(model) <= _SHOWN_CHARS else model[:_SHOWN_CHARS] + "…"
        served = ", ".join(self.named)
        return ModelNotFoundError(
            f"There is no model {shown!r} here.",
            reference=shown,
            nearest=self.named,
            hint=" ".join(part for part in (hint, f"Served here: {served}.") if part),
        )
