"""Talkers of the benchmark: anything that speaks OpenAI's dialect, and the OpenAI client."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from openai import OpenAIError

from runtime.errors import LLMBadResponseError, LLMProviderError
from runtime.tuning.talkers import Watch
from runtime.tuning.workloads import SAMPLING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from openai import OpenAI

    from runtime.tuning.talkers import Answer
    from runtime.tuning.workloads import Question

_TIMEOUT_S: Final = 600.0


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
        watch = Watch()
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
        body = _body(question, self._model)
        if question.schema is not None:
            named = {"name": "answer", "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        extra = {name: value for name, value in SAMPLING.items() if name != "top_p"}
        watch = Watch()
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
