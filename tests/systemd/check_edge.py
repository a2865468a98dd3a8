"""An edge as docs/operations.md sets it up, on a real systemd: its hub's server runs beside it and goes away.

Run by `just test-systemd`: it needs root and systemd-nspawn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.systemd.machine import Machine, booted

UNITS = ("cuebook-nats", "cuebook-edge")
HUB_URL = "nats://127.0.0.1:4322"
HUB = "/opt/hub/etc/cuebook"
MOST_EXPOSED = 1.5
TASKS = [f"errand-{n}" for n in range(4)]
DEVICE = """
import asyncio, json, sys, nats

async def main():
    connection = await nats.connect("nats://127.0.0.1:4222")
    for n in range(int(sys.argv[1]), int(sys.argv[2])):
        answer = await connection.request("cue.event.meter.read", json.dumps({"n": n}).encode())
        assert json.loads(answer.data)["domain"] == "shop-7", answer.data
    await connection.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """The hub as it is installed, but in a folder and on ports of its own; then the edge, as it is documented."""
    with booted(Path(__file__).parent / "files") as machine:
        machine.cuebook("units", "install", "--root", "/opt/hub", "--edges", "127.0.0.1:7422")
        ports = "s/port: 4222/port: 4322/; s/127.0.0.1:8222/127.0.0.1:8322/"
        machine.run("sed", "--in-place", ports, f"{HUB}/nats.conf")
        start_hub(machine)
        serve(machine, "hub-orchestrator", "orchestrator", "--nats-url", HUB_URL)
        password = machine.run("cat", f"{HUB}/credentials/leaf-password").strip()
        said = machine.cuebook("units", "install", "--edge", "shop-7", "--hub", f"edge:{password}@127.0.0.1")
        machine.run("tee", "--append", "/etc/cuebook/cuebook.env", stdin="PYTHONPATH=/opt/files\n")
        machine.run(
            "tee", "--append", "/etc/cuebook/edge.env", stdin="CUEBOOK_AGENTS=oddities:Porter\nCUEBOOK_AHEAD=20\n"
        )
        then = next(line.removeprefix("then: ") for line in said.splitlines() if line.startswith("then: "))
        machine.run(*then.split())
        yield machine


def start_hub(machine: Machine) -> None:
    machine.run("mkdir", "-p", "/var/lib/hub")
    settings = (
        "--property=NotifyAccess=all",
        f"--property=EnvironmentFile={HUB}/nats.env",
        "--setenv=CUEBOOK_NATS_STORE=/var/lib/hub",
        f"--setenv=CUEBOOK_LEAF_PASSWORD=@{HUB}/credentials/leaf-password",
    )
    monitor = ("--nats-monitor-url", "http://127.0.0.1:8322")
    serve(machine, "hub", "nats", f"{HUB}/nats.conf", *monitor, settings=settings)


def serve(machine: Machine, unit: str, *words: str, settings: Sequence[str] = ()) -> None:
    """Run `cuebook serve ...` as a unit of its own, and wait until it is ready."""
    run = ("systemd-run", "--quiet", f"--unit={unit}", "--service-type=notify", *settings)
    machine.run(*run, "/opt/cuebook/bin/cuebook", "serve", *words)


def test_the_edge_is_clean_hardly_exposed_and_ready(machine: Machine) -> None:
    names = [f"{unit}.service" for unit in UNITS]
    assert machine.run("systemd-analyze", "verify", "--man=no", "cuebook.target", *names) == ""
    for name in names:
        overall = machine.run("systemd-analyze", "security", name).splitlines()[-1]
        found = re.search(r"exposure level for \S+: ([\d.]+)", overall)
        assert found, overall
        assert float(found[1]) <= MOST_EXPOSED, overall
    rows = {row["unit"]: row for row in json.loads(machine.cuebook("units", "list", "-o", "json"))}
    assert rows["cuebook-edge.service"]["status"] == "slots 24, in flight 0, done 0"
    machine.until(lambda: status(machine, "cuebook-nats").endswith("linked to the hub"), unit="cuebook-nats")
    machine.until(lambda: status(machine, "hub").endswith("edges 1"), unit="hub")
    [agent] = json.loads(machine.cuebook("agent", "list", "-o", "json", "--nats-url", HUB_URL))
    assert (agent["agent"], agent["health"]) == ("porter", "healthy")


def test_secrets_are_in_no_unit_and_no_command_line(machine: Machine) -> None:
    folder = "/etc/cuebook/credentials"
    secrets = [machine.run("cat", f"{folder}/{name}").strip() for name in ("edge-password", "hub-url", "edge-url")]
    for unit in UNITS:
        shown = machine.systemctl("show", unit)
        pid = machine.property(unit, "MainPID")
        shown += machine.run("cat", f"/proc/{pid}/cmdline")
        if unit == "cuebook-edge":
            shown += machine.run("cat", f"/proc/{pid}/environ")
        assert not [secret for secret in secrets if secret in shown]


