"""Those who answer a workload's questions, and what they tell of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from runtime.contracts import LLMChatParams
from runtime.tuning.workloads import SAMPLING

if TYPE_CHECKING:
    from runtime.client.sync import LlamaClient
    from runtime.contracts import LLMResponse
    from runtime.tuning.workloads import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer and how it came.

    Attributes:
        text: The whole text.
        first_token_s: Seconds from the request to the first piece of text; to the end, where none
            came.
        total_s: Seconds from the request to the end of the answer.
        completion_tokens: Tokens of the answer, by the server's count; where it gives none, the
            pieces of the stream, of which llama.cpp's servers send one for each token.
        prompt_tokens: Tokens of the prompt; None where the server does not tell.
        cached_tokens: How many of those were in its cache; None where the server does not tell.
    """

    text: str
    first_token_s: float
    total_s: float
    completion_tokens: int
    prompt_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second once the first has come; None for an answer of one."""
        rest_s = self.total_s - self.first_token_s
        if rest_s <= 0 or self.completion_tokens < 2:
            return None
        return (self.completion_tokens - 1) / rest_s


class Talker(Protocol):
    """Somebody who answers; may be asked from many threads at once."""

    def ask(self, question: Question) -> Answer:
        """The answer, streamed and timed.

        Raises:
            LLMError: There was none.
        """
        ...


class ClientTalker:
    """Our own client."""

    def __init__(self, client: LlamaClient) -> None:
        self._client = client

    def ask(self, question: Question) -> Answer:
        """The answer, streamed and timed.

        Raises:
            LLMError: See the error table of the contract.
        """
        params = LLMChatParams(
            temperature=question.temperature,
            max_tokens=question.max_tokens,
            response_schema=dict(question.schema) if question.schema else None,
            provider_options={**SAMPLING, "seed": question.seed, "on_truncation": "keep"},
        )
        watch = Watch()
        response: LLMResponse | None = None
        stream = self._client.stream_chat(question.messages, params=params)
        for event in stream:
            watch.piece(event.delta_text)
            response = event.response
        usage: Any = response.usage if response else None
        cache: Any = (response.raw or {}).get("cache") if response else None
        return watch.answer(
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cached_tokens=cache["reused"] if cache else None,
        )


class Watch:
    """Takes the time of an answer from its making on."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._first: float | None = None
        self._pieces: list[str] = []

    def piece(self, text: str | None) -> None:
        """Some text has come, if it has."""
        if text:
            if self._first is None:
                self._first = time.perf_counter()
            self._pieces.append(text)

    def answer(
        self,
        *,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        cached_tokens: int | None,
    ) -> Answer:
        """That was all."""
        now = time.perf_counter()
        return Answer(
            text="".join(self._pieces),
            first_token_s=(now if self._first is None else self._first) - self._began,
            total_s=now - self._began,
            completion_tokens=len(self._pieces) if completion_tokens is None else completion_tokens,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
        )
