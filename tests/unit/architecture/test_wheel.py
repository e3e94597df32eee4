"""The wheel holds what the packages hold, templates and samples included, and nothing else."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = [name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
VERSION = PROJECT["project"]["version"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy: a build leaves folders beside the sources."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in (*PACKAGES, "tests", "deploy"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, copy)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True, text=True)
    return zipfile.ZipFile(copy / "dist" / done.stdout.splitlines()[-1])


def test_every_file_of_a_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.is_file()]
    held = {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert len([name for name in held if not name.endswith(".py")]) > 40
    assert packed == held


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    information = f"eco_gateway-{VERSION}.dist-info"
    metadata = wheel.read(f"{information}/METADATA").decode()
    assert f"\nVersion: {VERSION}\n" in metadata
    assert "eco = cli.main:main" in wheel.read(f"{information}/entry_points.txt").decode()
    assert f"{information}/licenses/LICENSE" in wheel.namelist()


def test_the_version_stands_in_one_place() -> None:
    """What has to repeat it says the same, and the changelog knows it."""
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "eco-gateway" / "Chart.yaml").read_text())
    assert chart["appVersion"] == VERSION
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## (\[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d|\[Unreleased\])$", changelog, re.MULTILINE)
    assert VERSION in changelog
