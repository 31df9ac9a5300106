"""Trying candidates on real engines: started side by side where memory allows, else in turns."""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from runtime.client.sync import LlamaClient
from runtime.contracts import LLMChatParams
from runtime.errors import EngineNotRunningError
from runtime.settings import RestartPolicy
from runtime.tuning.candidates import DEFAULT
from runtime.tuning.contest import Measured
from runtime.tuning.running import run
from runtime.tuning.sameness import fingerprint
from runtime.tuning.talkers import ClientTalker
from runtime.tuning.workloads import NAMES, workload

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from runtime.engines.base import Endpoint
    from runtime.settings import ServerConfig
    from runtime.tuning.candidates import Candidate
    from runtime.tuning.sameness import Fingerprint
    from runtime.tuning.workloads import Workload, WorkloadName

AT_ONCE: Final = "4-at-once"
ALL: Final = (*NAMES, AT_ONCE)
"""What candidates are measured by: each workload alone, and four stories at once."""

_ABREAST: Final = 4
_APART: Final = 1000
"""Added to a round's number, so that no two workloads of a round are the same."""
_LEAST_JSON: Final = 0.2
_FIRST_SCALE: Final = 0.1
_LEAST_SCALE: Final = 0.05

_LONG: Final[tuple[WorkloadName, ...]] = ("agent-loop", "code-edit", "long-prompt")
"""Workloads whose prompts might be longer than a context; their lengths follow the scale."""

_FILLED: Final = 0.9
"""Of the context at most: prompts of other rounds are a little longer."""


class EngineArena:
    """Engines of candidates, ended with it.

    Args:
        config: The settings that all have in common.
        workloads: Those of :data:`ALL` to measure by.
        slots: Requests that an engine decodes at once.
        most_engines: So many at most run at once; the one not used for longest makes room.
        largest_scale: Length of the workloads at most, for small contexts.
        offline: Never use the network to get models.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        workloads: tuple[str, ...],
        slots: int,
        most_engines: int,
        largest_scale: float = 1.0,
        offline: bool | None = None,
    ) -> None:
        self._config = config
        self._workloads = tuple(w for w in workloads if w != AT_ONCE or slots > 1)
        self._abreast = min(_ABREAST, slots)
        self._most = max(1, most_engines)
        self._largest = largest_scale
        self._offline = offline
        self._scale = min(_FIRST_SCALE, largest_scale)
        self._running: OrderedDict[str, LlamaClient] = OrderedDict()
        self._warmed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with ExitStack() as closing:
            for client in self._running.values():
                closing.callback(client.close)
            self._running.clear()

    @property
    def scale(self) -> float:
        """The length of the workloads, 1 for the whole of each."""
        return self._scale

    def calibrate(self, round_s: float) -> float:
        """Choose the length of the workloads by how long a short round takes."""
        self._largest = min(self._largest, self._fitting())
        self._scale = min(self._scale, self._largest)
        took_s = self._seconds(DEFAULT, _APART - 1)
        scale = min(self._largest, max(_LEAST_SCALE, self._scale * round_s / took_s))
        took_s *= scale / self._scale
        self._scale = scale
        return took_s

    def fingerprint(
        self, candidate: Candidate, reference: Fingerprint | None = None
    ) -> Fingerprint:
        """What the candidate's engine answers, up to where that differs from the reference."""
        return fingerprint(self._started(self._client(candidate)), reference)

    def measure(self, candidate: Candidate, number: int) -> Measured:
        """The work of a round."""
        talker = ClientTalker(self._warm(candidate))
        seconds: dict[str, float] = {}
        texts: dict[str, object] = {}
        for name in self._workloads:
            done = run(self._workload(name, number), talker)
            seconds[name] = done.wall_s / max(1, done.completion_tokens)
            if name != AT_ONCE:  # who is computed together with whom depends on who comes first
                texts[name] = done.texts
        return Measured(seconds=seconds, texts=texts)

    def drop(self, candidate: Candidate) -> None:
        """End its engine."""
        if candidate.name in self._running:
            self._close(candidate.name)

    def _workload(self, name: str, number: int) -> Workload:
        if name == AT_ONCE:
            return workload(
                "free-text",
                at_once=self._abreast,
                number=_APART + number,
                scale=min(1.0, 2 * self._scale),
            )
        made = workload(_NAMES[name], number=number, scale=self._scale)
        return made if name != "json" else _shortened(made, max(_LEAST_JSON, self._scale))

    def _fitting(self) -> float:
        """The scale at which the longest prompts fit the context, by the model's own tokens."""
        client = self._warm(DEFAULT)
        context = self._started(client).context_tokens or 0
        fitting = 1.0
        for name in _LONG:
            if name not in self._workloads or not context:
                continue
            asked = workload(name, number=_APART - 1, scale=self._largest).conversations[0][-1]
            tokens = client.count_tokens(asked.messages)
            room = _FILLED * context - asked.max_tokens
            fitting = min(fitting, self._largest * room / tokens)
        return max(_LEAST_SCALE, fitting)

    def _seconds(self, candidate: Candidate, number: int) -> float:
        began_s = time.perf_counter()
        self.measure(candidate, number)
        return time.perf_counter() - began_s

    def _warm(self, candidate: Candidate) -> LlamaClient:
        """Its client, with an engine that has answered before: a start is not to be measured."""
        client = self._client(candidate)
        if candidate.name not in self._warmed:
            self._started(client)
            client.chat("Hello.", params=LLMChatParams(max_tokens=1))
            self._warmed.add(candidate.name)
        return client

    def _started(self, client: LlamaClient) -> Endpoint:
        if client.server is None:
            raise EngineNotRunningError("The engine is no child of ours.", state="unknown")
        return client.server.start().wait_ready()

    def _close(self, name: str) -> None:
        self._warmed.discard(name)
        self._running.pop(name).close()

    def _client(self, candidate: Candidate) -> LlamaClient:
        client = self._running.get(candidate.name)
        if client is not None:
            self._running.move_to_end(candidate.name)
            return client
        while len(self._running) >= self._most:
            # The default takes part in every round.
            spared = DEFAULT.name if self._most > 1 else None
            self._close(next(name for name in self._running if name != spared))
        client = LlamaClient(
            config=self._config.model_copy(
                update={
                    **candidate.settings,
                    "tuned": False,
                    # One that dies is refused, not mended.
                    "restart": RestartPolicy(enabled=False),
                }
            ),
            offline=self._offline,
            max_retries=0,
            use_gateway=False,
            fit="drop_oldest",
        )
        self._running[candidate.name] = client
        return client


def _shortened(made: Workload, share: float) -> Workload:
    """With answers that are cut off, which the schema's workload is not by itself."""
    return replace(
        made,
        conversations=tuple(
            tuple(replace(each, max_tokens=round(each.max_tokens * share)) for each in led)
            for led in made.conversations
        ),
    )


_NAMES: Final[Mapping[str, WorkloadName]] = {name: name for name in NAMES}
