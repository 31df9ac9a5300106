"""LlamaClient: the contract on a llama.cpp server, one that is started here or one that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, TypeVar, overload

from runtime.client._core import ClientCore
from runtime.client._stream import DELTAS, EVENTS, THINKING, AnswerStream, pieces
from runtime.inference import embeddings, structured
from runtime.inference.transport import Wire, iterate, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from typing_extensions import TypeForm

    from runtime.client._sources import EndpointSource
    from runtime.client._stream import Form
    from runtime.contracts import (
        BackendCapabilities,
        BackendStatus,
        EmbeddingResult,
        LLMChatParams,
        LLMDelta,
        LLMMessage,
        LLMRequest,
        LLMResponse,
        LLMStreamEvent,
        ToolSpec,
    )
    from runtime.inference.effects import Flow
    from runtime.inference.embeddings import TruncatedEmbeddingResult
    from runtime.inference.session_result import Session
    from runtime.inference.wishes import Wish

T = TypeVar("T")


class LlamaClient(ClientCore):
    """A language model on this machine, behind the provider-neutral contract.

    Without ``base_url`` it resolves and downloads the model, starts a private llama.cpp server and
    waits until it is ready; the server ends with the client, or with the process. With ``base_url``
    it attaches to an OpenAI-compatible server that runs already.

    Every method may be called from any thread, many at once. Inputs are read by attribute, so
    look-alikes of the contract's classes work.

    Example:
        >>> with LlamaClient("smollm2-135m") as client:  # doctest: +SKIP
        ...     print(client.chat("Say hello.").text)
    """

    def _begin(self) -> None:
        self._source.start()

    # --- the contract -------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> LLMResponse:
        """Answer a conversation.

        Args:
            messages: The conversation, or one user message as a plain string.
            model: The model; None for :meth:`default_model`.
            params: How to answer; None for the defaults.

        Raises:
            LLMError: See the error table of the contract.
        """
        return self._answer(self._chat_wish(messages, model, params))

    def stream_chat(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> AnswerStream[LLMStreamEvent]:
        """Answer piece by piece: deltas, then exactly one completed event with the whole.

        What cannot be right is refused at once; the request is sent with the first step of the
        iteration. Closing or leaving the stream cancels the generation.

        Raises:
            LLMError: As for :meth:`chat`, at once or while iterating.
        """
        return self._stream(self._chat_wish(messages, model, params), EVENTS)

    def generate(self, request: LLMRequest) -> LLMResponse:
        """Answer a whole request, tools and schema included.

        Raises:
            LLMError: See the error table of the contract.
        """
        return self._answer(self._request_wish(request))

    def stream(self, request: LLMRequest) -> AnswerStream[LLMDelta]:
        """Answer a whole request piece by piece; see :meth:`stream_chat`.

        The last piece holds the token counts, where the server tells them.
        """
        return self._stream(self._request_wish(request), DELTAS)

    def close(self) -> None:
        """End what runs, and the server that was started here; safe to call twice."""
        for source in self._shut():
            source.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def default_model(self) -> str:
        """The model used when a request names none."""
        return self._default_model()

    def capabilities(self) -> BackendCapabilities:
        """What this client can do with its model."""
        return self._capabilities()

    def config_snapshot(self) -> Mapping[str, object]:
        """The configuration: JSON-serializable, no secrets."""
        return self._config_snapshot()

    def server_snapshot(self) -> Mapping[str, object] | None:
        """The managed server as it is now; None for one that runs elsewhere."""
        return self._source.snapshot()

    def describe(self) -> Mapping[str, object]:
        """The whole composition, JSON-serializable."""
        return self._described()

    # --- beyond the contract ------------------------------------------------------------------

    @overload
    def embed(
        self, texts: Sequence[str], *, model: str | None = None, truncate: Literal[True]
    ) -> TruncatedEmbeddingResult: ...
    @overload
    def embed(
        self, texts: Sequence[str], *, model: str | None = None, truncate: bool = False
    ) -> EmbeddingResult: ...
    def embed(
        self, texts: Sequence[str], *, model: str | None = None, truncate: bool = False
    ) -> EmbeddingResult:
        """A vector for each text, in order; each of Euclidean length 1.

        Texts are sent many at a time. The result keeps the vectors as 32-bit floats in one block
        (:class:`runtime.inference.vectors.Vectors`), each of which is a tuple when asked for.

        Args:
            texts: Any number, none empty.
            model: The model; None for the client's ``embedding_model``, else its default model.
            truncate: Embed the beginning of a text that is too long, instead of refusing it; the
                result, a :class:`runtime.TruncatedEmbeddingResult`, tells which.

        Raises:
            TextTooLongError: A text has more tokens than the server embeds at once; says which.
            LLMCapabilityError: The server serves no embeddings.
            LLMError: See the error table of the contract.
        """
        checked = embeddings.checked(texts)
        embedder = self._own_embedder(model)
        if embedder is not None:
            embedder.start()
            wanted = self._embedding(embedder, checked, None, truncate=truncate)
            return self._run(wanted, embedder)
        name = model or self._settings.embedding_model
        sent = self._source.resolve(name) if name is not None else None
        return self._run(self._embedding(self._source, checked, sent, truncate=truncate))

    def stream_thinking(
        self,
        messages: Sequence[LLMMessage] | str,
        *,
        model: str | None = None,
        params: LLMChatParams | None = None,
    ) -> AnswerStream[LLMStreamEvent]:
        """Answer piece by piece as :meth:`stream_chat`, and tell the thoughts as they come.

        A piece of a thought is a :class:`runtime.ThoughtEvent`, whose ``delta_text`` is None.

        Raises:
            LLMError: As for :meth:`stream_chat`.
        """
        return self._stream(self._chat_wish(messages, model, params), THINKING)

    def healthcheck(self) -> BackendStatus:
        """Whether a request sent now would be served; never raises."""
        return self._health()

    def count_tokens(
        self,
        text_or_messages: str | Sequence[LLMMessage] | LLMRequest,
        *,
        tools: Sequence[ToolSpec] = (),
        params: LLMChatParams | None = None,
    ) -> int:
        """Tokens by the engine's own count.

        Args:
            text_or_messages: A text, counted by itself; or messages or a whole request, counted as
                the prompt that is made of them: what ``usage.prompt_tokens`` of an answer will be.
            tools: The tools that the request offers.
            params: Its parameters: a schema and a ``tool_choice`` may add to the prompt. With
                tools or parameters a text counts as one user message.

        Raises:
            LLMCapabilityError: The server cannot count.
        """
        return self._run(self._counting(text_or_messages, tools, params))

    def save_session(
        self,
        name: str | Path,
        text_or_messages: str | Sequence[LLMMessage] | LLMRequest,
        *,
        tools: Sequence[ToolSpec] = (),
        params: LLMChatParams | None = None,
    ) -> Session:
        """Keep on disk what the engine has computed of a conversation.

        The file holds the conversation; only its owner may read it.

        Args:
            name: A name, or the path of a file. A session of that name is replaced.
            text_or_messages: The conversation, as it was sent, with its last answer or without.
            tools: The tools that it offers.
            params: What it is sent with.

        Raises:
            LLMCapabilityError: The engine cannot do that, or is not this client's own.
            StorageError: There is no room, or the disk refuses.
        """
        return self._run(self._saving(name, text_or_messages, tools, params))

    def restore_session(self, name: str | Path) -> Session:
        """Bring a saved conversation back into the engine; its next turn computes what is new.

        The engine proves that it has what was saved, before anything is sent to it.

        Raises:
            SessionNotFoundError: There is none of that name.
            IntegrityError: The file is damaged.
            SessionMismatchError: It was saved with another model, engine or context; names what
                differs.
            LLMCapabilityError: The engine cannot do that, or is not this client's own.
        """
        return self._run(self._restoring(name))

    def parse(
        self,
        messages: Sequence[LLMMessage] | str,
        output_type: TypeForm[T],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        provider_options: dict[str, object] | None = None,
    ) -> T:
        """Answer with an instance of a type.

        Args:
            messages: The conversation, or one user message as a plain string.
            output_type: A pydantic model, a dataclass, or any type pydantic understands.
            model: As for :meth:`chat`.
            temperature: As in :class:`runtime.LLMChatParams`.
            max_tokens: As in :class:`runtime.LLMChatParams`.
            provider_options: As in :class:`runtime.LLMChatParams`.

        Raises:
            LLMInvalidRequestError: The type has no JSON Schema.
            SchemaViolationError: The answer is no instance of it, by rules that a JSON Schema
                cannot express.
            LLMError: As for :meth:`chat`.
        """
        shape = structured.shape_of(output_type)
        params = shape.params(temperature, max_tokens, provider_options)
        instance: T = shape.instance(self.chat(messages, model=model, params=params).text)
        return instance

    # --- parts --------------------------------------------------------------------------------

    def _answer(self, wish: Wish) -> LLMResponse:
        return self._run(self._conversation(wish, self._sent_name(wish), emit=False))

    def _stream(self, wish: Wish, form: Form[T]) -> AnswerStream[T]:
        wire = Wire(self._source.queue)
        steps = iterate(
            self._conversation(wish, self._sent_name(wish), emit=True),
            locate=self._source.endpoint,
            board=self._board,
            wire=wire,
        )
        return AnswerStream(pieces(steps, form), wire.abort)

    def _sent_name(self, wish: Wish) -> str | None:
        return None if wish.model is None else self._source.resolve(wish.model)

    def _run(self, wanted: Flow[T], source: EndpointSource | None = None) -> T:
        source = source or self._source
        return run(wanted, locate=source.endpoint, board=self._board, queue=source.queue)
