"""What devices publish at the edge comes to the log, whatever they send with it and whether or not that has room."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cuebook.actors import forwarder
from cuebook.actors.forwarder import Forwarder
from cuebook.embedded.nats_edge import NatsEdge
from cuebook.events.connection import Connection, connect, ended
from cuebook.events.envelope import Envelope
from cuebook.events.log import EventLog
from tests.actors.desk import Desk
from tests.actors.site import Site
from tests.events.server import plain_server
from tests.waiting import eventually

LIMITS = {
    "of the account": """
        jetstream {{ store_dir: "{store}" }}
        accounts {{ HUB {{ jetstream {{ max_file: 2MB }}, users: [{{ user: hub, password: hub }}] }} }}
        no_auth_user: hub
    """,
    "of the server": """
        jetstream {{ store_dir: "{store}", max_file_store: 2MB }}
    """,
}


async def put(connection: Connection, subject: str, body: bytes, header: bytes = b"") -> bool:
    """Publish as a device may, with a header block that no client library would send. Whether it is stored."""
    answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def on_answer(_subject: bytes, _reply: bytes, payload: bytes, _headers: bytes | None) -> None:
        answered.set_result(payload)

    inbox, block = connection.new_inbox(), b"NATS/1.0\r\n%b\r\n" % header
    listener = await connection.listen(inbox, on_answer)
    line = b"HPUB %b %b %d %d\r\n" % (subject.encode(), inbox.encode(), len(block), len(block) + len(body))
    connection.write(line + block + body + b"\r\n")
    answer = json.loads(await answered)
    await listener.close()
    return "error" not in answer


ODD = {
    "value": b"note: caf\xe9\r\n",
    "name with a space": b"odd name: x\r\n",
    "name with a letter": b"n\xc3\xa4me: x\r\n",
    "no name": b": x\r\n",
    "id": b"Nats-Msg-Id: caf\xe9\r\n",
    "id with a control character": b"Nats-Msg-Id: a\x07b\r\n",
    "long id": b"Nats-Msg-Id: %b\r\n" % (b"x" * 129),
    "broken line": b"note: a\nb\rc\x00\r\n",
}
"""Header blocks that a server takes, and neither every client library sends nor every reader reads."""


async def test_an_event_arrives_with_whatever_headers_a_device_has_sent_it(servers: NatsEdge, space: str) -> None:
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        device = await connect(servers.url, name="device")
        subject = f"{space}.event.meter.read"
        assert await put(device, subject, b'{"n": "first"}', b"Nats-Msg-Id: caf\xc3\xa9\r\nplain: yes\r\n")
        for name, header in ODD.items():
            assert await put(device, subject, json.dumps({"n": name}).encode(), header + b"plain: yes\r\n")
        for mark in (b"\xe9", b"\xe8"):  # they would be one event if both were called by what stands for such a byte
            attributes = b"ce-specversion: 1.0\r\nce-id: caf%b\r\nce-source: s\r\nce-type: t\r\n" % mark
            assert await put(device, subject, b'{"n": "cloud"}', attributes)
        await eventually(lambda: site.forwarder.waiting == 0)
        events = await desk.events_on("meter.read")
        assert [one.event.data["n"] for one in events] == ["first", *ODD, "cloud", "cloud"]  # type: ignore[attr-defined]
        assert events[0].id == "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
        assert len({one.id for one in events}) == len(events)
        assert all(one.id.startswith("shop-7-") for one in events[1:])
        stored = [await desk.client.log.message_at(one.sequence) for one in events]
        assert all(one is not None and b"plain: yes" in (one.headers or b"") for one in stored[:-2])
        await device.close()


@pytest.mark.parametrize("length", [3_900, 4_030], ids=["long", "too long for a batch"])
async def test_an_event_under_a_subject_that_nobody_reads_holds_up_no_other(
    servers: NatsEdge, space: str, length: int, expected_errors: list[str]
) -> None:
    expected_errors.append("the log refuses an event of the edge; it is lost")
    async with Desk(servers.hub.url, space) as desk, Site(servers, space) as site:
        device = await connect(servers.url, name="device")
        servers.link.cut()
        odd = f"{space}.event.".ljust(length, "\udcfc")
        device.write(b"PUB %b 2\r\n{}\r\n" % odd.encode("utf-8", "surrogateescape"))
        assert await put(device, f"{space}.event.meter.read", b'{"n": 1}')
        await eventually(lambda: site.forwarder.in_memory == 2)
        servers.link.mend()
        await eventually(lambda: site.forwarder.waiting == 0)
        assert [one.event.data["n"] for one in await desk.events_on("meter.read")] == [1]  # type: ignore[attr-defined]
        assert site.forwarder.forwarded == (2 if length < 4_000 else 1)
        await device.close()


@pytest.mark.parametrize("limit", list(LIMITS))
async def test_an_event_waits_at_the_edge_until_the_log_has_room_for_it(
    nats_url: str,
    space: str,
    tmp_path: Path,
    limit: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected_errors: list[str],
) -> None:
    expected_errors.append("the log has no room, events wait at the edge")
    monkeypatch.setattr(forwarder, "RETRY_S", 0.1)
    monkeypatch.setattr(forwarder, "GIVE_UP_S", 0.1)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(plain_server(tmp_path, LIMITS[limit].format(store=tmp_path / "store")))
        edge, uplink, other = [await connect(url, name="tests") for url in (nats_url, hub, hub)]
        for one in (edge, uplink, other):
            stack.push_async_callback(one.close)
        log = await stack.enter_async_context(EventLog(uplink, space, source="tests"))
        await log.ensure()
        await other.jetstream().add_stream(name="BALLAST", subjects=["ballast"])
        for size in (64 * 1024, 1):
            while await put(other, "ballast", os.urandom(size)):
                pass
        forwarding = Forwarder(edge, log, "shop-7")
        running = asyncio.create_task(forwarding.run())
        stack.push_async_callback(ended, running)
        await forwarding.ready.wait()
        assert await put(edge, f"{space}.event.meter.read", b'{"n": 1}')
        await eventually(lambda: running.done() or expected_errors[0] in caplog.text)
        assert (forwarding.waiting, running.done()) == (1, False)
        await other.jetstream().delete_stream("BALLAST")
        await eventually(lambda: running.done() or forwarding.waiting == 0)
        events = [item async for item in log.read(filters=[log.subjects.event("meter.read")])]
        assert [one.event.data for one in events if isinstance(one, Envelope)] == [{"n": 1}]  # type: ignore[attr-defined]
