"""Having a workload answered, and what that came to."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.tuning.talkers import Answer, Talker
    from runtime.tuning.workloads import Question, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A workload, answered once.

    Attributes:
        answers: The answers to each conversation, in the order of its questions.
        wall_s: Seconds from the first request to the last answer's end.
    """

    answers: tuple[tuple[Answer, ...], ...]
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all answers a second of the whole run: prompts, queueing and all."""
        return self.completion_tokens / self.wall_s

    @property
    def completion_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(each.completion_tokens for said in self.answers for each in said)

    @property
    def first_tokens_s(self) -> tuple[float, ...]:
        """Seconds until the first token of each answer, conversation after conversation."""
        return tuple(each.first_token_s for said in self.answers for each in said)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """What was answered, for comparisons."""
        return tuple(tuple(each.text for each in said) for said in self.answers)


def run(workload: Workload, talker: Talker) -> Run:
    """Lead the conversations of a workload side by side, with whoever answers.

    Raises:
        LLMError: A question got no answer; the first such error, once the rest has ended.
    """

    def lead(questions: tuple[Question, ...]) -> tuple[Answer, ...]:
        return tuple(map(talker.ask, questions))

    began = time.perf_counter()
    with ThreadPoolExecutor(workload.at_once) as pool:
        answers = tuple(pool.map(lead, workload.conversations))
    return Run(answers=answers, wall_s=time.perf_counter() - began)
