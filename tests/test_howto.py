"""docs/howto.md is true: each of its blocks does what the text says when it is put in its place."""

import ast
import dataclasses
import inspect
import re
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from command_line import ROOT
from fake_data import image, shoes
from small import one_device, write_workdir
from stored_index import random_pyramid, random_query

import cmap_jax
from cmap_jax import config_fields, protocols, scoring
from cmap_jax.config_fields import Field, Kind
from cmap_jax.evaluation import outcomes
from cmap_jax.models.cmap import TrainingOutputs
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.training import objective
from configs import default
from input_pipeline.readers import shoes as shoes_reader

TEXT = (ROOT / "docs" / "howto.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)


def block(beginning: str) -> str:
    (text,) = (b for b in BLOCKS if b.startswith(beginning))
    return text


def run(text: str) -> dict:
    names: dict = {"__name__": "example"}
    exec(compile(text, "docs/howto.md", "exec"), names)
    return names


def with_lines(function, anchor: str, text: str, *, after: bool, **names):
    """Return a function whose source has lines of the document beside one that the text names."""
    assert f"`{anchor}`" in TEXT
    source = textwrap.dedent(inspect.getsource(function))
    (line,) = (li for li in source.splitlines(True) if li.strip().startswith(anchor))
    indented = textwrap.indent(text, line[: len(line) - len(line.lstrip())])
    source = source.replace(line, line + indented if after else indented + line)
    scope = {**function.__globals__, **names}
    exec(compile(source, "docs/howto.md", "exec"), scope)
    return scope[function.__name__]


def log_softmax(x, axis):
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


@pytest.mark.slow
def test_a_loss_and_its_field(monkeypatch):
    backward_loss = run(block('"""cmap_jax/losses/backward.py'))["backward_loss"]
    anchor = "total = sum(terms.values())"
    lines = block("if settings.backward_weight")
    changed = with_lines(
        objective.objective, anchor, lines, after=False, backward_loss=backward_loss
    )
    config = default.get_config()
    (path, field), *_ = eval(
        block('{"loss.backward_weight"'), {"Field": Field, "Kind": Kind}
    ).items()
    monkeypatch.setattr(config_fields, "FIELDS", {**config_fields.FIELDS, path: field})
    with config.unlocked():
        exec(block("config.loss.backward_weight"), {"config": config})
    query, targets = random_query(4), random_pyramid(4)
    outputs = TrainingOutputs(query, jnp.asarray(targets), jnp.asarray(0.5))
    levels = len(targets)
    config.loss.preservation_weights = (0.0,) * levels
    mesh = one_device()
    before, _ = objective.objective(outputs, config.loss, mesh)
    off, terms = changed(outputs, config.loss, mesh)
    assert off == before
    assert "loss/backward" not in terms
    config.loss.backward_weight = 0.7
    total, terms = changed(outputs, config.loss, mesh)
    scores = np.asarray(scoring.score_levels(query, targets), np.float64) * np.exp(0.5)
    each = [-np.diagonal(log_softmax(level, axis=0)).mean() for level in scores]
    np.testing.assert_allclose(terms["loss/backward"], 0.7 * sum(each), rtol=1e-5)
    np.testing.assert_allclose(total, before + terms["loss/backward"], rtol=1e-6)
    config.loss.backward_weight = -1.0
    with pytest.raises(ValueError, match=r"config.loss.backward_weight must be 0 or more, not -1"):
        config_fields.check_values(config)


def test_a_metric(monkeypatch):
    reciprocal_rank = run(block('"""cmap_jax/evaluation/reciprocal.py'))["reciprocal_rank"]
    with pytest.raises(ValueError, match="'MRR@10' is no metric"):
        dataclasses.replace(PROTOCOLS["shoes"], metrics=("MRR@10",), headline=("MRR@10",))
    monkeypatch.setattr(protocols, "_KINDS", (*protocols._KINDS, "MRR"))
    anchor, lines = "kind, k = split_metric(metric)", block('if kind == "MRR"')
    changed = with_lines(
        outcomes.Outcomes.values, anchor, lines, after=True, reciprocal_rank=reciprocal_rank
    )
    monkeypatch.setattr(outcomes.Outcomes, "values", changed)
    protocol = dataclasses.replace(
        PROTOCOLS["shoes"], metrics=("R@10", "MRR@10"), headline=("MRR@10",)
    )
    ranks = np.array([0.0, 1.0, 3.0, 12.0])
    results = outcomes.Outcomes({"all": 4}, np.arange(4), ranks)
    numbers = outcomes.summarize(protocol, results)
    assert numbers["MRR@10"] == pytest.approx(100 * (1 + 1 / 2 + 1 / 4 + 0) / 4)
    assert numbers["R@10"] == 75.0
    low, high = outcomes.bootstrap_intervals(protocol, results)["MRR@10"]
    assert low < numbers["MRR@10"] < high


def test_a_protocol(tmp_path):
    names = run(block('"""A protocol of one'))
    records = shoes_reader.read(str(shoes(tmp_path)))
    (evaluation,) = records.evaluations["val"]
    changed = names["first_five"](evaluation)
    named = {i for q in evaluation.queries for i in (q.reference, *q.targets)}
    assert set(changed.galleries["all"]) == named < set(evaluation.galleries["all"])
    assert changed.queries == evaluation.queries
    assert changed.protocol.name == "shoes/first-five"
    assert changed.protocol.cutoffs("R") == (1, 5)
    assert changed.conditions()["gallery"] != evaluation.conditions()["gallery"]


def test_a_measurement(tmp_path):
    measure = run(block('"""The median score'))["measure"]
    workdir = write_workdir(tmp_path / "run", "shoes", "shoes")
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for number, file in enumerate(files):
        image(file, number)
    ranks, margins = measure(workdir, files[:2], ["is red", "longer"], files, [3, 4])
    trained = cmap_jax.load(workdir)
    query = trained.compose(files[:2], ["is red", "longer"])
    scores = np.asarray(scoring.score(query, trained.encode_images(files)))
    for row, target in enumerate((3, 4)):
        others = np.delete(scores[row], target)
        assert ranks[row] == (others > scores[row, target]).sum()
        assert margins[row] == pytest.approx(scores[row, target] - others.max())


def test_every_block_is_run():
    """A new block without a test of its own is found here."""
    source = ast.parse(inspect.getsource(inspect.getmodule(test_every_block_is_run)))
    beginnings = [
        node.args[0].value
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "block"
    ]
    unrun = [b for b in BLOCKS if not any(b.startswith(start) for start in beginnings)]
    assert not unrun
