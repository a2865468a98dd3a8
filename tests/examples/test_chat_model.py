"""The chat model's client against a real HTTP server that answers as told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.examples.support.chat_model import BadAnswerError, ChatModel
from cuebook.examples.support.classifier import Classifier
from cuebook.examples.support.models import Ticket
from cuebook.examples.support.settings import ChatSettings

TEXT = "my blender arrived broken, order 8812"


class ChatServer:
    """Speaks the OpenAI interface; `status` and `content` are the next answer, `requests` what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.content = ""
        self.body: bytes | None = None
        self.requests: list[tuple[str | None, Any]] = []
        self.url = ""

    def says(self, **judgement: Any) -> None:
        self.content = json.dumps(judgement)

    async def complete(self, request: web.Request) -> web.Response:
        self.requests.append((request.headers.get("Authorization"), await request.json()))
        if self.body is not None:
            return web.Response(body=self.body, status=self.status)
        return web.json_response({"choices": [{"message": {"content": self.content}}]}, status=self.status)


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    chat = ChatServer()
    application = web.Application()
    application.router.add_post("/v1/chat/completions", chat.complete)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    chat.url = f"http://{host}:{port}/v1"
    yield chat
    await runner.cleanup()


@pytest.fixture
async def model(server: ChatServer) -> AsyncIterator[ChatModel]:
    async with AsyncExitStack() as stack:
        opened = ChatModel(ChatSettings(base_url=server.url, model="small-1", api_key="k-1"))
        stack.push_async_callback(opened.close)
        yield opened


async def test_a_valid_answer_is_a_reading(server: ChatServer, model: ChatModel) -> None:
    server.says(intent="damaged_item", confidence=0.9, order_id="8812")
    reading = await model.read(TEXT)
    assert (reading.intent, reading.confidence, reading.order_id) == ("damaged_item", 0.9, "8812")
    assert reading.read_by == "small-1"
    assert not reading.low_confidence


async def test_a_modest_answer_is_marked(server: ChatServer, model: ChatModel) -> None:
    server.says(intent="complaint", confidence=0.2, order_id=None)
    assert (await model.read(TEXT)).low_confidence


async def test_the_ticket_is_sent_apart_from_the_instructions(server: ChatServer, model: ChatModel) -> None:
    server.says(intent="praise", confidence=1)
    await model.read(TEXT)
    [(authorization, request)] = server.requests
    assert authorization == "Bearer k-1"
    assert request["model"] == "small-1"
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert request["messages"][1]["content"] == TEXT
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["intent", "confidence"]


@pytest.mark.parametrize(
    "content",
    [
        "It is damaged, I think.",
        "",
        '{"intent": "sell_more", "confidence": 0.9}',
        '{"intent": "praise", "confidence": 7}',
        '{"confidence": 0.9}',
        '{"intent": "praise", "confidence": 0.9, "order_id": "the last one"}',
    ],
)
async def test_an_answer_that_is_no_judgement_may_be_asked_for_again(
    server: ChatServer, model: ChatModel, content: str
) -> None:
    server.content = content
    with pytest.raises(BadAnswerError, match="small-1"):
        await model.read(TEXT)
    server.says(intent="praise", confidence=0.9)
    assert (await model.read(TEXT)).intent == "praise"


@pytest.mark.parametrize("body", [b"<html>oops</html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": {}}]}'])
async def test_a_body_of_another_shape_is_a_bad_answer(server: ChatServer, model: ChatModel, body: bytes) -> None:
    server.body = body
    with pytest.raises(BadAnswerError):
        await model.read(TEXT)


async def test_an_invented_order_number_is_a_bad_answer(server: ChatServer, model: ChatModel) -> None:
    server.says(intent="refund_request", confidence=0.9, order_id="8830")
    with pytest.raises(BadAnswerError, match="8830"):
        await model.read(TEXT)


async def test_errors_do_not_quote_the_customer(server: ChatServer, model: ChatModel) -> None:
    server.content = json.dumps({"intent": f"They say: {TEXT}", "confidence": 0.9})
    with pytest.raises(BadAnswerError) as caught:
        await model.read(TEXT)
    assert "blender" not in str(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
async def test_a_busy_server_is_unavailable(server: ChatServer, model: ChatModel, status: int) -> None:
    server.status = status
    with pytest.raises(UnavailableError, match=str(status)):
        await model.read(TEXT)


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_a_refusal_is_a_matter_of_settings(server: ChatServer, model: ChatModel, status: int) -> None:
    server.status = status
    with pytest.raises(ConfigurationError, match=str(status)):
        await model.read(TEXT)


async def test_a_server_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    absent = ChatModel(ChatSettings(base_url=f"http://127.0.0.1:{unused_tcp_port}/v1", model="small-1", api_key=None))
    with pytest.raises(UnavailableError):
        await absent.read(TEXT)
    await absent.close()


async def test_the_agent_asks_the_chat_model_that_is_set(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUEBOOK_LLM_BASE_URL", server.url)
    monkeypatch.setenv("CUEBOOK_LLM_MODEL", "small-1")
    monkeypatch.delenv("CUEBOOK_LLM_API_KEY", raising=False)
    server.says(intent="damaged_item", confidence=0.9, order_id="8812")
    agent = Classifier()
    await agent.start()
    reading = await agent.classify(Ticket(id="t-1", text=TEXT))
    await agent.stop()
    assert (reading.read_by, server.requests[0][0]) == ("small-1", None)


async def test_an_address_without_a_model_is_refused(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUEBOOK_LLM_BASE_URL", server.url)
    monkeypatch.delenv("CUEBOOK_LLM_MODEL", raising=False)
    with pytest.raises(ConfigurationError, match="no model"):
        await Classifier().start()
