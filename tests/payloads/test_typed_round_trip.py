"""A typed value is stored if it loads back equal to its type; if not, the message says where, and what to do."""

import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    SecretStr,
    computed_field,
    field_serializer,
    model_serializer,
)
from typing_extensions import TypedDict

from orchestrator_state import ConfigurationError, InvalidPayload, Run, StateStore
from orchestrator_state.payloads import ValueType
from tests.support.cases import case
from tests.support.running import Effect, count_rows

BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2024, 1, 2, 12, tzinfo=UTC)


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Shape(Enum):
    ROUND = (1, 2)


class Place(NamedTuple):
    x: int
    y: float = 0


class Usage(TypedDict, total=False):
    tokens: int
    details: dict[str, int]


class Defaults(BaseModel):
    """None of its defaults is of the declared class, and pydantic calls each of them equal to what is loaded."""

    score: float = 0
    price: Decimal = 0  # type: ignore[assignment]
    count: int = 2.0  # type: ignore[assignment]
    colour: str = Colour.RED
    level: int = Level.LOW
    flag: bool = 1  # type: ignore[assignment]
    scores: list[float] = [1, 2]
    by_name: dict[str, float] = {"a": 1}
    by_weight: dict[float, str] = {1: "a"}
    seen: set[float] = {1, 2}


class Parts(BaseModel):
    """As a message is made of: private attributes, cached and computed values, and values of other types."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["parts"] = "parts"
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    _client: object = PrivateAttr(default_factory=object)

    @cached_property
    def expensive(self) -> object:
        return object()

    @computed_field
    def length(self) -> int:
        return 3


@dataclass
class Text:
    content: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    cost: Decimal = 0  # type: ignore[assignment]
    note: str | None = field(default=None, compare=False)
    kind: Literal["text"] = "text"


@dataclass
class Call:
    tool: str
    args: str | dict[str, Any] | None = None
    usage: Usage = field(default_factory=lambda: Usage(tokens=1, details={}))
    kind: Literal["call"] = "call"


@dataclass
class Message:
    parts: Sequence[Annotated[Text | Call, Field(discriminator="kind")]]
    timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    metadata: dict[str, Any] | None = None


class NoEquality:
    """A class of the application's that compares by identity."""

    def __init__(self, text: str) -> None:
        self.text = text


Custom = Annotated[
    NoEquality,
    BeforeValidator(lambda given: NoEquality(given) if isinstance(given, str) else given),
    PlainSerializer(lambda value: value.text, return_type=str),
]


class OfCustom(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    custom: Custom


class Tree(BaseModel):
    value: float = 0
    children: list["Tree"] = []


KEPT: list[tuple[Any, Any]] = [
    (Defaults, Defaults()),
    (list[Defaults], [Defaults(), Defaults(score=1.5)]),
    (Parts, Parts(more=[1, {"a": None}])),  # type: ignore[call-arg]
    (list[Message], [Message(parts=[Text("hi"), Call("add", {"x": 1}), Call("add", "{}")], metadata={"a": [1]})]),
    (OfCustom, OfCustom(custom="x")),  # type: ignore[arg-type]
    (Tree, Tree(children=[Tree(), Tree(value=2, children=[Tree()])])),
    (set[int], {3, 1, 2}), (frozenset[str], frozenset({"b", "a"})), (set[tuple[int, str]], {(1, "a"), (2, "b")}),
    (deque[int], deque([1, 2])), (Counter[str], Counter({"a": 2, "b": 0})),
    (OrderedDict[str, int], OrderedDict(b=1, a=2)),
    (defaultdict[str, list[int]], defaultdict(list, {"a": [1]})), (dict[UUID, float], {UUID(int=1): 2.0}),
    (Mapping[str, int], {"a": 1}), (Sequence[int], [1, 2]), (Place, Place(1, 2.5)), (Usage, Usage(tokens=1)),
    (timedelta, timedelta(days=1, microseconds=1)), (date, date(2024, 1, 1)), (time, time(12, 30, fold=0)),
    (time, time(12, 30, tzinfo=UTC)), (datetime, NOON), (datetime, datetime(2024, 1, 1)),  # noqa: DTZ001
    (datetime, NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))),
    (datetime, NOON.replace(tzinfo=ZoneInfo("UTC"))),
    (ZoneInfo, BERLIN), (ZoneInfo, ZoneInfo.no_cache("Europe/Berlin")), (Path, Path("/a/b")),
    (PurePosixPath, PurePosixPath("a")),
    (IPv4Address, IPv4Address("10.0.0.1")), (IPv4Network, IPv4Network("10.0.0.0/8")),
    (re.Pattern[str], re.compile("a+")),
    (Colour, Colour.RED), (Level, Level.LOW), (bytes, b"abc"), (float, -0.0), (Decimal, Decimal("1.10")),
    (Fraction, Fraction(1, 3)),
    (float, 1), (Decimal, 1), (int | str, "1"), (bool | int, 1), (Any, [1, 1.0, True, None, "1"]), (complex, 1 + 2j),
]  # fmt: skip


