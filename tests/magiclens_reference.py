"""MagicLens' composer once more, in NumPy and float64, from arrays under the released names.

The names are those of `magic_lens_clip_base.pkl`, without ``params``; docs/method.md, section 10.
"""

import numpy as np
from flax.traverse_util import flatten_dict

_ENCODER, _POOLER = "multimodal_encoder", "contrastive_multimodal_pooler"


def _norm(arrays: dict, name: str, x: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return centered / deviation * (1 + arrays[f"{name}/scale"]) + arrays[f"{name}/bias"]


def _attend(arrays: dict, name: str, queries: list, tokens: list, scale) -> list:
    """One example: lists of vectors [D]; a loop over heads and positions."""

    def project(part: str, x: np.ndarray) -> np.ndarray:  # [D] -> [heads, width]
        w, b = arrays[f"{name}/{part}/w"], arrays[f"{name}/{part}/b"]
        return np.tensordot(x, w, axes=(0, 0)) + b

    keys = [project("key", token) for token in tokens]
    values = [project("value", token) for token in tokens]
    results = []
    for x in queries:
        query = project("query", x) * scale
        heads = []
        for head in range(len(query)):
            logits = np.array([50 * np.tanh(query[head] @ key[head] / 50) for key in keys])
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            heads.append(sum(w * value[head] for w, value in zip(weights, values, strict=True)))
        w, b = arrays[f"{name}/post/w"], arrays[f"{name}/post/b"]
        results.append(np.tensordot(w, np.stack(heads), axes=((1, 2), (0, 1))) + b)
    return results


def _layer(arrays: dict, name: str, tokens: list) -> list:
    width = arrays[f"{name}/self_attention/query/w"].shape[-1]
    normed = [_norm(arrays, f"{name}/layer_norm", token) for token in tokens]
    attended = _attend(arrays, f"{name}/self_attention", normed, normed, width**-0.5)
    tokens = [token + a for token, a in zip(tokens, attended, strict=True)]
    results = []
    for token in tokens:
        x = _norm(arrays, f"{name}/ff_layer/layer_norm", token)
        for part in ("ffn_layer1", "ffn_layer2"):
            linear = f"{name}/ff_layer/{part}"
            x = x @ arrays[f"{linear}/linear/w"] + arrays[f"{linear}/bias/b"]
            x = np.maximum(x, 0) if part == "ffn_layer1" else x
        results.append(token + x)
    return results


def embed(arrays: dict, pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return the embeddings of pictures' and texts' features, [B, D] each, as [B, D].

    Args:
        arrays: by released name, such as "multimodal_encoder/x_layers_0/layer_norm/scale".
        pictures: features of any norm.
        texts: features of any norm.
    """
    layers = {name.split("/")[1] for name in arrays if name.startswith(_ENCODER)}
    pool = f"{_POOLER}/pool_attn"
    width = arrays[f"{pool}/query/w"].shape[-1]
    softplus = np.log1p(np.exp(arrays[f"{pool}/per_dim_scale/per_dim_scale"]))
    rows = []
    for tokens in zip(pictures, texts, strict=True):
        for i in range(len(layers)):
            tokens = _layer(arrays, f"{_ENCODER}/x_layers_{i}", list(tokens))
        query = arrays[f"{_POOLER}/pooling_attn_query"][0]
        scale = 1.442695041 / np.sqrt(width) * softplus
        (pooled,) = _attend(arrays, pool, [query], tokens, scale)
        pooled = _norm(arrays, f"{_POOLER}/pool_attn_ln", pooled)
        rows.append(pooled / np.sqrt((pooled**2).sum() + 1e-12))
    return np.stack(rows)


def to_released(composer: dict) -> dict[str, np.ndarray]:
    """Return the parameters of our composer under the released names, float64."""
    flat = {path: np.asarray(x, np.float64) for path, x in flatten_dict(composer).items()}
    return {_released_name(path): x for path, x in flat.items()}


def _released_name(path: tuple[str, ...]) -> str:
    module, *rest = path
    if module == "pooling_query":
        return f"{_POOLER}/pooling_attn_query"
    if module == "pooler_norm":
        return f"{_POOLER}/pool_attn_ln/{rest[0]}"
    if module == "pooler":
        return f"{_POOLER}/pool_attn/{_attention_name(rest)}"
    name = f"{_ENCODER}/x_layers_{int(module.removeprefix('layer')) - 1}"
    part, *leaf = rest
    if part == "attention":
        return f"{name}/self_attention/{_attention_name(leaf)}"
    if part == "norm1":
        return f"{name}/layer_norm/{leaf[0]}"
    if part == "norm2":
        return f"{name}/ff_layer/layer_norm/{leaf[0]}"
    leaf_name = {"kernel": "linear/w", "bias": "bias/b"}[leaf[0]]
    return f"{name}/ff_layer/ffn_layer{part.removeprefix('fc')}/{leaf_name}"


def _attention_name(path: list[str]) -> str:
    if path[0] == "dimension_scale":
        return "per_dim_scale/per_dim_scale"
    if path[0] in ("out_kernel", "out_bias"):
        return f"post/{'w' if path[0] == 'out_kernel' else 'b'}"
    return f"{path[0]}/{'w' if path[1] == 'kernel' else 'b'}"
