"""Chromium: where this machine keeps it. `python -m tests.support.chromium` prints the path."""

import os
import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACES = (
    "/snap/bin/chromium",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


class ChromiumMissing(RuntimeError):
    """No browser was found; the message says what to do."""


def chromium_path() -> str:
    """
    Find the browser: what the environment variable `CHROMIUM` names, else the first of the usual names and places.

    Raises `ChromiumMissing`.
    """
    if named := os.environ.get("CHROMIUM"):
        if found := shutil.which(named):
            return found
        raise ChromiumMissing(f"CHROMIUM={named} is not an executable file.")
    for name in (*NAMES, *PLACES):
        if found := shutil.which(name):
            return found
    raise ChromiumMissing(
        "Chromium was not found. scripts/test installs it where it may; else install it with the system's package "
        "manager, or name it with CHROMIUM=/path."
    )


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{chromium_path()}\n")
    except ChromiumMissing as missing:
        sys.exit(str(missing))
