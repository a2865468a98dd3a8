from __future__ import annotations

import asyncio
import inspect
import logging
import ssl
from collections.abc import AsyncIterator, Sized
from functools import partial
from pathlib import Path

import pytest
import trustme
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.protocol.parser import Parser

from cuebook.embedded.nats_server import NatsServer
from cuebook.embedded.process import free_port
from cuebook.events import connection as connection_module
from cuebook.events.connection import Connection, MessageCallback, connect, ended
from cuebook.events.errors import ConfigurationError, InvalidTokenError, PoisonMessageError, UnavailableError
from tests.events.proxy import proxy
from tests.events.server import plain_server
from tests.waiting import eventually

Heard = list[tuple[bytes, bytes, bytes, bytes | None]]


def into(heard: Heard) -> MessageCallback:
    """A callback that writes down what comes."""
    return lambda *message: heard.append(message)


def has(items: Sized, count: int) -> bool:
    return len(items) == count


# --- what we rely on inside nats-py ----------------------------------------------------------------------------------


def test_nats_py_still_has_the_inner_shape_we_build_on() -> None:
    client = Client()
    assert {
        "_pending",
        "_pending_data_size",
        "_flush_queue",
        "_sid",
        "_subs",
        "_ps",
        "_server_info",
        "_max_payload",
    } <= vars(client).keys()
    assert client._pending == []
    assert client._sid == 0
    assert isinstance(client._ps, Parser)
    assert list(inspect.signature(Client._process_msg).parameters) == [
        "self",
        "sid",
        "subject",
        "reply",
        "data",
        "headers",
    ]
    assert list(inspect.signature(Client._process_info).parameters) == ["self", "info", "initial_connection"]
    assert list(inspect.signature(Client._close).parameters) == ["self", "status", "do_cbs"]
    assert inspect.iscoroutinefunction(Client._process_msg)
    assert inspect.iscoroutinefunction(Client._process_info)
    assert "limit" in inspect.signature(Subscription.unsubscribe).parameters


def test_the_parts_that_are_overridden_are_there() -> None:
    names = ("_process_msg", "_process_info", "_process_connect_init", "_connect_to_server", "_close")
    for name in (*names, "_flush_pending", "flush", "request"):
        assert getattr(Connection, name) is not getattr(Client, name)


async def test_a_subscription_takes_the_number_that_listen_foresees(connection: Connection, space: str) -> None:
    before = connection._sid
    listener = await connection.listen(f"{space}.a", lambda *message: None)
    assert connection._sid == before + 1
    assert list(connection._direct) == [connection._sid]
    await listener.close()
    assert connection._direct == {}


async def test_messages_reach_a_direct_function_and_never_the_queue(connection: Connection, space: str) -> None:
    heard: Heard = []
    listener = await connection.listen(f"{space}.>", into(heard))
    connection.post(f"{space}.a", b"1", "answer.here")
    await connection.publish(f"{space}.b", b"2", headers={"A": "x"})
    await eventually(lambda: len(heard) == 2)
    assert heard == [
        (f"{space}.a".encode(), b"answer.here", b"1", None),
        (f"{space}.b".encode(), b"", b"2", b"NATS/1.0\r\nA: x\r\n\r\n"),
    ]
    await listener.close()


async def test_ordinary_subscriptions_work_beside_direct_ones(connection: Connection, space: str) -> None:
    heard: Heard = []
    listener = await connection.listen(f"{space}.a", into(heard))
    ordinary = await connection.subscribe(f"{space}.b")
    for _ in range(3):
        connection.post(f"{space}.a", b"1")
        connection.post(f"{space}.b", b"2")
    assert [(await ordinary.next_msg(timeout=30)).data for _ in range(3)] == [b"2"] * 3
    await eventually(lambda: len(heard) == 3)
    await listener.close()


