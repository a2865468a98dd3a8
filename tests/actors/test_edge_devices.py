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
from cuebook.events.connection import Connection, connect, ended
from cuebook.events.envelope import Envelope
from cuebook.events.log import EventLog
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


@pytest.mark.parametrize("limit", list(LIMITS))
async def test_an_event_waits_at_the_edge_until_the_log_has_room_for_it(
    nats_url: str,
    space: str,
    tmp_path: Path,
    limit: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(forwarder, "RETRY_S", 0.1)
    monkeypatch.setattr(forwarder, "GIVE_UP_S", 0.1)
    caplog.set_level("DEBUG", "cuebook.actors.forwarder")
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
        await eventually(lambda: running.done() or "events wait at the edge" in caplog.text)
        assert (forwarding.waiting, running.done()) == (1, False)
        await other.jetstream().delete_stream("BALLAST")
        await eventually(lambda: running.done() or forwarding.waiting == 0)
        events = [item async for item in log.read(filters=[log.subjects.event("meter.read")])]
        assert [one.event.data for one in events if isinstance(one, Envelope)] == [{"n": 1}]  # type: ignore[attr-defined]
