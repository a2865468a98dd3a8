"""A press as an example: what it prints, the sagas that need it, and the theatre in which they are played."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from cuebook.actors import Agent, Run, Saga, Task, handler, saga
from tests.actors.cast import Bank, Number
from tests.actors.theatre import Director, Theatre

__all__ = [
    "Press", "Text", "counter", "failing", "hasty", "last", "listener", "printed_twice", "settle", "theatre", "waiting",
]  # fmt: skip


class Text(BaseModel):
    text: str


class Press(Agent):
    """Prints, and takes back."""

    name = "press"
    concurrency = 9

    @handler()
    async def copy(self, text: Text, task: Task) -> Text:
        return text

    @copy.compensation
    async def pulp(self, text: Text, copied: Text) -> None: ...

    @handler()
    async def double(self, text: Text) -> Text:
        return text


@saga(on="told")
async def listener(run: Run, text: Text) -> Text:
    return await run.call(Press.copy, text)


@saga(on="told")
async def counter(run: Run, number: Number) -> Number:
    return number


@saga()
async def printed_twice(run: Run, text: Text) -> Text:
    """Doubles what comes back, and needs all of it at the end."""
    first = await run.call(Press.copy, text)
    second = await run.call(Press.copy, first)
    return Text(text=(first.text + second.text) * 2)


@saga()
async def failing(run: Run, text: Text) -> None:
    await run.call(Press.copy, text)
    raise run.abort("enough")


@saga()
async def waiting(run: Run, text: Text) -> Text:
    return await run.wait_for("news", Text)


@saga()
async def hasty(run: Run, text: Text) -> None:
    """Begins to print, and gives up at once."""
    run.call(Press.copy, text)
    await run.sleep(1)
    raise run.abort("changed my mind")


PRESS = {"press.copy": lambda data: data, "press.double": lambda data: data}


def theatre(*sagas: Saga[Any, Any], agents: tuple[type[Agent], ...] = (Press, Bank), **handlers: Any) -> Theatre:
    number = {"bank.add": lambda data: {"n": data["n"] + 1}}
    return Theatre(sagas, agents, PRESS | number | {name.replace("__", "."): one for name, one in handlers.items()})


def last(play: Theatre, run_id: str, fact: str) -> Any:
    return [item.event for item in play.book.all() if item.address.run_id == run_id and item.address.fact == fact][-1]


def settle(play: Theatre, director: Director) -> None:
    """Everything but the agents."""
    director.settle()
