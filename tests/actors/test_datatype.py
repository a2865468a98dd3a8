"""What authors' types say in the log, and that it comes back as it was or is refused at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import msgpack
import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, RootModel, ValidationError, computed_field
from pydantic.dataclasses import dataclass as checked_dataclass
from typing_extensions import TypedDict

from cuebook.actors import Agent, Retry, Run, handler, saga
from cuebook.actors.datatype import DataType
from cuebook.events.errors import ConfigurationError
from tests.actors.desk import Desk

MOMENT = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
ID = UUID("12345678-1234-5678-1234-567812345678")


class Colour(Enum):
    RED = "red"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    at: datetime
    id: UUID
    price: Decimal = Decimal("1.10")
    pair: tuple[int, str] = (1, "a")
    days: frozenset[date] = frozenset({date(2026, 1, 2)})
    colour: Colour = Colour.RED
    lasts: timedelta = timedelta(hours=3)
    inner: Strict | None = None


class PartlyStrict(BaseModel):
    at: Annotated[datetime, Field(strict=True)]


class Binary(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    content: bytes


class BothWays(BaseModel):
    number: int = Field(alias="no")
    other: int = Field(validation_alias=AliasChoices("was", "is", AliasPath("q", 0)), serialization_alias="is")


class ByName(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    number: int = Field(validation_alias="no")


class Computing(BaseModel):
    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.side**2


@checked_dataclass(config=ConfigDict(strict=True))
class StrictPoint:
    at: datetime


class Row(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    at: datetime


STRICT = Strict(at=MOMENT, id=ID, inner=Strict(at=MOMENT, id=ID))


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (Strict, STRICT),
        (list[Strict], [STRICT]),
        (dict[str, Strict | None], {"a": STRICT, "b": None}),
        (RootModel[Strict], RootModel[Strict](STRICT)),
        (PartlyStrict, PartlyStrict(at=MOMENT)),
        (Annotated[UUID, Field(strict=True)], ID),
        (Binary, Binary(content=b"\x00\xff")),
        (bytes, b"plain"),
        (BothWays, BothWays.model_validate({"no": 1, "is": 2})),
        (ByName, ByName(number=3)),
        (Computing, Computing(side=3)),
        (StrictPoint, StrictPoint(at=MOMENT)),
        (Row, {"at": MOMENT}),
        (None, None),
        (Any, {"a": [1, None]}),
    ],
)
def test_a_value_comes_back_from_the_log_as_it_was(hint: Any, value: Any) -> None:
    data_type: DataType[Any] = DataType(hint)
    data_type.check_round_trip("it")
    assert data_type.read(msgpack.unpackb(msgpack.packb(data_type.plain(data_type.check(value))))) == value


def test_a_strict_model_stays_strict() -> None:
    data = DataType[Strict](Strict).plain(STRICT)
    for wrong in ({**data, "at": 5.5}, {**data, "pair": ["1", "a"]}, {**data, "colour": 1}):
        with pytest.raises(ValidationError):
            DataType[Strict](Strict).read(wrong)


def test_a_type_that_json_says_the_same_of_is_read_without_a_detour() -> None:
    for hint in (BothWays, Computing, datetime, list[int]):
        data_type: DataType[Any] = DataType(hint)
        assert data_type.read == data_type.check


class Split(BaseModel):
    number: int = Field(validation_alias="in", serialization_alias="out")


class ReadsOtherwise(BaseModel):
    number: int = Field(5, validation_alias="no")


class ReadsFromAPath(BaseModel):
    number: int = Field(validation_alias=AliasPath("numbers", 0))


class LeavesOut(BaseModel):
    number: int = Field(exclude=True)


class Forbidding(Computing):
    model_config = ConfigDict(extra="forbid")


@checked_dataclass
class SplitPoint:
    number: int = Field(validation_alias="in", serialization_alias="out")


@dataclass
class Holder:
    split: list[Split]


@pytest.mark.parametrize(
    ("hint", "what"),
    [
        (Split, "field 'number' of Split is written as 'out'"),
        (dict[str, list[Split] | None], "field 'number' of Split is written as 'out'"),
        (Holder, "field 'number' of Split is written as 'out'"),
        (SplitPoint, "field 'number' of SplitPoint is written as 'out'"),
        (ReadsOtherwise, "field 'number' of ReadsOtherwise is written as 'number'"),
        (ReadsFromAPath, "field 'number' of ReadsFromAPath is written as 'number'"),
        (LeavesOut, "field 'number' of LeavesOut is required and left out"),
        (Forbidding, "Forbidding writes 'area', which is computed, and forbids it"),
    ],
)
def test_a_handler_of_a_type_that_cannot_read_what_it_writes_is_refused(hint: Any, what: str) -> None:
    async def takes(self: Agent, value: hint) -> None: ...
    async def gives(self: Agent, value: int) -> hint: ...

    for which, function in (("input", takes), ("output", gives)):
        function.__annotations__["value" if which == "input" else "return"] = hint
        agent: type[Agent] = type("Odd", (Agent,), {"name": "odd", "work": handler()(function)})
        with pytest.raises(ConfigurationError, match="cannot read what it writes") as caught:
            agent.handlers()
        assert str(caught.value).startswith(f"the {which} of handler ")
        assert what in str(caught.value)
        assert caught.value.remedy


# --- in a saga ---


class Clerk(Agent):
    name = "clerk"
    undone: list[tuple[Strict, Strict]]

    @handler(retry=Retry(attempts=1))
    async def file(self, paper: Strict) -> Strict:
        return paper.model_copy(update={"inner": None})

    @file.compensation
    async def burn(self, paper: Strict, filed: Strict) -> None:
        Clerk.undone.append((paper, filed))

    @handler(retry=Retry(attempts=1))
    async def count(self, number: Annotated[int, Field(gt=0)]) -> int:
        return number


@saga(on="paper.came", key="id")
async def filing(run: Run, paper: Strict) -> Strict:
    first = await run.call(Clerk.file, paper)
    told = await run.wait_for("paper.told", Strict, match={"id": str(paper.id)})
    assert first == told.model_copy(update={"inner": None})
    answer = await run.ask_human("what to do?", Strict)
    raise run.abort(f"burn {answer.id}")


async def test_a_strict_model_goes_all_the_way_through_a_saga_and_back(nats_url: str, space: str) -> None:
    Clerk.undone = []
    data = DataType[Strict](Strict).plain(STRICT)
    async with Desk(nats_url, space, sagas=[filing], agents=[Clerk]) as desk:
        await desk.client.publish("paper.came", data)
        run_id = f"filing-{ID}"
        await desk.saw(run_id, "waiting")
        await desk.client.publish("paper.told", data)
        await desk.saw(run_id, "asked")
        await desk.client.resolve(run_id, 2, value=data)
        outcome = await desk.client.wait(run_id, timeout_s=20)
        assert outcome.status == "compensated"
        assert Clerk.undone == [(STRICT, STRICT.model_copy(update={"inner": None}))]


async def test_the_constraints_of_an_annotated_parameter_count(nats_url: str, space: str) -> None:
    async with Desk(nats_url, space, agents=[Clerk]) as desk:
        assert (await desk.client.run_task("clerk", 5, handler="count", timeout_s=20)).result == 5
        run_id = await desk.client.submit_task("clerk", -5, handler="count")
        (rejected,) = await desk.saw(run_id, "rejected")
        assert "-5 is less than or equal to the minimum" in rejected.reason
