"""The support desk of `cuebook.examples.support`, ready to be served: its Stripe stand-in, its orders, its settings."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from cuebook.cli.children import Program, Say, running
from cuebook.embedded.process import LOOPBACK, free_port
from cuebook.events.errors import ConfigurationError, UnavailableError

__all__ = ["AGENTS", "SAGA", "Desk", "support_desk"]

SAGA: Final = "cuebook.examples.support.sagas:support"
AGENTS: Final = tuple(  # each from its own module: the refunds' alone needs the stripe library
    f"cuebook.examples.support.{module}:{module.title()}"
    for module in ("classifier", "orders", "refunds", "escalations", "feedback")
)
_NEEDS: Final = ("httpx", "localstripe", "sklearn", "stripe")
_START_DEADLINE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A desk that can be served. Its environment is what its agents need besides the addresses of the servers."""

    orders: int
    stripe_url: str
    stripe_key: str

    @property
    def environment(self) -> dict[str, str]:
        """Where the agents find the stand-in."""
        return {"CUEBOOK_STRIPE_URL": self.stripe_url, "STRIPE_API_KEY": self.stripe_key}

    @property
    def own_environment(self) -> dict[str, str]:
        """The same for programs that we start: besides, one thread is enough for so small a model."""
        return self.environment | {"OMP_NUM_THREADS": "1"}


@contextlib.asynccontextmanager
async def support_desk(database_url: str, *, env: Mapping[str, str], say: Say) -> AsyncIterator[Desk]:
    """Run the Stripe stand-in and prepare the shop: forty orders, each paid.

    The stand-in forgets with its process; the payments are made anew at every start. Raises ConfigurationError when the
    packages of the example are missing, UnavailableError when the stand-in does not answer.
    """
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the support desk needs packages that are not installed: {', '.join(missing)}",
            remedy="pip install 'cuebook[support]'",
        )
    from cuebook.examples.support.desk import prepare  # the packages just looked for
    from cuebook.examples.support.settings import DEFAULT_STRIPE_KEY

    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    module = "cuebook.examples.support.stripe_standin"
    program = Program(name="stripe", argv=[sys.executable, "-m", module, "--port", str(port)], env=env)
    answers = asyncio.Event()

    def listen(name: str, line: str) -> None:
        if line.strip() == url:
            answers.set()
        say(name, line)

    async with running([program], listen):
        try:
            async with asyncio.timeout(_START_DEADLINE_S):
                await answers.wait()
        except TimeoutError as error:
            raise UnavailableError(f"the Stripe stand-in did not start within {_START_DEADLINE_S:g} s") from error
        prepared = await prepare(database_url, url, DEFAULT_STRIPE_KEY)
        yield Desk(orders=prepared.orders, stripe_url=url, stripe_key=DEFAULT_STRIPE_KEY)
