"""Learning rates, weight decays and freezing by group, beside PyTorch's parameter groups."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optional import require
from small import init, small_config

from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from cmap_jax.models.encoders.entry import ImageEntry, Pictures, TextEntry
from cmap_jax.training import parameter_groups
from cmap_jax.training.check import check_config
from cmap_jax.training.optimizer import label_parameters, make_optimizer, make_schedule
from configs import fashioniq

LAYERS = 3
SHAPES = {
    "image_encoder/backbone/patch_embedding/kernel": (2, 2, 3, 4),
    "image_encoder/backbone/class_embedding": (4,),
    "image_encoder/backbone/position_embedding": (5, 4),
    "image_encoder/backbone/pre_norm/scale": (4,),
    "image_encoder/backbone/blocks/norm1/scale": (LAYERS, 4),
    "image_encoder/backbone/blocks/attention/query/kernel": (LAYERS, 4, 2, 2),
    "image_encoder/backbone/blocks/attention/query/bias": (LAYERS, 2, 2),
    "image_encoder/backbone/post_norm/bias": (4,),
    "image_encoder/backbone/projection/kernel": (4, 6),
    "image_encoder/head_high/kernel": (6, 6),
    "image_encoder/head_high/bias": (6,),
    "text_encoder/token_embedding": (7, 4),
    "text_encoder/blocks/mlp/fc1/kernel": (2, 4, 5),
    "text_encoder/blocks/mlp/fc1/bias": (2, 5),
    "text_encoder/projection/kernel": (4, 6),
    "text_encoder/extra/kernel": (4, 6),  # a head that is no part of the pretrained encoder
    "composer/mix": (2,),
    "logit_scale": (),
}
EMBEDDINGS = r"(patch|class|position|token)_embedding|pre_norm"


@pytest.fixture
def towers(monkeypatch):
    """A config whose encoders have stacks of layers; only their entries are there."""
    layers = (EMBEDDINGS, "blocks")
    picture = Pictures(multiple=1, mean=(0, 0, 0), std=(1, 1, 1))
    image = ImageEntry(build=None, settings={}, levels=("high",), pictures=picture, layers=layers)
    text = TextEntry(
        build=None,
        settings={},
        frozen=("token_embedding", "blocks", "projection"),
        layers=layers,
    )
    monkeypatch.setitem(IMAGE_ENCODERS, "tower", image)
    monkeypatch.setitem(TEXT_ENCODERS, "tower", text)
    return small_config(image_name="tower", text_name="tower")


def _params(dtype=np.float64) -> dict:
    rng = np.random.default_rng(0)
    flat = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _flat(tree) -> dict:
    return flax.traverse_util.flatten_dict(tree, sep="/")


def test_groups_and_kinds(towers):
    groups = _flat(parameter_groups.groups_of(_params(), towers))
    assert {n for n, g in groups.items() if g == "image"} == {
        name for name in SHAPES if name.startswith("image_encoder/backbone/")
    }
    assert {n for n, g in groups.items() if g == "text"} == {
        name for name in SHAPES if name.startswith("text_encoder/") and "extra" not in name
    }
    kinds = {
        name: parameter_groups.kind_of(name.split("/"), len(shape) - ("blocks" in name))
        for name, shape in SHAPES.items()
    }
    assert {name.split("/")[-1] for name, kind in kinds.items() if kind == "weights"} == {
        "kernel",
        "token_embedding",
    }
    others = {name: kind for name, kind in kinds.items() if kind != "weights"}
    assert others == {
        "image_encoder/backbone/class_embedding": "positions",
        "image_encoder/backbone/position_embedding": "positions",
        "image_encoder/backbone/pre_norm/scale": "norms",
        "image_encoder/backbone/blocks/norm1/scale": "norms",
        "image_encoder/backbone/blocks/attention/query/bias": "biases",
        "image_encoder/backbone/post_norm/bias": "norms",
        "image_encoder/head_high/bias": "biases",
        "text_encoder/blocks/mlp/fc1/bias": "biases",
        "composer/mix": "scalars",
        "logit_scale": "scalars",
    }


def _torch_groups(torch, params, config):
    """PyTorch's parameters by our names, one for each layer of a stack, each in its own group."""
    settings = config.optimizer
    exempt = ("bias", "scale", "position_embedding", "class_embedding", "mix")
    parameters, groups = {}, []
    for name, value in _flat(params).items():
        group = settings.groups.heads
        if name.startswith("image_encoder/backbone"):
            group, count = settings.groups.image, LAYERS
        elif name.startswith("text_encoder") and "extra" not in name:
            group, count = settings.groups.text, 2
        pieces = list(value) if "blocks" in name else [value]
        for number, piece in enumerate(pieces):
            below = 0
            if "blocks" in name:
                below = count - number
            elif any(part in name for part in ("patch_", "class_", "position_", "token_", "pre_")):
                below = count + 1
            layer_decay = group.layer_decay if below else 1.0
            parameter = torch.nn.Parameter(torch.tensor(piece))
            parameters.setdefault(name, []).append(parameter)
            is_exempt = settings.undecayed and (name.endswith(exempt) or "norm" in name)
            if group is settings.groups.heads and group.frozen:
                continue
            groups.append(
                {
                    "params": [parameter],
                    "factor": group.learning_rate * layer_decay**below,
                    "weight_decay": 0.0
                    if is_exempt
                    else settings.weight_decay * group.weight_decay,
                }
            )
    return parameters, groups


