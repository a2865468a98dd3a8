"""A machine for tests: this one's own root under an overlay, booted by systemd-nspawn, with cuebook in /opt/cuebook.

What happens on it stays on it: its files are in memory, its network is its own loopback. All mounts and processes are
in namespaces of their own, which end with us, however we end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil

from cuebook.embedded.process import dies_with_this_thread

__all__ = ["Machine", "booted"]

ROOT = Path(__file__).parent.parent.parent
UV = os.environ.get("UV", "uv")  # `uv run` says where it is
PYTHON = Path("/usr/bin/python3")
NEEDS = {"systemd-nspawn": "systemd-container", "unshare": "util-linux", "nsenter": "util-linux"}
NAMESPACES = ("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc")
MEMORY = "4g"
BOOT_S = 60.0
POLL_S = 0.05

T = TypeVar("T")


class Machine:
    """A booted machine. Paths are the machine's own."""

    def __init__(self, leader: int) -> None:
        self.leader = leader

    def run(self, *words: str, stdin: str | None = None, status: int | None = 0, user: str = "") -> str:
        """What a command prints on stdout. Raises AssertionError for another exit status; None takes any."""
        if user:
            own = f"/run/user/{self.run('id', '-u', user).strip()}"
            words = ("runuser", "-u", user, "--", "env", f"XDG_RUNTIME_DIR={own}", *words)
        done = subprocess.run(
            [*_inside(self.leader), *words], input=stdin, capture_output=True, text=True, timeout=120, check=False
        )
        if status is not None:
            assert done.returncode == status, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def cuebook(self, *words: str, **options: Any) -> str:
        """The same for `cuebook`."""
        return self.run("/opt/cuebook/bin/cuebook", *words, **options)

    def systemctl(self, *words: str, **options: Any) -> str:
        """The same for `systemctl`."""
        return self.run("systemctl", *words, **options)

    def write(self, path: str, text: str) -> None:
        """Write a file, and the folders that it needs."""
        self.run("mkdir", "-p", str(Path(path).parent))
        self.run("tee", path, stdin=text)

    def property(self, unit: str, name: str) -> str:
        """One property of a unit, as `systemctl show` has it."""
        return self.systemctl("show", unit, f"--property={name}", "--value").strip()

    def log(self, unit: str) -> str:
        """What a unit has written since the boot, without what systemd puts before each line."""
        return self.run("journalctl", "--boot", "--output=cat", f"--unit={unit}")

    def until(self, condition: Callable[[], T], *, within_s: float = 30.0, unit: str = "") -> T:
        """Ask until the answer is true, and give it. Raises AssertionError, with the log of the unit."""
        deadline = time.monotonic() + within_s
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"still {answer!r}\n{self.log(unit) if unit else ''}"
            time.sleep(POLL_S)
        return answer


@contextlib.contextmanager
def booted(files: Path) -> Iterator[Machine]:
    """A machine with cuebook installed from a wheel of this checkout, and `files` in /opt/files.

    Raises AssertionError, with what to do, where something is missing that it needs.
    """
    _require()
    scratch = Path(tempfile.mkdtemp(prefix="cuebook-machine-"))
    with contextlib.ExitStack() as stack:
        stack.callback(_forget_groups)
        stack.callback(shutil.rmtree, scratch)
        holder = stack.enter_context(_started(*NAMESPACES, "sleep", "infinity"))
        first = _until(lambda: _descendant(holder.pid, "sleep"), "namespaces")
        within = ["nsenter", "--target", str(first), "--mount", "--pid"]
        _build(within, scratch, files)
        console = stack.enter_context(tempfile.NamedTemporaryFile(prefix="cuebook-console-"))
        nspawn = stack.enter_context(
            _started(
                *within, "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network",
                "--machine=cuebook-test", "--console=pipe", f"--directory={scratch}/root", "--",
                "--unit=basic.target", output=console,
            )
        )  # fmt: skip
        machine = Machine(_leader(nspawn, Path(console.name)))
        try:
            machine.until(
                lambda: machine.run("systemctl", "is-system-running", status=None).strip() in ("running", "degraded"),
                within_s=BOOT_S,
            )
            yield machine
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(machine.leader, signal.SIGKILL)  # with it ends all that runs there
            nspawn.wait(20)


