"""Linking: an ECMAScript module and those that it imports as one, so that a page loads them at once."""

from collections.abc import Collection, Mapping, Sequence

from starlette_realtime.scripts.stripping import Token, join, tokens

__all__ = ["link"]


def link(name: str, sources: Mapping[str, str], *, apart: Collection[str] = ()) -> str:
    """
    Write the module `name` of `sources` (name to text) as one with all that it imports, stripped.

    Each imported module becomes a function that is called once, in the order of the imports, and returns what the
    module exports: so their names don't meet. Those in `apart`, and what is no `./` path, stay imports. Raises
    `ValueError` for what can't be said in this simple way: imports and exports other than by name, imports in a circle,
    exports of a variable; and as `tokens` does.
    """
    return _Linker(sources, apart).link(name)


class _Linker:
    def __init__(self, sources: Mapping[str, str], apart: Collection[str]) -> None:
        self._sources = sources
        self._apart = apart
        self._linked: dict[str, str] = {}  # in the order in which they run
        self._open: list[str] = []  # the modules that are being written, each imported by the one before

    def link(self, name: str) -> str:
        body, exported = self._write(name)
        return f"{''.join(self._linked.values())}{body}export{{{exported}}};"

    def _include(self, name: str) -> None:
        if name not in self._linked:
            body, exported = self._write(name)
            self._linked[name] = f"const {_variable(name)}=(()=>{{{body}return{{{exported}}};}})();"

    def _write(self, name: str) -> tuple[str, str]:
        """A module's text without its imports and exports, and the list of the names that it exports."""
        if name in self._open:
            raise ValueError(f"modules import each other in a circle: {' → '.join([*self._open, name])}")
        self._open.append(name)
        source = list(tokens(self._sources[name]))
        body: list[Token] = []
        exported: list[str] = []
        at = depth = 0
        while at < len(source):
            token = source[at]
            if depth == 0 and token.text == "import":
                end = _end(source, at)
                body += self._import(name, source[at:end])
                at = end
            elif depth == 0 and token.text == "export":
                at += 1
                if source[at].text == "{":
                    end = _end(source, at)
                    exported += _names(name, source[at:end])
                    at = end
                else:
                    exported.append(_declared(name, source[at : at + 3]))
            else:
                depth += (token.text in ("{", "(", "[")) - (token.text in ("}", ")", "]"))
                body.append(token)
                at += 1
        self._open.pop()
        return join([*body, Token("sign", ";")]), ",".join(exported)

    def _import(self, name: str, statement: Sequence[Token]) -> list[Token]:
        """What stands for an import."""
        _names(name, statement[1:-3])
        path = statement[-2].text[1:-1]
        other = path.removeprefix("./")
        if statement[-3].text != "from" or other == path or other in self._apart:
            return list(statement)
        self._include(other)
        return [
            Token("word", "const", "\n"),
            *statement[1:-3],
            Token("sign", "="),
            Token("word", _variable(other)),
            Token("sign", ";"),
        ]


def _variable(name: str) -> str:
    return f"${name.removesuffix('.js')}"


def _end(source: Sequence[Token], at: int) -> int:
    """The index behind the statement that begins at `at`."""
    return next(index for index in range(at, len(source)) if source[index].text == ";") + 1


def _names(name: str, listed: Sequence[Token]) -> list[str]:
    """The names of `{a, b}`, maybe with a semicolon after it."""
    words = [token.text for token in listed if token.kind == "word"]
    rest = [token.text for token in listed if token.kind != "word" and token.text != ","]
    if "as" in words or "default" in words or rest not in (["{", "}"], ["{", "}", ";"]):
        raise ValueError(f"{name} imports or exports otherwise than by name: {join(listed)}")
    return words


def _declared(name: str, declaration: Sequence[Token]) -> str:
    """The name that is declared by what begins so."""
    words = [token.text for token in declaration]
    if words[0] not in ("class", "const", "function", "async"):
        raise ValueError(f"{name} exports otherwise than by name: {join(declaration)}")
    return next(word for word in words if word not in ("class", "const", "function", "async", "*"))