async def test_a_queue_group_shares_its_messages(connection: Connection, space: str) -> None:
    first: Heard = []
    second: Heard = []
    for heard in (first, second):
        await connection.listen(f"{space}.a", into(heard), queue="q")
    for _ in range(100):
        connection.post(f"{space}.a", b"")
    await eventually(lambda: len(first) + len(second) == 100)
    assert first
    assert second


# --- listening -------------------------------------------------------------------------------------------------------


async def test_a_function_that_raises_is_logged_and_the_next_message_still_comes(
    connection: Connection, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []

    def receive(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        heard.append(payload)
        if payload == b"bad":
            raise ValueError("as foreseen")

    listener = await connection.listen(f"{space}.a", receive)
    for payload in (b"bad", b"good"):
        connection.post(f"{space}.a", payload)
    await eventually(lambda: heard == [b"bad", b"good"])
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == [
        "a message callback raised"
    ]
    await listener.close()


async def test_a_closed_listener_hears_nothing_more_and_closes_twice(connection: Connection, space: str) -> None:
    heard: Heard = []
    listener = await connection.listen(f"{space}.a", into(heard))
    connection.post(f"{space}.a", b"")
    await listener.close()
    await connection.flush()
    assert heard == []
    await listener.close()


async def test_a_listener_may_be_closed_after_its_connection(nats_url: str) -> None:
    connection = await connect(nats_url, name="tests")
    listener = await connection.listen("x", lambda *message: None)
    await connection.close()
    await listener.close()
    with pytest.raises(UnavailableError):
        await connection.listen("x", lambda *message: None)
    assert connection._direct == {}


async def test_a_cancellation_is_never_lost(connection: Connection, space: str) -> None:
    def answer(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        connection.post(reply.decode(), b"")

    async def ask_for_ever() -> None:
        while True:
            await connection.request(f"{space}.a", b"", timeout=30)

    await connection.listen(f"{space}.a", answer)
    for turns in range(60):  # the cancellation meets the answer in one of the turns of the loop
        asking = asyncio.create_task(ask_for_ever())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        done, _ = await asyncio.wait([asking], timeout=30)
        assert done, f"not ended when cancelled after {turns} turns"


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0\r\n", "a\n", "a\x00", "a\t"])
async def test_no_protocol_line_can_be_smuggled_in(connection: Connection, subject: str) -> None:
    with pytest.raises(InvalidTokenError):
        connection.post(subject, b"")
    if subject:
        with pytest.raises(InvalidTokenError):
            connection.post("a", b"", reply=subject)


async def test_a_payload_larger_than_the_server_takes_is_refused_here_and_the_connection_lives(
    connection: Connection, space: str
) -> None:
    heard: Heard = []
    listener = await connection.listen(f"{space}.a", into(heard))
    with pytest.raises(PoisonMessageError):
        connection.post(f"{space}.a", b"x" * (connection.max_payload + 1))
    connection.post(f"{space}.a", b"x" * connection.max_payload)
    await eventually(lambda: len(heard) == 1)
    await listener.close()


async def test_what_is_written_while_disconnected_is_dropped(server: NatsServer, space: str) -> None:
    connection = await connect(server.url, name="tests")
    heard: Heard = []
    await connection.listen(f"{space}.a", into(heard))
    await server.kill()
    await eventually(lambda: not connection.is_connected)
    connection.post(f"{space}.a", b"lost")
    assert connection.pending_data_size == 0
    await server.restart()
    await eventually(lambda: connection.is_connected)
    connection.post(f"{space}.a", b"kept")
    await eventually(lambda: bool(heard))
    assert [message[2] for message in heard] == [b"kept"]
    await connection.close()


# --- coming back -----------------------------------------------------------------------------------------------------


async def test_direct_subscriptions_and_callbacks_survive_a_restart_of_the_server(
    server: NatsServer, space: str
) -> None:
    def fail() -> None:
        raise ValueError("as foreseen")

    connection = await connect(server.url, name="tests")
    heard: Heard = []
    reconnects: list[int] = []
    await connection.listen(f"{space}.a", into(heard))
    connection.on_reconnect.append(fail)
    connection.on_reconnect.append(lambda: reconnects.append(1))
    for count in (1, 2):
        await server.kill()
        await server.restart()
        await eventually(partial(has, reconnects, count))
        connection.post(f"{space}.a", b"")
        await eventually(partial(has, heard, count))
    assert not connection.closed.is_set()
    await connection.close()
    assert connection.closed.is_set()


async def test_attempts_to_reconnect_that_fail_half_way_leave_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "RECONNECT_WAIT_S", 0.01)
    lines: list[asyncio.StreamWriter] = []
    gone: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append(writer)
        if len(lines) == 1:
            writer.write(b'INFO {"max_payload": 1000000}\r\n')
            while b"PING" not in await reader.readline():
                pass
            writer.write(b"PONG\r\n")
            writer.close()  # and to all who come later nothing is said
        await reader.read()
        writer.close()
        gone.append(writer)

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    connection = await connect(url, name="tests")
    connection.options["connect_timeout"] = 0.05  # from here on
    await eventually(lambda: len(lines) > 4)
    await eventually(lambda: len(gone) >= 3)
    await connection.close()
    await eventually(lambda: len(gone) == len(lines))
    listening.close()
    await listening.wait_closed()


async def test_a_connection_that_shall_not_retry_is_closed_when_it_is_lost(server: NatsServer) -> None:
    connection = await connect(server.url, name="tests", retry=False)
    await server.kill()
    async with asyncio.timeout(30):
        await connection.closed.wait()


async def test_a_connection_closes_while_the_server_is_away_with_something_left_to_write(server: NatsServer) -> None:
    connection = await connect(server.url, name="tests")
    await server.kill()
    await eventually(lambda: not connection.is_connected)
    await connection.publish("a", b"nats-py keeps this for later")
    await connection.close()
    assert connection.closed.is_set()


async def test_what_was_written_last_is_sent_before_the_connection_closes(
    connection: Connection, nats_url: str, space: str
) -> None:
    heard: Heard = []
    listener = await connection.listen(f"{space}.a", into(heard))
    await connection.flush()
    other = await connect(nats_url, name="tests")
    for _ in range(100):
        other.post(f"{space}.a", b"x" * 10_000)
    await other.close()
    await eventually(partial(has, heard, 100))
    await listener.close()


async def test_a_dead_line_is_noticed_by_pings(server: NatsServer) -> None:
    async with proxy(server.url) as line:
        connection = await connect(line.url, name="tests", drain_timeout=1)
        assert connection.options["ping_interval"] * (connection.options["max_outstanding_pings"] + 1) <= 30
        connection.options["ping_interval"] = 0.05  # from the next one on; the real interval is a matter of patience
        connection._ping_interval_task.cancel()  # type: ignore[union-attr]
        connection._ping_interval_task = asyncio.get_running_loop().create_task(connection._ping_interval())
        line.flows.clear()
        await eventually(lambda: not connection.is_connected)
        line.flows.set()
        await eventually(lambda: connection.is_connected)
        await connection.close()


# --- connecting ------------------------------------------------------------------------------------------------------


async def test_no_server_is_said_after_one_attempt() -> None:
    with pytest.raises(UnavailableError, match="no NATS server answers"):
        await connect(f"nats://127.0.0.1:{free_port()}", name="tests")
    attempts = []

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(writer)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", port := free_port()):
        with pytest.raises(UnavailableError, match="no NATS server answers"):
            await connect(f"nats://127.0.0.1:{port}", name="tests")
    assert len(attempts) == 1


async def test_one_server_of_several_is_enough(nats_url: str) -> None:
    connection = await connect(f"nats://127.0.0.1:{free_port()},{nats_url}", name="tests")
    await connection.flush()
    await connection.close()


@pytest.mark.parametrize("url", ["", "nats://", "nats://host:port", "nats://127.0.0.1:4222,ws://127.0.0.1:80"])
async def test_what_is_no_url_is_a_mistake_in_the_configuration(url: str) -> None:
    with pytest.raises(ConfigurationError):
        await connect(url, name="tests")


async def test_a_silent_server_is_given_up_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    with pytest.raises(UnavailableError):
        await connect(url, name="tests", connect_timeout=0.2)
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def locked_url(tmp_path: Path) -> AsyncIterator[str]:
    async with plain_server(tmp_path, 'authorization { user: "ann", password: "right" }') as url:
        yield url


async def test_wrong_credentials_are_a_mistake_in_the_configuration_and_stay_secret(locked_url: str) -> None:
    host = locked_url.removeprefix("nats://")
    for url in (locked_url, f"nats://ann:wr%40ng@{host}"):
        with pytest.raises(ConfigurationError, match="refused us") as caught:
            await connect(url, name="tests")
        assert "wr%40ng" not in str(caught.value)
    connection = await connect(f"nats://ann:right@{host}", name="tests")
    await connection.close()


async def test_tls_is_insisted_on_before_any_credentials_are_sent(nats_url: str) -> None:
    with pytest.raises(ConfigurationError, match="TLS"):
        await connect(nats_url.replace("nats://", "tls://ann:right@"), name="tests")


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
    """URL of a server that wants TLS, and the context that trusts it."""
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    certificate = authority.issue_cert("127.0.0.1")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    certificate.private_key_pem.write_to_path(key)
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    async with plain_server(tmp_path, f'tls {{ cert_file: "{chain}", key_file: "{key}" }}') as url:
        yield url, context


async def test_messages_of_all_sizes_come_whole_over_tls_and_after_the_line_was_cut(
    tls: tuple[str, ssl.SSLContext],
) -> None:
    url, context = tls
    payloads = [bytes([n]) * size for n, size in enumerate((0, 1, 100, 16_384, 100_000, 1_000_000, 7, 300_000))]
    async with proxy(url) as line:
        connection = await connect(line.url, name="tests", tls=context, tls_hostname="127.0.0.1")
        reconnects: list[int] = []
        connection.on_reconnect.append(lambda: reconnects.append(1))
        heard: Heard = []
        await connection.listen("a", into(heard))
        for count in (1, 2):
            for payload in payloads:
                connection.post("a", payload)
            await connection.flush()
            await eventually(partial(has, heard, len(payloads) * count))
            line.cut()
            await eventually(partial(has, reconnects, count))
        assert [payload for _, _, payload, _ in heard] == payloads * 2
        await connection.close()


async def test_nothing_is_said_when_a_connection_over_tls_ends(
    tls: tuple[str, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    url, context = tls
    connection = await connect(url, name="tests", tls=context, tls_hostname="127.0.0.1")
    connection.write(b"NONSENSE\r\n")  # so that the server ends it
    await eventually(lambda: not connection.is_connected)
    await connection.close()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_a_cancelled_connect_leaves_nothing_open() -> None:
    accepted = asyncio.Event()
    closed = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()
        writer.close()
        closed.set()

    listening = await asyncio.start_server(silent, "127.0.0.1", 0)
    attempt = asyncio.create_task(connect(f"nats://127.0.0.1:{listening.sockets[0].getsockname()[1]}", name="tests"))
    await accepted.wait()
    await ended(attempt)
    assert attempt.cancelled()
    async with asyncio.timeout(30):
        await closed.wait()
    listening.close()
    await listening.wait_closed()


async def test_ended_waits_for_a_task_that_swallows_a_cancellation() -> None:
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        await asyncio.Event().wait()

    async def raises() -> None:
        raise ValueError

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(raises())]
    await eventually(lambda: tasks[1].done())
    await ended(*tasks)
    assert swallowed.is_set()
    assert tasks[0].done()
    assert isinstance(tasks[1].exception(), ValueError)
