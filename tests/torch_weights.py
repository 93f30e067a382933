"""Weights of the PyTorch oracle -> our variables, for the parity tests."""

import flax
import jax
import numpy as np
import torch_reference as tr

_TOP = {
    "img_enc.fc": "image_encoder/head_high",
    "img_enc.fc_1024": "image_encoder/head_mid",
    "img_enc.fc_512": "image_encoder/head_low",
    "img_enc.smooth_14": "image_encoder/interaction/smooth_mid",
    "img_enc.smooth_28": "image_encoder/interaction/smooth_low",
    "img_enc.latlayer_7214": "image_encoder/interaction/lateral_mid",
    "img_enc.latlayer_14228": "image_encoder/interaction/lateral_low",
    "img_enc.cnn.conv1": "image_encoder/backbone/stem_conv",
    "img_enc.cnn.bn1": "image_encoder/backbone/stem_norm",
    "txt_enc.sent_enc.fc": "text_encoder/head",
    "Transform_m.0": "composer/transform",
    "Attention_EM.attention.0": "composer/modification_attention/hidden",
    "Attention_EM.attention.2": "composer/modification_attention/out",
    "Attention_IS.attention.0": "composer/preservation_attention/hidden",
    "Attention_IS.attention.2": "composer/preservation_attention/out",
    "tirg.gate.0": "composer/gate_norm",
    "tirg.gate.2": "composer/gate",
    "tirg.res.0": "composer/res_norm",
    "tirg.res.2": "composer/res_hidden",
    "tirg.res.4": "composer/res_out",
}
_WHOLE = {
    "temperature": "logit_scale",
    "txt_enc.embed.weight": "text_encoder/word_embedding",
    "tirg.a": "composer/mix",
}
_LEAF = {
    "weight": "kernel",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}


def _module(name: str) -> str:
    """Our name of a torch module."""
    if name in _TOP:
        return _TOP[name]
    parts = name.split(".")  # img_enc.cnn.layer1.0.conv1 or ...layer1.0.downsample.0
    stage, block, rest = int(parts[2].removeprefix("layer")), int(parts[3]) + 1, parts[4:]
    leaf = {
        "conv1": "conv1",
        "conv2": "conv2",
        "conv3": "conv3",
        "bn1": "norm1",
        "bn2": "norm2",
        "bn3": "norm3",
        "downsample.0": "conv_shortcut",
        "downsample.1": "norm_shortcut",
    }[".".join(rest)]
    return f"image_encoder/backbone/stage{stage}_block{block}/{leaf}"


def our_name(name: str, value: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Return (collection/path, array in our layout) of an entry of a torch state dict."""
    if name.endswith("num_batches_tracked"):
        return None
    if name in _WHOLE:
        return f"params/{_WHOLE[name]}", value
    module, _, leaf = name.rpartition(".")
    if leaf.endswith(("_l0", "_l0_reverse")):
        cell = "lstm" if module.endswith("lstm") else "gru"
        direction = "backward" if leaf.endswith("reverse") else "forward"
        kind = leaf.removesuffix("_reverse").removesuffix("_l0")
        return f"params/text_encoder/{cell}/{direction}/{kind}", value.T
    path = _module(module)
    collection = "batch_stats" if leaf.startswith("running") else "params"
    ours = _LEAF[leaf]
    if ours == "kernel" and value.ndim == 1:
        ours = "scale"
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    elif value.ndim == 2:
        value = value.T
    return f"{collection}/{path}/{ours}", value


def to_tree(arrays: dict[str, "tr.torch.Tensor"]) -> dict:
    """Return a torch state dict (or gradients by name) as our variables, float dtype kept."""
    flat = dict(
        found
        for name, value in arrays.items()
        if (found := our_name(name, value.detach().numpy().copy())) is not None
    )
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def relative_differences(ours, theirs) -> dict[str, float]:
    """Norm of the difference over norm, for every tensor of two trees with the same structure."""
    a = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, ours), sep="/")
    b = flax.traverse_util.flatten_dict(theirs, sep="/")
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    assert all(a[k].shape == b[k].shape for k in a)
    floor = 1e-300
    return {k: float(np.linalg.norm(a[k] - b[k]) / max(np.linalg.norm(b[k]), floor)) for k in a}
