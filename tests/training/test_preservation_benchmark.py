"""The steps of `benchmarks/preservation.py`, in which settings are arrays, are the library's."""

import pathlib
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small import one_device, small_config

from cmap_jax.models.cmap import CMAP
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.train_state import create_train_state
from cmap_jax.training.train_step import make_train_step
from input_pipeline.images.augmentation import cut

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))

pytestmark = pytest.mark.endurance
STEPS, BATCH, IMAGES, TEXTS = 6, 8, 20, 5


def _data():
    """Random pictures and texts in the form of `preservation_data.load`."""
    from preservation_data import Data

    rng = np.random.default_rng(0)
    config = small_config(image_name="cells")
    config.train.epochs = 3
    config.optimizer.schedule, config.optimizer.warmup_steps = "cosine", 2
    pictures = rng.integers(0, 256, (IMAGES, 72, 72, 3)).astype(np.uint8)
    crops = rng.integers(0, [9, 9, 2], (STEPS, BATCH, 2, 3)).astype(np.uint8)
    arrays = {
        "images_0": rng.integers(0, IMAGES, (STEPS, BATCH, 2)).astype(np.uint16),
        "crops_0": crops,
        "texts_0": rng.integers(0, TEXTS, (STEPS, BATCH)).astype(np.uint16),
    }
    query = SimpleNamespace(captions=("is red",), reference=1, targets=(2,))
    gallery = {"all": tuple(range(IMAGES))}
    split = SimpleNamespace(
        evaluations=(SimpleNamespace(galleries=gallery, queries=[query] * 4),),
        pictures=cut(pictures, np.arange(IMAGES), np.full((IMAGES, 3), [4, 4, 0]), 64),
        positions={image: image for image in range(IMAGES)},
        encode=lambda texts: (np.ones((len(texts), 6), np.int32), np.full(len(texts), 3, np.int32)),
    )
    tokens = rng.integers(1, 11, (TEXTS, 6)).astype(np.int32)
    lengths = rng.integers(1, 7, TEXTS).astype(np.int32)
    return Data(config, pictures, tokens, lengths, 2, split, arrays)


def _by_the_library(data, fields):
    """Parameters and mean losses after all steps of `make_train_step`."""
    config = data.config.copy_and_resolve_references()
    config.loss.update(fields)
    model, schedule = CMAP.from_config(config), make_schedule(config, data.steps_per_epoch)
    optimizer = make_optimizer(config, schedule)
    state = jax.jit(lambda: create_train_state(model, optimizer, 0, config.data.crop))()
    step = jax.jit(make_train_step(model, optimizer, schedule, config, one_device()))
    losses = []
    batches = data.batches(0)
    for images, crops, texts in zip(*batches.values(), strict=True):
        reference, target = (
            cut(data.pictures, images[:, i].astype(int), crops[:, i].astype(int), config.data.crop)
            for i in range(2)
        )
        batch = {"reference_image": reference, "target_image": target}
        batch |= {"text_tokens": data.tokens[texts], "text_lengths": data.lengths[texts]}
        state, metrics = step(state, batch)
        others = [metrics.get(f"loss/{name}", 0.0) for name in ("preservation", "entropy")]
        losses.append([metrics["loss/matching"], sum(others)])
    return state.params, np.mean(losses, axis=0)


def test_the_steps_are_the_library_s(monkeypatch):
    import preservation_training
    from preservation_training import Setting, Trainer

    monkeypatch.setattr(preservation_training.sharding, "make_mesh", lambda **_: one_device())
    data, states = _data(), []
    trainer = Trainer(data, "cmap", longest=2 * STEPS, chunk=STEPS)
    monkeypatch.setattr(trainer, "_evaluator", lambda *_: SimpleNamespace(protocols={}))
    monkeypatch.setattr(trainer, "_measure", lambda variables: {})
    train = trainer._train

    def recorded(*arguments):
        state, point = train(*arguments)
        states.append(jax.tree.map(np.asarray, state.params))
        return state, point

    monkeypatch.setattr(trainer, "_train", recorded)
    mended = {
        "preservation_reversal": "maximum",
        "preservation_moves_text": False,
        "preservation_weights": (0.5, 0.5, 0.25),
        "margins": (0.3, 0.2, 0.15),
        "alpha": 0.25,
        "entropy_floor": 0.99,
        "entropy_weight": 2.0,
    }
    late = {"preservation_start_steps": 3, "preservation_ramp_steps": 2}
    for setting, fields in (
        (Setting(), {}),
        (Setting(weight=0), {"preservation_weights": (0.0, 0.0, 0.0)}),
        (
            Setting(
                reversal="maximum",
                moves_text=False,
                weight=0.5,
                margin=0.5,
                entropy_floor=0.99,
                entropy_weight=2.0,
                alpha=0.25,
            ),
            mended,
        ),
        (
            Setting(start=0.5, ramp=1 / 3, reversal="clipped"),
            late | {"preservation_reversal": "clipped"},
        ),
    ):
        result = trainer.run(setting, 0)
        params, losses = _by_the_library(data, fields)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), states[-1], params)
        point = result["curve"][0]
        np.testing.assert_allclose([point["matching"], point["preservation"]], losses, rtol=1e-5)
        assert result["steps"] == STEPS
