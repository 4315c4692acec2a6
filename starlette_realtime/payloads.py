"""Payloads: a handler's signature becomes a plan that fills its arguments, the payload validated among them."""

import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import anyio.to_thread
import msgspec
import msgspec.inspect
from msgspec import Raw

from starlette_realtime.errors import ConfigurationError, InvalidPayload
from starlette_realtime.messages import NULL
from starlette_realtime.protocols.door import BadJSON, check
from starlette_realtime.tasks import finish

__all__ = ["Call", "Handler", "decoder", "encode"]

_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<name>[^`]*)`$")


class Call:
    """
    What one event offers to a handler: injectable objects by type, the room's path parameters, the payload.

    It lives for one event, so that what is opened for a handler later has where to be closed.
    """

    __slots__ = ("objects", "params", "payload")

    def __init__(
        self, objects: Mapping[type, object], params: Mapping[str, object] | None = None, payload: Raw = NULL
    ) -> None:
        self.objects = objects
        self.params = params or {}
        self.payload = payload


Source = Callable[[Call], object]


class Handler:
    """
    A decorated function and how its arguments are found, decided once, when it is decorated.

    Injectable types are matched by annotation, `params` by name (their annotation must be the parameter's type), and
    the one argument that remains is the payload (`payload=False`: there is none). Raises `ConfigurationError` for
    a signature that can't be filled.
    """

    __slots__ = ("fn", "is_async", "optional", "sources")

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        injectable: tuple[type, ...],
        params: Mapping[str, type] | None = None,
        payload: bool = True,
    ) -> None:
        self.fn = fn
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(fn)) or inspect.iscoroutinefunction(
            getattr(fn, "__call__", None)  # noqa: B004 - a callable object with an async __call__
        )
        self.sources: dict[str, Source] = {}
        self.optional: set[str] = set()
        where = getattr(fn, "__qualname__", repr(fn))
        if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise ConfigurationError(f"{where}: handlers return one value; to send several, broadcast or send them")
        hints = _hints(fn, where)
        free: list[str] = []
        for name, parameter in inspect.signature(fn).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise ConfigurationError(f"{where}: handlers take no *args or **kwargs")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise ConfigurationError(f"{where}: arguments are passed by name, so {name!r} can't be positional-only")
            kind = hints.get(name, Any)
            for marker in (parameter.default, *getattr(kind, "__metadata__", ())):
                if type(marker).__module__.startswith("fastapi."):
                    raise ConfigurationError(
                        f"{where}: {type(marker).__name__} is for requests, and isn't resolved in handlers: open what "
                        f"you need in the handler, or keep it in connection.state"
                    )
            if isinstance(kind, type) and any(issubclass(kind, known) for known in injectable):
                self.sources[name] = _by_type(kind)
            elif params is not None and name in params:
                if kind not in (Any, params[name]):
                    raise ConfigurationError(
                        f"{where}: {name!r} is a {params[name].__name__} in the room's pattern, not {kind!r}"
                    )
                self.sources[name] = _by_name(name)
            elif parameter.default is parameter.empty or payload:
                free.append(name)
        if len(free) > (1 if payload else 0):
            known = ", ".join(cls.__name__ for cls in injectable)
            raise ConfigurationError(
                f"{where}: what should {', '.join(map(repr, free))} be? Annotate what is injected ({known}), "
                "name path parameters as in the room's pattern"
                + (", and leave at most one argument for the payload" if payload else "")
            )
        for name in free:
            self.sources[name] = _by_payload(decoder(hints.get(name, Any)))
            if inspect.signature(fn).parameters[name].default is not inspect.Parameter.empty:
                self.optional.add(name)

    async def __call__(self, call: Call) -> Any:
        """Call the function; raises `InvalidPayload`, or whatever the function raises."""
        # An event without data leaves the payload's default as it is; null is data.
        without = self.optional if call.payload is NULL else ()
        arguments = {name: source(call) for name, source in self.sources.items() if name not in without}
        if self.is_async:
            return await finish(self.fn(**arguments))
        result = await anyio.to_thread.run_sync(lambda: self.fn(**arguments))
        return await finish(result) if inspect.isawaitable(result) else result


def _hints(fn: Callable[..., Any], where: str) -> dict[str, Any]:
    while isinstance(fn, functools.partial):
        fn = fn.func
    target = fn if inspect.isroutine(fn) or inspect.isclass(fn) else type(fn).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except NameError as exc:
        raise ConfigurationError(f"{where}: an annotation names {exc.name!r}, which is not defined there") from exc


