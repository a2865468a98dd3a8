"""The units of deploy/systemd on a real systemd. Run by `just test-systemd`: it needs root and systemd-nspawn.

One machine for all, since it takes half a minute to build; the tests are in the order in which an operator would go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cuebook.examples.support.tickets import DEMONSTRATIONS
from tests.systemd.machine import Machine, booted

UNITS = (
    "cuebook-nats",
    "cuebook-orchestrator",
    "cuebook-orchestrator@standby",
    "cuebook-projections",
    "cuebook-sealer",
)
DESK = ("classifier", "orders", "refunds", "escalations", "feedback")
ODD = ("blocker", "clinger", "crew", "idler", "laster")
AGENTS = tuple(f"cuebook-agent@{name}" for name in (*DESK, *ODD))
ALL = (*UNITS, *AGENTS)
MOST_EXPOSED = 1.5
SCRIPT = ("/opt/cuebook/bin/python", "/opt/files/tickets.py")
WATCHDOG_S = 3
TOKEN = "Bearer sesame"
TRACES = (
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318\nOTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\n"
    "OTEL_BSP_SCHEDULE_DELAY=200\n"
)
METRICS = {"orchestrator": 9464, "orchestrator@standby": 9465, "projections": 9466, "sealer": 9467}
LOOK = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"
TICKETS = [one for one in DEMONSTRATIONS if one.ends in ("refunded", "answered", "thanked")][:5]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """Everything is installed as docs/operations.md says, nothing is started yet."""
    with booted(Path(__file__).parent / "files") as machine:
        machine.run("systemd-run", "--quiet", "--unit=desk", "--service-type=notify", "/opt/cuebook/bin/python",
                    "/opt/files/desk_servers.py")  # fmt: skip
        machine.cuebook("units", "install")
        settings = machine.run("cat", "/run/desk/environment")
        machine.run("cp", "/run/desk/database-url", "/etc/cuebook/credentials/database-url")
        machine.run("systemd-run", "--quiet", "--unit=collector", "/opt/cuebook/bin/python", "/opt/files/collector.py")
        machine.cuebook("audit", "key", "/etc/cuebook/credentials/seal-key", "--name", "example.com/cue")
        machine.write("/etc/cuebook/credentials/otlp-headers", f"authorization={TOKEN}\n")
        machine.write("/etc/cuebook/cuebook.env", f"PYTHONPATH=/opt/files\n{TRACES}")
        machine.write("/etc/cuebook/orchestrator.env", "CUEBOOK_SAGAS=cuebook.examples.support.sagas:support\n")
        for name, port in METRICS.items():
            line = f"CUEBOOK_METRICS=127.0.0.1:{port}\n"
            machine.run("tee", "--append", f"/etc/cuebook/{name}.env", stdin=line)
        for name in DESK:
            agent = f"cuebook.examples.support.{name}:{name.title()}"
            machine.write(f"/etc/cuebook/agents/{name}.env", f"CUEBOOK_AGENTS={agent}\n{settings}")
        for name in ODD:
            at = "CUEBOOK_METRICS=127.0.0.1:9470\n" if name == "idler" else ""
            machine.write(f"/etc/cuebook/agents/{name}.env", f"CUEBOOK_AGENTS=oddities:{name.title()}\n{at}")
        machine.write("/etc/cuebook/agents/crew.env", "CUEBOOK_AGENTS=oddities:Crew\nCUEBOOK_PROCESSES=2\n")
        machine.write(
            "/etc/systemd/system/cuebook-agent@.service.d/database.conf",
            "[Service]\nLoadCredential=database-url:/etc/cuebook/credentials/database-url\n"
            "Environment=CUEBOOK_DATABASE_URL=@%d/database-url\n",
        )
        for name in ("blocker", "clinger", "crew", "idler"):
            where = f"/etc/systemd/system/cuebook-agent@{name}.service.d/watchdog.conf"
            machine.write(where, f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
        machine.systemctl("daemon-reload")
        machine.systemctl("enable", "--quiet", "--now", "cuebook.target", *ALL)
        yield machine


def test_every_unit_is_clean_and_hardly_exposed(machine: Machine) -> None:
    names = [f"{unit}.service" for unit in (*UNITS, "cuebook-agent@idler")]
    assert machine.run("systemd-analyze", "verify", "--man=no", "cuebook.target", *names) == ""
    for name in names:
        rating = json.loads(machine.run("systemd-analyze", "security", "--json=short", name))
        overall = machine.run("systemd-analyze", "security", name).splitlines()[-1]
        found = re.search(r"exposure level for \S+: ([\d.]+)", overall)
        assert rating
        assert found, overall
        assert float(found[1]) <= MOST_EXPOSED, overall


def test_ready_means_registered_and_consuming(machine: Machine) -> None:
    for unit in ALL:
        assert machine.property(unit, "ActiveState") == "active"
    assert machine.property("cuebook-nats", "StatusText").endswith("acknowledged means on disk")
    assert agents_known(machine) >= {"classifier", "orders", *ODD}
    status = machine.property("cuebook-agent@laster", "StatusText")
    assert re.fullmatch(r"slots 4, in flight 0, lag 0, done \d+", status)


def test_each_unit_tells_prometheus_how_it_is(machine: Machine) -> None:
    told = {
        port: machine.run("/opt/cuebook/bin/python", "-c", LOOK, f"http://127.0.0.1:{port}/metrics")
        for port in (*METRICS.values(), 9470)
    }
    assert all('cuebook_ready{space="cue"} 1.0' in text for text in told.values())
    assert all("process_resident_memory_bytes" in text for text in told.values())  # whatever the sandbox hides
    leading = [f'cuebook_orchestrator_leading{{space="cue"}} {n}.0' in told[port] for port, n in ((9464, 1), (9465, 0))]
    swapped = [f'cuebook_orchestrator_leading{{space="cue"}} {n}.0' in told[port] for port, n in ((9464, 0), (9465, 1))]
    assert all(leading) or all(swapped)


def test_secrets_are_only_in_credentials(machine: Machine) -> None:
    secret = machine.run("cat", "/etc/cuebook/credentials/database-url").strip()
    for unit in ("cuebook-projections", "cuebook-agent@orders"):
        assert secret not in machine.systemctl("show", unit)
        pid = machine.property(unit, "MainPID")
        assert secret not in machine.run("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline")
        assert machine.run("stat", "--format=%a", f"/run/credentials/{unit}.service/database-url").strip() in (
            "400",
            "440",
        )


def test_the_desk_works_and_the_tables_show_it(machine: Machine) -> None:
    open_tickets(machine, "a")
    assert ends(machine, "a") == {one.ticket.id: ["completed", one.ends] for one in TICKETS}
    runs = ("run", "list", "-o", "json", "--database-url", "@/etc/cuebook/credentials/database-url")
    wanted = {f"support-a{one.ticket.id}" for one in TICKETS}
    machine.until(lambda: {run["run_id"] for run in json.loads(machine.cuebook(*runs))} >= wanted)


def test_traces_go_to_the_collector_with_the_secret_that_it_wants(machine: Machine) -> None:
    wanted = {f"{TOKEN} cuebook-{service}" for service in ("orchestrator", "agents", "projections")}
    machine.until(lambda: set(machine.run("cat", "/run/collector/seen").splitlines()) >= wanted)
    for unit in ("cuebook-orchestrator", "cuebook-agent@orders"):
        assert "sesame" not in machine.run("cat", f"/proc/{pid(machine, unit)}/environ")
        assert "sesame" not in machine.systemctl("show", unit)


def test_the_log_is_sealed_with_a_key_that_only_the_sealer_sees(machine: Machine) -> None:
    file = "/var/lib/cuebook-sealer/cue.checkpoints"
    machine.until(lambda: "example.com/cue" in machine.run("cat", file, status=None), unit="cuebook-sealer")
    machine.cuebook("events", "export", "/root/cue.jsonl")
    told = machine.cuebook("audit", "verify", "/root/cue.jsonl", "--key", "/etc/cuebook/credentials/seal-key.pub",
                           "--checkpoint", file, "-o", "json")  # fmt: skip
    assert json.loads(told)
    key = machine.run("cat", "/etc/cuebook/credentials/seal-key").strip()
    assert key not in machine.run("cat", f"/proc/{pid(machine, 'cuebook-sealer')}/environ")
    kill(machine, "cuebook-sealer")
    machine.until(lambda: is_up(machine, "cuebook-sealer"), unit="cuebook-sealer")


def test_a_sealer_without_a_key_is_not_started_and_with_a_wrong_one_not_again(machine: Machine) -> None:
    unit, key = "cuebook-sealer", "/etc/cuebook/credentials/seal-key"
    right = machine.run("cat", key)
    machine.write(key, "nonsense\n")
    machine.systemctl("restart", unit, status=None)
    machine.until(lambda: machine.property(unit, "ActiveState") == "failed", unit=unit)
    assert machine.property(unit, "ExecMainStatus") == "2"
    assert "is no private key" in machine.log(unit)
    machine.run("mv", key, f"{key}.away")
    machine.systemctl("restart", unit, status=None)
    assert machine.property(unit, "AssertResult") == "no"
    machine.run("mv", f"{key}.away", key)
    machine.write(key, right)
    machine.systemctl("restart", unit)


def test_every_part_may_be_killed_and_nothing_is_lost(machine: Machine) -> None:
    victims = ("cuebook-nats", "cuebook-orchestrator", "cuebook-projections", "cuebook-agent@orders")
    for number, unit in enumerate(victims):
        open_tickets(machine, f"k{number}")
        kill(machine, unit)
        assert {status for status, _ in ends(machine, f"k{number}").values()} == {"completed"}
        assert machine.property(unit, "NRestarts") == "1"


def test_a_unit_killed_nine_times_in_a_row_comes_back(machine: Machine) -> None:
    unit = "cuebook-agent@idler"
    for _ in range(9):
        kill(machine, unit)
    machine.until(lambda: is_up(machine, unit), unit=unit)
    assert machine.property(unit, "NRestarts") == "9"


def test_an_agent_that_blocks_its_loop_is_restarted_and_one_that_idles_is_not(machine: Machine) -> None:
    restarts, idle = machine.property("cuebook-agent@idler", "NRestarts"), pid(machine, "cuebook-agent@idler")
    before = pid(machine, "cuebook-agent@blocker")
    assert submit(machine, "blocker", '"done"') == "done at attempt 2"
    assert pid(machine, "cuebook-agent@blocker") != before
    log = machine.log("cuebook-agent@blocker")
    assert "Watchdog timeout (limit 3s)!" in log
    assert "oddities.py" in log, "the stack of the thread that hung"
    assert machine.property("cuebook-agent@blocker", "NRestarts") == "1"
    assert (machine.property("cuebook-agent@idler", "NRestarts"), pid(machine, "cuebook-agent@idler")) == (
        restarts,
        idle,
    )


def test_an_agent_whose_tasks_are_over_their_time_is_restarted(machine: Machine) -> None:
    before = pid(machine, "cuebook-agent@clinger")
    assert submit(machine, "clinger", '"done"').endswith("at attempt 2")
    machine.until(lambda: pid(machine, "cuebook-agent@clinger") not in ("", before), unit="cuebook-agent@clinger")
    log = machine.log("cuebook-agent@clinger")
    assert "stuck: nothing moves, and what is in flight is over its time" in log
    assert "Watchdog timeout (limit 3s)!" in log


def test_reload_takes_on_what_can_be_and_names_the_rest(machine: Machine) -> None:
    unit, settings = "cuebook-agent@laster", "/etc/cuebook/agents/laster.env"
    before, text = pid(machine, unit), machine.run("cat", settings)
    machine.write(settings, f"{text}CUEBOOK_SLOTS=7\nCUEBOOK_LOG_LEVEL=debug\nCUEBOOK_SPACE=other\n")
    machine.systemctl("reload", unit)
    machine.until(lambda: machine.property(unit, "StatusText").startswith("slots 7,"), unit=unit)
    machine.until(lambda: "changed=CUEBOOK_SPACE" in machine.log(unit), unit=unit)
    assert machine.property(unit, "ActiveState") == "active"
    machine.write(settings, f"{text}CUEBOOK_LOG_LEVEL=loud\n")
    machine.systemctl("reload", unit)
    machine.until(lambda: "not reloaded: 'loud' is not a valid LogLevel" in machine.log(unit), unit=unit)
    machine.write(settings, text)
    machine.systemctl("reload", unit)
    assert pid(machine, unit) == before
    machine.until(lambda: is_up(machine, unit), unit=unit)


def test_several_processes_are_one_unit(machine: Machine) -> None:
    unit, settings = "cuebook-agent@crew", "/etc/cuebook/agents/crew.env"
    supervisor, first = pid(machine, unit), crew(machine, 2)
    assert machine.property(unit, "StatusText").startswith("processes 2 of 2, slots 2, in flight 0")
    machine.run("kill", "-KILL", first[0])
    second = crew(machine, 2, without=[first[0]])
    assert submit(machine, "crew", '"done"') == "done at attempt 2"  # one of them hung
    third = crew(machine, 2)
    assert len({*second, *third}) == 3
    assert "a process hangs and is killed" in machine.log(unit)
    machine.write(settings, f"{machine.run('cat', settings)}CUEBOOK_PROCESSES=3\n")
    machine.systemctl("reload", unit)
    crew(machine, 3, without=third)
    machine.until(lambda: is_up(machine, unit), unit=unit)
    assert (pid(machine, unit), machine.property(unit, "NRestarts")) == (supervisor, "0")
    machine.systemctl("stop", unit)
    assert machine.property(unit, "Result") == "success"
    machine.systemctl("start", unit)
    assert len(crew(machine, 3)) == 3
    kill(machine, unit)  # and the others with it
    crew(machine, 3)


def crew(machine: Machine, count: int, *, without: Sequence[str] = ()) -> list[str]:
    """The processes of the crew's instances, once so many are healthy, and none of `without`."""

    def healthy() -> list[str]:
        rows = json.loads(machine.cuebook("agent", "list", "crew", "-o", "json"))
        found = [str(row["pid"]) for row in rows if row["health"] == "healthy"]
        return found if len(found) == count and not {*found} & {*without} else []

    return machine.until(healthy, unit="cuebook-agent@crew")


