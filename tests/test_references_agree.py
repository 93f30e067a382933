"""The two oracles, PyTorch and NumPy, against each other in float64."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy_reference as nr
import optional
import pytest
import torch_reference as tr
import torch_training as tt
from torch_reference import torch

B, N, D, WORDS, VOCABULARY = 4, 5, 8, 6, 11
CLOSE = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)


def small_model(variant: str = "cmap", seed: int = 0, **kwargs) -> tr.ReferenceModel:
    """A tiny float64 model with batch-norm away from its initial values."""
    torch.manual_seed(seed)
    settings = {
        "depth": 18,
        "width": 4,
        "embed_dim": D,
        "word_dim": WORDS,
        "vocabulary_size": VOCABULARY,
        "lstm_hidden": 7,
        "lstm_dropout": 0.0,
    }
    model = tr.ReferenceModel(variant=variant, **(settings | kwargs)).double()
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def small_batch(seed: int = 0, lengths: tuple[int, ...] = (3, 5, 1, 4)) -> tt.Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, B, 3, 64, 64, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, VOCABULARY, (B, 6), generator=generator)
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    return tt.Batch(images[0], images[1], tokens, torch.tensor(lengths))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def arrays(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def recurrent(weights: Mapping[str, np.ndarray], suffix: str = "") -> nr.Recurrent:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return nr.Recurrent(*(weights[name + suffix] for name in names))


# ---------------------------------------------------------------------------------- elementary


def test_l2_and_its_gradient_at_zero():
    x = normal(3, D)
    x[1] = 0
    x[2] *= 1e-14
    CLOSE(tr.l2(torch.tensor(x)).numpy(), nr.l2(x), rtol=1e-12, atol=0)
    leaf = torch.tensor(x, requires_grad=True)
    tr.l2(leaf).sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert (leaf.grad[1] == 0).all()
    assert (leaf.grad[0] != 0).all()


def test_gem():
    x = normal(2, 3, 4, 5)
    x[0, 0] = -1  # all below the floor
    CLOSE(tr.gem(torch.tensor(x)).numpy(), nr.gem(x), atol=1e-15)
    np.testing.assert_allclose(nr.gem(x)[0, 0], 1e-6)


@pytest.mark.parametrize("shape", [(2, 4), (6, 2)])
def test_resize_by_two(shape):
    x = normal(2, 3, *shape)
    smaller = torch.zeros(1, 1, shape[0] // 2, shape[1] // 2)
    larger = torch.zeros(1, 1, shape[0] * 2, shape[1] * 2)
    CLOSE(tr.resize_to(torch.tensor(x), smaller).numpy(), nr.bilinear_down2(x))
    CLOSE(tr.resize_to(torch.tensor(x), larger).numpy(), nr.bilinear_up2(x))


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2, 4)])
def test_batch_norm(shape):
    x = normal(*shape)
    module = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(3).double()
    torch.nn.init.uniform_(module.weight)
    torch.nn.init.uniform_(module.bias)
    before = {name: value.copy() for name, value in arrays(module).items()}
    parameters = [before[key] for key in ("weight", "bias", "running_mean", "running_var")]
    expected = nr.batch_norm_train(x, *parameters)
    CLOSE(module(torch.tensor(x)).detach().numpy(), expected.output)
    CLOSE(module.running_mean.numpy(), expected.running_mean)
    CLOSE(module.running_var.numpy(), expected.running_var)
    module.eval()
    by_running = nr.batch_norm_eval(x, *parameters[:2], *expected[1:])
    CLOSE(module(torch.tensor(x)).detach().numpy(), by_running)


# -------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("depth", "parameters", "channels"),
    [
        (18, 11_176_512, (128, 256, 512)),
        (34, 21_284_672, (128, 256, 512)),
        (50, 23_508_032, (512, 1024, 2048)),
    ],
)
def test_resnet_has_the_published_size(depth, parameters, channels):
    with torch.device("meta"):
        resnet = tr.ResNet(depth)
        maps = resnet(torch.zeros(1, 3, 224, 224))
    assert sum(p.numel() for p in resnet.parameters()) == parameters
    assert resnet.channels == channels
    assert [tuple(c.shape[1:]) for c in maps] == [
        (channels[0], 28, 28),
        (channels[1], 14, 14),
        (channels[2], 7, 7),
    ]


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("cross_level", ["down", "up", "none"])
def test_image_encoder(depth, cross_level):
    encoder = small_model(depth=depth, cross_level=cross_level).img_enc.eval()
    images = normal(2, 3, 32, 64)
    with torch.no_grad():
        maps = encoder.cnn(torch.tensor(images))
        pyramid = encoder.feature_pyramid(torch.tensor(images))
        embeddings = encoder(torch.tensor(images))
    weights = arrays(encoder)
    expected_maps = nr.resnet_eval(images, arrays(encoder.cnn), depth)
    expected_pyramid = nr.cross_level_pyramid(*expected_maps, weights, cross_level)
    for got, expected in zip((*maps, *pyramid), (*expected_maps, *expected_pyramid), strict=True):
        CLOSE(got.numpy(), expected)
    for i, head in enumerate(("fc", "fc_1024", "fc_512")):
        pooled = nr.gem(expected_pyramid[i])
        expected = nr.l2(nr.linear(pooled, weights[f"{head}.weight"], weights[f"{head}.bias"]))
        CLOSE(embeddings[i].numpy(), expected)


# ---------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("lengths", [(3, 6, 1, 4), (2, 0, 5, 5), (0, 0, 0, 0)])
def test_bidirectional_gru(lengths):
    encoder = small_model().txt_enc
    tokens = small_batch(lengths=lengths).tokens
    got = encoder(tokens, torch.tensor(lengths)).detach().numpy()
    weights = arrays(encoder.sent_enc)
    words = arrays(encoder)["embed.weight"][tokens.numpy()]
    directions = recurrent(weights), recurrent(weights, "_reverse")
    CLOSE(got, nr.l2(nr.bidirectional_gru(words, np.array(lengths), *directions)))
    assert (got[np.array(lengths) == 0] == 0).all()


@pytest.mark.parametrize("pool_padding", [False, True])
def test_lstm(pool_padding):
    model = small_model(text_encoder="lstm", lstm_pool_padding=pool_padding)
    batch = small_batch()
    got = model.encode_text(batch.tokens, batch.lengths).detach().numpy()
    weights = arrays(model.txt_enc)
    words = weights["embed.weight"][batch.tokens.numpy()]
    parameters = recurrent(arrays(model.txt_enc.sent_enc.get_submodule("0")))
    pooled = nr.lstm_max(words, batch.lengths.numpy(), parameters, pool_padding)
    head = weights["sent_enc.2.weight"], weights["sent_enc.2.bias"]
    CLOSE(got, nr.l2(nr.linear(pooled, *head)))
    narrow = model.encode_text(batch.tokens[:, :5], batch.lengths).detach().numpy()
    assert np.allclose(narrow, got) != pool_padding  # the width matters only with padding pooled
    lengths = torch.tensor([3, 0, 1, 4])
    with_empty = model.encode_text(batch.tokens, lengths).detach().numpy()
    assert (with_empty[1] == 0).all()
    CLOSE(with_empty[[0, 2, 3]], got[[0, 2, 3]])


# --------------------------------------------------------------------------- scores and losses


def pyramids(levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    reference = nr.l2(normal(levels, B, D, seed=1))
    gallery = nr.l2(normal(levels, N, D, seed=2))
    return reference, nr.l2(normal(B, D, seed=3)), gallery


def numpy_branches(
    variant: str, weights: Mapping[str, np.ndarray], r: np.ndarray, m: np.ndarray, t: np.ndarray
) -> np.ndarray:
    """docs/method.md's table of variants: [K, L, B, N]; TIRG in evaluation mode."""
    levels = range(len(t))

    def affine(x: np.ndarray, name: str) -> np.ndarray:
        return nr.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attended(name: str) -> np.ndarray:
        layers = (f"{name}.attention.{index}.{kind}" for index in "02" for kind in WEIGHT_BIAS)
        return nr.attention(m, *(weights[key] for key in layers))

    def normalized(x: np.ndarray, name: str) -> np.ndarray:
        keys = (*WEIGHT_BIAS, "running_mean", "running_var")
        return nr.relu(nr.batch_norm_eval(x, *(weights[f"{name}.{key}"] for key in keys)))

    branches = []
    if variant in ("cmap", "em_only", "artemis"):
        transformed, a_m = nr.l2(affine(m, "Transform_m.0")), attended("Attention_EM")
        branches.append([nr.modified_scores(transformed, a_m, t[i]) for i in levels])
    if variant in ("cmap", "is_only", "artemis"):
        a_p = attended("Attention_IS")
        branches.append([nr.preserved_scores(a_p, r[i], t[i]) for i in levels])
    if variant == "tirg":
        x = np.concatenate([r[0], m], axis=1)
        gate = nr.sigmoid(affine(normalized(x, "tirg.gate.0"), "tirg.gate.2"))
        residual = affine(normalized(x, "tirg.res.0"), "tirg.res.2")
        residual = affine(nr.relu(residual), "tirg.res.4")
        a = weights["tirg.a"]
        branches.append([nr.l2(a[0] * gate * r[0] + a[1] * residual) @ t[0].T])
    queries = {"late_fusion": nr.l2(r + m), "text_only": np.stack([m] * len(t)), "image_only": r}
    if variant in queries:
        branches.append([queries[variant][i] @ t[i].T for i in levels])
    return np.array(branches)


