"""The repository holds what a fresh machine needs, and nothing of the machine that it was written on."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"node_modules", "build", "dist", "site", "__pycache__"}
# Spelled so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.:/}])/(wor[k]|tm[p]|hom[e]|roo[t]/[.]|User[s])/[\w.]")


def files(folder: Path = ROOT) -> Iterator[Path]:
    """Yield what belongs to the repository: no generated and, but for the top's, no hidden folders."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in GENERATED and (not path.name.startswith(".") or path.name == ".ci"):
                yield from files(path)
        else:
            yield path


def test_the_constraints_pin_versions_and_hold_no_address() -> None:
    for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; [^/@]+)?", line), line
        assert "//" not in line


def test_the_lock_file_of_npm_holds_hashes_and_no_address() -> None:
    text = (ROOT / "package-lock.json").read_text()
    assert "://" not in text
    packages = json.loads(text)["packages"]
    assert all("integrity" in package and "resolved" not in package for name, package in packages.items() if name)


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = []
    for path in files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE_PATH.finditer(text)]
    assert found == []


@pytest.mark.parametrize("text", ["open('/" + "tmp/x')", "cd /" + "home/me", "`/" + "work/main`", "/" + "Users/me"])
def test_a_path_of_a_machine_is_recognised(text: str) -> None:
    assert MACHINE_PATH.search(text)


def test_every_script_is_executable() -> None:
    scripts = [path for folder in ("scripts", ".ci") for path in files(ROOT / folder) if path.read_bytes()[:2] == b"#!"]
    assert {path.name for path in scripts} >= {"demo", "test", "check", "run"}
    assert [path.name for path in scripts if not os.access(path, os.X_OK)] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_ships_types_and_the_browser_client(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "starlette_realtime" / "browser"
    browser = {path.relative_to(ROOT).as_posix() for kind in ("*.js", "*.d.ts") for path in folder.glob(kind)}
    assert {f"starlette_realtime/browser/{name}" for name in ("client.js", "client.d.ts", "react.d.ts")} <= browser
    assert {"starlette_realtime/__init__.py", "starlette_realtime/py.typed"} | browser <= names


def test_the_wheel_holds_the_package_alone(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"starlette_realtime"}
