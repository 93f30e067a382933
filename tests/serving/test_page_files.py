"""The search page's files: complete, installed, and without anything that its policy forbids."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "cmap_jax" / "serving" / "page"
HTML = (PAGE / "index.html").read_text()
SCRIPTS = sorted(PAGE.glob("*.js"))


def test_the_page_is_installed_with_the_package():
    call = next(
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    data = next(ast.literal_eval(k.value) for k in call.keywords if k.arg == "package_data")
    package = ROOT / "cmap_jax" / "serving"
    installed = {path for glob in data["cmap_jax.serving"] for path in package.glob(glob)}
    assert installed == set(PAGE.iterdir())


def test_what_the_page_names_is_there_and_all_of_it_is_named():
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', HTML))
    assert named == {path.name for path in PAGE.iterdir()} - {"index.html"}
    for script in SCRIPTS:
        for other in re.findall(r'from "\./([^"]+)"', script.read_text()):
            assert (PAGE / other).exists(), f"{script.name} imports {other}"


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", HTML)
    for path in PAGE.iterdir():
        addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", path.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_text_becomes_markup_or_code(script):
    """Ids, metadata and messages come from outside: they are set as text alone."""
    text = script.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)
    assert not re.search(r"new Function|setAttribute\(\"style\"", text)


def test_ids_and_icons_exist():
    """A script asks for elements by ids of the page, and for icons of its sprite."""
    ids = set(re.findall(r'id="([\w-]+)"', HTML))
    icons = {name.removeprefix("icon-") for name in ids if name.startswith("icon-")}
    assert set(re.findall(r'href="#(icon-[\w-]+)"', HTML)) <= ids
    for script in SCRIPTS:
        text = script.read_text()
        assert set(re.findall(r'byId\("([\w-]+)"\)', text)) <= ids, script.name
        assert set(re.findall(r'\bicon\("([\w-]+)"\)|\bname: "([\w-]+)"', text)) <= {
            pair for name in icons for pair in ((name, ""), ("", name))
        }, script.name
