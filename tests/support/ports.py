"""Ports for servers that are told where to listen."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from random import SystemRandom

HOST = "127.0.0.1"
# Below what systems give to outgoing connections: nobody else takes the port of a server that is away, and a client
# that tries it again and again cannot connect to itself.
PORTS = range(11_000, 31_000)
ATTEMPTS = 1_000

_reserved: set[int] = set()  # in this process, those of servers that are away included


@contextmanager
def reserved_ports(count: int) -> Iterator[Sequence[int]]:
    """
    Find ports of 127.0.0.1 that follow each other and on which nobody listens; nobody else here gets them meanwhile.

    Raises `OSError` when there are none.
    """
    random = SystemRandom()
    for _ in range(ATTEMPTS):
        first = random.choice(PORTS)
        ports = range(first, first + count)
        if _reserved.isdisjoint(ports) and all(_is_free(port) for port in ports):
            break
    else:
        raise OSError(f"no free ports from {PORTS.start} to {PORTS.stop}")
    _reserved.update(ports)
    with ExitStack() as stack:
        stack.callback(_reserved.difference_update, ports)
        yield ports


@contextmanager
def reserved_port() -> Iterator[int]:
    """Find one port, as `reserved_ports` does."""
    with reserved_ports(1) as (port,):
        yield port


def _is_free(port: int) -> bool:
    with socket.socket() as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((HOST, port))
        except OSError:
            return False
    return True
