"""The fenced blocks of the documentation's pages: what each is, and a page's files in a folder of their own."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>.*)$")
TITLE = re.compile(r'\btitle="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block of a page."""

    page: str
    section: str  # the text of the `## heading` that it stands below; "" before the first
    language: str  # the first word after the fence; "" where there is none
    title: str | None  # the file that it is, as in `title="static/index.html"`; None: a snippet
    source: str  # with a newline at its end
    line: int  # of its first line, from 1

    @property
    def where(self) -> str:
        """The place of its first line, as an editor understands it."""
        return f"{locate(self.page).relative_to(ROOT).as_posix()}:{self.line}"


def names() -> list[str]:
    """The pages that there are: "README.md", and those below docs/ by their path there ("recipes/chat.md")."""
    return ["README.md", *sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))]


def locate(page: str) -> Path:
    """The file of a page that is named as in `names`."""
    return ROOT / page if page == "README.md" else DOCS / page


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, named as in `names`, in their order. Raises `ValueError` for one that never ends."""
    return parse(locate(page).read_text(encoding="utf-8"), page=page)


def parse(text: str, *, page: str) -> list[Block]:
    """All fenced blocks of a page's text. Raises `ValueError` for one that never ends."""
    found: list[Block] = []
    section, lines = "", enumerate(text.splitlines(), start=1)
    for number, line in lines:
        if line.startswith("## "):
            section = line.removeprefix("## ").strip()
        if (opening := FENCE.match(line)) is None:
            continue
        info, body = opening["info"].strip(), list[str]()
        end = re.compile(rf"^ *{opening['fence']}{opening['fence'][0]}* *$")
        for _, inside in lines:
            if end.match(inside):
                break
            body.append(inside)
        else:
            raise ValueError(f"{page}:{number}: the block that opens here is never closed")
        title = TITLE.search(info)
        block = Block(
            page=page,
            section=section,
            language=re.split(r"[\s{]", info, maxsplit=1)[0],
            title=title[1] if title else None,
            source=dedent("".join(f"{each}\n" for each in body)),
            line=number + 1,
        )
        found.append(block)
    return found


def write(page: str, folder: Path, *, section: str | None = None) -> None:
    """
    Write a page's titled blocks, or those below one `## section`, into `folder`, each under its title.

    Raises `ValueError` when there are none, or when two have the same title: then the page tells several applications,
    and `section` says which one is meant.
    """
    chosen = [block for block in blocks(page) if block.title is not None and section in (None, block.section)]
    if not chosen:
        raise ValueError(f'{page} has no block with a title="…"' + (f" below ## {section}" if section else ""))
    written: set[Path] = set()
    for block in chosen:
        path = folder / (block.title or "")
        if path in written or not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{block.where}: {block.title} is there twice, or lies outside: name a `section`")
        written.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.source, encoding="utf-8")
