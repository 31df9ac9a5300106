"""Whether two engines give the same answers: compared by the numbers behind them.

Texts seldom differ where numbers do: the likeliest token is the same one for nearly all roundings,
until it is not. So the probabilities are compared, which llama.cpp's servers give with all their
digits: two ways of computing that agree in every digit of many tokens are the same way. The prompts
have several lengths, as kernels are chosen by how many tokens a step has. For tokens that were
drafted the servers give no probabilities, but for those that follow them; where an engine gives
none at all, the texts alone are compared.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime.errors import LLMProviderError
from runtime.server import probe
from runtime.tuning.material import harbour_log

if TYPE_CHECKING:
    from runtime.engines.base import Endpoint

_PROMPT_TOKENS: Final = (70, 286, 544)
"""Lengths of the prompts: within a step of every kind, and with a short and a long rest after it.

From 64 tokens a step flash attention takes another kernel, past 256 tokens of context one token is
computed in as many parts as there are threads; 286 and 544 leave 30 and 32 tokens behind steps of
256 and 512.
"""

_ANSWER_TOKENS: Final = 12
_ALTERNATIVES: Final = 3
_TIMEOUT_S: Final = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What an engine answered to the probes.

    Attributes:
        texts: The answers.
        numbers: For each token of each answer the likeliest tokens and the logarithms of their
            probabilities; nothing where the engine tells none.
    """

    texts: tuple[str, ...]
    numbers: tuple[tuple[tuple[tuple[int, float], ...], ...], ...] = ()


def fingerprint(endpoint: Endpoint, reference: Fingerprint | None = None) -> Fingerprint:
    """Ask the probes.

    Args:
        endpoint: A server of our own that is ready.
        reference: Ask no further once an answer differs from this one's.

    Raises:
        LLMProviderError: It gave no answer.
    """
    longest = max(1, (endpoint.context_tokens or 4096) - _ANSWER_TOKENS - 1)
    texts: list[str] = []
    numbers: list[tuple[tuple[tuple[int, float], ...], ...]] = []
    for length in sorted({min(length, longest) for length in _PROMPT_TOKENS}):
        so_far = Fingerprint(texts=tuple(texts), numbers=tuple(numbers))
        if reference is not None and difference(reference, so_far):
            break
        asked: dict[str, object] = {
            "prompt": _prompt(endpoint, length, longest),
            "temperature": 0,
            "seed": 1,
        }
        if endpoint.kind == "llama-cpp-python":
            answer = _ask(endpoint, "/v1/completions", {**asked, "max_tokens": _ANSWER_TOKENS})
            texts.append(answer["choices"][0]["text"])
            continue
        asked |= {"cache_prompt": False, "n_predict": _ANSWER_TOKENS, "n_probs": _ALTERNATIVES}
        answer = _ask(endpoint, "/completion", asked)
        texts.append(answer["content"])
        numbers.append(
            tuple(
                tuple((each["id"], each["logprob"]) for each in token.get("top_logprobs", ()))
                for token in answer.get("completion_probabilities", ())
            )
        )
    return Fingerprint(texts=tuple(texts), numbers=tuple(numbers))


def difference(default: Fingerprint, other: Fingerprint) -> str | None:
    """How the answers of another server differ from the default's; None if they are the same.

    Those that one of them was not asked for are not compared.
    """
    if any(here != there for here, there in zip(default.texts, other.texts, strict=False)):
        return "gives other answers"
    told = (
        (here, there)
        for answers in zip(default.numbers, other.numbers, strict=False)
        for here, there in zip(*answers, strict=False)
    )
    if any(here and there and here != there for here, there in told):
        return "rounds otherwise, so that some answers would be others"
    return None


def _prompt(endpoint: Endpoint, length: int, longest: int) -> object:
    """A prompt of so many tokens, or about as many, but no more than the longest."""
    text = harbour_log(random.Random(length), 2 + length // 20)  # noqa: S311 - not a secret
    if endpoint.kind == "llama-cpp-python":
        return text[: min(3 * length, longest)]  # a token has a character at least
    tokens = _ask(endpoint, "/tokenize", {"content": text, "add_special": True})["tokens"]
    return tokens[:length]


def _ask(endpoint: Endpoint, path: str, body: dict[str, object]) -> Any:
    reply = probe.ask(
        endpoint.base_url, path, api_key=endpoint.api_key, body=body, timeout_s=_TIMEOUT_S
    )
    if reply.status != 200:
        raise LLMProviderError(
            f"The engine gave no answer at {path}: {reply.problem or f'HTTP {reply.status}'}."
        )
    return reply.body