WEIGHT_BIAS = ("weight", "bias")


@pytest.mark.parametrize("variant", tr.VARIANTS)
def test_scores(variant):
    model = small_model(variant).eval()
    reference, text, gallery = pyramids(model.num_levels)
    inputs = [torch.tensor(x) for x in (reference, text, gallery)]
    expected = numpy_branches(variant, arrays(model), reference, text, gallery)
    with torch.no_grad():
        CLOSE(model.scores_per_branch(*inputs).numpy(), expected)
        CLOSE(model.level_scores(*inputs).numpy(), expected.sum(axis=0))
        CLOSE(model.score(*inputs).numpy(), expected.sum(axis=(0, 1)))
    branches = 2 if variant in ("cmap", "artemis") else 1
    assert expected.shape == (branches, model.num_levels, B, N)


def test_scores_equal_the_two_product_form():
    model = small_model()
    reference, text, gallery = (torch.tensor(x) for x in pyramids(3))
    a_m, transformed = model.Attention_EM(text), model.transformed_text(text)
    t = gallery[0]
    product = (transformed * a_m) @ t.T / ((a_m**2) @ (t**2).T).sqrt()
    direct = model.scores_per_branch(reference, text, gallery)[0, 0]
    CLOSE(direct.detach().numpy(), product.detach().numpy())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_losses(alpha, reduction):
    scores, temperature = normal(B, B), 2.65926
    got = tt.matching_loss(torch.tensor(scores), torch.tensor(temperature, dtype=torch.float64))
    CLOSE(got.item(), nr.matching_loss(scores, temperature))
    text, transformed, target = nr.l2(normal(3, B, D))
    a_p = nr.softmax(normal(B, D, seed=9))
    values = []
    for margin in (0.6, 0.0, -5.0):
        settings = {"margin": margin, "alpha": alpha, "reduction": reduction}
        inputs = text, transformed, a_p, target
        got = tt.preservation_loss(*(torch.tensor(x) for x in inputs), **settings)
        CLOSE(got.item(), nr.preservation_loss(*inputs, **settings))
        values.append(got.item())
    assert values[0] > 0
    assert values[2] == 0


