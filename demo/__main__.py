"""Serve the demo on loopback: `python -m demo [--port N] [--workers K]`, as `scripts/demo` does."""

import argparse
import asyncio
import errno
import os
import socket
import sys
from collections.abc import Sequence

from demo.workers import HOST, command, say, serve

MOST = 8  # processes


def main(arguments: Sequence[str] | None = None) -> str | None:
    """Serve until Ctrl+C. Returns why that is not possible, or not any more."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Serve the demo on http://127.0.0.1:N.")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="8000 unless told")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="K",
        help="processes on the ports from N on, which share a private server; 1 unless told",
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.workers <= MOST:
        parser.error(f"--workers takes a number from 1 to {MOST}, not {options.workers}.")
    if not 1 <= options.port <= 65536 - options.workers:
        parser.error(f"--port takes a number from 1 to {65536 - options.workers}, not {options.port}.")
    ports = range(options.port, options.port + options.workers)
    for port in ports:
        if (why := unusable(port)) is not None:
            return f"{why} Choose another one: {again(options.workers, ports.stop)}"
    if options.workers > 1:
        return asyncio.run(serve(ports))
    say(f"The demo is on http://{HOST}:{options.port} (Ctrl+C stops it).")
    return os.execv(sys.executable, command(options.port))


def unusable(port: int) -> str | None:
    """Why nobody can listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"Port {port} is taken."
            return f"Port {port} can't be used: {error.strerror}."
    return None


def again(workers: int, after: int) -> str:
    """The command with ports beyond those that were tried."""
    port = after if after + workers <= 65536 else 8000
    return f"scripts/demo --port {port}" + (f" --workers {workers}" if workers > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