def _require() -> None:
    assert os.geteuid() == 0, "a machine is booted as root: sudo, or a container of your own"
    missing = sorted({package for program, package in NEEDS.items() if shutil.which(program) is None})
    assert not missing, f"a machine needs programs that are not here: apt-get install {' '.join(missing)}"
    assert PYTHON.exists(), f"units see no Python below /home or /root: apt-get install python3 for {PYTHON}"
    asked = subprocess.run(
        [PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True, check=True
    )
    assert asked.stdout.strip() == "True", f"{PYTHON} is older than 3.11"


def _build(within: list[str], scratch: Path, files: Path) -> None:
    root = scratch / "root"
    dist = Path(tempfile.mkdtemp(prefix="cuebook-dist-"))
    try:
        subprocess.run([UV, "build", "--quiet", "--wheel", "--out-dir", dist, ROOT], check=True)
        wheel = next(dist.glob("*.whl"))
        freeze = [UV, "pip", "freeze", "--quiet", "--exclude-editable", "--python", sys.executable]
        (dist / "constraints").write_bytes(subprocess.run(freeze, check=True, capture_output=True).stdout)
        shutil.copytree(files, dist / "files")
        uv, cache = (
            shutil.which(UV) or UV,
            subprocess.run([UV, "cache", "dir"], check=True, capture_output=True, text=True).stdout.strip(),
        )
        into = f"UV_CACHE_DIR={cache} UV_LINK_MODE=copy chroot {root} {uv}"
        script = f"""
            mount -t tmpfs -o size={MEMORY},mode=755 tmpfs {scratch}
            mkdir {scratch}/upper {scratch}/work {root}
            mount -t overlay -o lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work overlay {root}
            rm -rf {root}/etc/machine-id {root}/.dockerenv {root}/opt/cuebook {root}/etc/cuebook
            rm -rf {root}/etc/systemd/system/cuebook* {root}/var/lib/private/cuebook* {root}/var/log/journal
            touch {root}/etc/machine-id
            cp -r {dist}/files {root}/opt/files
            mkdir {root}/opt/dist && cp {dist}/* {root}/opt/dist/ 2>/dev/null || true
            mount --bind /dev {root}/dev
            mount -t proc proc {root}/proc
            {into} venv --quiet --python {PYTHON} /opt/cuebook
            {into} pip install --quiet --python /opt/cuebook/bin/python --constraint /opt/dist/constraints \
                'cuebook[metrics,otlp,support] @ file:///opt/dist/{wheel.name}'
            umount {root}/dev {root}/proc
        """
        subprocess.run([*within, "bash", "-euc", script], check=True)
    finally:
        shutil.rmtree(dist)


@contextlib.contextmanager
def _started(*words: str, output: Any = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        preexec_fn=dies_with_this_thread(signal.SIGKILL),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _forget_groups() -> None:
    """systemd-nspawn leaves its empty control groups behind where no systemd manages those."""
    groups = Path("/sys/fs/cgroup")
    for payload in (*groups.glob("payload/"), *groups.glob("*/payload/")):
        for group in sorted(payload.glob("**/"), reverse=True):
            with contextlib.suppress(OSError):  # not empty, so somebody else's
                group.rmdir()


def _leader(nspawn: subprocess.Popen[bytes], console: Path) -> int:
    """The machine's first process, once systemd runs in it."""

    def booting() -> int:
        assert nspawn.poll() is None, f"systemd-nspawn has ended:\n{console.read_text()}"
        return _descendant(nspawn.pid, "systemd")

    return _until(booting, "systemd in the machine")


def _inside(leader: int) -> list[str]:
    return [
        "nsenter",
        "--target",
        str(leader),
        "--mount",
        "--pid",
        "--net",
        "--uts",
        "--ipc",
        "--cgroup",
        "--root",
        "--wd",
    ]


def _descendant(pid: int, name: str) -> int:
    """The first process of this name below another; 0 if there is none."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(pid).children(recursive=True):
            if one.name() == name:
                return int(one.pid)
    return 0


def _until(condition: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + BOOT_S
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"no {what} within {BOOT_S:g} s"
        time.sleep(POLL_S)
    return answer