@pytest.mark.parametrize("heads_frozen", [False, True])
@pytest.mark.parametrize("undecayed", [(), parameter_groups.KINDS])
def test_updates_are_those_of_torch(towers, undecayed, heads_frozen, x64):
    """Four AdamW steps with clipping and a schedule, in float64: to 1e-12."""
    torch = require("torch")
    settings = towers.optimizer
    settings.undecayed, settings.clip_norm, settings.weight_decay = undecayed, 1.5, 0.3
    settings.groups.image.update(learning_rate=0.1, weight_decay=0.5, layer_decay=0.7)
    settings.groups.text.update(learning_rate=0.3, weight_decay=2.0, layer_decay=0.5)
    settings.groups.heads.update(learning_rate=2.0, weight_decay=0.25, frozen=heads_frozen)
    rates = [1e-2, 5e-3, 2e-3, 1e-3]
    params = jax.tree.map(jnp.asarray, _params())
    theirs, groups = _torch_groups(torch, _params(), towers)
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    trained = [p for group in adamw.param_groups for p in group["params"]]
    tx = make_optimizer(towers, lambda step: jnp.asarray(rates)[step])
    state = tx.init(params)
    update = jax.jit(tx.update)
    rng = np.random.default_rng(1)
    for rate in rates:
        gradients = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
        for name, parts in theirs.items():
            values = gradients[name] if "blocks" in name else [gradients[name]]
            for part, value in zip(parts, values, strict=True):
                part.grad = torch.tensor(value)
        norm = torch.sqrt(sum((p.grad**2).sum() for p in trained))
        assert norm > 1.5
        for parameter in trained:
            parameter.grad.mul_(1.5 / norm)
        for group in adamw.param_groups:
            group["lr"] = rate * group["factor"]
        adamw.step()
        tree = flax.traverse_util.unflatten_dict(gradients, sep="/")
        changes, state = update(jax.tree.map(jnp.asarray, tree), state, params)
        params = optax.apply_updates(params, changes)
    for name, value in _flat(params).items():
        parts = [part.detach().numpy() for part in theirs[name]]
        expected = np.stack(parts) if "blocks" in name else parts[0]
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14, err_msg=name)
        same = np.array_equal(value, _flat(_params())[name])
        is_head = name.startswith(("composer", "logit", "image_encoder/head", "text_encoder/extra"))
        assert same == (heads_frozen and is_head), name


