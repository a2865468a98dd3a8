"""`cuebook units` writes what it should, keeps what is the operator's, and refuses what could not work."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cuebook.cli.main import app
from cuebook.cli.units.unit_files import UNITS, render
from cuebook.events.errors import ConfigurationError

PROGRAM = Path("/opt/cuebook/bin/cuebook")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine without cuebook."""
    return tmp_path / "image"


def units(status: int, *words: str) -> str:
    result = CliRunner().invoke(app, ["units", *words], catch_exceptions=False)
    assert result.exit_code == status, (result.exit_code, result.stdout, result.stderr)
    return result.stdout + result.stderr


def install(root: Path, *words: str, status: int = 0) -> str:
    return units(status, "install", "--root", str(root), "--program", str(PROGRAM), *words)


@pytest.mark.parametrize("user", [False, True], ids=["system", "user"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_file_has_no_gaps(unit: str, user: bool) -> None:
    text = render(unit, PROGRAM, user=user)
    assert not re.search(r"@[A-Z_]+@", text)
    if unit.endswith(".service"):
        assert f"ExecStart={PROGRAM} serve " in text
        assert {"Type=notify", "NoNewPrivileges=yes", "CapabilityBoundingSet="} <= set(text.splitlines())
        assert ("DynamicUser=yes" in text) is not user


def test_the_standby_is_an_orchestrator_like_the_first() -> None:
    first, standby = (
        {line for line in render(unit, PROGRAM, user=False).splitlines() if not line.startswith("#")}
        for unit in ("cuebook-orchestrator.service", "cuebook-orchestrator@.service")
    )
    assert {line.partition("=")[0] for line in first ^ standby} == {
        "Description",
        "DefaultInstance",
        "Environment",
        "EnvironmentFile",
    }


def test_install_writes_units_settings_and_places_for_secrets(root: Path) -> None:
    said = install(root)
    assert {path.name for path in (root / "etc/systemd/system").iterdir()} == set(UNITS)
    secrets = root / "etc/cuebook/credentials"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.iterdir()} == {0o600}
    assert "sync_interval: always" in (root / "etc/cuebook/nats.conf").read_text()
    assert "systemctl enable --now cuebook.target" in said


def test_install_again_keeps_the_operators_files(root: Path) -> None:
    install(root)
    settings, unit = root / "etc/cuebook/cuebook.env", root / "etc/systemd/system/cuebook-nats.service"
    settings.write_text("CUEBOOK_SPACE=mine\n")
    old = unit.read_text()
    unit.unlink()
    assert "cuebook.env" not in install(root)
    assert (settings.read_text(), unit.read_text()) == ("CUEBOOK_SPACE=mine\n", old)


def test_an_edited_unit_is_replaced_only_by_force(root: Path) -> None:
    install(root)
    unit = root / "etc/systemd/system/cuebook-nats.service"
    unit.write_text(unit.read_text() + "LimitNOFILE=100\n")
    said = install(root, status=1)
    assert f"edited since it was installed: {unit}" in said
    assert "systemctl edit" in said
    assert "LimitNOFILE=100" in unit.read_text()
    install(root, "--force")
    assert "LimitNOFILE=100" not in unit.read_text()


CLUSTER = "a=10.0.0.1,b=10.0.0.2,c=10.0.0.3"


def test_a_node_of_a_cluster_takes_the_place_of_a_server_that_was_alone(root: Path) -> None:
    install(root)
    config, env = root / "etc/cuebook/nats.conf", root / "etc/cuebook/nats.env"
    assert not env.exists()
    said = install(root, "--nats-cluster", CLUSTER, "--nats-node", "b")
    assert f"wrote {config}" in said
    assert "unique_tag" in config.read_text()
    assert {"CUEBOOK_NATS_NAME=b", "CUEBOOK_NATS_CLUSTER='\"10.0.0.2:6222\"'"} <= set(env.read_text().splitlines())
    env.write_text(env.read_text() + "CUEBOOK_NATS_DISK=1TB\n")
    assert "nats" not in install(root, "--nats-cluster", CLUSTER, "--nats-node", "b").replace("cuebook-nats", "")
    config.write_text("port: 4222\n")
    said = install(root, "--nats-cluster", CLUSTER, "--nats-node", "b", status=1)
    assert "has been edited, and is not that of a cluster's node" in said


@pytest.mark.parametrize(
    ("cluster", "node", "reason"),
    [
        ("a=10.0.0.1,b=10.0.0.2", "a", "is no cluster"),
        (f"{CLUSTER},d=10.0.0.4", "a", "is no cluster"),
        ("a=1,b,c=3", "a", "is no cluster"),
        (CLUSTER, "d", "'d' is none of the nodes"),
        (CLUSTER, "", "'' is none of the nodes"),
        ("", "a", "is no cluster"),
        ("A=1,b=2,c=3", "b", "name of a node"),
    ],
)
def test_what_is_no_cluster_is_refused(root: Path, cluster: str, node: str, reason: str) -> None:
    assert reason in install(root, "--nats-cluster", cluster, "--nats-node", node, status=2)
    assert not root.exists()


def test_remove_takes_the_units_and_leaves_the_settings(root: Path) -> None:
    install(root)
    units(0, "remove", "--root", str(root))
    assert list((root / "etc/systemd/system").iterdir()) == []
    assert (root / "etc/cuebook/nats.conf").exists()


@pytest.mark.parametrize("program", ["/home/ann/.venv/bin/cuebook", "/root/bin/cuebook", "/tmp/x/cuebook"])
def test_a_program_that_the_units_could_not_see_is_refused(root: Path, program: str) -> None:
    said = units(1, "install", "--root", str(root), "--program", program)
    assert "/opt/cuebook" in said
    assert not root.exists()
    assert "ProtectHome=read-only" in render("cuebook-nats.service", Path(program), user=True)


def test_a_path_with_what_systemd_reads_otherwise_is_quoted() -> None:
    text = render("cuebook-nats.service", Path('/opt/my "100%" $x/cuebook'), user=False)
    assert r'ExecStart="/opt/my \"100%%\" $$x/cuebook" serve nats' in text


def test_show_prints_what_install_would_write(root: Path) -> None:
    install(root)
    shown = units(0, "show", "cuebook-nats", "--program", str(PROGRAM))
    assert shown == (root / "etc/systemd/system/cuebook-nats.service").read_text()
    assert "there is no unit 'cuebook-nots'" in units(3, "show", "cuebook-nots")


def test_a_folder_that_is_not_ours_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    said = install(tmp_path, status=1)
    assert "be root for the units of the system, or say --user" in said


def test_a_missing_program_of_the_system_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="see nothing below"):
        render("cuebook-nats.service", Path("/root/cuebook"), user=False)