def test_stop_finishes_what_is_in_flight(machine: Machine) -> None:
    unit = "cuebook-agent@laster"
    machine.cuebook("run", "submit", "--agent", "laster", "2.5", "--id", "slow")
    machine.until(lambda: "in flight 1," in machine.property(unit, "StatusText"), unit=unit)
    machine.systemctl("stop", unit)
    assert outcome(machine, "slow") == 1, "the first attempt"
    assert machine.property(unit, "Result") == "success"
    machine.systemctl("start", unit)


def test_an_agent_that_has_done_its_share_is_replaced(machine: Machine) -> None:
    unit, settings = "cuebook-agent@laster", "/etc/cuebook/agents/laster.env"
    text = machine.run("cat", settings)
    machine.write(settings, f"{text}CUEBOOK_MAX_TASKS=3\n")
    machine.systemctl("restart", unit)
    before, restarts = pid(machine, unit), int(machine.property(unit, "NRestarts"))
    for number in range(3):
        machine.cuebook("run", "submit", "--agent", "laster", "0.01", "--id", f"share-{number}", "--wait")
    machine.until(lambda: is_up(machine, unit) and pid(machine, unit) != before, unit=unit)
    assert int(machine.property(unit, "NRestarts")) == restarts + 1
    log = machine.log(unit)
    assert 'reason="3 tasks done, the limit is 3"' in log
    assert f"{unit}.service: Failed with result" not in log
    machine.write(settings, f"{text}CUEBOOK_MAX_MEMORY=1M\n")
    machine.systemctl("restart", unit)
    machine.until(lambda: "of memory, the limit is 1 MiB" in machine.log(unit), unit=unit)
    machine.write(settings, text)
    machine.systemctl("restart", unit)