@pytest.mark.slow
def test_the_defaults_change_no_bit():
    """Updates and the form of the state are those of `optax.adamw` without groups."""
    config = small_config(image_name="cells")
    config.model.image.frozen = True
    schedule = make_schedule(config, 2)
    settings = config.optimizer
    for clip_norm in (None, 0.1):
        settings.clip_norm = clip_norm
        plain = optax.adamw(
            schedule,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        if clip_norm is not None:
            plain = optax.chain(optax.clip_by_global_norm(clip_norm), plain)
        before = optax.partition(
            {"trained": plain, "frozen": optax.set_to_zero()},
            lambda params: label_parameters(params, config),
        )
        now = make_optimizer(config, schedule)
        params = init(config)[1]["params"]
        states = [before.init(params), now.init(params)]
        assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
        for seed in range(3):
            rng = np.random.default_rng(seed)
            gradients = jax.tree.map(
                lambda x, rng=rng: jnp.asarray(rng.normal(size=x.shape), x.dtype), params
            )
            results = [
                jax.jit(tx.update)(gradients, state, params)
                for tx, state in zip((before, now), states, strict=True)
            ]
            jax.tree.map(np.testing.assert_array_equal, *results)
            states = [state for _, state in results]
            params = optax.apply_updates(params, results[0][0])


def test_stages_of_a_resnet():
    config = small_config(image_depth=18)
    config.optimizer.groups.image.layer_decay = 0.5
    params = jax.eval_shape(lambda: init(config)[1])["params"]
    rates = _flat(parameter_groups.learning_rates(params, config))
    for name, rate in rates.items():
        distance = 0
        if "backbone/stem" in name:
            distance = 5
        elif "backbone/stage" in name:
            distance = 5 - int(name.partition("/stage")[2][0])
        assert rate == 0.5**distance, name


@pytest.mark.parametrize("name", ["clip_vit_b32", "siglip_b16"])
def test_layers_of_the_towers(name):
    """A stack has a rate for each of its blocks; what stands after the blocks has the group's."""
    config = fashioniq.get_config(f"debug,{name}")
    config.model.text.vocabulary_size = 100
    config.optimizer.groups.image.update(learning_rate=0.5, layer_decay=0.8)
    config.optimizer.groups.text.layer_decay = 0.5
    params = jax.eval_shape(lambda: init(config)[1])["params"]
    groups = _flat(parameter_groups.groups_of(params, config))
    for path, rate in _flat(parameter_groups.learning_rates(params, config)).items():
        part, _, inside = (
            path.replace("image_encoder/backbone/", "image:")
            .replace("text_encoder/", "text:")
            .rpartition(":")
        )
        assert groups[path] == (part or "heads"), path
        factor, decay = {"image": (0.5, 0.8), "text": (1.0, 0.5)}.get(part, (1.0, 1.0))
        if inside.startswith("blocks/"):
            np.testing.assert_allclose(np.ravel(rate), factor * decay ** np.array([3, 2, 1]))
            assert len(rate.shape) == len(_flat(params)[path].shape)
        elif "embedding" in inside or inside.startswith("pre_norm"):
            assert rate == pytest.approx(factor * decay**4), path
        else:
            assert rate == factor, path
    kinds = {
        path: parameter_groups.kind_of(path.split("/"), leaf.ndim - ("blocks" in path))
        for path, leaf in _flat(params).items()
    }
    assert {path.split("/")[-1] for path, kind in kinds.items() if kind == "weights"} == {
        "kernel",
        "token_embedding",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer.undecayed": ("norms", "bias")}, "undecayed names 'bias'; the kinds are bias"),
        (
            {"optimizer.groups.text.layer_decay": 0.9},
            "config.optimizer.groups.text.layer_decay must be 1: gru has no layers",
        ),
        (
            {
                "optimizer.groups.heads.frozen": True,
                "model.image.frozen": True,
                "model.text.frozen": True,
            },
            "nothing trains: config.model.image.frozen, ",
        ),
        ({"optimizer.groups.image.layer_decay": 1.5}, "layer_decay must be 1e-09 to 1, not 1.5"),
        ({"train.ema_decay": 1.0}, "config.train.ema_decay must be 0 to 0.999999999, not 1.0"),
    ],
)
def test_impossible_groups_are_refused(change, message):
    config = small_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=message):
        check_config(config)
