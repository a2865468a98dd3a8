"""What a user installs: every module and data file, under `cuebook`, with nothing but the declared dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
UV = os.environ.get("UV", "uv")  # `uv run` says where it is

IMPORT_EVERYTHING = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
import nats, cuebook.nats
from importlib.resources import files
assert nats.connect
assert files("cuebook.nats").joinpath("production.conf").read_text()
assert all("site-packages" in path for path in cuebook.nats.__path__)  # not the checkout
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    subprocess.run([UV, "build", "--quiet", "--out-dir", directory, ROOT], check=True)
    return next(directory.glob("*.whl"))


@pytest.fixture(scope="module")
def shipped(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_every_file_of_the_packages_is_shipped_and_nothing_else(shipped: set[str]) -> None:
    expected = {
        (Path(package.replace(".", "/")) / path.relative_to(ROOT / folder)).as_posix()
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == expected


def test_every_module_imports_from_the_wheel_without_the_extras(wheel: Path, shipped: set[str]) -> None:
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in shipped
        if name.endswith(".py") and not name.startswith("cuebook/examples/") and not name.endswith("__main__.py")
    }
    environment = [UV, "run", "--quiet", "--isolated", "--no-project", "--python", sys.executable, "--with", str(wheel)]
    subprocess.run(
        [*environment, "python", "-P", "-c", IMPORT_EVERYTHING, *sorted(modules)],
        cwd=wheel.parent,
        env={name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
        check=True,
    )
