"""Write what is told in two places: the tables of options, errors and close codes in docs/, and the browser's codes.

    python scripts/generate.py          # write
    python scripts/generate.py --check  # tell what is stale, and fail

A table stands between `<!-- generate: name -->` and `<!-- end -->`. Its last column is written by hand, in the page,
where the code has no text for it: it is kept as long as the row is.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette_realtime.errors import CLOSE_CODES, ERROR_CODES

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/errors.md", "docs/options.md", "docs/wire-protocol.md")
CODES = "starlette_realtime/browser/codes.js"
TABLE = re.compile(r"(?P<start><!-- generate: (?P<name>\S+) -->\n)(?P<old>.*?)(?P<end><!-- end -->)", re.DOTALL)
CLASS = re.compile(r"<!-- generate: options\.(\S+) -->")

RECONNECT = {"yes": "yes", "no": "no", "token": "with a new token", "after": "after the announced delay"}

COMMON = {
    "clock": "For tests.",
    "app": "The application that it stands around: whoever adds it as middleware gives it.",
}
"""What an option is that means the same wherever it is; a page may say more."""

COUNTS = {"burst"}
"""Options that are no durations, though they take a `float`."""

Kept = Mapping[str, str]
"""The first cell of a table's row → the last one, which is written by hand."""


class Option(NamedTuple):
    """What a constructor or function takes: `meaning` is the code's own text, "" where it has none."""

    name: str
    takes: str
    default: str
    meaning: str = ""


def tables() -> dict[str, Callable[[Kept], Iterator[tuple[str, ...]]]]:
    """The tables that are not options, by name: each yields its rows, the heading first."""
    return {"errors": errors, "errors.short": short_errors, "closes": closes, "closes.short": short_closes}


def errors(kept: Kept) -> Iterator[tuple[str, ...]]:
    """Each error code, with what to do."""
    yield "code", "says", "what happened, and what to do"
    for code, message in ERROR_CODES.items():
        yield f"`{code}`", message, kept.get(f"`{code}`", "")


def short_errors(kept: Kept) -> Iterator[tuple[str, ...]]:
    """Each error code."""
    yield "code", "meaning"
    for code, message in ERROR_CODES.items():
        yield f"`{code}`", message


def closes(kept: Kept) -> Iterator[tuple[str, ...]]:
    """Each close code, with what to do."""
    yield "code", "name", "reconnect", "what happened, and what to do"
    for row in CLOSE_CODES.values():
        yield str(row.code), f"`{row.name}`", RECONNECT[row.reconnect], kept.get(str(row.code), "")


def short_closes(kept: Kept) -> Iterator[tuple[str, ...]]:
    """Each close code."""
    yield "code", "name", "meaning", "reconnect"
    for row in CLOSE_CODES.values():
        yield str(row.code), f"`{row.name}`", row.meaning, RECONNECT[row.reconnect]


def options(path: str, kept: Kept) -> Iterator[tuple[str, ...]]:
    """What a class or function takes, by its path below the package ("Realtime", "client.connect")."""
    module, _, name = f"starlette_realtime.{path}".rpartition(".")
    yield "option", "takes", "default", "what it does"
    for option in constructor(getattr(importlib.import_module(module), name)):
        cell = f"`{option.name}`"
        yield cell, option.takes, option.default, option.meaning or kept.get(cell) or COMMON.get(option.name, "")


def constructor(kind: Callable[..., object]) -> Iterator[Option]:
    """The parameters of a class, or a function; `**options` are those of the next base class with a constructor."""
    annotations, meanings = written(kind)
    seen = set()
    for base in getattr(kind, "__mro__", [kind]):
        if base is not kind and "__init__" not in vars(base):
            continue
        signature = inspect.signature(base)
        annotations = {**written(base)[0], **annotations}
        for parameter in signature.parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD and parameter.name not in seen:
                seen.add(parameter.name)
                yield Option(
                    ("*" if parameter.kind is parameter.VAR_POSITIONAL else "") + parameter.name,
                    takes(parameter.name, annotations.get(parameter.name, "Any")),
                    default(parameter),
                    meanings.get(parameter.name, ""),
                )
        if not any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values()):
            return