def test_what_is_equal_to_its_type_is_stored_and_loads_back() -> None:
    for kind, value in KEPT:
        with case(f"{kind} of {value!r}"):
            _, loaded = ValueType.of(kind).encode(value, "outputs")
            assert type(loaded) in (type(value), float, Decimal)
            ValueType.of(kind).encode(loaded, "outputs")


class Holder(BaseModel):
    model_config = ConfigDict(extra="allow")
    queue: deque[int] = deque()
    at: datetime = NOON
    of_day: time = time()
    lists: defaultdict[str, list[int]] = defaultdict(list)
    anything: Any = None
    base: "Holder | None" = None
    password: str = Field(default="none", exclude=True)
    items: list["Holder"] = []
    maximal: Annotated[deque[int], Field(max_length=9)] = deque()


class Derived(Holder):
    pass


class AlsoByText(Enum):
    ROUND = (1, 2)
    SQUARE = "square"


class Renamed(BaseModel):
    count: int

    @model_serializer
    def named_otherwise(self) -> dict[str, int]:
        return {"number": self.count}


LOST: list[tuple[Any, Any, str, str]] = [
    (Holder, Holder(queue=deque([1], maxlen=3)), ".queue", "maxlen"),
    (deque[int], deque([1], maxlen=3), "", "maxlen"),
    (Holder, Holder(at=NOON.astimezone(BERLIN)), ".at", "time zone"),
    (list[datetime], [NOON, NOON.astimezone(BERLIN)], "[1]", "time zone"),
    (Holder, Holder(of_day=time(12, tzinfo=BERLIN)), ".of_day", "time zone"),
    (datetime, datetime(2024, 10, 27, 2, 30, fold=1), "", "fold"),  # noqa: DTZ001
    (Holder, Holder(lists=defaultdict(lambda: [1], a=[1])), ".lists", "default_factory"),
    (Holder, Holder(anything=Colour.RED), ".anything", "a Colour loads as a str"),
    (Holder, Holder(anything=Level.LOW), ".anything", "a Level loads as a int"),
    (Holder, Holder(anything=(1, 2)), ".anything", "a tuple loads as a list"),
    (Holder, Holder(anything={1, 2}), ".anything", "a set loads as a list"),
    (Holder, Holder(anything=Decimal("1.5")), ".anything", "a Decimal loads as a str"),
    (Holder, Holder(anything={1: "a"}), ".anything", "keys"),
    (Holder, Holder(anything=[{"deep": [0, (1,)]}]), ".anything[0]['deep'][1]", "a tuple loads as a list"),
    (Holder, Holder(base=Derived()), ".base", "a Derived loads as a Holder"),
    (Holder, Holder(password="another"), ".password", "excluded"),
    (Holder, Holder(items=[Holder(), Holder(password="another")]), ".items[1].password", "excluded"),
    (Holder, Holder(more=(1, 2)), ".more", "a tuple loads as a list"),  # type: ignore[call-arg]
    (Any, Text("a"), "", "a Text loads as a dict"),
    (re.Pattern[str], re.compile("a", re.IGNORECASE), "", "another value is loaded"),
    (Sequence[int], (1, 2), "", "a tuple loads as a list"),
]


def test_what_would_lose_something_is_refused_with_the_place_and_a_remedy() -> None:
    for kind, value, place, remedy in LOST:
        with case(f"{kind} of {value!r}"):
            with pytest.raises(InvalidPayload, match=re.escape(remedy)) as caught:
                ValueType.of(kind).encode(value, "outputs")
            assert caught.value.path == f"outputs{place}"
            assert f"outputs{place} would not load back equal" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "value", "place"),
    [(AlsoByText, AlsoByText.ROUND, "outputs"), (Renamed, Renamed(count=1), "outputs.count")],
)
def test_what_loads_as_nothing_at_all_is_refused_with_the_place_and_a_remedy(kind: Any, value: Any, place: str) -> None:
    with pytest.raises(InvalidPayload, match="a validator and a serializer that undo each other") as caught:
        ValueType.of(kind).encode(value, "outputs")
    assert "would not load back" in str(caught.value)
    assert caught.value.path == place


