from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

class Request:
    id: str

class Task:
    request: Request

class Celery:
    def __init__(self, main: str, *, broker: str) -> None: ...
    def task(
        self, *, bind: bool, autoretry_for: tuple[type[Exception], ...], retry_backoff: int, max_retries: int
    ) -> Callable[[_F], _F]: ...
