"""Copy the browser client and its types into a folder, for a bundler: python -m starlette_realtime.scripts FOLDER"""

import sys
from importlib.resources import files
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Copy, and tell what: modules and declarations of this version replace those that are there."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m starlette_realtime.scripts FOLDER\n")
        return 2
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for file in files("starlette_realtime").joinpath("browser").iterdir():
        if file.name.endswith((".js", ".d.ts")):
            (folder / file.name).write_bytes(file.read_bytes())
            names.append(file.name)
    sys.stdout.write(f"{len(names)} files of the browser client are in {folder}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
