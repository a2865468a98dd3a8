"""The support desk of `cuebook.examples.support`, ready to be served: its Stripe stand-in, its orders, its settings."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from importlib.util import find_spec
from typing import Final

from cuebook.cli.interrupts import checkpoint
from cuebook.cli.serving.children import Program, Say, running
from cuebook.embedded.process import LOOPBACK, free_port
from cuebook.events.errors import ConfigurationError, UnavailableError
from cuebook.examples.support.settings import DEFAULT_STRIPE_KEY

__all__ = ["AGENTS", "SAGA", "Desk", "support_desk"]

SAGA: Final = "cuebook.examples.support.sagas:support"
AGENTS: Final = tuple(  # each from its own module: the refunds' alone needs the stripe library
    f"cuebook.examples.support.{module}:{module.title()}"
    for module in ("classifier", "orders", "refunds", "escalations", "feedback")
)
_NEEDS: Final = ("httpx", "localstripe", "sklearn", "stripe")
_START_DEADLINE_S: Final = 60.0


class Desk:
    """A desk under way. Its environment is what its agents need besides the addresses of the servers."""

    def __init__(self, database_url: str, port: int) -> None:
        """Take where it works; `support_desk` is the way to start one."""
        self.stripe_url, self.stripe_key = f"http://{LOOPBACK}:{port}", DEFAULT_STRIPE_KEY
        self._database_url = database_url
        self._answers = asyncio.Event()

    @property
    def environment(self) -> dict[str, str]:
        """Where the agents find the stand-in."""
        return {"CUEBOOK_STRIPE_URL": self.stripe_url, "STRIPE_API_KEY": self.stripe_key}

    @property
    def own_environment(self) -> dict[str, str]:
        """The same for programs that we start: besides, one thread is enough for so small a model."""
        return self.environment | {"OMP_NUM_THREADS": "1"}

    def heard(self, line: str) -> None:
        """The stand-in has printed a line: its address, once it answers."""
        if line.strip() == self.stripe_url:
            self._answers.set()

    async def prepare(self) -> int:
        """Make what is missing of forty orders and their payments; returns how many orders there are.

        The stand-in forgets with its process, so payments are made anew at every start. Raises UnavailableError when it
        does not answer.
        """
        from cuebook.examples.support.desk import prepare  # its packages are an extra

        try:
            async with asyncio.timeout(_START_DEADLINE_S):
                await self._answers.wait()
        except TimeoutError as error:
            raise UnavailableError(f"the Stripe stand-in did not start within {_START_DEADLINE_S:g} s") from error
        prepared = await prepare(self._database_url, self.stripe_url, self.stripe_key)
        checkpoint()
        return prepared.orders


@contextlib.asynccontextmanager
async def support_desk(database_url: str, *, env: Mapping[str, str], say: Say) -> AsyncIterator[Desk]:
    """Run the Stripe stand-in. Raises ConfigurationError when the packages of the example are missing."""
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the support desk needs packages that are not installed: {', '.join(missing)}",
            remedy="pip install 'cuebook[support]'",
        )
    port = free_port()
    desk = Desk(database_url, port)
    argv = [sys.executable, "-m", "cuebook.examples.support.stripe_standin", "--port", str(port)]

    def listen(name: str, line: str) -> None:
        desk.heard(line)
        say(name, line)

    async with running([Program(name="stripe", argv=argv, env=env)], listen):
        yield desk
