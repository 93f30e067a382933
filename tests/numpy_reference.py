"""The definitions of docs/method.md, sections 1 to 3, in float64 NumPy.

Loops stand where loops are clearer.

A second oracle that needs nothing but NumPy. Images are [B, C, H, W]; recurrent and linear weights
are in torch's layout ([out, in], gates stacked in torch's order), so that a torch state dict can be
used as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Weights = Mapping[str, Array]


def sigmoid(x: Array) -> Array:
    """Logistic function."""
    return 1.0 / (1.0 + np.exp(-x))


def relu(x: Array) -> Array:
    """``max(x, 0)``."""
    return np.maximum(x, 0.0)


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """[..., I], [O, I], [O] -> [..., O]."""
    return x @ weight.T + bias


def l2(x: Array) -> Array:
    """``x / max(||x||, 1e-12)`` on the last axis (docs/method.md, section 1)."""
    norm = np.sqrt((x**2).sum(axis=-1, keepdims=True))
    return x / np.maximum(norm, 1e-12)


# ------------------------------------------------------------------------------------ images


def gem(feature_map: Array) -> Array:
    """``mean(max(x, 1e-6)^3)^(1/3)`` over space: [B, C, H, W] -> [B, C]."""
    return (np.maximum(feature_map, 1e-6) ** 3).mean(axis=(2, 3)) ** (1.0 / 3.0)


def bilinear_down2(x: Array) -> Array:
    """Halve the size; half-pixel centres make it the mean of each 2x2 block.

    See docs/method.md, section 1.
    """
    even_rows, odd_rows = x[:, :, 0::2, :], x[:, :, 1::2, :]
    rows = (even_rows + odd_rows) / 2
    return (rows[..., 0::2] + rows[..., 1::2]) / 2


def _double_last_axis(x: Array) -> Array:
    """Output pixel o samples the input at ``(o + 0.5) / 2 - 0.5``, clamped to the edge."""
    size = x.shape[-1]
    out = np.zeros((*x.shape[:-1], 2 * size))
    for o in range(2 * size):
        position = max((o + 0.5) / 2 - 0.5, 0.0)
        left = int(np.floor(position))
        right = min(left + 1, size - 1)
        fraction = position - left
        out[..., o] = (1 - fraction) * x[..., left] + fraction * x[..., right]
    return out


def bilinear_up2(x: Array) -> Array:
    """Double the size, bilinear with half-pixel centres: [B, C, H, W] -> [B, C, 2H, 2W]."""
    wide = _double_last_axis(x)
    return _double_last_axis(wide.swapaxes(2, 3)).swapaxes(2, 3)


def conv2d(
    x: Array, weight: Array, bias: Array | None = None, stride: int = 1, padding: int = 0
) -> Array:
    """Cross-correlation: [B, I, H, W], [O, I, KH, KW] -> [B, O, H', W']."""
    kernel_h, kernel_w = weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out_h = (x.shape[2] - kernel_h) // stride + 1
    out_w = (x.shape[3] - kernel_w) // stride + 1
    out = np.zeros((x.shape[0], weight.shape[0], out_h, out_w))
    for i in range(kernel_h):
        for j in range(kernel_w):
            rows = slice(i, i + stride * (out_h - 1) + 1, stride)
            columns = slice(j, j + stride * (out_w - 1) + 1, stride)
            out += np.einsum("bihw,oi->bohw", x[:, :, rows, columns], weight[:, :, i, j])
    return out if bias is None else out + bias[None, :, None, None]


def max_pool_3x3_stride_2(x: Array) -> Array:
    """3x3 maximum, stride 2, padding 1 (which never wins)."""
    out_h, out_w = (x.shape[2] - 1) // 2 + 1, (x.shape[3] - 1) // 2 + 1
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    out = np.zeros((*x.shape[:2], out_h, out_w))
    for i in range(out_h):
        for j in range(out_w):
            window = x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            out[:, :, i, j] = window.max(axis=(2, 3))
    return out


class BatchNormResult(NamedTuple):
    """Output and the running statistics after the update."""

    output: Array
    running_mean: Array
    running_var: Array


def batch_norm_train(
    x: Array,
    scale: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> BatchNormResult:
    """Batch-norm of [B, C, H, W] or [B, C] by its own statistics.

    See docs/method.md, sections 1 and 3.

    It normalises by the biased variance; the running variance moves to the unbiased one.
    """
    axes = (0, *range(2, x.ndim))
    count = x.size // x.shape[1]
    mean = x.mean(axis=axes)
    biased = ((x - _per_channel(mean, x)) ** 2).mean(axis=axes)
    unbiased = biased * count / (count - 1)
    return BatchNormResult(
        batch_norm_eval(x, scale, bias, mean, biased, eps),
        (1 - momentum) * running_mean + momentum * mean,
        (1 - momentum) * running_var + momentum * unbiased,
    )


def batch_norm_eval(
    x: Array, scale: Array, bias: Array, mean: Array, var: Array, eps: float = 1e-5
) -> Array:
    """Batch-norm of [B, C, H, W] or [B, C] by given statistics [C]."""
    normalized = (x - _per_channel(mean, x)) / np.sqrt(_per_channel(var, x) + eps)
    return normalized * _per_channel(scale, x) + _per_channel(bias, x)


def _per_channel(value: Array, x: Array) -> Array:
    return value.reshape(1, -1, *([1] * (x.ndim - 2)))


def resnet_eval(images: Array, weights: Weights, depth: int) -> tuple[Array, Array, Array]:
    """ResNet-18, -34 or -50 (v1.5) by running statistics, torchvision's names -> C3, C4, C5."""

    def conv(x: Array, name: str, stride: int = 1, padding: int = 0) -> Array:
        return conv2d(x, weights[f"{name}.weight"], stride=stride, padding=padding)

    def norm(x: Array, name: str) -> Array:
        keys = ("weight", "bias", "running_mean", "running_var")
        return batch_norm_eval(x, *(weights[f"{name}.{key}"] for key in keys))

    def block(x: Array, name: str, stride: int) -> Array:
        if depth == 50:
            y = relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
            y = relu(norm(conv(y, f"{name}.conv2", stride, padding=1), f"{name}.bn2"))
            y = norm(conv(y, f"{name}.conv3"), f"{name}.bn3")
        else:
            y = relu(norm(conv(x, f"{name}.conv1", stride, padding=1), f"{name}.bn1"))
            y = norm(conv(y, f"{name}.conv2", padding=1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in weights:
            x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return relu(y + x)

    x = relu(norm(conv(images, "conv1", stride=2, padding=3), "bn1"))
    x = max_pool_3x3_stride_2(x)
    stages = []
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[depth]
    for stage, count in enumerate(counts, start=1):
        for index in range(count):
            x = block(x, f"layer{stage}.{index}", stride=2 if stage > 1 and index == 0 else 1)
        stages.append(x)
    return stages[1], stages[2], stages[3]


def cross_level_pyramid(
    c3: Array, c4: Array, c5: Array, weights: Weights, cross_level: str
) -> tuple[Array, Array, Array]:
    """(P5, P4, P3) of docs/method.md, section 1.

    `weights` has latlayer_7214, latlayer_14228, smooth_14 and smooth_28.
    """

    def conv(x: Array, name: str, padding: int) -> Array:
        return conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    if cross_level == "none":
        return c5, c4, c3
    if cross_level == "down":
        p4 = conv(bilinear_down2(c4) + conv(c5, "latlayer_7214", 0), "smooth_14", 1)
        p3 = conv(bilinear_down2(c3) + conv(c4, "latlayer_14228", 0), "smooth_28", 1)
        return c5, p4, p3
    m4 = c4 + bilinear_up2(conv(c5, "latlayer_7214", 0))
    m3 = c3 + bilinear_up2(conv(m4, "latlayer_14228", 0))
    return c5, conv(m4, "smooth_14", 1), conv(m3, "smooth_28", 1)


# -------------------------------------------------------------------------------------- text


class Recurrent(NamedTuple):
    """One direction of a GRU (G = 3: r, z, n) or an LSTM (G = 4: i, f, g, o), H hidden units."""

    weight_ih: Array  # [G H, E]
    weight_hh: Array  # [G H, H]
    bias_ih: Array  # [G H]
    bias_hh: Array  # [G H]


def gru_final_state(words: Array, p: Recurrent) -> Array:
    """Words of one sentence [T, E], in the order to read them -> the last state [H]."""
    h = np.zeros(p.weight_hh.shape[1])
    for x in words:
        ir, iz, inn = np.split(p.weight_ih @ x + p.bias_ih, 3)
        hr, hz, hn = np.split(p.weight_hh @ h + p.bias_hh, 3)
        r = sigmoid(ir + hr)
        z = sigmoid(iz + hz)
        n = np.tanh(inn + r * hn)
        h = (1 - z) * n + z * h
    return h


def bidirectional_gru(
    words: Array, lengths: Array, forward: Recurrent, backward: Recurrent
) -> Array:
    """Final forward ++ final backward state over the valid words: [B, T, E], [B] -> [B, 2H].

    The text encoder's l2 comes after it. A sentence of length 0 gives zeros.
    """
    result = []
    for sentence, length in zip(words, lengths, strict=True):
        valid = sentence[: int(length)]
        states = [gru_final_state(valid, forward), gru_final_state(valid[::-1], backward)]
        result.append(np.concatenate(states))
    return np.stack(result)


def lstm_states(words: Array, p: Recurrent) -> Array:
    """Words of one sentence [T, E] -> every state h [T, H]."""
    h = c = np.zeros(p.weight_hh.shape[1])
    states = []
    for x in words:
        gates = p.weight_ih @ x + p.bias_ih + p.weight_hh @ h + p.bias_hh
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


def lstm_max(words: Array, lengths: Array, p: Recurrent, pool_padding: bool = False) -> Array:
    """Maximum of the states over the valid words, or over the whole array: [B, T, E] -> [B, H].

    The text encoder's linear layer and l2 come after it. Lengths must be above 0.
    """
    result = []
    for sentence, length in zip(words, lengths, strict=True):
        read = sentence if pool_padding else sentence[: int(length)]
        result.append(lstm_states(read, p).max(axis=0))
    return np.stack(result)


# ------------------------------------------------------------------------ attention and scores


def softmax(x: Array) -> Array:
    """Softmax of the last axis."""
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def attention(text: Array, w1: Array, b1: Array, w2: Array, b2: Array) -> Array:
    """``softmax_D(W2 relu(W1 m + b1) + b2)`` (docs/method.md, section 1): [B, D] -> [B, D]."""
    return softmax(linear(relu(linear(text, w1, b1)), w2, b2))


def modified_scores(transformed: Array, a_m: Array, gallery: Array) -> Array:
    """``< T, l2(A_m * t) >``: [B, D], [B, D], [N, D] -> [B, N], by the B x N x D tensor."""
    return np.einsum("bd,bnd->bn", transformed, l2(a_m[:, None, :] * gallery[None, :, :]))


def preserved_scores(a_p: Array, reference: Array, gallery: Array) -> Array:
    """``< l2(A_p * r), l2(A_p * t) >``: [B, D], [B, D], [N, D] -> [B, N]."""
    attended = l2(a_p[:, None, :] * gallery[None, :, :])
    return np.einsum("bd,bnd->bn", l2(a_p * reference), attended)


# -------------------------------------------------------------------------------------- losses


def matching_loss(scores: Array, temperature: float) -> float:
    """Mean over b of ``-log softmax(exp(tau) S_b)[b]``, scores [B, B]..

    See docs/method.md, section 2.
    """
    logits = np.exp(temperature) * scores
    total = 0.0
    for b, row in enumerate(logits):
        log_sum = row.max() + np.log(np.exp(row - row.max()).sum())
        total += log_sum - row[b]
    return float(total / len(logits))


def preservation_loss(
    text: Array,
    transformed: Array | None,
    a_p: Array,
    target: Array,
    *,
    margin: float,
    alpha: float = 1.0,
    reduction: str = "sum",
) -> float:
    """Self-contrastive preservation of one level (docs/method.md, section 2); all arrays [B, D]."""
    hinges = []
    for b in range(len(text)):
        a_r = 2 * a_p[b].mean() - a_p[b]
        preserved, reversed_ = l2(a_p[b] * target[b]), l2(a_r * target[b])
        g = text[b] if alpha == 1.0 else alpha * text[b] + (1 - alpha) * transformed[b]
        hinges.append(max(0.0, margin + g @ preserved - g @ reversed_))
    return float({"sum": np.sum, "mean": np.mean}[reduction](hinges))


# ------------------------------------------------------------------------------------ optimiser


class AdamWState(NamedTuple):
    """A parameter with its moments and the number of updates made."""

    parameter: Array
    first: Array
    second: Array
    step: int


def adamw_step(
    state: AdamWState,
    gradient: Array,
    learning_rate: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> AdamWState:
    """One AdamW update: decay by ``lr * weight_decay``, then the Adam step."""
    step = state.step + 1
    first = betas[0] * state.first + (1 - betas[0]) * gradient
    second = betas[1] * state.second + (1 - betas[1]) * gradient**2
    direction = (first / (1 - betas[0] ** step)) / (np.sqrt(second / (1 - betas[1] ** step)) + eps)
    decayed = state.parameter * (1 - learning_rate * weight_decay)
    return AdamWState(decayed - learning_rate * direction, first, second, step)
