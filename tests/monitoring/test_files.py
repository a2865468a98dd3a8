"""Dashboards, alerts and settings in deploy/ fit what is exported, and each other."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cuebook.telemetry.metric import Metric
from cuebook.telemetry.metric_names import ALL
from tests.monitoring.dashboards import FOLDER, dashboards, text_of
from tests.test_documentation import HEADING, anchor_of

ROOT = Path(__file__).parent.parent.parent
RULES = (ROOT / "deploy/prometheus/cuebook.rules.yml").read_text()
SCRAPED = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
TESTED = (Path(__file__).parent / "cuebook.rules.test.yml").read_text()
RUNBOOKS = ROOT / "docs" / "runbooks.md"
OVER = {"_bucket", "_count", "_sum"}
PAGES = sorted(FOLDER.glob("*.json"))


def exported() -> dict[str, Metric]:
    """Every name that a query may use."""
    found = {one.exported: one for one in ALL}
    return found | {f"{one.exported}{end}": one for one in ALL if one.kind == "histogram" for end in OVER}


def wrong_in(query: str) -> list[str]:
    """Metrics that do not exist, and labels that they do not have."""
    known, wrong = exported(), []
    for name, matchers in re.findall(r"\b(cuebook_\w+)(?:\{([^}]*)\})?", query):
        if name not in known:
            wrong.append(name)
        else:
            labels = set(re.findall(r"(\w+)\s*[!=]~?", re.sub(r'"[^"]*"', "", matchers)))
            wrong += [f"{name}{{{label}}}" for label in labels - {"space", *known[name].labels}]
    return wrong


def test_the_files_are_those_that_just_docs_writes() -> None:
    assert {path.name: path.read_text() for path in PAGES} == {
        name: text_of(dashboard) for name, dashboard in dashboards().items()
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    page = json.loads(path.read_text())
    assert page["schemaVersion"] >= 39
    assert page["uid"] == f"cuebook-{path.stem}"
    panels = [panel for panel in page["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "heatmap"
        assert panel["targets"]
    for one, other in itertools.combinations(page["panels"], 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in page["panels"])


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_dashboard_asks_only_for_what_there_is_and_only_of_its_space(path: Path) -> None:
    page = json.loads(path.read_text())
    queries = [target["expr"] for panel in page["panels"] for target in panel.get("targets", ())]
    variables = {one["name"]: one for one in page["templating"]["list"]}
    asked = [one["definition"] for one in variables.values() if one["type"] == "query"]
    for query in [*queries, *asked]:
        assert wrong_in(query) == []
        used = set(re.findall(r"\$(\w+)", query)) - {"__rate_interval", "__range"}
        assert used <= variables.keys()
    for query in queries:
        matchers: list[str] = re.findall(r"cuebook_\w+(\{[^}]*\})?", query)
        assert all('space="$space"' in one for one in matchers), query


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    text = RULES + "".join(path.read_text() for path in PAGES)
    assert [one.exported for one in ALL if one.exported not in text] == []


def rules() -> list[dict[str, Any]]:
    """The alerts, each with its text."""
    blocks = re.split(r"^      - alert: ", RULES, flags=re.MULTILINE)[1:]
    return [{"name": block.partition("\n")[0], "text": block} for block in blocks]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["name"])
def test_an_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    text = rule["text"]
    assert re.search(r"labels: \{severity: (warning|critical)\}", text)
    assert all(re.search(rf'{name}: ".+"', text) for name in ("summary", "description"))
    url = re.search(r"runbook_url: (\S+)", text)
    assert url
    document, _, anchor = url[1].partition("#")
    assert document == RUNBOOKS.relative_to(ROOT).as_posix()
    assert anchor in {anchor_of(heading) for heading in HEADING.findall(RUNBOOKS.read_text())}
    assert wrong_in(text.partition("annotations:")[0]) == []
    assert f'alertname="{rule["name"]}", alertstate="firing"' in TESTED


def test_every_runbook_is_of_an_alert() -> None:
    headings = re.findall(r"^## (.+)$", RUNBOOKS.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(rule["name"] for rule in rules())


def test_prometheus_looks_where_the_units_settings_say() -> None:
    settings = ("orchestrator", "orchestrator@standby", "projections", "sealer", "edge", "agent")
    named = [
        port
        for name in settings
        for port in re.findall(r"127\.0\.0\.1:(\d+)", (ROOT / f"deploy/systemd/{name}.env").read_text())
    ]
    assert (
        named
        == re.findall(r"targets: \[127\.0\.0\.1:(94\d+)\]", SCRAPED)
        == ["9464", "9465", "9466", "9467", "9468", "9470"]
    )
