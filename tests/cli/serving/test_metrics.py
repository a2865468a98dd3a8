"""Where the processes under one supervisor serve their metrics."""

from __future__ import annotations

import signal
import socket

import pytest

from cuebook.cli.serving.metrics import following
from cuebook.events.errors import ConfigurationError
from tests.cli.conftest import Start


@pytest.mark.parametrize(
    ("address", "n", "found"),
    [
        ("127.0.0.1:9464", 0, "127.0.0.1:9464"),
        ("127.0.0.1:9464", 3, "127.0.0.1:9467"),
        ("[::1]:9464", 1, "[::1]:9465"),
        ("127.0.0.1:0", 5, "127.0.0.1:0"),
        ("", 2, ""),
    ],
)
def test_each_has_the_port_after_the_one_before(address: str, n: int, found: str) -> None:
    assert following(address, n) == found


def test_there_is_no_port_beyond_the_last() -> None:
    with pytest.raises(ConfigurationError, match="no 3 ports"):
        following("127.0.0.1:65534", 2)


async def test_a_service_whose_port_is_taken_ends_and_says_so(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with start("serve", "orchestrator", "--metrics", f"127.0.0.1:{port}") as program:
            assert await program.ends(within_s=60) == 5
            assert f"metrics cannot be served at 127.0.0.1:{port}: Address already in use" in program.errors
            assert "CUEBOOK_METRICS" in program.errors


async def test_a_service_without_an_address_serves_none(start: Start) -> None:
    async with start("serve", "orchestrator") as program:
        await program.says(" ready ", within_s=60)
        program.send(signal.SIGTERM)
        assert await program.ends(within_s=60) == 0
        assert "metrics" not in program.errors
