"""The rules of the house: who imports whom, what imports stay light, fields that are all read."""

import ast
import graphlib
import importlib
import inspect
import itertools
import pathlib
import re
import subprocess
import sys

import pytest

from cmap_jax.config_fields import FIELDS, flatten

ROOT = pathlib.Path(__file__).parents[1]

# A module may import from its own package and from packages of its own and of lower layers; see
# docs/design.md.
LAYERS = [
    {
        "config_fields",
        "facts",
        "files",
        "numerics",
        "processing",
        "progress",
        "protocols",
        "remedies",
        "scoring",
        "sharding",
        "temporaries",
    },
    {"models", "losses"},
    {"convert"},
    {"encoding", "workdir", "trained"},
    {"visualization", "retrieval"},
    {"evaluation"},
    {"training", "serving", "reporting", "exporting", "sweeps"},
    {"cli"},
]
# The parts of `cmap_jax` that `input_pipeline` may import.
KNOWN_TO_THE_PIPELINE = {
    "config_fields",
    "facts",
    "files",
    "processing",
    "progress",
    "protocols",
    "remedies",
    "temporaries",
}
# Packages of one layer that may not import each other.
STRANGERS = {("models", "losses"), ("losses", "models")}


def _imports(path: pathlib.Path) -> set[str]:
    """Absolute names that a file imports, functions' imports included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def _parts(package: str):
    for path in sorted((ROOT / package).rglob("*.py")):
        inside = path.relative_to(ROOT / package)
        if inside.name != "__init__.py" or len(inside.parts) > 1:
            yield path, inside.parts[0].removesuffix(".py")


def _layer(part: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if part in layer)


def test_import_layers():
    for path, part in _parts("cmap_jax"):
        for name in _imports(path):
            pieces = name.split(".")
            if pieces[0] == "input_pipeline":
                assert part == "cli", f"{path} imports {name}: data sets are passed in"
            if pieces[0] != "cmap_jax" or len(pieces) < 2:
                continue
            other = pieces[1]
            if other == part:
                continue
            assert _layer(other) <= _layer(part), f"{path}: {part} may not import {other}"
            assert (part, other) not in STRANGERS, f"{path}: {part} may not import {other}"


def test_imports_have_no_cycles():
    """Module by module; imports inside functions count, since they often hide a cycle."""
    modules = {}
    for package in ("cmap_jax", "configs", "input_pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts).removesuffix(".__init__")] = path
    # A package's __init__ may import its modules lazily, and they need the package.
    graph = {
        name: {other for other in _imports(path) if other in modules} - set(_packages_of(name))
        for name, path in modules.items()
        if path.name != "__init__.py"
    }
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the modules


def _packages_of(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def test_input_pipeline_knows_only_processing_and_protocols():
    for path, _ in _parts("input_pipeline"):
        for name in _imports(path):
            if name.split(".")[0] == "cmap_jax" and name != "cmap_jax":
                assert name.split(".")[1] in KNOWN_TO_THE_PIPELINE, f"{path} imports {name}"


def test_pictures_are_opened_in_one_place():
    """`Image.open` alone takes formats for which PIL starts a program."""
    for package in ("benchmarks", "cmap_jax", "configs", "docs", "input_pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            opened = re.findall(r"(?<!PIL\.)\bImage\.open\(", path.read_text())
            assert len(opened) == (path.name == "image_files.py"), path


@pytest.mark.parametrize("hidden", [("tensorflow", "clu", "torch", "tensorboard")])
def test_light_imports(hidden):
    """Models, losses, scoring, workdir, the step and serving's parts work without TensorFlow."""
    code = f"""
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hide())
import cmap_jax, cmap_jax.models, cmap_jax.losses, cmap_jax.scoring, cmap_jax.workdir
import cmap_jax.training.train_step, cmap_jax.evaluation.evaluator, cmap_jax.processing.images
cmap_jax.CMAP, cmap_jax.load, cmap_jax.Retriever
import input_pipeline
assert set(dir(cmap_jax)) >= {{"CMAP", "Retriever", "load"}}
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    code = "import sys, cmap_jax; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names_as_people_write_them():
    """The README's forms work in a fresh interpreter, with no submodule imported before."""
    code = """
import numpy as np
import cmap_jax
from cmap_jax import CMAP, Retriever, load
assert cmap_jax.evaluation.metrics.ranks(np.array([[0.1, 0.9]]), [0], [1]) == 0
cmap_jax.losses.matching_loss, cmap_jax.losses.preservation_loss
cmap_jax.scoring.score, cmap_jax.scoring.score_levels, cmap_jax.scoring.score_branches
cmap_jax.processing.tokenizer.tokenize, cmap_jax.training.train_step.make_train_step
cmap_jax.convert.load_reference_checkpoint, cmap_jax.convert.load_resnet
cmap_jax.retrieval.exact.ExactIndex, cmap_jax.workdir.description.read_config
cmap_jax.models.CMAP.from_config, cmap_jax.sharding.make_mesh, cmap_jax.protocols.PROTOCOLS
import input_pipeline
input_pipeline.create_datasets
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "package",
    [
        "",
        "convert",
        "evaluation",
        "exporting",
        "processing",
        "reporting",
        "retrieval",
        "serving",
        "training",
        "visualization",
        "workdir",
    ],
)
def test_lazy_packages_list_all_of_their_modules(package):
    """A module that is added is listed too, and none is listed that no longer exists."""
    folder = ROOT / "cmap_jax" / package
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in folder.glob("*/__init__.py")} - {"cli"}
    name = f"cmap_jax.{package}".removesuffix(".")
    listed = {
        alias.name
        for node in ast.walk(ast.parse((folder / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == name
        for alias in node.names
    }
    assert listed == modules
    assert listed <= set(importlib.import_module(name).__all__)
    assert listed <= set(dir(importlib.import_module(name)))


def test_one_logger():
    """Each module logs under its own name; absl's handler alone is the command line's."""
    for package in ("cmap_jax", "input_pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            if path != ROOT / "cmap_jax" / "cli" / "train.py":
                assert "absl.logging" not in _imports(path), path
            assert not re.search(r"\blogging\.(debug|info|warning|error)\(", path.read_text()), path


def test_every_field_is_read():
    """Each field's name is an attribute that some code outside the configs looks up."""
    read = set()
    for package in ("cmap_jax", "input_pipeline"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    read.add(node.attr)
                # An encoder's settings are a mapping.
                elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "settings":
                    read.add(ast.unparse(node.slice).strip("'"))
    from input_pipeline.garments import prepare

    # These settings are passed on as keyword arguments.
    rendering = {f"data.garments.{name}" for name in inspect.signature(prepare).parameters}
    fields = FIELDS.keys() - rendering
    unread = [f for f in fields if f.split(".")[-1] not in read]
    assert not unread, f"nothing reads {unread}"


def test_every_field_has_a_comment():
    text = (ROOT / "configs" / "default.py").read_text().partition("    return config\n")[0]
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("    config.") and "ConfigDict()" not in line:
            assert "# " in line or before.startswith("    #"), line


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_configs_are_documented_and_refuse_unknown_arguments(path):
    if path.stem in ("default", "towers", "__init__"):
        return
    module = importlib.import_module(f"configs.{path.stem}")
    assert f"python main.py --config=configs/{path.name}" in module.__doc__
    assert FIELDS.keys() <= flatten(module.get_config()).keys()
    module.get_config("debug")
    if path.stem not in ("garments", "circo"):  # these train in two stages
        finetune, both = module.get_config("finetune"), module.get_config("debug,finetune")
        assert finetune.init_from == both.init_from == ""  # must be given by the user
        assert not any([finetune.model.image.frozen, both.model.text.frozen])
        assert both.model.embed_dim < finetune.model.embed_dim
    with pytest.raises(ValueError, match="'nonsense'"):
        module.get_config("nonsense")


@pytest.mark.parametrize("name", ["fashion200k", "fashioniq", "shoes", "cirr", "folder"])
def test_two_stages_with_the_packaged_encoder(name):
    """The first stage freezes the encoder with the installed weights; the second trains it."""
    get_config = importlib.import_module(f"configs.{name}").get_config
    first, second = get_config("pretrained"), get_config("pretrained,finetune")
    for config in (first, second, get_config("debug,pretrained")):
        assert config.model.image.name == "efficientnet_lite0"
        assert config.model.text.gru.word_dim == 50
        assert not config.model.text.frozen
    assert (first.init_from, first.model.image.init_from) == (None, "efficientnet_lite0")
    assert (second.init_from, second.model.image.init_from) == ("", None)
    assert first.model.image.frozen
    assert not second.model.image.frozen
    small = get_config("pretrained,debug")
    assert small.model.image.frozen
    assert small.data.crop < first.data.crop
    with pytest.raises(ValueError, match="'pretrained,clip_vit_b32'"):
        get_config("pretrained,clip_vit_b32")


def test_top_level():
    fixed = {"cmap_jax", "configs", "input_pipeline", "tests", "main.py", "setup.py", "README.md"}
    allowed = fixed | {"benchmarks", "notebooks", "docs", ".ci", "LICENSE", "CHANGELOG.md"}
    allowed |= {
        "CONTRIBUTING.md",
        "mkdocs.yml",
        "pyproject.toml",
        ".gitignore",
        "Dockerfile",
        ".dockerignore",
    }
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {name.split("/")[0] for name in tracked}
    assert fixed <= top <= allowed
