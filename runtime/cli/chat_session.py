"""A chat under way: its model, what was said, and how the next answer is got."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from runtime.cli import output
from runtime.errors import LLMCapabilityError, LLMError, LLMInvalidRequestError

if TYPE_CHECKING:
    from runtime.cli.asking import Backend, Sampling
    from runtime.cli.conversation import Conversation
    from runtime.client.sync import LlamaClient
    from runtime.contracts import LLMResponse

MOST_ROOM: Final = 1024
"""Tokens that an answer without a bound should have; at most a quarter of the context."""


@dataclass(slots=True, kw_only=True)
class _Shown:
    """What of an answer is on the screen.

    Attributes:
        text: Its pieces.
        thinking: Whether the last thing shown was a thought.
        first_s: When its first piece came.
    """

    text: list[str] = field(default_factory=list)
    thinking: bool = False
    first_s: float | None = None

    def thought(self, piece: str) -> None:
        """Show a piece of a thought."""
        self._begun()
        self.thinking = True
        output.thought(piece)

    def piece(self, piece: str) -> None:
        """Show a piece of the answer."""
        self._begun()
        if self.thinking:
            output.thought("\n\n")
            self.thinking = False
        self.text.append(piece)
        output.piece(piece)

    def _begun(self) -> None:
        self.first_s = self.first_s or time.monotonic()


class Chat:
    """A conversation with a model. Used as a context manager, which loads and ends the model.

    Attributes:
        conversation: What was said.
        sampling: How answers are sampled.
        fit: What becomes of a conversation that is too long: ``drop_oldest`` or ``error``.
        saved: The conversation as it was last saved or loaded.
        unanswered: The last question, when it got no answer.
        over: Whether it was ended.
    """

    def __init__(self, backend: Backend, sampling: Sampling, conversation: Conversation) -> None:
        self.conversation = self.saved = conversation
        self.sampling = sampling
        self.fit = "drop_oldest"
        self.unanswered: str | None = None
        self.over = False
        self._backend = backend
        self._running = ExitStack()
        self._client: LlamaClient | None = None
        self._asked_model: str | None = None

    def __enter__(self) -> Self:
        self._load(self._backend)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def client(self) -> LlamaClient:
        """The client of the model that is loaded."""
        if self._client is None:
            raise LLMInvalidRequestError("No model is loaded.", hint="/model NAME loads one.")
        return self._client

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        return self._asked_model or self.client.default_model()

    @property
    def context_tokens(self) -> int | None:
        """Tokens one request may hold; None when the server does not say."""
        return self.client.capabilities().max_context_tokens

    @property
    def unsaved(self) -> bool:
        """Whether something was said since it was last saved."""
        return bool(self.conversation.turns) and self.conversation.turns != self.saved.turns

    def tokens(self, conversation: Conversation) -> int | None:
        """Tokens of a conversation as a prompt; None where the server cannot count."""
        if not conversation.turns:
            return 0
        try:
            return self.client.count_tokens(conversation.messages)
        except LLMCapabilityError:
            return None

    # --- models -------------------------------------------------------------------------------

    def switch(self, model: str) -> None:
        """Go on with another model; the conversation stays.

        Raises:
            LLMError: It cannot be loaded; the one before is loaded again.
        """
        if self._backend.base_url:
            self._asked_model = self._served(model)
            return
        wanted = replace(self._backend, model=model)
        wanted.fetch()  # before the one that works is given up
        before = self._backend
        self._unload()
        try:
            self._load(wanted)
        except (LLMError, KeyboardInterrupt):
            output.note(f"{model} was not loaded; going back to {before.model}.")
            self._load(before)
            raise

    def _served(self, model: str) -> str:
        """A model of the server that is used."""
        offered = self.client.config_snapshot()["model_patterns"]
        names = [str(name) for name in offered] if isinstance(offered, list) else []
        if names and model not in names:
            raise LLMInvalidRequestError(
                f"The server has no model {model!r}.", hint=f"It has: {', '.join(names)}."
            )
        return model

    def _load(self, backend: Backend) -> None:
        if not backend.base_url:
            output.note(f"Loading {backend.model} ...")
        self._client = self._running.enter_context(backend.open())
        self._backend = backend

    def _unload(self) -> None:
        self._client = None
        self._running.close()

    # --- answers ------------------------------------------------------------------------------

    def ask(self, question: str) -> None:
        """Ask the model, and show its answer as it comes. Ctrl-C stops it.

        A question that gets no answer at all is taken back.

        Raises:
            LLMError: There was no answer.
        """
        asked = self.conversation.asked(question)
        shown = _Shown()
        self.unanswered = question
        try:
            fitting = self._fitting(asked)
            response = self._shown_answer(asked, fitting, shown)
        except KeyboardInterrupt:
            self._stopped(asked, "".join(shown.text))
            return
        except LLMError:
            if shown.first_s:
                output.piece("\n")
            output.note("(no answer; the question is taken back, /retry asks it)")
            raise
        self.conversation, self.unanswered = asked.answered(response.text), None
        self._tell(response, shown)

    def retry(self) -> None:
        """Ask the last question again, in place of its answer.

        Raises:
            LLMInvalidRequestError: Nothing was asked.
            LLMError: There was no answer.
        """
        kept, question = self.conversation, self.unanswered
        anew = question is None
        if question is None:
            question = kept.last_question
            if question is None:
                raise LLMInvalidRequestError("Nothing was asked yet.")
            self.conversation = kept.before_last_question()
        try:
            self.ask(question)
        finally:
            if anew and self.unanswered is not None:  # no new answer: the old one stays
                self.conversation, self.unanswered = kept, None

    def _fitting(self, asked: Conversation) -> dict[str, object]:
        """What to ask for so that it fits; says so before, when something has to be left out."""
        context = self.context_tokens
        tokens = self.tokens(asked)
        if context is None or tokens is None:
            return {}
        room = self.sampling.max_tokens or min(MOST_ROOM, context // 4)
        if tokens + room > context and len(asked.turns) > 1:
            output.note(
                f"The context is full: the conversation has {tokens:,} tokens, the answer should "
                f"have room for {room:,}, one request holds {context:,}."
            )
            output.note(
                "The oldest messages are left out of what is sent (/set fit error stops that)."
                if self.fit == "drop_oldest"
                else "/set fit drop_oldest leaves the oldest messages out of what is sent."
            )
            output.note("/clear begins anew, /save FILE keeps it, --ctx-size gives more room.")
        return {"fit": self.fit}

    def _shown_answer(
        self, asked: Conversation, fitting: dict[str, object], shown: _Shown
    ) -> LLMResponse:
        from runtime import ThoughtEvent  # noqa: PLC0415 - the help does not need it

        params = self.sampling.params(**fitting)
        response: LLMResponse | None = None
        with self.client.stream_thinking(
            asked.messages, model=self._asked_model, params=params
        ) as events:
            for event in events:
                if isinstance(event, ThoughtEvent):
                    shown.thought(event.thought)
                elif event.delta_text:
                    shown.piece(event.delta_text)
                response = event.response or response
        output.piece("\n")
        assert response is not None  # noqa: S101 - a stream that ends in order has one
        return response

    def _stopped(self, asked: Conversation, text: str) -> None:
        if text:
            self.conversation, self.unanswered = asked.answered(text, stopped=True), None
            output.piece("\n")
            output.note("(stopped; what came stays in the conversation)")
        else:
            output.note("\n(stopped before the answer; the question is taken back, /retry asks it)")

    def _tell(self, response: LLMResponse, shown: _Shown) -> None:
        """What is worth knowing of an answer."""
        notes = response.raw or {}
        if response.finish_reason == "length":
            output.note(f"(cut off: {notes.get('length_limit') or 'a token limit'} was reached)")
        match notes.get("fit"):
            case {"dropped": [_, *_] as dropped}:
                output.note(f"(answered without the {len(dropped)} oldest messages)")
        if notes.get("recovery"):
            output.note("(the engine was started again meanwhile; the answer went on)")
        if output.err.is_terminal:
            output.note(self._figures(response, shown))

    def _figures(self, response: LLMResponse, shown: _Shown) -> str:
        usage, context = response.usage, self.context_tokens
        count = getattr(usage, "completion_tokens", None)
        total = getattr(usage, "total_tokens", None)
        match (response.raw or {}).get("timings"):
            case {"predicted_per_second": float(told)}:
                speed = told
            case _:
                took_s = time.monotonic() - (shown.first_s or time.monotonic())
                speed = count / took_s if count and took_s else 0.0
        parts = [
            f"{count:,} tokens" if count else None,
            f"{speed:.1f} tokens/s" if speed else None,
            f"{total:,} of {context:,} tokens of context" if total and context else None,
        ]
        return "(" + " · ".join(part for part in parts if part) + ")"
