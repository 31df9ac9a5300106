"""What the workloads are made of: texts and records that depend on a random generator alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

TOPICS: Final = (
    "a river that changes its course",
    "the keeper of a lighthouse",
    "bread and who bakes it",
    "an old clock in a station",
    "the first winter in a new town",
    "a market early in the morning",
    "ants that move their nest",
    "a letter that came too late",
    "the making of glass",
    "a ferry in the fog",
    "an orchard after a storm",
    "two neighbours and a wall",
    "a school on an island",
    "the last train home",
    "a garden on a roof",
    "a map with a mistake",
)
_PEOPLE: Final = ("Ines Okafor", "Tom Bauer", "Lena Novak", "Ravi Shah", "Mei Chen", "Paul Roux")
_CITIES: Final = ("Porto", "Graz", "Oslo", "Pune", "Lyon", "Turin", "Cork", "Gdansk")
_GOODS: Final = ("lamp", "chair", "kettle", "mirror", "rug", "shelf", "clock", "basket")
_STATES: Final = ("open", "packed", "shipped", "returned")
_SHIPS: Final = ("Alma", "Boreas", "Castor", "Dorado", "Elbe", "Fulmar", "Galatea", "Heron")
_CARGOES: Final = ("timber", "salt", "oranges", "machine parts", "wool", "coal", "tea", "paper")
_WEATHER: Final = ("calm", "in a light breeze", "in heavy rain", "through fog", "against the wind")

SHOP: Final = """\
You keep the orders of a shop by calling tools. Answer with one JSON object and nothing else:
{"seen": the last result, unchanged, or null, "tool": the name of the next tool, "arguments": its \
arguments}

Tools:
{"name": "get_order", "description": "Reads an order.", "parameters": {"type": "object", \
"properties": {"order_id": {"type": "string"}}, "required": ["order_id"]}}
{"name": "set_state", "description": "Changes the state of an order.", "parameters": {"type": \
"object", "properties": {"order_id": {"type": "string"}, "state": {"enum": ["open", "packed", \
"shipped", "returned"]}}, "required": ["order_id", "state"]}}"""
"""The system prompt of the agent loop. Tools are told in plain words and called in plain JSON: that
is what every engine can do alike, also with a model whose template knows no tools."""

INVOICE: Final[Mapping[str, object]] = {
    "type": "object",
    "properties": {
        "customer": {"type": "string", "maxLength": 24},
        "city": {"type": "string", "maxLength": 16},
        "items": {
            "type": "array",
            "minItems": 3,
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "article": {"enum": list(_GOODS)},
                    "quantity": {"type": "integer"},
                    "paid": {"type": "boolean"},
                },
                "required": ["article", "quantity", "paid"],
                "additionalProperties": False,
            },
        },
        "state": {"enum": list(_STATES)},
    },
    "required": ["customer", "city", "items", "state"],
    "additionalProperties": False,
}
"""The schema of the extraction: of the kinds that every engine enforces."""

_MODULE: Final = '''\
"""Keeps the stock of a warehouse in {city}."""

import json
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class {thing}Stock:
    """How many of each {word} there are."""

    place: str
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, count: int) -> None:
        """Put some on the shelf."""
        if count < 0:
            raise ValueError("count must not be negative")
        self.counts[name] = self.counts.get(name, 0) + count

    def take(self, name: str, count: int) -> int:
        """Take up to count from the shelf and return how many there were."""
        taken = min(count, self.counts.get(name, 0))
        self.counts[name] = self.counts.get(name, 0) - taken
        return taken

    def save(self, path: Path) -> None:
        """Write everything to a file."""
        path.write_text(json.dumps({{"place": self.place, "counts": self.counts}}))


def load(path: Path) -> {thing}Stock:
    """Read what was saved."""
    data = json.loads(path.read_text())
    return {thing}Stock(place=data["place"], counts=data["counts"])


def report(stock: {thing}Stock) -> str:
    """One line for each {word}, the most numerous first."""
    ranked = sorted(stock.counts.items(), key=lambda pair: -pair[1])
    return "\\n".join(f"{{name}}: {{count}}" for name, count in ranked)
'''


def order(chance: random.Random) -> dict[str, object]:
    """The result of a tool: an order of the shop."""
    return {
        "order_id": f"A-{chance.randint(1000, 9999)}",
        "customer": {"name": chance.choice(_PEOPLE), "city": chance.choice(_CITIES)},
        "items": [
            {"sku": sku, "quantity": chance.randint(1, 9), "price": chance.randint(500, 9999) / 100}
            for sku in chance.sample(_GOODS, 2)
        ],
        "state": chance.choice(_STATES),
    }


def module(chance: random.Random, lines: int) -> str:
    """A Python file, or as many of its first lines."""
    word = chance.choice(_GOODS)
    text = _MODULE.format(city=chance.choice(_CITIES), thing=word.capitalize(), word=word)
    return "".join(text.splitlines(keepends=True)[:lines])


def letter(chance: random.Random) -> str:
    """What a customer writes about an order."""
    first, second, third = chance.sample(_GOODS, 3)
    return (
        f"Dear team, this is {chance.choice(_PEOPLE)} from {chance.choice(_CITIES)}. Last week I "
        f"ordered {chance.randint(2, 9)} pieces of the {first}, which I have already paid for. "
        f"Later I added {chance.randint(2, 9)} times the {second}, to be paid on delivery, and "
        f"{chance.randint(2, 9)} times the {third}, paid by card. Your page says that the order "
        f"is {chance.choice(_STATES)}. Could you confirm that, and tell me when I may expect it?"
    )


def harbour_log(chance: random.Random, entries: int) -> str:
    """A long text of which no line is like another."""
    return "\n".join(
        f"Day {day}, {chance.randint(0, 23):02}:{chance.randint(0, 59):02}: the "
        f"{chance.choice(_SHIPS)} came from {chance.choice(_CITIES)} with "
        f"{chance.randint(20, 900)} tons of {chance.choice(_CARGOES)}, {chance.choice(_WEATHER)}; "
        f"master {chance.choice(_PEOPLE)}, berth {chance.randint(1, 40)}."
        for day in range(1, entries + 1)
    )


def compact(value: object) -> str:
    """A value as JSON on one line."""
    return json.dumps(value, ensure_ascii=False)