@pytest.mark.parametrize("variant", tr.VARIANTS)
def test_total_loss(variant):
    model = small_model(variant).eval()
    levels = model.num_levels
    reference, text, _ = pyramids(levels)
    target = nr.l2(normal(levels, B, D, seed=4))
    weights = arrays(model)
    scores = numpy_branches(variant, weights, reference, text, target).sum(axis=0)
    expected = sum(nr.matching_loss(scores[i], weights["temperature"]) for i in range(levels))
    if variant in ("cmap", "is_only"):
        layers = [f"Attention_IS.attention.{i}.{kind}" for i in "02" for kind in WEIGHT_BIAS]
        a_p = nr.attention(text, *(weights[key] for key in layers))
        for i, (weight, margin) in enumerate([(1, 0.6), (1, 0.4), (0.5, 0.3)]):
            part = nr.preservation_loss(text, None, a_p, target[i], margin=margin)
            expected += weight * part
    inputs = [torch.tensor(x) for x in (reference, text, target)]
    got = tt.total_loss(model, *inputs, tt.Objective())
    CLOSE(got.total.item(), expected)
    assert bool(got.preservation.any()) == (variant in ("cmap", "is_only"))
    without = tt.total_loss(model, *inputs, tt.Objective(preservation_weights=(0.0,) * 3))
    CLOSE(without.total.item(), without.matching.sum().item())