async def test_a_state_with_such_defaults_is_one(store: StateStore) -> None:
    async def handler(run: Run[Defaults]) -> float:
        run.state.score = 7
        await run.step("work", Effect())
        return run.state.score

    assert await store.run("n", handler, workflow_id="w", state=Defaults) == 7
    assert (await store.load_workflow_state_by_workflow_id("w")).context["score"] == 7


async def test_the_message_about_a_state_names_the_field(store: StateStore) -> None:
    async def handler(run: Run[Holder]) -> None:
        run.state.items.append(Holder(queue=deque([1], maxlen=1)))
        await run.step("work", Effect())

    with pytest.raises(InvalidPayload, match="maxlen") as caught:
        await store.run("n", handler, state=Holder)
    assert caught.value.path == "state.items[0].queue"


# --- types of which no value can be stored ---


class WithSecret(BaseModel):
    name: str
    secret: SecretStr


class Outer(BaseModel):
    inner: tuple[int, WithSecret]


class Shown(BaseModel):
    secret: SecretStr

    @field_serializer("secret")
    def show(self, secret: SecretStr) -> str:
        return secret.get_secret_value()


class Left(BaseModel):
    name: str = Field(exclude=True)


class TwoNames(BaseModel):
    name: str = Field(validation_alias="userName")


class ByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    name: str = Field(validation_alias="userName")


class EitherName(BaseModel):
    name: str = Field(validation_alias=AliasChoices("userName", "name"))  # type: ignore[pydantic-alias]


class OneName(BaseModel):
    name: str = Field(alias="userName")


class Opaque(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    thing: NoEquality


class Perhaps(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    secret: SecretStr | None = None
    secrets: list[SecretStr] = []
    thing: NoEquality | None
    name: str = Field(default="", exclude=True)


@dataclass
class Holding:
    call: Callable[[], int]


class Keyed(TypedDict):
    secret: SecretStr


HOPELESS: list[tuple[Any, str]] = [
    (SecretStr, "SecretStr can be stored: a secret"), (WithSecret, "WithSecret.secret"),
    (Outer, "Outer.inner[1].secret"),
    (Left, "Left.name"), (TwoNames, "TwoNames.name"), (Opaque, "Opaque.thing"), (Holding, "Holding.call"),
    (Keyed, "Keyed['secret']"), (Callable[[], int], "a function"), (type[int], "JSON"),
    (Iterable[int], "an iterator"),
    (Annotated[SecretStr, Field(min_length=1)], "a secret"),
    (Shape, "Shape can be stored: JSON has none of its members' values"),
]  # fmt: skip


async def test_a_type_of_which_nothing_can_be_stored_is_refused_before_the_call(store: StateStore) -> None:
    for kind, message in HOPELESS:
        with case(kind):
            await is_refused_before_the_call(store, kind, message)


async def is_refused_before_the_call(store: StateStore, kind: Any, message: str) -> None:
    paid = Effect()

    async def step(run: Run) -> None:
        await run.step("paid", paid, returns=kind)

    async def transact(run: Run) -> None:
        await run.transact("paid", paid, returns=kind)

    async def child(run: Run) -> None:
        await run.child("paid", paid, returns=kind)

    for handler in (step, transact, child):
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            await store.run("n", handler)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        await store.run("n", paid, returns=kind)
    assert paid.calls == []
    assert await count_rows(store, "step_states") == 0


NOT_HOPELESS: list[tuple[Any, Any]] = [
    (Shown, Shown(secret=SecretStr("s"))),
    (Annotated[SecretStr, PlainSerializer(lambda secret: secret.get_secret_value())], SecretStr("s")),
    (ByName, ByName(name="a")),
    (EitherName, EitherName(name="a")),
    (OneName, OneName(userName="a")),
    (Perhaps, Perhaps(thing=None)),
    (SecretStr | int, 1),
    (list[SecretStr], []),
    (AlsoByText, AlsoByText.SQUARE),
]


async def test_a_type_of_which_something_can_be_stored_is_left_to_its_values(store: StateStore) -> None:
    for kind, value in NOT_HOPELESS:

        async def handler(run: Run, kind: Any = kind, value: Any = value) -> Any:
            return await run.step("paid", Effect(), value, returns=kind) == value

        with case(kind):
            assert await store.run("n", handler) is True


async def test_a_type_that_can_only_be_loaded_is_good_enough_for_a_signal(store: StateStore) -> None:
    async def handler(run: Run) -> str:
        found = await run.wait_for("login", returns=WithSecret)
        return found.secret.get_secret_value()

    state = await store.start("n", workflow_id="w")
    await store.signal(state.id, "login", {"name": "ada", "secret": "s"})
    assert await store.run("n", handler, workflow_id="w") == "s"
