"""Are the answers the same with drafts, or tuned, as without, character by character?

Starts two engines, one with ``speculation="off"`` and one with drafts, and asks both the same
seeded questions: free text, JSON by a schema, tool calls and long prompts, at temperatures 0 and
0.8, alone and four at once, most of them repetitive so that drafts are made and accepted. Ends with
1 if a text differs, or if no draft was accepted where some should have been.

The steps are small unless said otherwise: with larger ones an engine does not repeat itself beside
other requests, drafts or not (docs/recovery.md).

With ``--tuned`` the second engine is each that ``llama-runtime tune`` may choose for these
settings, all it may choose together included, with the default's own steps and therefore one
question at a time.

    python scripts/identity_check.py --prompts 200 --threads 1
    python scripts/identity_check.py --tuned
    LLAMA_RUNTIME_ENGINE=llama-cpp-python python scripts/identity_check.py --tuned --threads 0
    python scripts/identity_check.py --prompts 200 --threads 2 --cache-type-k q8_0
    LLAMA_RUNTIME_ENGINE=llama-server python scripts/identity_check.py
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runtime import LlamaClient, LLMMessage, LLMRequest, ServerConfig, ToolSpec
from runtime.store import ModelStore
from runtime.store.digests import model_digest
from runtime.tuning import material
from runtime.tuning.candidates import DEFAULT, combined
from runtime.tuning.sameness import difference
from runtime.tuning.trials import EngineArena
from runtime.tuning.tuner import prepare

if TYPE_CHECKING:
    from runtime import LLMResponse
    from runtime.tuning.candidates import Candidate

AT_ONCE = 4
TOOL = ToolSpec(
    name="get_order",
    description="Reads an order.",
    input_schema={
        "type": "object",
        "properties": {"order_id": {"type": "string", "maxLength": 12}},
        "required": ["order_id"],
        "additionalProperties": False,
    },
    output_schema={"type": "object"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a server said to all questions.

    Attributes:
        texts: The answers, tool calls and ways of ending included, in the order of the questions.
        drafted: Tokens that were drafted.
        accepted: Those of them that were right.
        speculation: What the server's snapshot says of it.
        wall_s: Seconds for everything.
    """

    texts: tuple[str, ...]
    drafted: int
    accepted: int
    speculation: object
    wall_s: float


def questions(count: int, tokens: int) -> list[LLMRequest]:
    """Requests with seeds, each of its own kind; the same ones for the same arguments."""
    chance = random.Random(count)
    made = []
    for number in range(count):
        record = material.compact([material.order(chance) for _ in range(chance.randint(1, 2))])
        log = material.harbour_log(chance, chance.randint(3, 20))
        told, schema, tools = (
            (f"Repeat this twice, unchanged:\n{record}\n{record}", None, ()),
            (f"{material.module(chance, 16)}\nRepeat the file unchanged.", None, ()),
            (f"{material.letter(chance)}\nWhat does it say of the order?", material.INVOICE, ()),
            (f"Tell a story about {chance.choice(material.TOPICS)}.", None, ()),
            (f"{record}\nRead the first order again.", None, (TOOL,)),
            (f"{log}\nRepeat the last entry.", None, ()),
        )[number % 6]
        made.append(
            LLMRequest(
                messages=[LLMMessage(role="user", content=told)],
                temperature=0.8 if number // 6 % 2 else 0.0,
                max_tokens=tokens,
                response_schema=dict(schema) if schema else None,
                tools=tools,
                provider_options={"seed": number + 1, "on_truncation": "keep"},
            )
        )
    return made


def answered(config: ServerConfig, asked: list[LLMRequest], *, at_once: int) -> Run:
    """All questions, the first half one after another and the rest so many at once."""
    with LlamaClient(config=config) as client:
        began = time.monotonic()
        half = len(asked) // 2
        said = [client.generate(each) for each in asked[:half]]
        with ThreadPoolExecutor(at_once) as pool:
            said += pool.map(client.generate, asked[half:])
        wall_s = time.monotonic() - began
        assert client.server
        speculation = client.server.snapshot().performance["speculation"]
    return Run(
        texts=tuple(map(whole, said)),
        drafted=sum(timing(each, "draft_n") for each in said),
        accepted=sum(timing(each, "draft_n_accepted") for each in said),
        speculation=speculation,
        wall_s=wall_s,
    )


def whole(response: LLMResponse) -> str:
    """Everything of an answer that must not differ."""
    calls = [(call.name, call.arguments_json) for call in response.tool_calls]
    return json.dumps([response.text, calls, response.finish_reason, str(response.usage)])


def timing(response: LLMResponse, name: str) -> int:
    """A number from the engine's own timings; 0 where it tells none."""
    timings: Any = (response.raw or {}).get("timings") or {}
    return int(timings.get(name, 0))