def test_mixing_without_a_transformed_text_is_refused():
    model = small_model("is_only")
    reference, text, _ = (torch.tensor(x) for x in pyramids(3))
    with pytest.raises(ValueError, match="alpha"):
        tt.total_loss(model, reference, text, reference, tt.Objective(alpha=0.5))


@pytest.mark.parametrize("variant", tr.VARIANTS)
def test_each_variant_has_only_what_it_needs(variant):
    model = small_model(variant)
    names = {name.split(".")[0] for name in model.state_dict()}
    expected = {"temperature", "img_enc"}
    expected |= {"txt_enc"} if variant != "image_only" else set()
    expected |= {"Transform_m", "Attention_EM"} if variant in ("cmap", "em_only") else set()
    expected |= {"Attention_IS"} if variant in ("cmap", "is_only") else set()
    if variant == "artemis":
        expected |= {"Transform_m", "Attention_EM", "Attention_IS"}
    expected |= {"tirg"} if variant == "tirg" else set()
    assert names == expected
    children = {name for name, _ in model.img_enc.named_children()}
    assert ("fc_512" in children) == ("smooth_28" in children) == (model.num_levels == 3)
    # Every parameter takes part in the loss.
    tt.set_stage(model, frozen=False)
    tt.batch_loss(model, small_batch(), tt.Objective()).total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# ------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("variant", ["cmap", "tirg"])