def written(kind: Callable[..., object]) -> tuple[dict[str, str], dict[str, str]]:
    """The annotations of parameters as they stand in the source, and the strings below the attributes of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    body = tree.body if isinstance(tree, ast.ClassDef) else [tree]
    annotations, meanings = {}, {}
    for statement, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.FunctionDef) and statement.name in ("__init__", kind.__name__):
            arguments = statement.args
            for each in (*arguments.args, *filter(None, [arguments.vararg]), *arguments.kwonlyargs):
                annotations[each.arg] = ast.unparse(each.annotation) if each.annotation else "Any"
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotations[statement.target.id] = ast.unparse(statement.annotation)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                meanings[statement.target.id] = " ".join(str(after.value.value).split())
    return annotations, meanings


def takes(name: str, annotation: str) -> str:
    """The unit, where it is a number, else the types; None is left out, as the default tells of it."""
    body = ast.parse(annotation, mode="eval").body
    kinds = [kind for kind in alternatives(body) if kind != "None"]
    match kinds:
        case ["float"]:
            return "number" if name in COUNTS else "seconds"
        case ["int"]:
            return "bytes" if name.endswith("bytes") or name == "max_size" else "number"
        case _:
            return " or ".join(map(code, kinds))


def alternatives(annotation: ast.expr) -> Iterator[str]:
    """The members of a union; of anything else, itself."""
    if isinstance(annotation, ast.BinOp):
        yield from alternatives(annotation.left)
        yield from alternatives(annotation.right)
    else:
        yield ast.unparse(annotation).replace("'", '"')


def code(text: str) -> str:
    """Text as code in a cell of a table, where `|` would end the cell."""
    return f"`{text}`" if "|" not in text else f"<code>{text.replace('|', '&#124;')}</code>"


def default(parameter: inspect.Parameter) -> str:
    """The default, with its unit."""
    value = parameter.default
    if parameter.kind is parameter.VAR_POSITIONAL:
        return "none"
    if value is parameter.empty:
        return "required"
    if value == ():
        return "none"
    if callable(value):
        return "built in"
    if isinstance(value, float):
        return f"{value:,.10g} s"
    if isinstance(value, int) and not isinstance(value, bool):
        return size(value) if takes(parameter.name, "int") == "bytes" else f"{value:,}"
    return code(literal(value))


def literal(value: object) -> str:
    """How one would write it: text in double quotes, a dataclass without what is its default anyway."""
    if isinstance(value, str):
        return json.dumps(value)
    if not dataclasses.is_dataclass(value):
        return repr(value)
    told = []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if field.default is dataclasses.MISSING:
            told.append(literal(given))
        elif given != field.default:
            told.append(f"{field.name}={literal(given)}")
    return f"{type(value).__name__}({', '.join(told)})"


def size(value: int) -> str:
    """A number of bytes, as 64 KiB where it is so many."""
    for unit, name in ((1024**2, "MiB"), (1024, "KiB")):
        if value % unit == 0:
            return f"{value // unit} {name}"
    return f"{value:,} bytes"


def fill(text: str, page: str, complaints: list[str]) -> str:
    """The page with all its tables anew; adds to `complaints` what only a writer can mend."""
    known = tables()

    def table(found: re.Match[str]) -> str:
        name, kept = found["name"], last_cells(found["old"])
        rows = list(options(name.removeprefix("options."), kept) if name.startswith("options.") else known[name](kept))
        empty = [row[0] for row in rows[1:] if not row[-1]]
        complaints.extend(f"{page}: say what {cell} of {name} is, in the last cell of its row" for cell in empty)
        lines = [" | ".join(row) for row in (rows[0], ("---",) * len(rows[0]), *rows[1:])]
        return found["start"] + "\n" + "".join(f"| {line} |\n" for line in lines) + "\n" + found["end"]

    return TABLE.sub(table, text)


def last_cells(table: str) -> dict[str, str]:
    """What stands in the last cells of a table's rows."""
    rows = (re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in table.splitlines() if line.startswith("|"))
    return {row[0].strip(): row[-1].strip() for row in rows}


def codes(text: str) -> str:
    """The browser's module with the close codes of the server."""
    rows = (
        f'  "{row.code}": ' + json.dumps({"code": row.code, "name": row.name, "reconnect": row.reconnect})
        for row in CLOSE_CODES.values()
    )
    body = ",\n".join(rows)
    return re.sub(r"(CLOSE_CODES = \{\n).*?(\n\};)", lambda found: f"{found[1]}{body}{found[2]}", text, flags=re.DOTALL)


def generate() -> tuple[dict[Path, str], list[str]]:
    """What is to be written: file → its new text, where that differs; and complaints about what a writer must say."""
    stale, complaints = {}, list[str]()
    for name in (*PAGES, CODES):
        file = ROOT / name
        text = file.read_text(encoding="utf-8")
        new = codes(text) if name == CODES else fill(text, name, complaints)
        if new != text:
            stale[file] = new
    return stale, complaints


def main(arguments: list[str]) -> int:
    """Write, or with `--check` tell."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale, complaints = generate()
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    for file, text in stale.items():
        if arguments:
            print(f"{file.relative_to(ROOT)} is stale: run python scripts/generate.py", file=sys.stderr)
        else:
            file.write_text(text, encoding="utf-8")
    return 1 if complaints or (arguments and stale) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
