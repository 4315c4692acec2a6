"""Bring .venv up to date: make it where it is missing, broken or of another Python, and install the extras."""

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
STATE = VENV / "installed.json"  # absent while anything is being changed: then the environment is made anew
# Prefixes decide where the editable install points and which interpreter the links lead to: a moved tree starts afresh.
ORIGIN = f"{ROOT} {platform.python_implementation()} {platform.python_version()}"


def digest() -> str:
    """Name what an installation depends on, so that an unchanged one costs nothing."""
    parts = hashlib.sha256()
    for file in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)):
        parts.update(file.read_bytes())
    return parts.hexdigest()


def read_state() -> dict[str, str]:
    """Read extra → digest of what is installed; empty when the environment isn't usable."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) and state.get("origin") == ORIGIN and PYTHON.exists() else {}


def write_state(state: dict[str, str]) -> None:
    """Replace the state in one step."""
    draft = STATE.with_suffix(".new")
    draft.write_text(json.dumps(state))
    draft.replace(STATE)


def make() -> None:
    """Make an empty environment, clearing what an interrupted run or another Python left."""
    print(f"Making a virtual environment in {VENV.name} with Python {platform.python_version()} …", flush=True)
    # From inside the environment itself its base interpreter must do it: clearing would saw off the branch.
    base = str(getattr(sys, "_base_executable", None) or sys.executable)
    subprocess.run([base, "-m", "venv", "--clear", str(VENV)], check=True)


def install(extras: list[str]) -> None:
    """Install the build backend, then the project in place with its extras, at the versions of the constraints."""
    print(f"Installing the project with [{', '.join(extras)}]; the first time this takes a minute or two …", flush=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    pip += ["--constraint", str(CONSTRAINTS)]
    environment = os.environ | {"PIP_USER": "0"}
    # Without isolation the backend is the pinned one, and nothing is fetched when it is there.
    subprocess.run([*pip, "hatchling"], check=True, env=environment)
    project = f"{ROOT}[{','.join(extras)}]"
    subprocess.run([*pip, "--no-build-isolation", "--editable", project], check=True, env=environment)


def main(extras: list[str]) -> int:
    """Bring the environment up to date and tell whether that worked."""
    with (ROOT / ".venv.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another script that prepares the environment …", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        state, wanted = read_state(), digest()
        if all(state.get(extra) == wanted for extra in extras):
            return 0
        try:
            if not state:
                make()
            STATE.unlink(missing_ok=True)
            try:
                install(extras)
            except subprocess.CalledProcessError as error:
                if error.returncode > 0:  # pip gave up by itself and left nothing half done
                    write_state({"origin": ORIGIN})
                raise
        except subprocess.CalledProcessError:
            print(
                "Installing failed, see above. The first run needs network access to a package index.", file=sys.stderr
            )
            return 1
        kept = {extra: value for extra, value in state.items() if value == wanted}
        write_state(kept | dict.fromkeys(extras, wanted) | {"origin": ORIGIN})
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