def _by_type(kind: type) -> Source:
    def find(call: Call) -> object:
        return next(value for cls, value in call.objects.items() if issubclass(cls, kind))

    return find


def _by_name(name: str) -> Source:
    return lambda call: call.params[name]


def _by_payload(decode: Callable[[Raw], object]) -> Source:
    return lambda call: decode(call.payload)


def decoder(annotation: Any) -> Callable[[Raw], Any]:
    """
    A function that validates raw JSON by `annotation`: what msgspec or, where it is installed, pydantic understands.

    `Raw` passes untouched. The function raises `InvalidPayload` with the fields that are wrong.
    """
    if annotation is Raw:
        return lambda raw: raw
    if _is_pydantic(annotation):
        return _pydantic(annotation)
    try:
        typed: msgspec.json.Decoder[Any] = msgspec.json.Decoder(annotation)
        info = msgspec.inspect.type_info(annotation)
    except (TypeError, NameError) as exc:
        raise ConfigurationError(f"{annotation!r} can't be a payload: {exc}") from exc
    if isinstance(info, msgspec.inspect.CustomType):
        raise ConfigurationError(f"{annotation!r} can't be a payload: make it a msgspec.Struct or a dataclass")

    def decode(raw: Raw) -> Any:
        try:
            return typed.decode(raw)
        except msgspec.ValidationError as exc:
            message = str(exc)
            at = _AT.search(message)
            path, text = (at["path"], message[: at.start()]) if at else ("", message)
            missing = _MISSING.match(text)
            if missing:
                path, text = f"{path}.{missing['name']}".lstrip("."), "required"
            raise InvalidPayload(fields={path: text}) from None
        except (msgspec.DecodeError, RecursionError):
            raise InvalidPayload from None

    return decode


def _is_pydantic(annotation: Any) -> bool:
    # Nothing can be a pydantic type where pydantic was never imported, so it is neither needed nor loaded here.
    pydantic = sys.modules.get("pydantic")
    if pydantic is None:
        return False
    seen = [annotation]
    while seen:
        kind = seen.pop()
        if hasattr(kind, "__pydantic_validator__") or hasattr(kind, "__get_pydantic_core_schema__"):
            return True
        seen += getattr(kind, "__args__", ())
        seen += [data for data in getattr(kind, "__metadata__", ()) if isinstance(data, pydantic.fields.FieldInfo)]
        if isinstance(kind, pydantic.fields.FieldInfo):
            return True
    return False


def _pydantic(annotation: Any) -> Callable[[Raw], Any]:
    import pydantic

    adapter = pydantic.TypeAdapter(annotation)

    def decode(raw: Raw) -> Any:
        try:
            return adapter.validate_json(bytes(raw))
        except pydantic.ValidationError as exc:
            errors = exc.errors(include_url=False, include_context=False, include_input=False)
            fields = {".".join(map(str, error["loc"])): error["msg"] for error in errors[:16]}
            raise InvalidPayload(fields=fields) from None

    return decode


def _hook(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if hasattr(value, "__pydantic_serializer__"):
        return value.__pydantic_serializer__.to_python(value, mode="json")
    raise NotImplementedError(f"{type(value).__name__} can't be sent as JSON")


_encoder = msgspec.json.Encoder(enc_hook=_hook)


def encode(value: object) -> Raw:
    """
    `value` as JSON that may travel; `Raw` stays as it is.

    Raises `TypeError` for what JSON can't say and `ValueError` for what it can but the wire must not (numbers that
    are not finite or integers beyond 2^53, lone surrogates, over 32 levels): see the wire protocol's payload rules.
    """
    if isinstance(value, Raw):
        _check(bytes(value))
        return value
    try:
        raw = _encoder.encode(value)
    except (NotImplementedError, RecursionError, OverflowError) as exc:
        raise TypeError(str(exc)) from None
    _check(raw)
    if b"null" in raw and not _finite(msgspec.to_builtins(value, enc_hook=_hook)):
        raise ValueError("this can't be sent: a number that is not finite")  # msgspec writes null, silently
    return Raw(raw)


def _check(raw: bytes) -> None:
    try:
        check(raw)
    except BadJSON as exc:
        raise ValueError(f"this can't be sent: {exc}") from None


def _finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return not isinstance(value, list | tuple) or all(map(_finite, value))
