"""The Python of the documentation, as modules that mypy can read: every file and every snippet is one."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.support.pages import ROOT, Block

# Snippets take names from each other, and await where a reader's own function would.
CONFIGURATION = f"""
[mypy]
strict = true
python_version = 3.11
implicit_reexport = true
disable_error_code = top-level-await
mypy_path = {ROOT}:{ROOT / "tests" / "docs" / "stubs"}
cache_dir = {ROOT / ".mypy_cache" / "docs"}

[mypy-starlette_realtime.*]
follow_imports = silent
"""
REPORTED = re.compile(r"^(?P<module>\w+)\.py:(?P<line>\d+): (?P<what>.*)$")


@dataclass
class Module:
    """One block as a module of its own name; `header` is the line before its own, which brings it earlier names."""

    name: str
    block: Block
    tree: ast.Module
    header: str = ""
    lines: list[tuple[int, str]] = field(default_factory=list)  # as they are checked, with their numbers in the block
    binds: frozenset[str] = field(default_factory=frozenset)


def modules(page: Sequence[Block]) -> list[Module]:
    """
    The Python blocks of one page as modules.

    A titled block is a file: it imports what it needs, other files of the page included. A snippet also has the
    names of the page's files and of earlier snippets; those below the same heading come first, then the latest.
    Raises `SyntaxError` with the place.
    """
    made = [_module(number, block) for number, block in enumerate(page) if block.language == "python"]
    for index, module in enumerate(made):
        files = [other for other in made if other.block.title is not None and other is not module]
        if module.block.title is not None:
            module.lines = _rewrite(module, files)
            continue
        earlier = [other for other in (*files, *made[:index]) if other.block.title is None or other in files]
        earlier.sort(key=lambda other: (other.block.section == module.block.section, made.index(other)))
        wanted = _used(module.tree) - set(_bound(module.tree.body))
        origin = {name: other.name for other in earlier for name in other.binds & wanted}
        module.header = "; ".join(f"from {origin[name]} import {name}" for name in sorted(origin))
        module.lines = _rewrite(module, files)
    return made


def check(pages: Iterable[Sequence[Block]], folder: Path) -> list[str]:
    """What mypy says about the Python of these pages, by its place in them; it works in `folder`, an empty one."""
    found = {module.name: module for page in pages for module in modules(page)}
    for module in found.values():
        source = "\n".join([module.header, *(line for _, line in module.lines), ""])
        (folder / f"{module.name}.py").write_text(source, encoding="utf-8")
    (folder / "mypy.ini").write_text(CONFIGURATION, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-error-summary", "--no-pretty"]
    done = subprocess.run([*command, *(f"{name}.py" for name in found)], cwd=folder, capture_output=True, text=True)
    report = [_place(line, found) for line in (done.stdout + done.stderr).splitlines()]
    return report or [f"mypy ended with status {done.returncode}"] * (done.returncode != 0)


def _module(number: int, block: Block) -> Module:
    try:
        tree = ast.parse(block.source, block.where)
    except SyntaxError as exc:
        raise SyntaxError(f"{block.where}: {exc.msg}, in the block's line {exc.lineno}") from exc
    stem = re.sub(r"\W", "_", PurePosixPath(block.page).with_suffix("").as_posix())
    name = f"{stem}_{number}_{re.sub(r'[^a-zA-Z0-9]', '_', block.title or 'snippet').removesuffix('_py')}"
    return Module(name, block, tree, binds=frozenset(_bound(_outside(tree))))


def _bound(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The names that statements bind in their module; functions and comprehensions have scopes of their own."""
    for node in nodes:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                pass
            case _:
                yield from _bound(ast.iter_child_nodes(node))


def _used(tree: ast.Module) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _rewrite(module: Module, files: Sequence[Module]) -> list[tuple[int, str]]:
    """
    The source, with the page's other files imported by their names here; those of the same section come first.

    From the first `async with` or `async for` on it is put into a function, as mypy knows no other place for these.
    """
    names: dict[str, str] = {}
    for other in sorted(files, key=lambda other: other.block.section == module.block.section):
        path = PurePosixPath(other.block.title or "")
        parts = path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts
        names[".".join(parts)] = other.name
    lines = module.block.source.splitlines()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module in names and node.level == 0:
            lines[node.lineno - 1] = lines[node.lineno - 1].replace(node.module, names[node.module], 1)
        elif isinstance(node, ast.Import) and len(node.names) == 1 and node.names[0].name in names:
            local = node.names[0].asname or node.names[0].name
            lines[node.lineno - 1] = f"{' ' * node.col_offset}import {names[node.names[0].name]} as {local}"
    numbered = list(enumerate(lines, start=1))
    outside = len(_outside(module.tree))
    if outside == len(module.tree.body):
        return numbered
    first = module.tree.body[outside].lineno
    inside = [(number, f"    {line}") for number, line in numbered[first - 1 :]]
    return [*numbered[: first - 1], (first, "async def snippet() -> None:"), *inside]


def _outside(tree: ast.Module) -> list[ast.stmt]:
    """The statements before the first `async with` or `async for`."""
    asynchronous = [isinstance(statement, ast.AsyncWith | ast.AsyncFor) for statement in tree.body]
    return tree.body[: asynchronous.index(True)] if True in asynchronous else tree.body


def _place(line: str, found: Mapping[str, Module]) -> str:
    reported = REPORTED.match(line)
    if reported is None or reported["module"] not in found:
        return line
    module = found[reported["module"]]
    index = int(reported["line"]) - 2  # the header is the first
    number = module.lines[index][0] if 0 <= index < len(module.lines) else 1
    return f"{module.block.where.rpartition(':')[0]}:{module.block.line + number - 1}: {reported['what']}"