def test_gradients_against_finite_differences(variant):
    """One parameter entry of each kind, through both image passes and batch statistics."""
    model = small_model(variant)
    batch = small_batch()
    tt.set_stage(model, frozen=False)
    tt.batch_loss(model, batch, tt.Objective()).total.backward()
    step = 1e-6
    parameters = dict(model.named_parameters())
    chosen = ["temperature", "img_enc.cnn.layer3.0.bn1.weight", "img_enc.fc.weight"]
    chosen += ["txt_enc.embed.weight", "txt_enc.sent_enc.weight_hh_l0_reverse"]
    if variant == "cmap":
        chosen += ["Attention_EM.attention.0.weight", "Attention_IS.attention.2.weight"]
        chosen += ["img_enc.latlayer_14228.weight", "Transform_m.0.bias"]
    else:
        chosen += ["tirg.a", "tirg.gate.0.weight", "tirg.res.4.bias"]
    for name in chosen:
        parameter = parameters[name]
        entry = int(parameter.grad.abs().argmax())
        flat = parameter.data.view(-1)
        losses = []
        for sign in (1, -1):
            flat[entry] += sign * step
            with torch.no_grad():
                losses.append(tt.batch_loss(model, batch, tt.Objective()).total.item())
            flat[entry] -= sign * step
        expected = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(
            parameter.grad.view(-1)[entry].item(), expected, rtol=1e-4, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("clip", [None, 0.5])
def test_optimiser_is_adamw(clip):
    """Two steps on the same batch, replayed in NumPy from gradients taken afresh."""
    batch, rates = small_batch(), [1e-2, 5e-3]
    model = small_model()
    record = tt.train_steps(model, [batch] * 2, learning_rates=rates, frozen=False, clip=clip)
    replay = small_model()
    tt.set_stage(replay, frozen=False)
    states = {
        name: nr.AdamWState(p.detach().numpy().copy(), 0 * p.detach().numpy(), 0, 0)
        for name, p in replay.named_parameters()
    }
    for index, rate in enumerate(rates):
        replay.zero_grad()
        loss = tt.batch_loss(replay, batch, tt.Objective()).total
        loss.backward()
        CLOSE(record.losses[index], loss.item())
        gradients = {name: p.grad.numpy().copy() for name, p in replay.named_parameters()}
        if index == 0:
            for name, gradient in gradients.items():
                CLOSE(record.first_gradients[name].numpy(), gradient)
        if clip is not None:
            norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
            assert norm > clip
            gradients = {name: g * clip / norm for name, g in gradients.items()}
        for name, parameter in replay.named_parameters():
            states[name] = nr.adamw_step(states[name], gradients[name], rate)
            parameter.data.copy_(torch.tensor(states[name].parameter))
    for name, state in states.items():
        np.testing.assert_allclose(
            record.state_dict[name].numpy(), state.parameter, rtol=1e-7, atol=1e-9, err_msg=name
        )


@pytest.mark.parametrize("frozen_batch_norm", ["batch", "running"])
def test_frozen_stage(frozen_batch_norm):
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = small_batch()
    record = tt.train_steps(
        model, [batch], learning_rates=[1e-3], frozen=True, frozen_batch_norm=frozen_batch_norm
    )
    assert set(record.first_gradients) == {
        name for name in dict(model.named_parameters()) if not name.startswith(tt.FROZEN_PREFIXES)
    }
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, value in record.state_dict.items():
        if name.endswith(statistics):
            moves = frozen_batch_norm == "batch"
        else:
            moves = not name.startswith(tt.FROZEN_PREFIXES)
        assert torch.equal(value, before[name]) != moves, name
    # The first batch-norm: two updates, the references first.
    weights = {name: value.numpy() for name, value in before.items()}
    expected = [weights[f"img_enc.cnn.bn1.running_{kind}"] for kind in ("mean", "var")]
    if frozen_batch_norm == "batch":
        for images in (batch.reference, batch.target):
            x = nr.conv2d(images.numpy(), weights["img_enc.cnn.conv1.weight"], None, 2, 3)
            affine = [weights[f"img_enc.cnn.bn1.{kind}"] for kind in WEIGHT_BIAS]
            expected = nr.batch_norm_train(x, *affine, *expected)[1:]
    for kind, value in zip(("mean", "var"), expected, strict=True):
        CLOSE(record.state_dict[f"img_enc.cnn.bn1.running_{kind}"].numpy(), value)


def test_stepped_learning_rate():
    halvings = [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 2 + [6] * 2 + [7] * 2
    rates = [tt.stepped_learning_rate(epoch) for epoch in range(len(halvings))]
    np.testing.assert_allclose(rates, [5e-4 / 2**count for count in halvings], rtol=1e-15)


def test_single_precision_works():
    model = small_model().float()
    batch = small_batch()
    batch = batch._replace(reference=batch.reference.float(), target=batch.target.float())
    record = tt.train_steps(model, [batch] * 2, learning_rates=[1e-3] * 2, frozen=False)
    assert np.isfinite(record.losses).all()


# ------------------------------------------------------------------------- optional dependencies


def test_a_missing_module_skips_or_fails(monkeypatch):
    assert optional.require("json").dumps(1) == "1"
    monkeypatch.delenv("CMAP_REQUIRE_OPTIONAL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_module"):
        optional.require("no_such_module_anywhere")
    monkeypatch.setenv("CMAP_REQUIRE_OPTIONAL", "1")
    with pytest.raises(pytest.fail.Exception, match="no_such_module"):
        optional.require("no_such_module_anywhere")
