"""Hooks of mkdocs: the site has the repository's folders, and relative links work in both.

The documents keep their paths: README.md is the home page, docs/method.md and benchmarks/README.md
lie below it. A Python file that a document links to is a page of its own, left out of the search.
Tables that code determines are put in the place of their marker (`tables.py`), and formulas become
MathML, which browsers draw without a script.
"""

import html
import pathlib
import posixpath
import re
from collections.abc import Iterator

import tables
from latex2mathml import converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/*.md", "docs/**/*.md")
STYLE = "docs/site.css"
_LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
_SOURCE_LINK = re.compile(r"(\]\((?!\w+:)[^)#\s]+\.py)\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])\s*(.*?)\s*\\[)\]]</\1>', re.DOTALL)
# Elements whose text is left alone, or any other tag.
_TAG = re.compile(r"(<(?:a|code|pre|h\d)\b.*?</(?:a|code|pre|h\d)>|<[^>]*>)", re.DOTALL)
_CITATION = re.compile(r"\bdocs/(\w+)\.md(?:,\s+section\s+(\d+))?")
_SOURCE_PAGE = """\
---
search:
  exclude: true
---

# `{path}`

~~~~~~python
{text}
~~~~~~
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Lay the documents out as in the repository, and add all that they link to."""
    for file in list(files.documentation_pages()) + list(files.media_files()):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    paths = sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))
    documents = [path.relative_to(ROOT).as_posix() for path in paths]
    linked = {target for document in documents for target in _targets(document)}
    for path in (*documents, STYLE, *sorted(linked - set(documents))):
        files.append(_file(path, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Insert the tables and lead links to sources to their pages."""
    return _SOURCE_LINK.sub(r"\1.md)", tables.insert(markdown))


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the formulas and link the sections of documents that docstrings cite."""
    content = _FORMULA.sub(_mathml, content)
    if not page.file.src_uri.startswith(("docs/reference/", "docs/configs.md")):
        return content
    parts = _TAG.split(content)
    parts[::2] = [_CITATION.sub(lambda m: _cited(m, page, files), text) for text in parts[::2]]
    return "".join(parts)


def _targets(document: str) -> Iterator[str]:
    """Yield the files of the repository that a document links to."""
    for link in _LINK.findall((ROOT / document).read_text()):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(document), link))
        if (ROOT / target).is_file():
            yield target


def _file(path: str, config: MkDocsConfig) -> File:
    """Return a page or file of the site: a document or picture as it is, code as a page."""
    if path.endswith(".py"):
        text = _SOURCE_PAGE.format(path=path, text=(ROOT / path).read_text().rstrip())
        return File.generated(config, f"{path}.md", content=text)
    return File.generated(config, path, abs_src_path=str(ROOT / path))


def _mathml(match: re.Match) -> str:
    tag, bracket, formula = match.groups()
    display = "block" if bracket == "[" else "inline"
    drawn = converter.convert(html.unescape(formula), display=display)
    return f'<{tag} class="formula">{drawn}</{tag}>'


def _cited(match: re.Match, page: Page, files: Files) -> str:
    """Return a citation as a link to the document, or to the heading of its section."""
    name, number = match.groups()
    file = files.get_file_from_path(f"docs/{name}.md")
    if file is None:
        return match[0]
    address = file.url_relative_to(page.file)
    if number:
        text = (ROOT / file.src_uri).read_text()
        heading = re.search(rf"^## ({number}\. .+)$", text, re.MULTILINE)[1]
        address += "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    return f'<a href="{address}">{match[0]}</a>'
