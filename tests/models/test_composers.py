"""Composers of other packages, and the contract that holds for all of them."""

import re
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import EMBED, init, random_batch, small_config

from cmap_jax import scoring, sharding
from cmap_jax.cli import describe
from cmap_jax.models import composers
from cmap_jax.models.cmap import CMAP
from cmap_jax.models.composers import check_query, find_variant
from cmap_jax.models.image_encoder import LEVELS
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.scoring import Branch, ComposedQuery, PreservationInputs
from cmap_jax.trained import load, write_model
from cmap_jax.training.gradients import make_gradient_function
from cmap_jax.workdir.description import Description


class _NotAModule:
    pass


class _WithoutDtype(nn.Module):
    def __call__(self, pyramid, text, *, train):
        raise NotImplementedError


class _NeedsMore(_WithoutDtype):
    rate: float
    dtype: jax.typing.DTypeLike = jnp.float32


class _CalledOtherwise(nn.Module):
    dtype: jax.typing.DTypeLike = jnp.float32

    def __call__(self, pyramid, text):
        raise NotImplementedError


class _OtherLevels(_WithoutDtype):
    levels: tuple[str, ...] = ("low",)
    dtype: jax.typing.DTypeLike = jnp.float32


class _LeavesTheBatchOut(nn.Module):
    levels: tuple[str, ...] = ("high",)
    reads_text = False
    dtype: jax.typing.DTypeLike = jnp.float32

    def __call__(self, pyramid, text, *, train):
        return ComposedQuery((Branch(pyramid[0]),), None, ("all",), self.levels)


@pytest.fixture
def worked_example(tmp_path, monkeypatch):
    """The example of the module's docstring, importable; returns its name as a variant."""
    code = re.search(r"my_module\.py``:\n\n(.*?)\n\nIt is chosen", composers.__doc__, re.DOTALL)[1]
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_module.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_package.my_module:GatedSum"
    for name in ("my_package", "my_package.my_module"):
        sys.modules.pop(name, None)


def test_the_worked_example_composes(worked_example):
    """Its parameters are the model's; evaluation is deterministic, training draws by the key."""
    model, variables = init(small_config(worked_example))
    assert "Dense_0" in variables["params"]["composer"]
    assert model.levels == LEVELS
    pyramid = jax.random.normal(jax.random.key(0), (3, 16, EMBED))
    text = jax.random.normal(jax.random.key(1), (16, EMBED))

    def compose(train, key=None):
        rngs = None if key is None else {"dropout": jax.random.key(key)}
        query = model.apply(
            variables, pyramid, text, train=train, rngs=rngs, method="compose", mutable=False
        )
        assert scoring.score(query, pyramid).shape == (16, 16)
        return np.asarray(query.branches[0].numerator)

    np.testing.assert_array_equal(compose(False), compose(False))
    np.testing.assert_array_equal(compose(True, 1), compose(True, 1))
    assert (compose(True, 1) != compose(True, 2)).any()
    assert (compose(True, 1) != compose(False)).any()


@pytest.mark.slow
def test_dropout_in_a_training_step(worked_example, monkeypatch):
    """The same key gives the same step: whole, in micro-batches and on a mesh with fsdp."""
    monkeypatch.setattr(sharding, "_LARGE", 8)  # the model is so small that nothing would be split
    config = small_config(worked_example, image_name="cells", image_frozen=True)
    config.data.crop = 32
    model, variables = init(config)
    batch = random_batch(8, size=32)

    def step(devices=1, fsdp=1, micro_batch_size=None):
        config.train.micro_batch_size = micro_batch_size
        mesh = sharding.make_mesh(jax.devices()[:devices], fsdp=fsdp)
        function = jax.jit(make_gradient_function(model, config, mesh))
        placed = jax.device_put(variables, sharding.by_size(variables, mesh))
        inputs = sharding.place_batch(batch, mesh)

        def run(key):
            arguments = placed["params"], placed["batch_stats"], inputs, jax.random.key(key)
            gradients, terms, _ = function(*arguments)
            leaves = jax.tree.leaves(gradients)
            return np.concatenate([np.ravel(terms["loss/total"]), *map(np.ravel, leaves)])

        return run

    whole = step()
    np.testing.assert_array_equal(whole(1), whole(1))
    tolerance = 1e-4 * np.abs(whole(1)).max()
    assert np.abs(whole(1) - whole(2)).max() > 100 * tolerance
    in_parts = step(devices=4, fsdp=2, micro_batch_size=4)
    for key in (1, 2):
        np.testing.assert_allclose(in_parts(key), whole(key), atol=tolerance)


