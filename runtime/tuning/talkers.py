"""Those who answer a workload's questions: our client, any OpenAI dialect, the OpenAI client."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from runtime.contracts import LLMChatParams
from runtime.errors import LLMBadResponseError, LLMProviderError
from runtime.tuning.workloads import SAMPLING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from openai import OpenAI

    from runtime.client.sync import LlamaClient
    from runtime.contracts import LLMResponse
    from runtime.tuning.workloads import Question

_TIMEOUT_S: Final = 600.0


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

    def __init__(self, client: LlamaClient, model: str | None = None) -> None:
        self._client = client
        self._model = model

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
        watch = _Watch()
        response: LLMResponse | None = None
        stream = self._client.stream_chat(question.messages, model=self._model, params=params)
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


class HttpTalker:
    """A server that speaks OpenAI's dialect, asked with the least that one can do.

    It opens a connection for each answer, as llama.cpp's server closes it after a stream anyway.
    """

    def __init__(self, base_url: str, *, model: str = "model", api_key: str | None = None) -> None:
        """Keep the address.

        Args:
            base_url: Scheme, host and port, without a path.
            model: The name to send.
            api_key: The key to send, or None.
        """
        self._address = urlsplit(base_url).netloc
        self._model = model
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def ask(self, question: Question) -> Answer:
        """The answer, streamed and timed.

        Raises:
            LLMProviderError: The server refused, or hung up.
            LLMBadResponseError: The stream ended without its closing line.
        """
        body = {
            **_body(question, self._model),
            **SAMPLING,
            "stream_options": {"include_usage": True},
        }
        if question.schema is not None:
            # llama.cpp's server and llama_cpp.server both take this form; OpenAI's own only one.
            body["response_format"] = {"type": "json_object", "schema": question.schema}
        watch = _Watch()
        told: dict[str, Any] = {}
        connection = http.client.HTTPConnection(self._address, timeout=_TIMEOUT_S)
        try:
            data = json.dumps(body).encode()
            connection.request("POST", "/v1/chat/completions", data, self._headers)
            reply = connection.getresponse()
            if reply.status != 200:
                said = reply.read(2000).decode("utf-8", "replace")
                raise LLMProviderError(f"HTTP status {reply.status}: {said}")
            for event in _events(reply):
                told |= {name: event[name] for name in ("usage", "timings") if event.get(name)}
                for choice in event.get("choices", ()):
                    watch.piece(choice["delta"].get("content"))
        except (OSError, http.client.HTTPException) as exc:
            raise LLMProviderError(f"The server hung up: {exc!r}.") from exc
        finally:
            connection.close()
        usage, timings = told.get("usage", {}), told.get("timings", {})
        details = usage.get("prompt_tokens_details") or {}
        return watch.answer(
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            cached_tokens=timings.get("cache_n", details.get("cached_tokens")),
        )


class OpenAITalker:
    """The OpenAI client, on whatever address it was made for."""

    def __init__(self, client: OpenAI, model: str) -> None:
        self._client = client
        self._model = model

    def ask(self, question: Question) -> Answer:
        """The answer, streamed and timed.

        Raises:
            LLMProviderError: The server refused, or hung up.
        """
        from openai import OpenAIError  # noqa: PLC0415 - a package that only callers of this have

        body = _body(question, self._model)
        if question.schema is not None:
            named = {"name": "answer", "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        extra = {name: value for name, value in SAMPLING.items() if name != "top_p"}
        watch = _Watch()
        usage: Any = None
        try:
            create: Any = self._client.chat.completions.create  # a body of our own is no overload
            with create(
                **body,
                top_p=SAMPLING["top_p"],
                stream_options={"include_usage": True},
                extra_body=extra,
            ) as stream:
                for chunk in stream:
                    usage = chunk.usage or usage
                    for choice in chunk.choices:
                        watch.piece(choice.delta.content)
        except OpenAIError as exc:
            raise LLMProviderError(str(exc)) from exc
        details = usage.prompt_tokens_details if usage else None
        return watch.answer(
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cached_tokens=details.cached_tokens if details else None,
        )


class _Watch:
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


def _body(question: Question, model: str) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": each.role, "content": each.content} for each in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question.seed,
        "stream": True,
    }


def _events(reply: http.client.HTTPResponse) -> Iterator[Mapping[str, Any]]:
    """The events of a stream, up to its closing line."""
    for line in reply:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "error" in event:
                raise LLMProviderError(f"The server broke off: {event['error']}")
            yield event
        elif line.startswith(b"data: [DONE]"):
            return
    raise LLMBadResponseError("The stream ended without its closing line.")
