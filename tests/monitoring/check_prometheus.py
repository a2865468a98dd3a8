"""A real Prometheus scrapes real processes: each query of each dashboard gives data. Needs it: just test-prometheus."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cuebook.embedded.nats_server import nats_server
from cuebook.embedded.process import free_port
from tests.monitoring.dashboards import dashboards
from tests.monitoring.market import Market, fetched, market
from tests.waiting import eventually

HERE = Path(__file__).parent
RULES = HERE.parent.parent / "deploy" / "prometheus" / "cuebook.rules.yml"
SETTLED_S = 60.0
RECENT = "15s"
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: cuebook
    static_configs: [{{targets: {targets}}}]
"""


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", RULES),
        ("check", "config", RULES.parent / "prometheus.yml"),
        ("test", "rules", HERE / "cuebook.rules.test.yml"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_promtool_agrees(words: tuple[str | Path, ...]) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "apt-get install prometheus"
    done = subprocess.run([promtool, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_every_query_of_every_dashboard_and_every_alert_has_data(
    database_url: str, space: str, tmp_path: Path
) -> None:
    async with nats_server(tmp_path / "nats") as server:
        running = market(server.url, database_url, space, tmp_path, server.monitor_url)
        async with running as stall, prometheus(tmp_path, stall) as found:
            trading = asyncio.create_task(stall.trade())
            try:
                missing = {query.text: query for query in queries(space)}
                assert len(missing) > 80

                async def all_have_data() -> bool:
                    assert not trading.done(), trading.exception()
                    for text, query in list(missing.items()):
                        if await found.has_data(query.text, query.label):
                            del missing[text]
                    return not missing

                try:
                    await eventually(all_have_data, within_s=SETTLED_S)
                except AssertionError:
                    pytest.fail("no data: " + "\n".join(map(str, missing.values())), pytrace=False)
                await check_variables(found, space)
                await check_rules(found)
                await check_sums(found, stall)
            finally:
                trading.cancel()


class Query:
    """One query of a panel, as Prometheus takes it. `label`: what its legend names."""

    def __init__(self, where: str, expression: str, legend: str, space: str) -> None:
        found = re.fullmatch(r".*\{\{(\w+)\}\}.*", legend)
        self.label = found[1] if found else ""
        self._where = where
        values = {"$__rate_interval": RECENT, "$__range": "1m", "$space": space, "$agent": ".*", "$saga": ".*"}
        self.text = expression
        for name, value in values.items():
            self.text = self.text.replace(name, value)
        assert "$" not in self.text, self.text

    def __str__(self) -> str:
        return f"{self._where}: {self.text}"


def queries(space: str) -> Iterator[Query]:
    for file, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                yield Query(f"{file}, {panel['title']}", target["expr"], target["legendFormat"], space)


async def check_variables(found: Prometheus, space: str) -> None:
    for dashboard in dashboards().values():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
                assert asked, variable["definition"]
                series = urllib.parse.quote(asked[1].replace("$space", space))
                assert await found.ask(f"label/{asked[2]}/values?match[]={series}"), variable["definition"]


async def check_rules(found: Prometheus) -> None:
    """All are evaluated without an error, and what they are about exists."""
    rules = [rule for group in (await found.ask("rules"))["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == RULES.read_text().count("- alert:")
    for name in sorted(set(re.findall(r"\bcuebook_\w+", " ".join(rule["query"] for rule in rules)))):
        assert await found.has_data(f"count({name})"), name


async def check_sums(found: Prometheus, stall: Market) -> None:
    """With a standby beside the one that leads, sums count everything once."""
    assert await found.value("sum(cuebook_orchestrator_leading)") == 1
    assert await found.value("count(cuebook_orchestrator_leading)") == 2
    assert await found.value('sum(cuebook_agent_instances{health="healthy"})') == 2
    assert await found.value("sum(up)") == len(stall.ports)
    started = await found.value('sum(cuebook_runs_started_total{saga="buy"})')
    assert started == await found.value('max(cuebook_runs_started_total{saga="buy"})')


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def ask(self, path: str) -> Any:
        return json.loads(await asyncio.to_thread(fetched, f"{self._url}/api/v1/{path}"))["data"]

    async def query(self, text: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.ask(f"query?query={urllib.parse.quote(text)}"))["result"]
        return found

    async def value(self, text: str) -> float:
        (found,) = await self.query(text)
        return float(found["value"][1])

    async def has_data(self, text: str, label: str = "") -> bool:
        """Whether there is at least one number, with the label that the legend shows."""
        found = await self.query(text)
        numbers = [one for one in found if not math.isnan(float(one["value"][1]))]
        return bool(numbers) and (not label or any(one["metric"].get(label) for one in numbers))


@asynccontextmanager
async def prometheus(folder: Path, stall: Market) -> AsyncIterator[Prometheus]:
    program = shutil.which("prometheus")
    assert program, "apt-get install prometheus"
    config = folder / "prometheus.yml"
    targets = json.dumps([f"127.0.0.1:{port}" for port in stall.ports.values()])
    config.write_text(CONFIG.format(rules=RULES, targets=targets))
    port = free_port()
    log = (folder / "prometheus.txt").open("wb")
    with log:
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    found = Prometheus(f"http://127.0.0.1:{port}")
    try:

        async def up() -> bool:
            try:
                return bool(await found.query("sum(up) > 4"))
            except OSError:
                assert process.returncode is None, (folder / "prometheus.txt").read_text()
                return False

        await eventually(up, within_s=SETTLED_S)
        yield found
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
