"""The server that the fixtures give to tests: a relay, behind it an engine when one is needed."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runtime.client.sync import LlamaClient
from runtime.errors import ConfigError
from runtime.inference.discovery import is_trial
from runtime.server.manager import ServerManager
from runtime.settings import RestartPolicy
from runtime.testing import hosting
from runtime.testing.faults import Faults
from runtime.testing.forward import forward
from runtime.testing.relay import Relay, error_reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runtime.contracts import LLMResponse
    from runtime.inference.effects import Flow
    from runtime.inference.wishes import Wish
    from runtime.testing.forward import Upstream
    from runtime.testing.hosting import Lease
    from runtime.testing.models import Wanted
    from runtime.testing.relay import Asked, Reply
    from runtime.testing.run import Run
    from runtime.testing.tape import Tape

_MAX_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRequest:
    """A request of a test's, as it reached the server.

    Attributes:
        method: ``POST``, for whatever a model answers.
        path: The path.
        body: The body as JSON.
    """

    method: str
    path: str
    body: Any


class RepeatableClient(LlamaClient):
    """A client whose requests have the same seeds in every run, where the test gives none.

    A seed is made of the conversation and of how often this client has asked it, so that one
    question asked twice may have two answers.
    """

    def __init__(self, **options: Any) -> None:
        self._asked: dict[str, int] = {}
        super().__init__(**options)

    def _conversation(self, wish: Wish, model: str | None, *, emit: bool) -> Flow[LLMResponse]:
        if wish.seed is None:
            text = json.dumps(wish.messages, sort_keys=True)
            with self._lock:
                number = self._asked[text] = self._asked.get(text, 0) + 1
            digest = hashlib.sha256(f"{number} {text}".encode()).digest()
            wish = replace(wish, seed=int.from_bytes(digest[:4], "big") % _MAX_SEED)
        return super()._conversation(wish, model, emit=emit)


class LlamaServer:
    """An OpenAI-compatible server for tests, at one address for the whole run of a process.

    Attributes:
        base_url: Its address, without ``/v1``.
        api_key: The key it asks for.
        model: The model's name in the API.
    """

    def __init__(self, wanted: Wanted, run: Run) -> None:
        self.api_key = secrets.token_urlsafe(16)
        self.model = wanted.name
        self._wanted = wanted
        self._run = run
        self._lease: Lease | None = None
        self._episode: Episode | None = None
        self._relay = Relay(self._answer)
        self.base_url = self._relay.base_url

    def client(self, **options: Any) -> LlamaClient:
        """A client of this server; options are those of :class:`runtime.LlamaClient`.

        Requests without a seed get one that is the same in every run.
        """
        return RepeatableClient(base_url=self.base_url, api_key=self.api_key, **options)

    @property
    def requests(self) -> tuple[SeenRequest, ...]:
        """What the running test has asked so far, without what clients ask on their own account."""
        return tuple(self._episode.requests) if self._episode else ()

    @property
    def pid(self) -> int | None:
        """The process id of the engine that the test uses; None while there is none."""
        pid = self.snapshot().get("pid")
        return pid if isinstance(pid, int) else None

    def snapshot(self) -> Mapping[str, object]:
        """The engine's server as it is now, as ``LlamaClient.server_snapshot`` tells it."""
        private = self._episode.private if self._episode else None
        return private.snapshot().to_dict() if private else self.engine().snapshot()

    def logs(self, n: int = 100) -> tuple[str, ...]:
        """The last lines the engine printed, oldest first."""
        private = self._episode.private if self._episode else None
        return private.logs(n) if private else self.engine().logs(n)

    # --- the plugin's side --------------------------------------------------------------------

    def engine(self) -> Lease:
        """The shared engine, started when it is not there yet.

        Raises:
            LLMError: It cannot be.
        """
        if self._lease is None:
            self._lease = hosting.lease(self._wanted, self._run)
        return self._lease

    def begin(self, tape: Tape | None) -> Episode:
        """A test begins; its engine is started when it is sure to be needed.

        Raises:
            LLMError: It cannot be.
        """
        if tape is None or tape.needs_engine:
            self.engine()
        self._episode = Episode(self._wanted, tape)
        return self._episode

    def end(self) -> None:
        """The test is over: whatever it broke is whole again."""
        episode, self._episode = self._episode, None
        if episode is not None:
            episode.close()

    def close(self) -> None:
        """Take no further requests."""
        self.end()
        self._relay.close()

    def _answer(self, asked: Asked) -> Reply:
        if asked.key != self.api_key and asked.path != "/health":
            return error_reply(401, "Invalid API key: use llama_server.api_key.", "auth_error")
        episode = self._episode
        if episode is None:  # of a fixture that outlives the test
            return forward(asked, self.engine())
        return episode.answer(asked, self)


class Episode:
    """One test's time with a server.

    Attributes:
        tape: Its cassette, if it has one.
        requests: What it asked.
        faults: What it wants to go wrong.
        private: The engine of its own, where it wants to see one die.
    """

    def __init__(self, wanted: Wanted, tape: Tape | None) -> None:
        self.tape = tape
        self.requests: list[SeenRequest] = []
        self.faults: Faults | None = None
        self.private: ServerManager | None = None
        self._wanted = wanted

    def answer(self, asked: Asked, server: LlamaServer) -> Reply:
        """The answer to a request: from engine or cassette, with what the faults make of it."""

        def ask_engine(asked: Asked) -> Reply:
            upstream: Upstream = self.private or server.engine()
            return forward(asked, upstream)

        def ask(asked: Asked) -> Reply:
            return self.tape.answer(asked, ask_engine) if self.tape else ask_engine(asked)

        if asked.method == "POST" and not is_trial(asked.body):
            self.requests.append(SeenRequest(method=asked.method, path=asked.path, body=asked.body))
            if self.faults is not None:
                return self.faults.answer(asked, ask)
        return ask(asked)

    def inject(self) -> Faults:
        """Where the test says what is to go wrong."""
        if self.faults is None:
            self.faults = Faults(self._private_engine)
        return self.faults

    def close(self) -> None:
        """Let go of all that waits, and end the engine of its own."""
        if self.faults is not None:
            self.faults.close()
        if self.private is not None:
            self.private.stop()

    def _private_engine(self, restart: bool) -> ServerManager:
        if self.tape is not None and self.tape.mode in {"none", "new"}:
            raise ConfigError(
                "This test replays a cassette, so it has no engine to kill.",
                hint="Use llama_faults.cut(): its client sees the same.",
            )
        if self.private is None:
            policy = RestartPolicy(enabled=restart, backoff_base_s=0.05)
            config = self._wanted.config().model_copy(update={"restart": policy})
            self.private = ServerManager(config, offline=True)
            self.private.start()
        return self.private
