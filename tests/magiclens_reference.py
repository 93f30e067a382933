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


def random_arrays(
    *,
    patch: int = 4,
    grid: int = 2,
    vision: tuple[int, int, int] = (8, 2, 2),
    text: tuple[int, int, int] = (6, 2, 2),
    positions: int = 9,
    vocabulary: int = 11,
    embed_dim: int = 8,
    layers: int = 2,
    heads: int = 2,
    seed: int | None = 0,
) -> dict[str, np.ndarray]:
    """Return arrays under the released names, of the sizes given.

    Args:
        patch: side of a patch, pixels.
        grid: patches along a side.
        vision: width, layers and heads of the vision tower.
        text: width, layers and heads of the text tower.
        positions: tokens of a text.
        vocabulary: number of token ids.
        embed_dim: width D of the features.
        layers: layers over the two features.
        heads: heads of their attentions.
        seed: of the random values; None for shapes alone, as arrays without memory.
    """
    shapes: dict[str, tuple[int, ...]] = {"clip/logit_scale": ()}

    def add(name: str, **parts: tuple[int, ...]) -> None:
        shapes.update({f"{name}/{part}": shape for part, shape in parts.items()})

    def tower(name: str, width: int, blocks: int, block_heads: int) -> None:
        each = (block_heads, width // block_heads)
        for i in range(blocks):
            block = f"{name}/transformer/resblocks_{i}"
            for norm in ("ln_1", "ln_2"):
                add(f"{block}/{norm}", scale=(width,), bias=(width,))
            for part in ("query", "key", "value"):
                add(f"{block}/attn/{part}", kernel=(width, *each), bias=each)
            add(f"{block}/attn/out", kernel=(*each, width), bias=(width,))
            add(f"{block}/mlp/c_fc", kernel=(width, 4 * width), bias=(4 * width,))
            add(f"{block}/mlp/c_proj", kernel=(4 * width, width), bias=(width,))

    def attention(name: str, width: int) -> None:
        each = (heads, width)
        for part in ("query", "key", "value"):
            add(f"{name}/{part}", w=(embed_dim, *each), b=each)
        add(f"{name}/post", w=(embed_dim, *each), b=(embed_dim,))

    width = vision[0]
    add("clip/visual/conv1", kernel=(patch, patch, 3, width))
    add("clip/visual", class_embedding=(width,), positional_embedding=(grid**2 + 1, width))
    add("clip/visual/ln_pre", scale=(width,), bias=(width,))
    tower("clip/visual", *vision)
    add("clip/visual/ln_post", scale=(width,), bias=(width,))
    add("clip/visual/proj", kernel=(width, embed_dim))
    width = text[0]
    add("clip/text/token_embedding", embedding=(vocabulary, width))
    add("clip/text", positional_embedding=(positions, width))
    tower("clip/text", *text)
    add("clip/text/ln_final", scale=(width,), bias=(width,))
    add("clip/text/text_projection", kernel=(width, embed_dim))
    for i in range(layers):
        layer = f"{_ENCODER}/x_layers_{i}"
        for norm in ("layer_norm", "ff_layer/layer_norm"):
            add(f"{layer}/{norm}", scale=(embed_dim,), bias=(embed_dim,))
        attention(f"{layer}/self_attention", embed_dim // heads)
        for number, (inputs, outputs) in enumerate(((1, 4), (4, 1)), 1):
            linear = f"{layer}/ff_layer/ffn_layer{number}"
            add(f"{linear}/linear", w=(inputs * embed_dim, outputs * embed_dim))
            add(f"{linear}/bias", b=(outputs * embed_dim,))
    attention(f"{_POOLER}/pool_attn", 4 * embed_dim // heads)
    add(f"{_POOLER}/pool_attn/per_dim_scale", per_dim_scale=(4 * embed_dim // heads,))
    add(f"{_POOLER}/pool_attn_ln", scale=(embed_dim,), bias=(embed_dim,))
    add(_POOLER, pooling_attn_query=(1, embed_dim))
    if seed is None:
        return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    rng = np.random.default_rng(seed)
    return {n: np.asarray(rng.normal(0, 0.5, s), np.float32) for n, s in shapes.items()}


def _clip_norm(arrays: dict, name: str, x: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5)
    return centered / deviation * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]


def _clip_blocks(arrays: dict, name: str, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Run all blocks over one sequence, [T, D]; ``mask`` [T, T] is added to the logits."""
    i = 0
    while f"{name}/transformer/resblocks_{i}/ln_1/scale" in arrays:
        block = f"{name}/transformer/resblocks_{i}"
        normed = _clip_norm(arrays, f"{block}/ln_1", x)
        query, key, value = (
            np.tensordot(normed, arrays[f"{block}/attn/{part}/kernel"], 1)
            + arrays[f"{block}/attn/{part}/bias"]
            for part in ("query", "key", "value")
        )
        mixed = np.zeros_like(query)
        for head in range(query.shape[1]):
            logits = query[:, head] @ key[:, head].T / np.sqrt(query.shape[2]) + mask
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ value[:, head]
        out = f"{block}/attn/out"
        x = x + np.tensordot(mixed, arrays[f"{out}/kernel"], 2) + arrays[f"{out}/bias"]
        hidden = _clip_norm(arrays, f"{block}/ln_2", x)
        hidden = hidden @ arrays[f"{block}/mlp/c_fc/kernel"] + arrays[f"{block}/mlp/c_fc/bias"]
        hidden = hidden / (1 + np.exp(-1.702 * hidden))
        hidden = hidden @ arrays[f"{block}/mlp/c_proj/kernel"]
        x = x + hidden + arrays[f"{block}/mlp/c_proj/bias"]
        i += 1
    return x


def picture_features(arrays: dict, images: np.ndarray) -> np.ndarray:
    """Return CLIP's features of normalised images, [B, H, W, 3] -> [B, D]."""
    kernel = arrays["clip/visual/conv1/kernel"]
    patch, rows = len(kernel), []
    for image in images:
        tokens = [arrays["clip/visual/class_embedding"]]
        for top in range(0, image.shape[0], patch):
            for left in range(0, image.shape[1], patch):
                pixels = image[top : top + patch, left : left + patch]
                tokens.append(np.tensordot(pixels, kernel, 3))
        x = np.stack(tokens) + arrays["clip/visual/positional_embedding"]
        x = _clip_norm(arrays, "clip/visual/ln_pre", x)
        x = _clip_blocks(arrays, "clip/visual", x, np.zeros((len(x), len(x))))
        pooled = _clip_norm(arrays, "clip/visual/ln_post", x[0])
        rows.append(pooled @ arrays["clip/visual/proj/kernel"])
    return np.stack(rows)


def text_features(arrays: dict, tokens: np.ndarray) -> np.ndarray:
    """Return CLIP's features of texts, [B, T] -> [B, D]; a text ends at its largest id."""
    rows = []
    for ids in tokens:
        x = arrays["clip/text/token_embedding/embedding"][ids]
        x = x + arrays["clip/text/positional_embedding"][: len(ids)]
        mask = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
        x = _clip_blocks(arrays, "clip/text", x, mask)
        x = _clip_norm(arrays, "clip/text/ln_final", x[ids.argmax()])
        rows.append(x @ arrays["clip/text/text_projection/kernel"])
    return np.stack(rows)
