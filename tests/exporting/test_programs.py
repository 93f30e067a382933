"""The exported programs: deserialised and run, equal to the model, for any number of rows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from small import small_config, small_trained

from cmap_jax.exporting.programs import PLATFORMS, export_programs
from cmap_jax.models.cmap import CMAP
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.scoring import Branch, ComposedQuery, score
from cmap_jax.trained import Trained
from cmap_jax.workdir.description import Description
from cmap_jax.workdir.tensors import by_path


def _shapes_alone(variant: str = "cmap", **model) -> Trained:
    """A model whose variables are shapes, which is all that an export reads of them."""
    config = small_config(variant, **model)
    module, inputs = CMAP.from_config(config), CMAP.example_inputs(config.data.crop)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), **inputs))
    preprocessing = ImagePreprocessing(resize=config.data.resize, crop=config.data.crop)
    vocabulary = Vocabulary.build(["is red longer has a no"])
    return Trained(Description(config, vocabulary, preprocessing, (), {}), module, variables, 0)


def _outputs(program: export.Exported) -> list[str]:
    return [str(x) for x in program.out_avals]


@pytest.mark.slow
def test_programs_compute_as_the_model_does():
    trained = small_trained(image_name="cells")
    run = {
        name: export.deserialize(bytes(program.serialize())).call
        for name, program in export_programs(trained).items()
    }
    assert list(run) == ["encode_images", "encode_text", "compose", "score"]
    weights, rng = by_path(trained.variables), np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    tokens, lengths = np.array([[1, 5, 2, 3], [4, 2, 0, 0]], np.int32), np.array([4, 2], np.int32)

    def apply(*arrays, method):
        return trained.model.apply(trained.variables, *arrays, method=method)

    gallery = run["encode_images"](weights, pixels)
    np.testing.assert_allclose(gallery, apply(pixels, method="encode_images"), atol=1e-5)
    text = run["encode_text"](weights, tokens, lengths)
    np.testing.assert_allclose(text, apply(tokens, lengths, method="encode_text"), atol=1e-5)
    query = run["compose"](weights, gallery[:, :2], text)
    expected = apply(gallery[:, :2], text, method="compose")
    for branch, other in zip(query, expected.branches, strict=True):
        np.testing.assert_allclose(branch["numerator"], other.numerator, atol=1e-5)
        np.testing.assert_allclose(branch["weight"], other.weight, atol=1e-5)
    scores = run["score"](query, gallery)
    np.testing.assert_allclose(scores, score(expected, gallery), atol=1e-5)
    # Other numbers of rows and a narrower text: the same numbers.
    one = run["encode_text"](weights, tokens[1:, :2], lengths[1:])
    np.testing.assert_allclose(one, text[1:], atol=1e-5)
    query = run["compose"](weights, gallery[:, 1:2], one)
    np.testing.assert_allclose(run["score"](query, gallery[:, :2]), scores[1:, :2], atol=1e-5)


def test_programs_are_for_all_platforms_and_any_number_of_rows():
    programs = export_programs(_shapes_alone("late_fusion", image_name="cells"))
    assert {program.platforms for program in programs.values()} == {PLATFORMS}
    assert PLATFORMS == ("cpu", "cuda", "tpu")
    assert _outputs(programs["encode_images"]) == ["float32[3,b,8]"]
    assert _outputs(programs["encode_text"]) == ["float32[b,8]"]
    assert _outputs(programs["score"]) == ["float32[b,n]"]


def test_a_method_of_features_has_a_program_for_each_form_of_query():
    """Its references are no gallery, and an image alone is a query."""
    settings = {"image_name": "vectors", "text_name": "bag"}
    programs = export_programs(_shapes_alone("magiclens", **settings))
    assert list(programs) == [
        *("encode_images", "encode_references", "encode_text"),
        *("compose", "compose_image", "score"),
    ]
    assert _outputs(programs["compose_image"]) == ["float32[1,b,8]"]


def test_a_method_that_reads_no_text_has_no_program_for_it():
    programs = export_programs(_shapes_alone("image_only", image_name="cells"))
    assert list(programs) == ["encode_images", "compose_image", "score"]


class ByCount(nn.Module):
    """A composer whose code depends on the number of queries, which no program for any can."""

    levels: tuple[str, ...] = ("high",)
    dtype: jnp.dtype = jnp.float32

    def __call__(self, pyramid, text, *, train):
        factor = 2 if pyramid.shape[1] > 3 else 1
        return ComposedQuery((Branch(factor * pyramid),), None, ("n",), self.levels)


def test_a_method_that_depends_on_the_number_of_queries_is_refused():
    trained = _shapes_alone(f"{__name__}:ByCount", image_name="cells")
    with pytest.raises(ValueError, match=r"the program compose cannot .*--no-programs"):
        export_programs(trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"image_name": "efficientnet_lite0"},
        {"text_name": "lstm"},
        {"variant": "tirg"},
        {"variant": "artemis"},
        {"variant": "sum", "image_name": "clip"},
        {"variant": "sum", "image_name": "siglip"},
        {"variant": "magiclens", "image_name": "clip"},
        {"dtype": "bfloat16"},
        {"remat": "blocks"},
    ],
)
def test_every_encoder_can_be_exported(model):
    trained = _shapes_alone(**model)
    levels, width = len(trained.model.levels), trained.config.model.embed_dim
    programs = export_programs(trained)
    assert _outputs(programs["encode_images"]) == [f"float32[{levels},b,{width}]"]
    assert _outputs(programs["encode_text"]) == [f"float32[b,{width}]"]
    assert _outputs(programs["score"]) == ["float32[b,n]"]
