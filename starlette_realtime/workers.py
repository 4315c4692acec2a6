"""Workers: how many processes the server runs of this application, as far as one of them can tell."""

import hashlib
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["count_workers", "is_alone", "several"]

_SERVERS = frozenset({"uvicorn", "gunicorn", "hypercorn", "granian", "fastapi"})
_OPTION = re.compile(r"(?:--workers|--web-concurrency|-w)(?:=|(?<=-w))?(\d+)?")

_held: int | None = None  # the lock's file, open as long as the process lives


def count_workers(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """
    How many workers the server was told to run, by its command line or its environment; 1 where nothing says so.

    Only the command lines of known servers count.
    """
    if not argv or not _SERVERS & {Path(argv[0]).stem, Path(argv[0]).parent.name}:
        return 1
    words = [*environ.get("GUNICORN_CMD_ARGS", "").split(), *argv[1:]]
    for number, word in enumerate(words):
        found = _OPTION.fullmatch(word)
        if found is None:
            continue
        value = found[1] or next(iter(words[number + 1 :]), "")
        if value.isdecimal():
            return int(value)
    for name in ("UVICORN_WORKERS", "WEB_CONCURRENCY"):
        if environ.get(name, "").isdecimal():
            return int(environ[name])
    return 1


def several() -> bool:
    """Whether the server runs several workers, as far as this one can tell."""
    # Not `sys.orig_argv`: a worker that was spawned has the server's command line in `sys.argv` alone.
    return count_workers(sys.argv, os.environ) > 1 or not is_alone()


def is_alone() -> bool:
    """
    Whether no sibling process has asked this before and still lives.

    A worker is a process that `multiprocessing` or gunicorn has made; siblings have the same parent. Anything else is
    alone. The answer is held by a lock on a file, which ends with the process.
    """
    global _held
    if sys.platform == "win32":  # it has no such lock, and is left with what the command line says
        return True
    import fcntl

    worker = multiprocessing.parent_process() is not None or "gunicorn" in sys.modules
    if not worker or _held is not None:
        return True
    owner = hashlib.sha256(f"{os.getuid()} {os.getppid()}".encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"starlette_realtime-{owner}.lock"
    try:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return True  # it can't be told
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return False
    _held = held
    return True
