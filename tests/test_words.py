"""The rules on words: how comments begin, what argument lines say, and what documents may be cited.

Each test lists all offences at once, a line each: file, line number, and the words at fault.
"""

import ast
import inspect
import io
import pathlib
import re
import tokenize
from collections.abc import Iterable, Iterator

import pytest
from ml_collections import ConfigDict

from configs import default

ROOT = pathlib.Path(__file__).parents[1]
CODE = ("cmap_jax", "input_pipeline", "configs", "benchmarks", "docs", "tests")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "benchmarks/*.md")

# A comment that begins so is a fragment of a sentence that the reader has to guess.
OPENINGS = {"of", "likewise", "so", "those", "what"}
# Documents that a reader of the repository does not have.
FOREIGN = re.compile(r"\b(SPEC|DESIGN)\b")
# Names that tell how a value was come by, and not its meaning.
VAGUE = {"found", "place", "told", "what"}
BRITISH = re.compile("normalis|centre|initialis|serialis", re.IGNORECASE)
METHOD = "docs/method.md"
CITATION = re.compile(r"docs/method\.md, sections? (\d+(?:(?:, | and | to )\d+)*)")
# A name in a document and the file that defines it: [`CMAP.compose`](../cmap_jax/models/cmap.py).
NAME = re.compile(r"\[`([\w.]+)`\]\(([\w./-]+\.py)\)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([\w-]+))?\)")
PATH = re.compile(r"`((?:cmap_jax|input_pipeline|configs|tests|docs|benchmarks)/[\w/.]+\.\w+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# Words without content: an argument line that has no others than these and the name says nothing.
FILLERS = {"a", "an", "the", "of", "this", "that", "its", "it", "is", "to", "for", "given", "s"}


def _sources() -> list[pathlib.Path]:
    inside = [path for package in CODE for path in (ROOT / package).rglob("*.py")]
    return sorted([*inside, *ROOT.glob("*.py")])


def _documents() -> list[pathlib.Path]:
    return sorted(path for pattern in DOCUMENTS for path in ROOT.glob(pattern))


def _assert_none(offences: Iterable[str]) -> None:
    offences = list(offences)
    assert not offences, "\n".join([f"{len(offences)} offences", *offences])


def _where(path: pathlib.Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def _first_line(words: str) -> str:
    return words.partition("\n")[0][:80]


def comments(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each comment; lines that follow one another are one comment."""
    number, column, parts = 0, -1, []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, start = token.start
        words = token.string.lstrip("#!: ")
        alone = not token.line[:start].strip()
        if alone and parts and (line, start) == (number + len(parts), column):
            parts.append(words)
            continue
        if parts:
            yield number, " ".join(parts)
        number, column, parts = line, start if alone else -1, [words]
    if parts:
        yield number, " ".join(parts)


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and text of each docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield node.body[0].lineno, inspect.cleandoc(docstring)


def argument_lines(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield name and description of each entry under "Args:" and "Attributes:"."""
    for section in re.findall(
        r"^(?:Args|Attributes):\n((?:(?: {4}.*)?(?:\n|\Z))+)", docstring, re.M
    ):
        entries = re.split(r"^ {4}(?=\S)", section, flags=re.M)[1:]
        for entry in entries:
            name, colon, description = entry.partition(":")
            if colon:
                yield name.split("(")[0].strip(" *"), " ".join(description.split())


def begins_badly(words: str) -> bool:
    """Tell whether a comment's or docstring's first word is one of OPENINGS."""
    first = re.match(r"[\"'`(]*([A-Za-z]+)", words)
    return bool(first) and first[1].lower() in OPENINGS


def repeats_the_name(name: str, description: str) -> bool:
    """Tell whether a description has no words but those of the name, whatever their number."""

    def stems(words: Iterable[str]) -> set[str]:
        return {word.lower().rstrip("s") for word in words if word} - FILLERS

    said = stems(re.findall(r"[A-Za-z]+", description))
    return said <= stems(name.split("_")) and "`" not in description


def defined_names(text: str) -> set[str]:
    """Return the names that a module defines; members of a class as Class.member."""

    def of_body(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    yield from of_body(node.body, f"{prefix}{node.name}.")
            targets = (
                node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            )
            for target in targets:
                yield from (prefix + n.id for n in ast.walk(target or ast.Pass()) if _is_name(n))

    return set(of_body(ast.parse(text).body, ""))


def _is_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Name)


def _sections() -> set[int]:
    return {int(n) for n in re.findall(r"^## (\d+)\. ", (ROOT / METHOD).read_text(), re.M)}


def cited_sections(text: str) -> set[int]:
    """Return the sections of docs/method.md that a text cites, over line breaks and in ranges."""
    text = re.sub(r"\s*\n\s*(?:# )?\s*", " ", text)
    sections: set[int] = set()
    for numbers in CITATION.findall(text):
        for first, _, last in re.findall(r"(\d+)( to (\d+))?", numbers):
            sections |= set(range(int(first), int(last or first) + 1))
    return sections


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_comment_begins_in_the_middle_of_a_sentence():
    _assert_none(
        f"{_where(path, line)}: {_first_line(words)}"
        for path in _sources()
        for part in (comments, docstrings)
        for line, words in part(path.read_text())
        if begins_badly(words)
    )


def test_argument_lines_do_not_repeat_the_name():
    _assert_none(
        f"{_where(path, line)}: {name}: {description}"
        for path in _sources()
        for line, docstring in docstrings(path.read_text())
        for name, description in argument_lines(docstring)
        if repeats_the_name(name, description)
    )


def test_no_document_outside_the_repository_is_cited():
    _assert_none(
        f"{_where(path, number)}: {_first_line(line.strip())}"
        for path in (*_sources(), *_documents())
        if path != pathlib.Path(__file__)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if FOREIGN.search(line)
    )


def test_objects_of_many_fields_are_built_by_keywords():
    """A class called with five positional arguments or more hides which is which."""
    _assert_none(
        f"{_where(path, node.lineno)}: {ast.unparse(node.func)} has {len(node.args)} arguments"
        for path in _sources()
        if path.relative_to(ROOT).parts[0] in ("cmap_jax", "input_pipeline")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and len(node.args) >= 5
        if ast.unparse(node.func).rpartition(".")[2].lstrip("_")[:1].isupper()
    )


def identifiers(text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and name of everything that a module defines, arguments included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def test_results_have_telling_names():
    """A variable is named after its value, and not after the fact that it was looked for."""
    _assert_none(
        f"{_where(path, node.lineno)}: {node.id}"
        for path in _sources()
        if path.relative_to(ROOT).parts[0] != "tests"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE
    )


def test_identifiers_have_one_spelling():
    """`normalize` and `center`, as the libraries have them; prose may be British."""
    _assert_none(
        f"{_where(path, line)}: {name}"
        for path in _sources()
        for line, name in identifiers(path.read_text())
        if BRITISH.search(name)
    )


def test_cited_sections_of_the_method_exist():
    sections = _sections()
    assert sections == set(range(1, len(sections) + 1))
    _assert_none(
        f"{path.relative_to(ROOT)}: cites section {section} of {METHOD}, which does not exist"
        for path in (*_sources(), *_documents())
        if path != pathlib.Path(__file__)
        for section in sorted(cited_sections(path.read_text()) - sections)
    )


@pytest.mark.parametrize("path", _documents(), ids=lambda p: str(p.relative_to(ROOT)))
def test_names_and_files_in_documents_exist(path):
    """Names that are linked to a file are defined there; links and paths lead somewhere."""
    text = path.read_text()
    offences = []
    for name, file in NAME.findall(text):
        target = path.parent / file
        if not target.exists():
            offences.append(f"{name}: there is no {file}")
        elif name not in defined_names(target.read_text()):
            offences.append(f"{name}: {file} does not define it")
    prose = FENCE.sub("", text)
    for file, anchor in LINK.findall(prose):
        target = path.parent / file if file else path
        if not target.exists():
            offences.append(f"{file}: no such file")
        elif anchor and anchor not in anchors(target.read_text()):
            offences.append(f"{file}#{anchor}: no such heading")
    offences += [f"{f}: no such file" for f in PATH.findall(prose) if not (ROOT / f).exists()]
    _assert_none(offences)


@pytest.mark.parametrize("path", _documents(), ids=lambda p: str(p.relative_to(ROOT)))
def test_config_fields_in_documents_exist(path):
    """Examples in Python add fields; everything else names fields that there are."""
    text = re.sub(r"^```python.*?^```", "", path.read_text(), flags=re.M | re.S)
    config = default.get_config()
    names = re.findall(r"\bconfig\.((?:\w+\.)*\w+)", text)
    known = {"any.field", "json"}  # a placeholder, and a file
    _assert_none(
        f"config.{name}: no such field" for name in {*names} - known if not has_field(config, name)
    )


def has_field(config: ConfigDict, name: str) -> bool:
    """Tell whether a config has a field or part, such as "model.image"."""
    first, _, rest = name.partition(".")
    if not isinstance(config, ConfigDict) or first not in config:
        return False
    return not rest or has_field(config[first], rest)


def test_the_method_names_its_functions():
    """Each section but the published numbers points to code."""
    text = (ROOT / METHOD).read_text()
    for section in re.split(r"^## (?=\d+\. )", text, flags=re.M)[1:]:
        number = int(section.partition(".")[0])
        assert NAME.search(section) or number == 7, f"section {number} names no function"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# of the second\nx = 1\n", True),
        ("x = 1  # Likewise.\n", True),
        ("# The mean\n# of the batch.\nx = 1\n", False),
        ("x = [\n    1,  # of one\n]\n", True),
        ("x = 1  # The mean.\n# of the batch\n", True),
        ("# Sorted.\nx = '# of a string'\n", False),
        ('"""Those that remain."""\n', True),
        ('def f():\n    """What remains."""\n', True),
        ('def f():\n    """Return what remains."""\n', False),
        ('"""Somewhere.\n\nSo be it.\n"""\n', False),
    ],
)
def test_openings_are_found(source, expected):
    parts = [*comments(source), *docstrings(source)]
    assert any(begins_badly(words) for _, words in parts) == expected


@pytest.mark.parametrize(
    ("name", "description", "expected"),
    [
        ("model", "the model.", True),
        ("image_ids", "ids of the images.", True),
        ("config", "a whole config.", False),
        ("model_config", "a ``config.model``.", False),
        ("k", "images a query.", False),
        ("queries", "[B, D] float32.", False),
        ("queries", "the queries", True),
        ("mesh", "the mesh that the batch is split over.", False),
    ],
)
def test_repetitions_are_found(name, description, expected):
    docstring = f"Do.\n\nArgs:\n    {name}: {description}\n    other (int): 1 or 2\n        or 3.\n"
    lines = dict(argument_lines(docstring))
    assert lines == {name: description, "other": "1 or 2 or 3."}
    assert repeats_the_name(name, lines[name]) == expected
    assert not list(argument_lines("Args and results: none.\n\nRaises:\n    ValueError: never."))


def test_citations_are_found():
    assert cited_sections("(docs/method.md,\n    sections 1 to 3 and 6)") == {1, 2, 3, 6}
    assert cited_sections("# see docs/method.md,\n# section 12, ties") == {12}
    assert cited_sections("docs/method.md") == set()
    assert anchors("# A b\n```\n# not one\n```\n## 1. Of `c`: d-e\n") == {"a-b", "1-of-c-d-e"}
    names = defined_names("X: int = 1\nclass A:\n    b = 2\n    def c(self): ...\ndef d(): ...\n")
    assert names == {"X", "A", "A.b", "A.c", "d"}