def test_an_agent_that_a_person_drains_stays_down(machine: Machine) -> None:
    machine.cuebook("agent", "drain", "laster", "--wait")
    machine.until(
        lambda: machine.property("cuebook-agent@laster", "ActiveState") == "inactive", unit="cuebook-agent@laster"
    )
    machine.systemctl("start", "cuebook-agent@laster")


def test_the_standby_takes_over(machine: Machine) -> None:
    roles = {unit: machine.property(unit, "StatusText") for unit in UNITS[1:3]}
    deciding = next(unit for unit, status in roles.items() if status.startswith("deciding"))
    other = next(unit for unit in roles if unit != deciding)
    machine.systemctl("stop", deciding)
    machine.until(lambda: machine.property(other, "StatusText").startswith("deciding"), unit=other)
    assert submit(machine, "laster", "0.01") == "1"
    machine.systemctl("start", deciding)


def test_a_full_disk_stops_the_log_until_there_is_room_and_loses_nothing(machine: Machine) -> None:
    unit, store = "cuebook-nats", "/var/lib/private/cuebook-nats"
    machine.systemctl("stop", unit)
    machine.run("mv", store, f"{store}-kept")
    machine.run("mkdir", store)
    machine.run("mount", "-t", "tmpfs", "-o", "size=64m", "small", store)
    machine.run("cp", "--archive", f"{store}-kept/.", store)
    machine.systemctl("start", unit)
    machine.until(lambda: agents_known(machine) >= {"laster"}, unit=unit)
    machine.until(lambda: machine.property("cuebook-agent@laster", "StatusText").startswith("slots"), unit=unit)
    machine.cuebook("run", "submit", "--agent", "laster", "4", "--id", "squeezed")
    machine.until(lambda: "in flight 1," in machine.property("cuebook-agent@laster", "StatusText"), unit=unit)
    machine.run("dd", "if=/dev/zero", f"of={store}/ballast", "bs=64k", status=None)
    # Nothing is written but the lease, every second, and what room its last pages have is used up first.
    told = "cannot write, make room in"
    machine.until(lambda: told in machine.property(unit, "StatusText"), within_s=120, unit=unit)
    assert "nothing more is stored, nothing stored is lost: make room in" in machine.log(unit)
    restarts = int(machine.property(unit, "NRestarts"))
    machine.run("rm", f"{store}/ballast")
    machine.until(lambda: int(machine.property(unit, "NRestarts")) == restarts + 1, unit=unit)
    machine.until(lambda: machine.property(unit, "StatusText").startswith("connections"), unit=unit)
    assert "the server starts anew" in machine.log(unit)
    machine.until(lambda: outcome(machine, "squeezed") == 1, unit=unit)
    assert ends(machine, "a") == {one.ticket.id: ["completed", one.ends] for one in TICKETS}


