"""Tensors that no weight can be are named with their file, and small floating point is widened."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from optional import require

from cmap_jax.convert import state_dict
from cmap_jax.convert.reference import infer_model_config, read_reference_checkpoint
from cmap_jax.convert.state_dict import WeightsError, check_numbers, read_state_dict

torch = require("torch")

_BASE = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
# Kinds of tensors that no weight can be: how one is made, and how it is refused.
_OTHERS = {
    "sparse": (lambda: _BASE.to_sparse(), "is a sparse tensor: save tensor.to_dense"),
    "rows": (lambda: _BASE.to_sparse_csr(), "is a sparse tensor: save tensor.to_dense"),
    "meta": (lambda: _BASE.to("meta"), "is a tensor of the device meta"),
    "quantized": (
        lambda: torch.quantize_per_tensor(_BASE, 0.1, 0, torch.qint8),
        "is a quantized tensor",
    ),
    "nested": (lambda: torch.nested.nested_tensor([_BASE[0], _BASE[1, :1]]), "is a nested tensor"),
    "complex32": (lambda: _BASE.to(torch.complex32), "is a tensor of complex numbers"),
}
_SMALL = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "bfloat16")


@pytest.mark.filterwarnings("ignore")  # PyTorch calls most of these kinds unfinished
@pytest.mark.parametrize("kind", _OTHERS)
def test_kinds_of_tensors_are_named(tmp_path, kind):
    make, message = _OTHERS[kind]
    tensor = make()
    path = tmp_path / "net.pth"
    torch.save({"a": _BASE, "b.weight": tensor}, path)
    with pytest.raises(WeightsError, match=rf"net\.pth: b\.weight {message}"):
        read_state_dict(path)
    torch.save({"model": {"a": _BASE, "b.weight": tensor}}, path)
    with pytest.raises(WeightsError, match=rf"net\.pth: b\.weight {message}"):
        read_reference_checkpoint(path)


@pytest.mark.parametrize("name", _SMALL)
def test_small_floating_point_is_widened(tmp_path, name):
    tensor = _BASE.to(getattr(torch, name))
    torch.save({"a": tensor.T}, tmp_path / "net.pth")
    array = read_state_dict(tmp_path / "net.pth")["a"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.float().T)
    array = state_dict.to_numpy({"a": tensor}, "net.pth")["a"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, tensor.float())


def test_views_that_negate(tmp_path):
    """PyTorch stores them as the numbers that they negate, and a mark."""
    torch.save({"a": torch._neg_view(_BASE)}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"net\.pth: a is a view that negates"):
        read_state_dict(tmp_path / "net.pth")
    array = state_dict.to_numpy({"a": torch._neg_view(_BASE)}, "net.pth")["a"]
    np.testing.assert_array_equal(array, -_BASE)


def _write_safetensors(path, kind: str, content: bytes, count: int = 2) -> None:
    about = {"b.weight": {"dtype": kind, "shape": [count], "data_offsets": [0, len(content)]}}
    header = json.dumps(about).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("BF16", ml_dtypes.bfloat16),
        ("F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("F8_E5M2", ml_dtypes.float8_e5m2),
        ("F8_E4M3FNUZ", ml_dtypes.float8_e4m3fnuz),
        ("F8_E5M2FNUZ", ml_dtypes.float8_e5m2fnuz),
    ],
)
def test_safetensors_of_small_floating_point(tmp_path, kind, dtype):
    _write_safetensors(tmp_path / "a.safetensors", kind, np.array([1, -2], dtype).tobytes())
    array = read_state_dict(tmp_path / "a.safetensors")["b.weight"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [1, -2])


@pytest.mark.parametrize(("kind", "size"), [("F8_E8M0", 4), ("F4", 2), ("F6_E2M3", 3)])
def test_safetensors_of_quantized_models(tmp_path, kind, size):
    _write_safetensors(tmp_path / "a.safetensors", kind, bytes(size), count=4)
    message = rf"a\.safetensors: b\.weight is of the type {kind}, .* not quantized"
    with pytest.raises(WeightsError, match=message):
        read_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(2, np.complex64), "b is a tensor of complex numbers"),
        (np.ones(2, np.int8), r"b has whole numbers \(int8\), .* not quantized"),
        (np.ones(2, bool), r"b has whole numbers \(bool\)"),
        (np.array([1, np.nan]), r"NaN or infinite: 1 \(b \(1 of 2\)\)"),
        (np.array([1, 1e39]), r"NaN or infinite: 1 \(b \(1 of 2\)\)"),  # exceeds float32
    ],
)
def test_numbers_that_no_weight_has(array, message):
    with pytest.raises(WeightsError, match=rf"net\.pth: .*{message}"):
        check_numbers({"a": np.ones(1, np.float32), "b": array}, "net.pth")


def test_complex_weights_do_not_lose_their_imaginary_part(tmp_path):
    torch.save({"b": _BASE.to(torch.complex64)}, tmp_path / "net.pth")
    assert read_state_dict(tmp_path / "net.pth")["b"].dtype == np.complex64
    _write_safetensors(tmp_path / "a.safetensors", "C64", np.ones(2, np.complex64).tobytes())
    assert read_state_dict(tmp_path / "a.safetensors")["b.weight"].dtype == np.complex64


@pytest.mark.parametrize(
    "name", ["img_enc.cnn.conv1.weight", "Transform_m.0.weight", "txt_enc.embed.weight"]
)
def test_a_width_of_0(name):
    state = {name: np.zeros((0, 3, 7, 7), np.float32)}
    with pytest.raises(WeightsError, match=rf"m\.pth: {name} is of the shape \(0, 3, 7, 7\)"):
        infer_model_config(state, "m.pth")
