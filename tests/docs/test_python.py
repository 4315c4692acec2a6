"""The Python of the documentation has the types that it says."""

from pathlib import Path

import pytest

from tests.docs import typed
from tests.support.pages import blocks, names, parse

SHARED = """
# A page

```python title="app.py"
count: int = 1
```

## First

```python
from app import count as counted
total = counted + count
```

## Second

```python
total.upper()
await total
async with total:
    total.lower()
total.title()
```
"""


def test_all_of_it_is_typed(tmp_path: Path) -> None:
    assert "\n".join(typed.check(map(blocks, names()), tmp_path)) == ""


def test_a_snippet_has_the_names_of_the_pages_files_and_of_earlier_snippets(tmp_path: Path) -> None:
    report = typed.check([parse(SHARED, page="made-up.md")], tmp_path)
    assert report == [
        'docs/made-up.md:18: error: "int" has no attribute "upper"  [attr-defined]',
        'docs/made-up.md:19: error: Incompatible types in "await" (actual type "int", expected type "Awaitable[Any]")'
        "  [misc]",
        'docs/made-up.md:20: error: "int" has no attribute "__aenter__"  [attr-defined]',
        'docs/made-up.md:20: error: "int" has no attribute "__aexit__"  [attr-defined]',
        'docs/made-up.md:21: error: "int" has no attribute "lower"  [attr-defined]',
        'docs/made-up.md:22: error: "int" has no attribute "title"  [attr-defined]',
    ]


def test_a_block_that_is_no_python_is_named() -> None:
    with pytest.raises(SyntaxError, match=r"docs/made-up\.md:2: .*line 1"):
        typed.modules(parse("```python\nno python\n```\n", page="made-up.md"))