def test_a_workdir_brings_its_composer(worked_example, tmp_path, monkeypatch):
    """By its name: `load` imports it, evaluates without dropout, and says where it is gone."""
    vocabulary = Vocabulary.build(["is red"])
    config = small_config(worked_example, image_name="cells", text_vocabulary_size=len(vocabulary))
    preprocessing = ImagePreprocessing(resize=config.data.resize, crop=config.data.crop)
    about = Description(
        config=config,
        tokenizer=vocabulary,
        preprocessing=preprocessing,
        protocols=(PROTOCOLS["cirr/val"],),
        facts={},
    )
    write_model(tmp_path / "run", about, *init(config))
    trained = load(tmp_path / "run")
    picture = np.zeros((64, 64, 3), np.uint8)
    once, again = (trained.compose([picture], ["is red"]) for _ in range(2))
    assert once.branch_names == ("gated",)
    np.testing.assert_array_equal(once.branches[0].numerator, again.branches[0].numerator)
    monkeypatch.setattr(describe, "_step", lambda *_: "")  # compiled for half a minute
    assert f"{worked_example}: levels high, mid, low" in describe.describe(config)
    assert "composer/Dense_0/kernel" in describe.describe(config)
    for name in ("my_package", "my_package.my_module"):
        del sys.modules[name]  # monkeypatch would put it back, for the tests that follow
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    with pytest.raises(ValueError, match="there is no module my_package; install it"):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("cnap", r"must be one of cmap, .*my_package\.my_module:MyComposer; got 'cnap'"),
        ("my_package.my_module.MyComposer", "must be one of cmap"),
        ("no_such_package.part:Composer", "there is no module no_such_package; install it"),
        ("cmap_jax.models.no_such:Composer", r"there is no module cmap_jax\.models\.no_such;"),
        ("cmap_jax.models.composers:Tirg", "has no Tirg; did you mean .*:TIRG?"),
        ("cmap_jax.models.composers:LEVELS", "which is no class"),
        (f"{__name__}:_NotAModule", "must be a subclass of flax.linen.Module"),
        (f"{__name__}:_WithoutDtype", "must be built with dtype= alone"),
        (f"{__name__}:_NeedsMore", "every other field having a default .*'rate'"),
        (f"{__name__}:_CalledOtherwise", r"called as composer\(pyramid, text, train=...\)"),
        (f"{__name__}:_OtherLevels", r"its levels must be .*, not \('low',\)"),
    ],
)
def test_what_is_no_composer_is_refused_in_one_line(variant, message):
    with pytest.raises(ValueError, match=message) as error:
        CMAP.from_config(small_config(variant))
    assert "config.model.variant" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_package_that_a_composer_s_module_needs_is_named(tmp_path, monkeypatch):
    (tmp_path / "needs_another.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        find_variant("needs_another:Composer")


def test_a_wrong_query_is_refused_when_the_model_is_built():
    """Before any batch: where the parameters are made, or only their shapes."""
    config = small_config(f"{__name__}:_LeavesTheBatchOut")
    model = CMAP.from_config(config)
    with pytest.raises(ValueError, match=r"_LeavesTheBatchOut must return a ComposedQuery of"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), **CMAP.example_inputs(64)))


_PYRAMID = jnp.zeros((3, 4, 8))
_GOOD = ComposedQuery(
    (Branch(_PYRAMID, _PYRAMID[:1]), Branch(_PYRAMID[:1])),
    PreservationInputs(_PYRAMID[0], None, _PYRAMID[0]),
    ("a", "b"),
    LEVELS,
)


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        (None, "returned None"),
        (_PYRAMID, "returned a "),
        (_GOOD.replace(branches=()), "its branches are an empty tuple, not"),
        (_GOOD.replace(branches=list(_GOOD.branches)), "its branches are a list, not"),
        (_GOOD.replace(branches=(_PYRAMID, _PYRAMID)), r"branches\[0\] is a "),
        (_GOOD.replace(branches=(Branch(_PYRAMID[0]),)), r"branches\[0\].numerator is \[4, 8\]"),
        (_GOOD.replace(branches=(Branch(_PYRAMID[:2]),)), r"numerator is \[2, 4, 8\]"),
        (_GOOD.replace(branches=(Branch(_PYRAMID[:, :1]),)), r"numerator is \[3, 1, 8\]"),
        (_GOOD.replace(branches=(Branch(None),)), r"branches\[0\].numerator is None"),
        (_GOOD.replace(branches=(Branch(_PYRAMID, _PYRAMID[0]),)), r"weight is \[4, 8\]"),
        (_GOOD.replace(branches=(Branch(_PYRAMID.astype(jnp.bfloat16)),)), "numerator is bfloat16"),
        (_GOOD.replace(branch_names=("a",)), r"2 branches have the branch_names \('a',\)"),
        (_GOOD.replace(branch_names=("a", "a")), "branch_names"),
        (_GOOD.replace(branch_names=()), r"branch_names \(\)"),
        (_GOOD.replace(levels=("high",)), r"its levels are \('high',\)"),
        (_GOOD.replace(preservation=_PYRAMID), "its preservation is a "),
        (
            _GOOD.replace(preservation=PreservationInputs(_PYRAMID[0], None, None)),
            "preservation.attention is None",
        ),
        (
            _GOOD.replace(preservation=PreservationInputs(_PYRAMID, None, _PYRAMID[0])),
            r"preservation.text is \[3, 4, 8\]",
        ),
    ],
)
def test_what_a_composer_must_return(query, fault):
    composer = _LeavesTheBatchOut()
    check_query(_GOOD, _PYRAMID, LEVELS, composer)
    with pytest.raises(ValueError, match=f"_LeavesTheBatchOut must return .* but .*{fault}"):
        check_query(query, _PYRAMID, LEVELS, composer)
