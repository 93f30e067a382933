"""Weights of the PyTorch oracle -> our variables, for the parity tests.

The names are the release's, so `cmap_jax.convert` does the work; parity would fail if it erred.
"""

import flax
import jax
import numpy as np

from cmap_jax.convert.reference import reference_name
from cmap_jax.convert.torchvision import is_counter, to_our_layout
from cmap_jax.models.cmap import CMAP

# TIRG is no part of the release.
_TIRG = {
    ("mix",): "tirg.a",
    **{
        (ours, leaf): f"tirg.{theirs}.{name}"
        for ours, theirs, leaves in (
            ("gate_norm", "gate.0", ("scale", "bias", "mean", "var")),
            ("gate", "gate.2", ("kernel", "bias")),
            ("res_norm", "res.0", ("scale", "bias", "mean", "var")),
            ("res_hidden", "res.2", ("kernel", "bias")),
            ("res_out", "res.4", ("kernel", "bias")),
        )
        for leaf, name in zip(
            leaves, ("weight", "bias", "running_mean", "running_var"), strict=False
        )
    },
}


def _name(path: tuple[str, ...]) -> str:
    """Torch's name of one of our variables, given its path without the collection."""
    if path[0] == "composer" and path[1:] in _TIRG:
        return _TIRG[path[1:]]
    return reference_name(path)


def to_tree(model: CMAP, arrays: dict) -> dict:
    """Return a torch state dict (or gradients by name) as our variables, float dtype kept.

    Names without a variable of ours are an error; variables without a name are left out.
    """
    paths = flax.traverse_util.flatten_dict(
        jax.eval_shape(lambda: model.init(jax.random.key(0), **CMAP.example_inputs(64)))
    )
    ours = {_name(path[1:]): path for path in paths}
    flat = {}
    for name, value in arrays.items():
        if not is_counter(name):
            array = value.detach().numpy().copy()
            flat[ours[name]] = to_our_layout(ours[name], array)
    return flax.traverse_util.unflatten_dict(flat)


def relative_differences(ours, theirs) -> dict[str, float]:
    """Norm of the difference over norm, for every tensor of two trees with the same structure."""
    a = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, ours), sep="/")
    b = flax.traverse_util.flatten_dict(theirs, sep="/")
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    assert all(a[k].shape == b[k].shape for k in a)
    floor = 1e-300
    return {k: float(np.linalg.norm(a[k] - b[k]) / max(np.linalg.norm(b[k]), floor)) for k in a}
