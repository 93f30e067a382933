"""torchvision's ResNets, from both kinds of file."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from optional import require
from small import init, small_config

from cmap_jax.convert import load_resnet
from cmap_jax.convert.state_dict import WeightsError
from cmap_jax.convert.torchvision import resnet_name
from cmap_jax.models.encoders.resnet import ResNet


def test_parity_with_torch(tmp_path):
    """A state dict with a classifier and counters gives torch's maps, at every depth."""
    torch = require("torch")
    import torch_reference as tr

    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    for depth in (18, 34, 50):
        torch.manual_seed(depth)
        theirs = tr.ResNet(depth, 8).eval()
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.3, 0.3)
        theirs.fc = torch.nn.Linear(8, 1000)
        assert any(name.endswith("num_batches_tracked") for name in theirs.state_dict())
        path = tmp_path / f"resnet{depth}.pth"
        torch.save(theirs.state_dict(), path)
        variables = load_resnet(path, depth=depth, width=8)
        maps = ResNet(depth, 8).apply(variables, jnp.asarray(images), train=False)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        for ours, other in zip(maps.values(), expected[::-1], strict=True):
            other = other.permute(0, 2, 3, 1).numpy()
            assert np.linalg.norm(ours - other) < 1e-4 * np.linalg.norm(other)

        half = tmp_path / "half.pth"
        torch.save({k: v.half() for k, v in theirs.state_dict().items()}, half)
        rounded = load_resnet(half, depth=depth, width=8)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), rounded, variables
        )


def write_safetensors(path, variables: dict) -> dict[str, np.ndarray]:
    """Write a backbone's variables under torchvision's names."""
    tensors = {"fc.weight": np.zeros((10, 4), np.float32)}
    for path_, array in flax.traverse_util.flatten_dict(jax.device_get(variables)).items():
        array = np.asarray(array)
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        tensors[resnet_name(path_[1:])] = np.ascontiguousarray(array)
    safetensors.numpy.save_file(tensors, path)
    return tensors


@pytest.fixture(scope="module")
def backbone():
    _, variables = init(small_config(), seed=5)
    return {c: variables[c]["image_encoder"]["backbone"] for c in ("params", "batch_stats")}


def test_safetensors(tmp_path, backbone):
    write_safetensors(tmp_path / "resnet18.safetensors", backbone)
    loaded = load_resnet(tmp_path / "resnet18.safetensors", depth=18, width=4)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(backbone))


def test_names_known_by_heart():
    """A few of torchvision's names, written out."""
    for path, name in (
        (("stem_conv", "kernel"), "conv1.weight"),
        (("stem_norm", "var"), "bn1.running_var"),
        (("stage1_block1", "conv2", "kernel"), "layer1.0.conv2.weight"),
        (("stage2_block4", "norm3", "scale"), "layer2.3.bn3.weight"),
        (("stage4_block1", "norm_shortcut", "mean"), "layer4.0.downsample.1.running_mean"),
    ):
        assert resnet_name(path) == name


def test_what_does_not_fit_is_listed(tmp_path, backbone):
    path = tmp_path / "net.safetensors"
    tensors = write_safetensors(path, backbone)
    with pytest.raises(WeightsError, match=r"missing: \d+ \(.*layer1\.2"):
        load_resnet(path, depth=34, width=4)
    with pytest.raises(WeightsError, match=r"of another shape: 100 \(.*\(4,\), not \(8,\)"):
        load_resnet(path, depth=18, width=8)
    safetensors.numpy.save_file({**tensors, "head.bias": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"unexpected: 1 \(head\.bias\)"):
        load_resnet(path, depth=18, width=4)
    broken = {**tensors, "bn1.bias": np.array([0, np.nan, 0, np.inf], np.float32)}
    safetensors.numpy.save_file(broken, path)
    with pytest.raises(WeightsError, match=r"NaN or infinite: 1 \(bn1\.bias \(2 of 4\)\)"):
        load_resnet(path, depth=18, width=4)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a safetensors file, or truncated"):
        load_resnet(path, depth=18, width=4)
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: no such file"):
        load_resnet(tmp_path / "none.safetensors", depth=18)