def test_work_goes_on_while_the_hub_is_away_and_all_is_told_once_it_is_back(machine: Machine) -> None:
    unit = "cuebook-edge"
    for name in TASKS:
        machine.cuebook("run", "submit", "--agent", "porter", '"here"', "--id", name, "--nats-url", HUB_URL)
    machine.until(lambda: status(machine, unit).startswith("slots 24, in flight 4"), unit=unit)
    machine.systemctl("stop", "hub")
    machine.until(lambda: "cut off from the log for" in status(machine, unit), unit=unit)
    machine.until(lambda: status(machine, "cuebook-nats").endswith("cut off from the hub"), unit="cuebook-nats")
    machine.run("/opt/cuebook/bin/python", "-c", DEVICE, "0", "5")
    restarts = machine.property(unit, "NRestarts")
    machine.systemctl("kill", "--kill-who=main", "--signal=SIGKILL", unit)
    machine.run("touch", "/run/gate")
    machine.until(lambda: machine.property(unit, "NRestarts") != restarts, unit=unit)
    machine.until(lambda: "4 answers kept" in status(machine, unit), unit=unit)
    assert "5 events wait" in status(machine, unit)
    machine.systemctl("restart", unit)
    machine.until(lambda: "4 answers kept" in status(machine, unit), unit=unit)
    assert machine.property(unit, "Result") == "success"
    start_hub(machine)
    machine.until(lambda: [outcome(machine, name) for name in TASKS] == ["here at attempt 1"] * len(TASKS), unit=unit)
    machine.until(lambda: readings(machine) == list(range(5)), unit=unit)
    machine.until(lambda: status(machine, unit) == "slots 24, in flight 0, done 4", unit=unit)


def test_a_reload_is_taken_on_and_stopping_leaves_in_good_order(machine: Machine) -> None:
    unit, settings = "cuebook-edge", "/etc/cuebook/edge.env"
    before = machine.property(unit, "MainPID")
    machine.run("tee", "--append", settings, stdin="CUEBOOK_DRAIN_S=20\nCUEBOOK_SLOTS=2\n")
    machine.systemctl("reload", unit)
    machine.until(lambda: "changed=CUEBOOK_SLOTS" in machine.log(unit), unit=unit)
    assert machine.property(unit, "MainPID") == before
    machine.systemctl("restart", unit)
    assert status(machine, unit).startswith("slots 22,")
    machine.systemctl("stop", unit)
    assert machine.property(unit, "Result") == "success"
    machine.systemctl("start", unit)


def test_an_edge_whose_agents_a_person_has_drained_still_forwards(machine: Machine) -> None:
    unit = "cuebook-edge"
    machine.cuebook("agent", "drain", "porter", "--wait", "--nats-url", HUB_URL)
    machine.until(lambda: "no agent is served here any more" in machine.log(unit), unit=unit)
    machine.run("/opt/cuebook/bin/python", "-c", DEVICE, "5", "7")
    machine.until(lambda: readings(machine)[-2:] == [5, 6], unit=unit)
    assert machine.property(unit, "ActiveState") == "active"


def test_an_edge_without_a_name_is_not_started_again_and_again(machine: Machine) -> None:
    unit, settings = "cuebook-edge", "/etc/cuebook/edge.env"
    text = machine.run("cat", settings)
    machine.write(settings, text.replace("CUEBOOK_EDGE_NAME=", "#"))
    machine.systemctl("restart", unit, status=None)
    machine.until(lambda: machine.property(unit, "ActiveState") == "failed", unit=unit)
    assert machine.property(unit, "ExecMainStatus") == "2"
    assert "error: the edge has no name" in machine.log(unit)
    machine.write(settings, text)
    machine.systemctl("start", unit)
    assert machine.property(unit, "ActiveState") == "active"


def status(machine: Machine, unit: str) -> str:
    return machine.property(unit, "StatusText")


def outcome(machine: Machine, run_id: str) -> object:
    told = machine.cuebook("task", "show", f"{run_id}/0", "-o", "json", "--nats-url", HUB_URL, status=None)
    return json.loads(told).get("output") if told else None


def readings(machine: Machine) -> list[int]:
    told = machine.cuebook("events", "tail", "-o", "jsonl", "--nats-url", HUB_URL, "--topic", "meter.read")
    return [json.loads(line)["data"]["n"] for line in told.splitlines()]
