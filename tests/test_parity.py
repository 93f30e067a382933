"""The method against its second assembly, in PyTorch and in NumPy (float64, float32).

float32 gradients of a deep ResNet differ by percents between any two implementations, so gradients
and optimiser steps are compared in float64 alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as nr
import pytest
import torch_reference as tr
import torch_training as tt
from small import VOCABULARY, WITH_HEADS, one_device, small_config
from torch_reference import torch
from torch_weights import relative_differences, to_tree

from cmap_jax import scoring
from cmap_jax.losses import matching_loss, preservation_loss
from cmap_jax.models.cmap import CMAP, TrainingOutputs
from cmap_jax.scoring import PreservationInputs
from cmap_jax.training.objective import objective
from cmap_jax.training.optimizer import make_optimizer, make_schedule
from cmap_jax.training.train_state import TrainState
from cmap_jax.training.train_step import make_train_step

B, STEPS = 4, 3
# Every variant once, and every other choice of the model at least once.
MODELS = [
    *({"variant": variant} for variant in WITH_HEADS),
    {"variant": "cmap", "cross_level": "up"},
    {"variant": "cmap", "cross_level": "none"},
    {"variant": "cmap", "text_encoder": "lstm"},
    {"variant": "cmap", "text_encoder": "lstm", "lstm_pool_padding": True},
    {"variant": "cmap", "depth": 50},
]
# Whole models compile for seconds each: one takes all steps in the fast part, and the others differ
# from it in what `test_all_but_images_in_float64` and `test_feature_maps_in_float64` compare.
WITHOUT_IMAGES = [m for m in MODELS if not {"depth", "cross_level"} & set(m)]
# Three variants have parts of others alone, which the test without images compares.
TRAINED = [m for m in MODELS if m["variant"] not in ("em_only", "text_only", "image_only")]
# Every composer module and every text encoder.
FAST_WITHOUT_IMAGES = [
    *({"variant": variant} for variant in ("cmap", "is_only", "artemis", "late_fusion", "tirg")),
    {"variant": "cmap", "text_encoder": "lstm", "lstm_pool_padding": True},
]


def _slow_but(fast: list, cases: list) -> list:
    """Return the cases as parameters, all but some of them slow."""
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def _name(settings: dict) -> str:
    return "-".join(str(value) for value in settings.values())


def _pair(settings: dict, dtype: str = "float64", width: int = 4):
    """Return the torch model, our config, our model and our variables with the same weights."""
    torch.manual_seed(0)
    names = {
        "cross_level": "image_cross_level",
        "depth": "image_depth",
        "text_encoder": "text_name",
        "lstm_pool_padding": "text_pool_padding",
    }
    ours = {names[k]: v for k, v in settings.items() if k != "variant"}
    config = small_config(settings["variant"], image_width=width, dtype=dtype, **ours)
    model = config.model
    theirs = tr.ReferenceModel(
        **{"depth": 18} | settings,
        vocabulary_size=VOCABULARY,
        width=width,
        embed_dim=model.embed_dim,
        word_dim=model.text.gru.word_dim,
        lstm_hidden=model.text.lstm.hidden,
        lstm_dropout=0.0,
    )
    theirs = theirs.double() if dtype == "float64" else theirs.float()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            for parameter, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                torch.nn.init.uniform_(parameter, low, high)
    ours = CMAP.from_config(config)
    return theirs, config, ours, to_tree(ours, theirs.state_dict())


def _batches(count: int, dtype=torch.float64, size: int = 64, seed: int = 1) -> list[tt.Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        images = torch.randn(2, B, 3, size, size, generator=generator, dtype=dtype)
        lengths = torch.tensor([3, 5, 1, 4])
        tokens = torch.randint(1, VOCABULARY, (B, 6), generator=generator)
        tokens[torch.arange(6) >= lengths[:, None]] = 0
        batches.append(tt.Batch(images[0], images[1], tokens, lengths))
    return batches


def _ours(batch: tt.Batch) -> dict:
    return {
        "reference_image": batch.reference.permute(0, 2, 3, 1).numpy(),
        "target_image": batch.target.permute(0, 2, 3, 1).numpy(),
        "text_tokens": batch.tokens.numpy().astype(np.int32),
        "text_lengths": batch.lengths.numpy().astype(np.int32),
    }


def _start(config, model, variables) -> tuple[TrainState, object]:
    rates = jnp.asarray([1e-3, 5e-4, 2e-4])
    tx = make_optimizer(config, lambda step: rates[step])
    params = jax.tree.map(jnp.asarray, variables["params"])
    stats = jax.tree.map(jnp.asarray, variables.get("batch_stats", {}))
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, stats, tx.init(params), zero)
    return state, jax.jit(
        make_train_step(model, tx, lambda step: rates[step], config, one_device())
    )


def _worst(differences: dict[str, float]) -> tuple[float, str]:
    return max((value, name) for name, value in differences.items())


@pytest.mark.parametrize("settings", _slow_but([{"variant": "cmap"}], TRAINED), ids=_name)
def test_training_in_float64(settings, x64):
    """Loss, gradient of every parameter, and all variables after three steps: 1e-6 per tensor."""
    theirs, config, model, variables = _pair(settings)
    batches = _batches(STEPS)
    record = tt.train_steps(theirs, batches, learning_rates=[1e-3, 5e-4, 2e-4], frozen=False)

    state, step = _start(config, model, variables)
    losses = []
    for number, batch in enumerate(batches):
        state, metrics = step(state, _ours(batch))
        losses.append(float(metrics["loss/total"]))
        if number == 0:
            # AdamW's first moment after one step is (1 - b1) times the gradient.
            moment = state.opt_state.inner_states["trained"].inner_state[0].mu
            gradients = jax.tree.map(lambda m: m / (1 - config.optimizer.b1), moment)
            expected = to_tree(model, record.first_gradients)["params"]
            worst = _worst(relative_differences(gradients, expected))
            assert worst[0] < 1e-6, worst
    np.testing.assert_allclose(losses, record.losses, rtol=1e-6)
    final = to_tree(model, record.state_dict)
    worst = _worst(relative_differences(state.params, final["params"]))
    assert worst[0] < 1e-6, worst
    worst = _worst(relative_differences(state.batch_stats, final["batch_stats"]))
    assert worst[0] < 1e-6, worst


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_frozen_stage_in_float64(norm, x64):
    """Stage 1: frozen parts stay; batch-norm is as released (docs/method.md, section 3)."""
    theirs, config, _, variables = _pair({"variant": "cmap"})
    config.model.image.frozen = config.model.text.frozen = True
    config.model.image.resnet.frozen_batch_norm = norm
    config.optimizer.clip_norm = 0.5
    model = CMAP.from_config(config)
    batches = _batches(STEPS)
    record = tt.train_steps(
        theirs,
        batches,
        learning_rates=[1e-3, 5e-4, 2e-4],
        frozen=True,
        frozen_batch_norm=norm,
        clip=0.5,
    )
    state, step = _start(config, model, variables)
    for batch, expected in zip(batches, record.losses, strict=True):
        state, metrics = step(state, _ours(batch))
        np.testing.assert_allclose(float(metrics["loss/total"]), expected, rtol=1e-6)
    final = to_tree(model, record.state_dict)
    assert _worst(relative_differences(state.params, final["params"]))[0] < 1e-6
    assert _worst(relative_differences(state.batch_stats, final["batch_stats"]))[0] < 1e-6
    frozen = state.params["image_encoder"]["backbone"]
    assert _worst(
        relative_differences(frozen, variables["params"]["image_encoder"]["backbone"])
    ) < (
        1e-15,
        "",
    )
    same = np.array_equal(
        state.batch_stats["image_encoder"]["backbone"]["stem_norm"]["mean"],
        variables["batch_stats"]["image_encoder"]["backbone"]["stem_norm"]["mean"],
    )
    assert same == (norm == "running")


@pytest.mark.slow
def test_two_stages_in_float64(x64):
    """Two epochs of each stage under the stepped schedule: every loss, and all variables."""
    theirs, config, _, variables = _pair({"variant": "cmap"})
    config.train.epochs, steps_per_epoch = 2, 3
    config.optimizer.halve_every = 1  # two epochs show it
    schedule = make_schedule(config, steps_per_epoch)
    rates = [5e-4] * steps_per_epoch + [2.5e-4] * steps_per_epoch
    for stage, frozen in enumerate((True, False)):
        config.model.image.frozen = config.model.text.frozen = frozen
        model = CMAP.from_config(config)
        batches = _batches(2 * steps_per_epoch, seed=stage)
        record = tt.train_steps(theirs, batches, learning_rates=rates, frozen=frozen)

        # The second stage: the first one's variables, a fresh optimiser and schedule.
        tx = make_optimizer(config, schedule)
        params, stats = (jax.tree.map(jnp.asarray, variables[c]) for c in ("params", "batch_stats"))
        zero = jnp.zeros((), jnp.int32)
        state = TrainState(zero, params, stats, tx.init(params), zero)
        step = jax.jit(make_train_step(model, tx, schedule, config, one_device()))
        for batch, expected in zip(batches, record.losses, strict=True):
            state, metrics = step(state, _ours(batch))
            np.testing.assert_allclose(float(metrics["loss/total"]), expected, rtol=1e-6)
        final = to_tree(model, record.state_dict)
        for collection in ("params", "batch_stats"):
            worst = _worst(relative_differences(state.variables[collection], final[collection]))
            assert worst[0] < 1e-6, (stage, worst)
        for path in (("image_encoder", "backbone"), ("text_encoder", "word_embedding")):
            before, after = (v["params"][path[0]][path[1]] for v in (variables, state.variables))
            same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), before, after)
            assert all(jax.tree.leaves(same)) == frozen
        variables = jax.device_get(state.variables)


@pytest.mark.parametrize("settings", _slow_but(FAST_WITHOUT_IMAGES, WITHOUT_IMAGES), ids=_name)
def test_all_but_images_in_float64(settings, x64):
    """Loss and all gradients in training mode, from pyramids and tokens on: 1e-6 per tensor."""
    theirs, config, model, variables = _pair(settings)
    theirs.train()
    generator = torch.Generator().manual_seed(2)
    shape = (2, len(model.levels), B, config.model.embed_dim)
    normal = tr.l2(torch.randn(shape, generator=generator, dtype=torch.float64))
    pyramids = [x.requires_grad_() for x in normal.unbind()]
    (batch,) = _batches(1, size=32)
    text = None
    if settings["variant"] != "image_only":
        text = theirs.encode_text(batch.tokens, batch.lengths)
    total = tt.total_loss(theirs, pyramids[0], text, pyramids[1], tt.Objective()).total
    total.backward()

    def loss(params, reference, targets):
        apply = functools.partial(
            model.apply, {**variables, "params": params}, train=True, mutable=["batch_stats"]
        )
        tokens = batch.tokens.numpy().astype(np.int32), batch.lengths.numpy().astype(np.int32)
        text, _ = apply(*tokens, method="encode_text", rngs={"dropout": jax.random.key(0)})
        query, _ = apply(reference, text, method="compose")
        outputs = TrainingOutputs(query, targets, params["logit_scale"])
        return objective(outputs, config.loss, one_device())[0]

    ours, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
        variables["params"], *(x.detach().numpy() for x in pyramids)
    )
    np.testing.assert_allclose(ours, total.item(), rtol=1e-9)

    def gradient(x):
        return torch.zeros_like(x) if x.grad is None else x.grad

    expected = {name: gradient(p) for name, p in theirs.named_parameters()}
    expected = {
        "params": to_tree(model, expected)["params"],
        "pyramids": [gradient(x).numpy() for x in pyramids],
    }
    worst = _worst(relative_differences(gradients[0], expected["params"]))
    assert worst[0] < 1e-6, worst
    for a, b in zip(gradients[1:], expected["pyramids"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("settings", MODELS, ids=_name)
def test_forward(settings):
    """Embeddings, scores and losses in evaluation mode."""
    _compare_forward(settings, "float32", 1e-4)


@pytest.mark.slow
def test_forward_in_float64(x64):
    """Other models are compared so in training mode."""
    _compare_forward({"variant": "cmap"}, "float64", 1e-6)


def _compare_forward(settings, dtype, tolerance):
    theirs, config, model, variables = _pair(settings, dtype, width=8)
    theirs.eval()
    (batch,) = _batches(1, getattr(torch, dtype))
    ours = _ours(batch)
    with torch.no_grad():
        reference, target = (
            theirs.encode_images(batch.reference),
            theirs.encode_images(batch.target),
        )
        text = None
        if settings["variant"] != "image_only":
            text = theirs.encode_text(batch.tokens, batch.lengths)
        branches = theirs.scores_per_branch(reference, text, target)
        total = tt.total_loss(theirs, reference, text, target, tt.Objective())

    outputs = jax.jit(model.apply)(variables, **ours)
    close = {"rtol": tolerance, "atol": tolerance}
    np.testing.assert_allclose(outputs.targets, target, **close)
    if text is not None:
        encoded = model.apply(
            variables, ours["text_tokens"], ours["text_lengths"], method="encode_text"
        )
        np.testing.assert_allclose(encoded, text, **close)
    scores = scoring.score_branches(outputs.query, outputs.targets)
    np.testing.assert_allclose(scores, branches, **close)
    loss, terms = objective(outputs, config.loss, one_device())
    np.testing.assert_allclose(loss, total.total, rtol=tolerance)
    assert ("loss/preservation" in terms) == (settings["variant"] in ("cmap", "is_only"))
    ranks = np.argsort(-scoring.score(outputs.query, outputs.targets), axis=1)
    np.testing.assert_array_equal(ranks, np.argsort(-branches.sum((0, 1)).numpy(), axis=1))


def test_factorised_score_in_float64(x64):
    """The factorised score is the B x N x D definition, to 1e-6, and ranks alike."""
    rng = np.random.default_rng(0)
    queries, images, width = 7, 50, 32
    gallery = nr.l2(rng.normal(size=(1, images, width)))
    modification = nr.l2(rng.normal(size=(queries, width)))
    a_m, a_p = (np.exp(rng.normal(size=(queries, width)) * 3) for _ in range(2))
    a_m, a_p = a_m / a_m.sum(-1, keepdims=True), a_p / a_p.sum(-1, keepdims=True)
    reference = nr.l2(rng.normal(size=(queries, width)))
    a_m[0], a_p[1] = 0, 0  # an attention of nothing
    gallery[0, 3] = 0  # an image without an embedding
    query = scoring.ComposedQuery(
        (
            scoring.Branch(jnp.asarray((modification * a_m)[None]), jnp.asarray(a_m[None])),
            scoring.Branch(
                jnp.asarray((nr.l2(a_p * reference) * a_p)[None]), jnp.asarray(a_p[None])
            ),
        ),
        branch_names=("modified", "preserved"),
        levels=("high",),
    )
    ours = np.asarray(scoring.score_branches(query, jnp.asarray(gallery)))[:, 0]
    expected = np.stack(
        [
            nr.modified_scores(modification, a_m, gallery[0]),
            nr.preserved_scores(a_p, reference, gallery[0]),
        ]
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(np.argsort(-ours.sum(0)), np.argsort(-expected.sum(0)))


@pytest.mark.slow
def test_feature_maps_in_float64(x64):
    """C3, C4, C5 of each depth, and P5, P4, P3 of each direction; sides that differ."""
    from cmap_jax.models.encoders.resnet import ResNet
    from cmap_jax.models.image_encoder import CrossLevel

    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    nhwc = jnp.asarray(images.permute(0, 2, 3, 1).numpy())
    for depth in (18, 34, 50):
        for direction in ("down", "up", "none"):
            theirs, _, _, variables = _pair(
                {"variant": "cmap", "depth": depth, "cross_level": direction}
            )
            theirs.eval()
            part = {c: v["image_encoder"] for c, v in variables.items()}
            backbone = {c: v["backbone"] for c, v in part.items()}
            resnet = ResNet(depth, 4, dtype=jnp.float64)
            maps = resnet.apply(backbone, nhwc, train=False).values()
            params = {"params": part["params"].get("interaction", {})}
            pyramid = CrossLevel(direction, jnp.float64).apply(params, *maps)
            with torch.no_grad():
                expected = (
                    *theirs.img_enc.cnn(images)[::-1],
                    *theirs.img_enc.feature_pyramid(images),
                )
            for ours, other in zip((*maps, *pyramid), expected, strict=True):
                other = other.permute(0, 2, 3, 1).numpy()
                assert np.linalg.norm(ours - other) < 1e-6 * np.linalg.norm(other)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_losses_against_numpy(alpha, reduction, x64):
    rng = np.random.default_rng(0)
    levels, width = 3, 16
    scores = rng.normal(size=(levels, B, B))
    ours = matching_loss(jnp.asarray(scores), jnp.asarray(2.0), (1.0, 0.5, 2.0))
    theirs = sum(w * nr.matching_loss(s, 2.0) for w, s in zip((1, 0.5, 2), scores, strict=True))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)

    text, transformed = (nr.l2(rng.normal(size=(B, width))) for _ in range(2))
    attention = nr.softmax(rng.normal(size=(B, width)))
    targets = nr.l2(rng.normal(size=(levels, B, width)))
    margins, weights = (0.6, 0.4, 0.3), (1.0, 1.0, 0.5)
    ours = preservation_loss(
        PreservationInputs(*map(jnp.asarray, (text, transformed, attention))),
        jnp.asarray(targets),
        margins=margins,
        level_weights=weights,
        alpha=alpha,
        reduction=reduction,
    )
    theirs = sum(
        w
        * nr.preservation_loss(
            text, transformed, attention, t, margin=m, alpha=alpha, reduction=reduction
        )
        for w, m, t in zip(weights, margins, targets, strict=True)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stepped_schedule_as_specified(dtype):
    """Halving is exact: the rates of 100 epochs, at their first and last steps, to the bit."""
    config = small_config()
    config.train.epochs = 100
    with jax.enable_x64(dtype == "float64"):
        steps = jnp.asarray([step for epoch in range(100) for step in (3 * epoch, 3 * epoch + 2)])
        rates = jax.jit(jax.vmap(make_schedule(config, steps_per_epoch=3)))(steps)
        expected = [tt.stepped_learning_rate(epoch) for epoch in range(100) for _ in range(2)]
        np.testing.assert_array_equal(rates, np.asarray(expected, dtype))
