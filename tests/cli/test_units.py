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


HUB = ("--edge", "shop-7", "--hub", "edge:s3cret@hub.example")


def test_an_edge_has_all_it_needs_but_its_agents(root: Path) -> None:
    install(root)  # one that was alone before
    said = install(root, *HUB)
    settings = root / "etc/cuebook"
    secret = {path.name: path.read_text().strip() for path in (settings / "credentials").iterdir()}
    assert secret["hub-url"] == "nats-leaf://edge:s3cret@hub.example:7422"
    assert secret["nats-url"] == f"nats://uplink:{secret['edge-password']}@127.0.0.1:4222"
    assert secret["edge-url"] == f"nats://keeper:{secret['edge-password']}@127.0.0.1:4222"
    assert len(secret["edge-password"]) >= 32
    assert {stat.S_IMODE(path.stat().st_mode) for path in (settings / "credentials").iterdir()} == {0o600}
    assert "domain: $CUEBOOK_EDGE_NAME" in (settings / "nats.conf").read_text()
    assert "CUEBOOK_EDGE_NAME=shop-7" in (settings / "edge.env").read_text().splitlines()
    assert "IPAddressAllow=any" in (root / "etc/systemd/system/cuebook-nats.service.d/reaches-others.conf").read_text()
    assert "systemctl enable --now cuebook.target cuebook-nats cuebook-edge" in said
    assert "s3cret" not in said


def test_an_edge_installed_again_keeps_its_secrets_and_follows_a_hub_that_has_moved(root: Path) -> None:
    install(root, *HUB)
    files = [path for path in (root / "etc/cuebook").rglob("*") if path.is_file()]
    before = {path: path.read_text() for path in files}
    install(root, *HUB)
    install(root)
    assert {path: path.read_text() for path in files} == before
    said = install(root, "--edge", "shop-7", "--hub", "tls://edge:other@[2001:db8::1]:7000")
    hub = root / "etc/cuebook/credentials/hub-url"
    assert [line for line in said.splitlines() if f"wrote {root}/etc/cuebook/" in line] == [f"wrote {hub}"]
    assert hub.read_text() == "tls://edge:other@[2001:db8::1]:7000\n"
    drop_in = root / "etc/systemd/system/cuebook-nats.service.d/reaches-others.conf"
    assert "IPAddressAllow=2001:db8::1" in drop_in.read_text().splitlines()
    units(0, "remove", "--root", str(root))
    assert not drop_in.parent.exists()


def test_an_edge_does_not_change_its_name_unnoticed(root: Path) -> None:
    install(root, *HUB)
    said = install(root, "--edge", "shop-8", *HUB[2:], status=1)
    assert "says CUEBOOK_EDGE_NAME=shop-7, not shop-8" in said


def test_a_hub_lets_edges_in_and_says_what_to_type_there(root: Path) -> None:
    install(root)
    config = root / "etc/cuebook/nats.conf"
    alone = config.read_text()
    said = install(root, "--edges", "0.0.0.0")
    assert config.read_text() == f"{alone}\ninclude ./hub.conf\n"
    assert "authorization" in (root / "etc/cuebook/hub.conf").read_text()
    assert (root / "etc/cuebook/nats.env").read_text() == "CUEBOOK_LEAF_LISTEN=0.0.0.0:7422\n"
    password = (root / "etc/cuebook/credentials/leaf-password").read_text()
    assert len(password) >= 32
    assert password.strip() not in said
    assert "at each edge: cuebook units install --edge NAME --hub edge:PASSWORD@THIS-MACHINE:7422" in said
    assert f"wrote {root}/etc/cuebook" not in install(root, "--edges", "0.0.0.0:7422")
    assert (root / "etc/cuebook/credentials/leaf-password").read_text() == password


def test_a_node_of_a_cluster_may_be_a_hub_too(root: Path) -> None:
    install(root, "--nats-cluster", CLUSTER, "--nats-node", "b")
    install(root, "--edges", "10.0.0.2")
    assert (root / "etc/cuebook/nats.env").read_text().endswith("CUEBOOK_LEAF_LISTEN=10.0.0.2:7422\n")
    assert (root / "etc/cuebook/nats.conf").read_text().endswith("\ninclude ./hub.conf\n")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--edge", "shop-7"), "an edge has a name and a hub"),
        (("--hub", "hub.example"), "an edge has a name and a hub"),
        (("--edge", "Shop 7", "--hub", "hub.example"), "'Shop 7' cannot be part of a subject"),
        (("--edge", "shop-7", "--hub", "http://hub.example"), "is no address of a server"),
        (("--edge", "shop-7", "--hub", "edge:s3cret@"), "'' is no address of a server"),
        (("--edge", "shop-7", "--hub", "hub:port"), "is no address of a server"),
        (("--edge", "shop-7", "--hub", "@/nowhere/hub-url"), "--hub is to be read from '/nowhere/hub-url'"),
        (("--edges", ":7422"), "is no address of a server"),
        (("--edges", "0.0.0.0", *HUB), "is one of a cluster, or at an edge, or the hub"),
    ],
)
def test_what_is_no_edge_is_refused(root: Path, words: tuple[str, ...], reason: str) -> None:
    said = install(root, *words, status=2)
    assert reason in said
    assert "s3cret" not in said
    assert not root.exists()


def test_a_server_that_was_set_up_by_hand_is_not_made_an_edge(root: Path) -> None:
    install(root)
    (root / "etc/cuebook/nats.conf").write_text("port: 4222\n")
    assert "has been edited, and is not that of an edge" in install(root, *HUB, status=1)


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
