"""The desk as the command line serves it."""

from __future__ import annotations

import os

import pytest

from cuebook.cli.dev import support_desk
from cuebook.cli.loading import load_agents, load_sagas
from cuebook.events.errors import ConfigurationError


def test_its_agents_and_its_saga_can_be_served() -> None:
    assert sorted(agent.name for agent in load_agents(support_desk.AGENTS)) == [
        "classifier", "escalation", "feedback", "orders", "refund"
    ]  # fmt: skip
    assert [saga.on for saga in load_sagas([support_desk.SAGA])] == ["ticket.opened"]


async def test_packages_that_are_missing_are_named_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_desk, "_NEEDS", ("stripe", "no_such_package"))
    desk = support_desk.support_desk("postgresql://x", env=os.environ, say=lambda name, line: None)
    with pytest.raises(ConfigurationError, match=r"not installed: no_such_package$") as raised:
        await desk.__aenter__()
    assert raised.value.remedy == "pip install 'cuebook[support]'"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how the stripe library calls httpx
async def test_the_shop_is_prepared_once_its_stripe_answers(database_url: str) -> None:
    async with support_desk.support_desk(database_url, env=os.environ, say=lambda name, line: None) as desk:
        assert await desk.prepare() == 40
        assert desk.environment["CUEBOOK_STRIPE_URL"].startswith("http://127.0.0.1:")
