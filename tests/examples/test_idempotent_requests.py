"""The layer around an application whose handler waits until it is told to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from aiohttp import web

from cuebook.examples.support.idempotent_requests import IdempotentRequests

DAY_S = 86_400.0


class Till:
    """Counts the requests that reach it. `status` is its answer, given once `may_answer` is set."""

    def __init__(self) -> None:
        self.now_s, self.status, self.taken = 0.0, 200, 0
        self.reached, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()

    async def take(self, request: web.Request) -> web.Response:
        self.taken += 1
        self.reached.set()
        await self.may_answer.wait()
        if self.status == 0:
            raise RuntimeError("the till fell over")
        return web.json_response({"taken": self.taken}, status=self.status)


@pytest.fixture
async def till() -> Till:
    return Till()


@pytest.fixture
async def http(till: Till) -> AsyncIterator[httpx.AsyncClient]:
    layer = IdempotentRequests(now=lambda: till.now_s)
    application = web.Application(middlewares=[layer.middleware])
    application.router.add_post("/v1/take", till.take)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers={"Idempotency-Key": "k-1"}) as client:
        yield client
    await runner.cleanup()


async def test_a_second_request_while_the_first_runs_is_in_conflict(till: Till, http: httpx.AsyncClient) -> None:
    till.may_answer.clear()
    async with asyncio.TaskGroup() as requests:
        first = requests.create_task(http.post("/v1/take"))
        await till.reached.wait()
        second = await http.post("/v1/take")
        till.may_answer.set()
    assert (second.status_code, second.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert first.result().json() == (await http.post("/v1/take")).json() == {"taken": 1}


@pytest.mark.parametrize("status", [200, 402, 500, 503])
async def test_what_was_carried_out_is_repeated(till: Till, http: httpx.AsyncClient, status: int) -> None:
    till.status = status
    first = await http.post("/v1/take")
    till.status = 200
    again = await http.post("/v1/take")
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert till.taken == 1


@pytest.mark.parametrize("status", [0, 400, 401, 404, 429])
async def test_what_was_not_carried_out_may_be_tried_again(till: Till, http: httpx.AsyncClient, status: int) -> None:
    till.status = status
    await http.post("/v1/take")
    till.status = 200
    assert (await http.post("/v1/take")).status_code == 200
    assert till.taken == 2


async def test_a_key_is_forgotten_after_a_day(till: Till, http: httpx.AsyncClient) -> None:
    await http.post("/v1/take")
    till.now_s = DAY_S
    assert (await http.post("/v1/take")).json() == {"taken": 1}
    till.now_s = DAY_S + 1
    assert (await http.post("/v1/take")).json() == {"taken": 2}
