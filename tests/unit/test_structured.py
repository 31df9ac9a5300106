"""Types as shapes of answers: every kind that pydantic knows becomes a schema and comes back."""

from __future__ import annotations

import datetime as dt
import json
import typing
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal
from uuid import UUID

import pytest
import typing_extensions
from pydantic import BaseModel, Field, PositiveInt, RootModel

from runtime.engines.base import EngineCapabilities
from runtime.errors import LLMInvalidRequestError, SchemaViolationError
from runtime.inference import closing, schema
from runtime.inference.structured import shape_of


class Mood(Enum):
    GLAD = "glad"
    SAD = "sad"


Item = typing.TypeVar("Item")


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    born: dt.date


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]


class Row(typing_extensions.TypedDict):
    name: str
    when: typing_extensions.NotRequired[dt.datetime]


class OldRow(typing.TypedDict):
    name: str
    size: int


class Partial(typing.TypedDict, total=False):
    name: str


@dataclass
class Point:
    x: float
    label: str = "origin"


class Page(BaseModel, Generic[Item]):
    items: list[Item]
    total: PositiveInt


@dataclass
class Box(Generic[Item]):
    content: Item
    inner: Box[Item] | None = None


class Priced(typing.NamedTuple):
    price: Decimal
    currency: Literal["EUR", "USD"] = "EUR"


class Numbers(RootModel[list[int]]):
    pass


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(BaseModel):
    rows: dict[str, list[Row | None]]
    ratio: Annotated[float, Field(gt=0, lt=1)]
    at: dt.time
    level: Level
    tags: set[str] = set()


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Page[int], '{"items": [1, 2], "total": 2}', Page[int](items=[1, 2], total=2)),
        (Box[int], '{"content": 1, "inner": {"content": 2}}', Box(1, Box(2))),
        (Priced, '["1.50"]', Priced(Decimal("1.50"))),
        (Decimal, '"12.340"', Decimal("12.340")),
        (Numbers, "[3]", Numbers([3])),
        (list[Numbers], "[[3], []]", [Numbers([3]), Numbers([])]),
        (Level, "2", Level.HIGH),
        (
            Mixed,
            '{"rows": {"a": [{"name": "n"}, null]}, "ratio": 0.5, "at": "01:02:03Z", "level": 1}',
            Mixed(
                rows={"a": [{"name": "n"}, None]},
                ratio=0.5,
                at=dt.time(1, 2, 3, tzinfo=dt.UTC),
                level=Level.LOW,
            ),
        ),
        (
            Annotated[OldRow, Field(title="Row")],
            '{"name": "a", "size": 3}',
            {"name": "a", "size": 3},
        ),
        (Mood, '"glad"', Mood.GLAD),
        (int | str | None, "null", None),
        (Pet, '{"kind": "cat", "lives": 9}', Cat(kind="cat", lives=9)),
        (Pet, '{"kind": "dog", "born": "2020-02-29"}', Dog(kind="dog", born=dt.date(2020, 2, 29))),
        (Tree, '{"value": 1, "children": [{"value": 2}]}', Tree(value=1, children=[Tree(value=2)])),
        (Row, '{"name": "a"}', {"name": "a"}),
        (
            Row,
            '{"name": "a", "when": "2020-01-02T03:04:05Z"}',
            {"name": "a", "when": dt.datetime(2020, 1, 2, 3, 4, 5, tzinfo=dt.UTC)},
        ),
        (OldRow, '{"name": "a", "size": 3}', {"name": "a", "size": 3}),
        (list[OldRow], '[{"name": "a", "size": 3}]', [{"name": "a", "size": 3}]),
        (Partial | None, "{}", {}),
        (Point, '{"x": 1.5}', Point(1.5)),
        (dict[str, Mood], '{"a": "sad"}', {"a": Mood.SAD}),
        (tuple[int, str], '[1, "a"]', (1, "a")),
        (UUID, '"00000000-0000-0000-0000-000000000000"', UUID(int=0)),
        (Annotated[str, Field(pattern="^[A-Z]+$")], '"ABC"', "ABC"),
        (dt.timedelta, '"P1D"', dt.timedelta(days=1)),
    ],
)
def test_a_type_is_a_schema_on_the_way_out_and_an_instance_on_the_way_back(
    kind: Any, text: str, value: object
) -> None:
    shape = shape_of(kind)
    checked = schema.check(shape.schema)
    schema.judge(text, checked)
    assert shape.instance(text) == value
    made = closing.close("", checked)
    assert made is not None
    shape.instance(made.text)  # the shortest answer is an instance too
    found = schema.enforcement(checked, EngineCapabilities(llguidance=True))
    assert found.kind == "llguidance"


def test_what_is_no_instance_says_where() -> None:
    with pytest.raises(SchemaViolationError) as caught:
        shape_of(list[Cat]).instance(json.dumps([{"kind": "cat", "lives": 10}]))
    assert caught.value.pointer == "/0/lives"


def test_members_of_an_old_typed_dict_stay_required() -> None:
    assert shape_of(OldRow).schema["required"] == ["name", "size"]
    assert "required" not in shape_of(Partial).schema


def test_a_type_without_a_schema_is_refused() -> None:
    with pytest.raises(LLMInvalidRequestError, match="no JSON Schema"):
        shape_of(typing.Callable[[], int])


class Endless(typing.TypedDict):
    inner: list[Endless]


def test_an_old_typed_dict_that_holds_itself_is_refused_by_name() -> None:
    with pytest.raises(LLMInvalidRequestError, match="refers to itself"):
        shape_of(Endless)
