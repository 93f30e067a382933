"""Impossible configs are refused before any data are read."""

import functools

import pytest
from small import one_device, small_config

from cmap_jax import sharding
from cmap_jax.training.check import check_config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train.batch_size", 0, r"config\.train\.batch_size must be 1 or more, not 0"),
        ("train.batch_size", 12, "batch_size=12 is not a multiple of the 8 devices"),
        ("eval.batch_size", 12, r"config\.eval\.batch_size=12"),
        ("train.micro_batch_size", 4, r"micro_batch_size=4 is not a multiple of the 8 devices"),
        ("train.micro_batch_size", 16, r"batch_size=8 is not a multiple of .*micro_batch_size=16"),
        ("model.image.resnet.batch_norm_groups", 3, r"3 parts of .*\.resnet\.batch_norm_groups"),
        ("mesh.data", 3, r"config\.mesh\.data=3 times config\.mesh\.fsdp=1 does not give the 8"),
        ("mesh.fsdp", 3, r"config\.mesh\.fsdp=3 does not give the 8 devices"),
        ("mesh.fsdp", 0, r"config\.mesh\.fsdp=0 must be 1 or more"),
        ("train.non_finite", "ignore", '"stop" or "skip", not .ignore.'),
        ("model.remat", "all", 'remat must be "none", "products" or "blocks"'),
        ("distributed.heartbeat_timeout_seconds", 0, r"heartbeat_timeout_seconds must be 1"),
        ("eval.every_epochs", 0, r"config\.eval\.every_epochs"),
        ("optimizer.learning_rate", float("inf"), r"learning_rate must be 0 or more, not inf"),
        ("optimizer.learning_rate", float("nan"), r"learning_rate must be 0 or more, not nan"),
        ("seed", -1, r"config\.seed must be 0 to 4294967295, not -1"),
        ("model.text.gru.word_dim", 0, r"config\.model\.text\.gru\.word_dim must be 1 or more"),
        ("loss.margins", (0.6, "x", 0.3), "must have 3 numbers"),
        ("loss.margins", (0.6,), "must have 3 numbers, for high, mid, low"),
        ("loss.preservation_reduction", "max", '"sum" or "mean"'),
        ("loss.preservation_reversal", "mirrored", '"released", "clipped" or "maximum"'),
        ("loss.preservation_start_steps", -1, "preservation_start_steps must be 0 or more, not -1"),
        ("loss.preservation_ramp_steps", -1, "preservation_ramp_steps must be 0 or more, not -1"),
        ("loss.entropy_floor", 1.5, r"config\.loss\.entropy_floor must be 0 to 1, not 1\.5"),
        ("loss.entropy_weight", -1.0, r"config\.loss\.entropy_weight must be 0 or more"),
        ("data.crop", 50, "config.data.crop must be a positive multiple of 32, got 50"),
        ("data.fit", "squash", "fit must be pad or crop or stretch"),
        ("data.crop", 96, "must not exceed resize"),
        ("optimizer.schedule", "linear", '"stepped" or "cosine"'),
        ("model.variant", "camp", r"config\.model\.variant"),
    ],
)
def test_impossible_fields(field, value, message):
    config = small_config()
    check_config(config)
    *parts, name = field.split(".")
    functools.reduce(lambda part, key: part[key], parts, config)[name] = value
    with pytest.raises(ValueError, match=message):
        check_config(config)


def test_a_floor_needs_a_preservation_attention():
    for variant in ("cmap", "artemis"):
        config = small_config(variant)
        config.loss.entropy_floor = 0.5
        if variant == "cmap":
            check_config(config)
            continue
        with pytest.raises(ValueError, match=r"entropy_floor is of the preservation .*artemis"):
            check_config(config)


def test_a_batch_of_one_triplet_has_nothing_to_learn_from(monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: one_device())
    config = small_config()
    config.train.batch_size = 1
    check_config(config, training=False)  # runs that an earlier version has trained so
    with pytest.raises(ValueError, match=r"batch_size is 1, .* set it to 2 or more"):
        check_config(config)
