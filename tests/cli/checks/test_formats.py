"""What monitoring reads: a plugin's line and status, and a textfile for Prometheus, from real looks at a real space."""

from __future__ import annotations

import json
import re

import pytest

from cuebook.cli.checks.finding import Finding, Level, Limits, Measure, Report
from cuebook.cli.diagnosis.formats import nagios_line, prometheus_text
from cuebook.cli.exits import PluginExit
from tests.cli.checks.conftest import Doctor, Quick, System
from tests.cli.conftest import Cli
from tests.waiting import eventually

PERFORMANCE = re.compile(r"'[^'=]+'=-?[0-9.]+(?:s|B|%)?;[0-9.]*;[0-9.]*;0;(?:100)?")
SAMPLE = re.compile(r'([a-z_:][a-z0-9_:]*)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (-?[0-9.e+-]+)')


def parsed(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Read the exposition format strictly: HELP and TYPE before the samples of each family, no family twice."""
    families: dict[str, list[tuple[dict[str, str], float]]] = {}
    assert text.endswith("\n")
    lines = iter(text.splitlines())
    name = ""
    for line in lines:
        if line.startswith("# HELP "):
            name = line.split(" ", 3)[2]
            assert name not in families
            families[name] = []
            assert next(lines) == f"# TYPE {name} gauge"
            continue
        found = SAMPLE.fullmatch(line)
        assert found is not None, line
        assert found[1] == name
        labels = dict(re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', found[2]))
        assert all(labels != others for others, _ in families[name])
        families[name].append((labels, float(found[3])))
    return families


async def test_a_plugin_says_one_line_and_ends_with_its_status(cli: Cli, system: System, doctor: Doctor) -> None:
    result = await cli.run("check", "orchestrator")
    assert result.exit_code == PluginExit.CRITICAL
    assert result.stdout.startswith("CUEBOOK CRITICAL - no orchestrator decides in space ")
    await system.orchestrator()
    await system.agents(Quick)
    await doctor.agrees([])
    for words in (["orchestrator"], ["agents", "log"], ["all"]):
        result = await cli.run("check", *words)
        assert result.exit_code == PluginExit.OK, result.stdout
        [line] = result.stdout.splitlines()
        text, bar, numbers = line.partition(" | ")
        assert (text.startswith("CUEBOOK OK - "), bar) == (True, " | ")
        assert all(PERFORMANCE.fullmatch(one) for one in numbers.split(" ")), numbers


async def test_thresholds_can_be_given(cli: Cli, system: System) -> None:
    await system.orchestrator()
    await system.client.submit_task("quick", {"n": 1})
    assert (await cli.run("check", "orchestrator", "-w", "100")).exit_code == PluginExit.OK
    result = await cli.run("check", "orchestrator", "--warning", "orchestrator.snapshot=1")
    assert result.exit_code == PluginExit.WARNING
    assert "'orchestrator.snapshot'=1;1;;0;" in result.stdout
    result = await cli.run("check", "all", "-c", "orchestrator.snapshot=1")
    assert (result.exit_code, result.stdout[:18]) == (PluginExit.CRITICAL, "CUEBOOK CRITICAL -")
    result = await cli.run("check", "runs", "-w", "runs.stranded=1h30m")
    assert "s;5400;3600;0; 'runs.waiting'=" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["agents", "--warning", "no.such=1"],
        ["agents", "log", "-w", "1"],
        ["agents", "-w", "much"],
        ["agents", "-w", "nan"],
        ["agents", "-c", "inf"],
        ["agents", "-w", "agents.lost=-1"],
        ["agents", "--timeout-s", "0"],
        ["agents", "--format", "xml"],
        ["agents", "--space", "No Space"],
        [],
    ],
)
async def test_what_cannot_be_meant_is_unknown(cli: Cli, words: list[str]) -> None:
    assert (await cli.run("check", *words)).exit_code == PluginExit.UNKNOWN


async def test_what_cannot_be_looked_at_is_unknown_to_a_plugin(cli: Cli) -> None:
    env = {"CUEBOOK_NATS_URL": "nats://127.0.0.1:1"}
    for words, status in ((["agents"], PluginExit.UNKNOWN), (["log"], PluginExit.CRITICAL)):
        result = await cli.run("check", *words, env=env)
        assert result.exit_code == status
        assert result.stdout.startswith(f"CUEBOOK {status.name} - ")


async def test_a_plugin_says_once_why_it_could_not_look(cli: Cli) -> None:
    env = {"CUEBOOK_NATS_URL": "nats://127.0.0.1:1"}
    line = (await cli.run("check", "all", env=env)).stdout
    assert line.count("NATS does not answer") == 1
    assert line.rstrip().endswith(
        "not looked at: NATS does not answer (clocks, orchestrator, agents, runs, escalations, seals)"
    )


def test_a_plugin_says_the_first_of_many_findings_and_all_measures() -> None:
    def report(*messages: str) -> Report:
        found = [Finding(code="agents.silent", level=Level.WARNING, message=text) for text in messages]
        measure = Measure(name="clocks.skew", value=0.00001, unit="s", help="", limits=Limits(0.000002, 30))
        return Report(area="agents", findings=found, measures=[measure])

    line = nagios_line([report(*(f"agent/i{n:03d} was not heard" for n in range(500)))])
    assert len(line) < 2_200
    text, _, numbers = line.partition(" | ")
    shown = text.count("was not heard")
    assert (shown > 50, text.endswith(f"; and {500 - shown} more")) == (True, True)
    assert numbers == "'clocks.skew'=0.00001s;0.000002;30;0;"
    text = nagios_line([report("x" * 100_000, "another")]).partition(" | ")[0]
    assert (len(text) < 2_200, text.endswith("…; and 1 more")) == (True, True)


async def test_prometheus_reads_the_textfile(cli: Cli, system: System, doctor: Doctor) -> None:
    await system.orchestrator()
    await system.agents(Quick)
    await doctor.agrees([])
    result = await cli.run("check", "all", "--format", "prometheus")
    assert result.exit_code == 0
    families = parsed(result.stdout)
    statuses = {labels["check"]: value for labels, value in families["cuebook_check_status"]}
    assert set(statuses.values()) == {0.0}
    assert families["cuebook_check_agents_slots"][0][1] == Quick.concurrency
    assert families["cuebook_check_log_latency_seconds"][0][1] > 0
    env = {"CUEBOOK_NATS_URL": "nats://127.0.0.1:1"}
    down = parsed((await cli.run("check", "log", "--format", "prometheus", env=env)).stdout)
    [(labels, count)] = down["cuebook_check_findings"]
    assert (labels["code"], labels["level"], count) == ("log.unreachable", "critical", 1.0)


def test_whatever_a_finding_says_stays_in_its_place() -> None:
    hostile = 'a "b" \\ c | d\ne'
    report = Report(
        area="log",
        findings=[Finding(code=hostile, level=Level.WARNING, message=hostile, about=hostile)],
        measures=[Measure(name="log.storage", value=81.5, unit="%", help=hostile, limits=Limits(80, 90))],
    )
    line = nagios_line([report])
    assert line.count("|") == 1
    assert "\n" not in line
    assert line.endswith(" | 'log.storage'=81.5%;80;90;0;100")
    families = parsed(prometheus_text("cue", [report], 1.5))
    assert families["cuebook_check_log_storage_percent"] == [({"space": "cue"}, 81.5)]
    assert families["cuebook_check_findings"][0][0]["code"] == r"a \"b\" \\ c | d\ne"


async def test_people_are_told_calmly_and_programs_everything(cli: Cli, system: System, doctor: Doctor) -> None:
    told = await cli.run("doctor")
    assert told.exit_code == PluginExit.CRITICAL
    lines = told.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:1].strip()][:3] == ["ok", "ok", "critical"]
    assert f"space {system.space}: 1 critical" == lines[-1]
    at = next(n for n, line in enumerate(lines) if "✗ no orchestrator decides" in line)
    assert "→ cuebook serve orchestrator" in lines[at + 1]
    value = json.loads((await cli.run("doctor", "-o", "json")).stdout)
    assert (value["level"], value["space"]) == ("critical", system.space)
    [found] = value["findings"]
    assert found["area"] == "orchestrator"
    assert set(found) == {"area", "code", "level", "about", "message", "remedy"}
    assert value["areas"][0]["measures"]["log.sequence"] == 0
    await system.orchestrator()
    await doctor.agrees([])
    assert (await cli.ok("doctor")).splitlines()[-1] == f"space {system.space}: nothing is wrong"
    for number in range(7):
        await system.register("ghost", f"g{number}", heartbeat_s=0.05)

    async def told_of_all() -> str:
        text = (await cli.run("doctor")).stdout
        return text if "and 2 more agents.lost: " in text else ""

    text = await eventually(told_of_all, within_s=60)
    assert text.count("! ghost/g") == 5
