from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from cuebook.events.parser import BlockParser

words = st.text("abcdefghijklmnopqrstuvwxyz.$_0123456789", min_size=1, max_size=12).map(str.encode)
payloads = st.binary(max_size=40) | st.sampled_from([b"", b"\r\n", b"MSG a 1 2\r\n", b"PING\r\n", b"x" * 40_000])


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([b"PING\r\n", b"PONG\r\n", b"+OK\r\n", b'INFO {"a":1}\r\n', b"-ERR 'Stale'\r\n"]))
    subject, sid, payload = draw(words), draw(st.integers(1, 999)), draw(payloads)
    reply = draw(words) + b" " if draw(st.booleans()) else b""
    if draw(st.booleans()):
        return b"MSG %b %d %b%d\r\n%b\r\n" % (subject, sid, reply, len(payload), payload)
    headers = b"NATS/1.0\r\nA: " + draw(words) + b"\r\n\r\n"
    sizes = len(headers), len(headers) + len(payload)
    return b"HMSG %b %d %b%d %d\r\n%b%b\r\n" % (subject, sid, reply, *sizes, headers, payload)


class Heard:
    """The client's side of a parser, writing down what comes."""

    def __init__(self, *, takes: bool) -> None:
        self.takes, self.calls = takes, list[tuple[Any, ...]]()

    def deliver(self, sid: bytes, *message: Any) -> bool:
        if self.takes:
            self.calls.append((int(sid), *message))
        return self.takes

    async def _process_msg(self, *message: Any) -> None:
        self.calls.append(message)

    async def _process_ping(self) -> None:
        self.calls.append(("ping",))

    async def _process_pong(self) -> None:
        self.calls.append(("pong",))

    async def _process_info(self, info: Any) -> None:
        self.calls.append(("info", info))

    async def _process_err(self, error: str) -> None:
        self.calls.append(("error", error))


async def parsed(parser: Parser, blocks: list[bytes]) -> None:
    for block in blocks:
        await parser.parse(block)


@given(st.lists(frames(), max_size=12), st.lists(st.integers(0, 2_000), max_size=12), st.booleans())
def test_messages_are_the_same_as_by_nats_py_however_the_bytes_arrive(
    sent: list[bytes], cuts: list[int], takes: bool
) -> None:
    stream = b"".join(sent)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    blocks = [stream[begin:end] for begin, end in pairwise(edges)]
    theirs, ours = Heard(takes=False), Heard(takes=takes)
    asyncio.run(parsed(Parser(theirs), [stream]))
    asyncio.run(parsed(BlockParser(ours, ours.deliver), blocks))
    assert ours.calls == theirs.calls
    assert len(ours.calls) == len([frame for frame in sent if frame != b"+OK\r\n"])


@pytest.mark.parametrize("garbage", [b"MSG a 1 x\r\n", b"HMSG 1\r\n", b"MOG\r\n", b"HTTP/1.1 400\r\n", b"x\r\n"])
async def test_what_is_no_frame_is_an_error_and_not_waited_for(garbage: bytes) -> None:
    heard = Heard(takes=True)
    parser = BlockParser(heard, heard.deliver)
    with pytest.raises(ProtocolError):
        await parser.parse(b"MSG a 1 1\r\nx\r\n" + garbage)
    assert heard.calls == [(1, b"a", b"", b"x", None)]


async def test_nothing_of_a_lost_connection_is_left_in_the_parser() -> None:
    class LosesIt(Heard):
        def deliver(self, sid: bytes, *message: Any) -> bool:
            parser.reset()
            return super().deliver(sid, *message)

    heard = LosesIt(takes=True)
    parser = BlockParser(heard, heard.deliver)
    await parser.parse(b"MSG a 1 1\r\nx\r\nMSG b 1 100\r\nhalf")
    await parser.parse(b"MSG c 1 1\r\ny\r\n")
    assert [call[1] for call in heard.calls] == [b"a", b"c"]