def choosable(config: ServerConfig) -> list[Candidate]:
    """What ``tune`` may take for these settings on this machine, and all of it together."""
    store = ModelStore()
    model = store.resolve(config.model)
    tuning = prepare(config, model, model_sha256=model_digest(model))
    with EngineArena(config, workloads=(), slots=1, most_engines=2) as arena:
        reference = arena.fingerprint(DEFAULT)
        left = [
            each
            for each in tuning.candidates
            if not difference(reference, arena.fingerprint(each, reference))
        ]
    first = {each.dimension: each for each in reversed(left)}
    return [*left, *([combined(tuple(first.values()))] if len(first) > 1 else [])]


def compared(one: Run, other: Run) -> list[int]:
    """The numbers of the questions that were answered differently; the first ones are shown."""
    both = zip(one.texts, other.texts, strict=True)
    differing = [number for number, (here, there) in enumerate(both) if here != there]
    for number in differing[:3]:
        print(f"{number}: {one.texts[number]}\n{'':{len(str(number))}}  {other.texts[number]}")
    return differing


def check_tuned(config: ServerConfig, asked: list[LLMRequest], *, only: str) -> int:
    """Compare the defaults with all that ``tune`` may take and that has ``only`` in its name.

    Returns 1 if an answer differs.
    """
    tried = [DEFAULT, *(each for each in choosable(config) if only in each.name)]
    # Engines of several threads stand in each other's way.
    with ThreadPoolExecutor(2 if config.threads == 1 else 1) as pool:
        plain, *runs = pool.map(
            lambda each: answered(config.model_copy(update=dict(each.settings)), asked, at_once=1),
            tried,
        )
    print(f"{len(asked)} answers of the defaults: {plain.wall_s:.0f} s")
    worst = 0
    for candidate, run in zip(tried[1:], runs, strict=True):
        differing = compared(plain, run)
        worst = max(worst, len(differing))
        print(
            f"{candidate.name}: {len(differing)} of {len(asked)} differ; {run.accepted} of "
            f"{run.drafted} drafted tokens accepted; {run.wall_s:.0f} s"
        )
    if not runs:
        print("`tune` may take nothing else here.")
    return 1 if worst else 0


def check_drafts(
    config: ServerConfig, speculation: Literal["off", "ngram-mod"], asked: list[LLMRequest]
) -> int:
    """Compare without drafts and with; 1 if an answer differs, or no draft was accepted."""
    both = [config.model_copy(update={"speculation": way}) for way in ("off", speculation)]
    with ThreadPoolExecutor(2) as pool:
        plain, drafted = pool.map(lambda each: answered(each, asked, at_once=AT_ONCE), both)
    differing = compared(plain, drafted)
    print(
        f"speculation: {drafted.speculation}\n"
        f"{len(differing)} of {len(asked)} answers differ; {drafted.drafted} tokens drafted, "
        f"{drafted.accepted} accepted; {plain.wall_s:.0f} s without, {drafted.wall_s:.0f} s with"
    )
    on: Any = drafted.speculation
    where = "alone" if all(number < len(asked) // 2 for number in differing) else "at once, too"
    if differing:
        print(f"They differ {where}: {differing}")
    if on["value"] is None:
        print("Speculation was left out, so that the two runs are of the same kind.")
    return 1 if differing or (on["value"] is not None and not drafted.accepted) else 0


def main() -> int:
    """Ask, compare, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=96, help="Most tokens of an answer.")
    parser.add_argument("--threads", type=int, default=1, help="0: as many as are chosen.")
    parser.add_argument("--cache-type-k", default="f16")
    parser.add_argument("--ubatch-size", type=int, default=32, help="Not with --tuned.")
    parser.add_argument(
        "--speculation", default="ngram-mod", help="off: how far the engine repeats itself without."
    )
    parser.add_argument(
        "--tuned", action="store_true", help="Compare with all that `tune` may take, one at a time."
    )
    parser.add_argument("--only", default="", help="With --tuned: what has this in its name.")
    options = parser.parse_args()
    settings: dict[str, Any] = {
        "threads": options.threads or None,
        "cache_type_k": options.cache_type_k,
        "log_dir": None,
        **({"model": options.model} if options.model else {}),
    }
    asked = questions(options.prompts, options.tokens)
    if options.tuned:
        return check_tuned(ServerConfig(**settings), asked, only=options.only)
    steps = {
        "batch_size": max(512, options.ubatch_size),
        "ubatch_size": options.ubatch_size,
        "embeddings": False,  # with them a batch is one step, which is too short for drafts
    }
    return check_drafts(ServerConfig(**settings, **steps), options.speculation, asked)


if __name__ == "__main__":
    sys.exit(main())