def test_all_of_it_stops_and_starts_again(machine: Machine) -> None:
    machine.systemctl("stop", "cuebook.target", "cuebook.slice")  # with the slice it waits until all have ended
    for unit in ALL:
        assert (machine.property(unit, "ActiveState"), machine.property(unit, "Result")) == ("inactive", "success"), (
            unit
        )
    machine.systemctl("start", "cuebook.target")
    assert [unit for unit in ALL if not is_up(machine, unit)] == []
    assert set(ends(machine, "a")) == {one.ticket.id for one in TICKETS}, "the log is still there"
    rows = json.loads(machine.cuebook("units", "list", "-o", "json"))
    assert {row["unit"] for row in rows} == {
        "cuebook.target",
        "cuebook-edge.service",  # there, and not enabled
        *(f"{unit}.service" for unit in ALL),
    }


def test_how_long_each_unit_takes_until_it_is_ready(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    table = []
    for unit in (*UNITS, "cuebook-agent@laster", "cuebook-agent@classifier"):
        seconds = []
        for _ in range(3):
            machine.systemctl("restart", unit)
            began, ready = (
                int(machine.property(unit, f"{name}Monotonic"))
                for name in ("InactiveExitTimestamp", "ActiveEnterTimestamp")
            )
            seconds.append((ready - began) / 1e6)
        assert min(seconds) > 0
        table.append(f"{unit:30} {sorted(seconds)[1]:6.2f}")
    with capsys.disabled():
        print("\n\nunit                           start to READY, median of 3, s", *table, sep="\n")


def test_a_person_may_have_units_of_their_own(machine: Machine) -> None:
    machine.run("useradd", "--create-home", "ann")
    machine.systemctl("start", f"user@{machine.run('id', '-u', 'ann').strip()}.service")
    assert "wrote /home/ann/.config/systemd/user/cuebook-nats.service" in machine.cuebook(
        "units", "install", "--user", user="ann"
    )
    nats = "/home/ann/.config/cuebook/nats.conf"
    ports = {"port: 4222": "port: 4322", "127.0.0.1:8222": "127.0.0.1:8322"}  # those of the system are taken
    text = machine.run("cat", nats)
    for old, new in ports.items():
        text = text.replace(old, new)
    machine.write(nats, text)
    machine.write(
        "/home/ann/.config/cuebook/cuebook.env",
        "CUEBOOK_NATS_URL=nats://127.0.0.1:4322\nCUEBOOK_NATS_MONITOR_URL=http://127.0.0.1:8322\n",
    )
    machine.systemctl("--user", "enable", "--now", "cuebook.target", "cuebook-nats", "cuebook-orchestrator", user="ann")
    status = machine.systemctl("--user", "show", "cuebook-orchestrator", "--property=StatusText", user="ann")
    assert "slots 0, in flight 0, lag 0" in status
    machine.cuebook("units", "remove", "--user", user="ann")
    assert machine.cuebook("units", "list", "--user", "-o", "json", user="ann") == "[]\n"


def test_remove_leaves_the_settings_and_the_log(machine: Machine) -> None:
    machine.cuebook("units", "remove")
    assert machine.cuebook("units", "list", "-o", "json") == "[]\n"
    assert machine.run("bash", "-c", "ls /etc/systemd/system/cuebook*.service", status=2) == ""
    assert "nats.conf" in machine.run("ls", "/etc/cuebook")
    assert machine.run("ls", "/var/lib/cuebook-nats/jetstream")


def pid(machine: Machine, unit: str) -> str:
    found = machine.property(unit, "MainPID")
    return "" if found == "0" else found


def kill(machine: Machine, unit: str) -> None:
    """SIGKILL to its main process, and wait until there is another one, which need not be ready."""
    before = pid(machine, unit)
    machine.systemctl("kill", "--kill-who=main", "--signal=SIGKILL", unit)
    machine.until(lambda: pid(machine, unit) not in ("", before), unit=unit)


def is_up(machine: Machine, unit: str) -> bool:
    return machine.property(unit, "ActiveState") == "active"


def agents_known(machine: Machine) -> set[str]:
    return {row["agent"] for row in json.loads(machine.cuebook("agent", "list", "-o", "json"))}


def open_tickets(machine: Machine, prefix: str) -> None:
    machine.run(*SCRIPT, "open", prefix, stdin="".join(one.ticket.model_dump_json() + "\n" for one in TICKETS))


def ends(machine: Machine, prefix: str) -> dict[str, list[str]]:
    """How each ticket ended, waited for: the status of its run, and the desk's own word."""
    told = machine.run(*SCRIPT, "wait", prefix, stdin="".join(one.ticket.model_dump_json() + "\n" for one in TICKETS))
    return {id_: rest for id_, *rest in map(json.loads, told.splitlines())}


def submit(machine: Machine, agent: str, input_: str) -> str:
    told = json.loads(machine.cuebook("run", "submit", "--agent", agent, input_, "--wait", "-o", "json"))
    return str(told["result"])


def outcome(machine: Machine, run_id: str) -> object:
    told = json.loads(machine.cuebook("task", "show", f"{run_id}/0", "-o", "json"))
    return told["output"]
