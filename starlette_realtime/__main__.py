"""The command: python -m starlette_realtime publish, disconnect, kick, revoke or nodes."""

import sys

from starlette_realtime.command import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
